//! A load: open, read what the file says of itself, plan, bring the bytes in, hand out.

use crate::{
    address,
    buffers::Buffers,
    choice::{choose, Choice, Wish, LARGE},
    error::{Error, OutOfMemory, Result},
    facts::facts,
    format::{dtype::is_floating, Malformed},
    memory::Region,
    pipeline,
    placement::{spread, Home, Placement, Spread},
    plan::{Plan, Tensor, SEGMENT_LEN},
    processors::processors,
    select::{select, Selection},
    storage::{self, inflated::Inflated, Source, Storage, FIRST_OF_HEADER},
    targets::Targets,
    threads::{self, Ready},
    watch::Watch,
    ways::{uring, Job, Way},
};
use describe::forget_header;
use std::{io, path::Path};

mod describe;

pub use describe::read_header;
pub(crate) use describe::{describe, read_header_of, Described};

/// Upper bound of reader threads unless the caller says otherwise.
pub const DEFAULT_NUM_THREAD: usize = 32;

/// What is to be loaded, and how.
#[derive(Clone)]
#[allow(clippy::struct_excessive_bools)] // each is a parameter of its own
pub(crate) struct Request<'a> {
    pub wish: Wish,
    pub selection: Selection,
    /// Describes the tensors without reading one: the region is empty.
    pub header_only: bool,
    /// Tells how the values of a PyTorch file are nested, instead of naming its tensors.
    pub structured: bool,
    /// The only version of the file that is wanted, if it is not any.
    pub version: Option<&'a str>,
    /// Whether the names that the metadata of a safetensors file has for a stored tensor stand for it.
    pub restore_aliases: bool,
    /// Leaves out what a PyTorch file holds of unknown classes, instead of refusing it.
    pub skip_unknown: bool,
    /// Where the tensors are wanted.
    pub placement: &'a Placement,
    /// Devices, if some are wanted there.
    pub targets: &'a dyn Targets,
    pub storage: &'a storage::Options,
    pub buffers: &'a Buffers,
    pub watch: &'a Watch<'a>,
}

/// A loaded file: what its tensors are, and the memory they lie in.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub storages: Vec<Home>,
    pub tensors: Vec<Tensor>,
    /// Which tensor each name stands for; aliases stand for the same.
    pub names: Vec<(String, usize)>,
    /// The values of a PyTorch file, if they were asked for.
    pub structure: Option<Structure>,
    /// Which version of the file it is; empty unless the header alone was read.
    pub version: String,
    pub region: Region,
}

/// What the values of a PyTorch file are.
#[derive(Debug, Default)]
pub(crate) struct Structure {
    /// A pickle that builds them, and can do nothing else.
    pub pickle: Vec<u8>,
    /// The devices that the tensors were saved from, as JSON.
    pub locations: String,
}

/// Loads what is wanted of `path`.
pub(crate) fn load(path: &Path, request: &Request<'_>) -> Result<Loaded> {
    let file = open(path, request)?;
    if request.version.is_some_and(|version| version != file.version()) {
        return Err(Error::errno_of("load", path, libc::ESTALE));
    }
    let others = others(&*file, request);
    threads::with_ready(others, |ready| load_from(&*file, path, request, ready))
}

/// How many threads beside the caller's will be wanted at once if the file is mapped whole, which
/// takes hardly longer than it takes threads to begin. Other ways take much longer.
fn others(file: &dyn Source, request: &Request<'_>) -> usize {
    let is_whole = request.selection.is_everything() && !request.header_only;
    let is_near = file.local().is_some() && file.file_system().storage != Storage::Remote;
    if !is_whole || !is_near || file.len() < LARGE {
        return 0;
    }
    let segments = usize::try_from(file.len() / SEGMENT_LEN).unwrap_or(usize::MAX);
    processors().min(request.wish.num_thread).min(segments).saturating_sub(1)
}

fn load_from(
    file: &dyn Source,
    path: &Path,
    request: &Request<'_>,
    ready: Ready<'_>,
) -> Result<Loaded> {
    let Described { again, plan, names, structure, deflated, .. } = wanted(file, path, request)?;
    if request.header_only {
        forget_header(file, again);
        // No device but one: that of tensors without bytes.
        let placement = Placement { dtype: request.placement.dtype, ..Placement::default() };
        let spread = spread_out(path, plan, names, &placement, structure.is_some())?;
        let version = file.version();
        return Ok(Loaded { version, ..loaded(spread, structure, Region::default()) });
    }
    let inflated = Inflated::of(file, deflated);
    let file = inflated.as_ref().map_or(file, |inflated| inflated as &dyn Source);
    let choice = chosen(file, &plan, again, request);
    let mut spread = spread_out(path, plan, names, request.placement, structure.is_some())?;
    pipeline::allocate(&spread.parcels, request.targets)
        .map_err(|refused| refused_by_device(file, &spread, refused))?;

    let job = job(file, &choice, request, ready);
    request.watch.begin(spread.byte_len());
    let region = match Region::of(&job, &spread.stay, choice.way) {
        // Addresses may be limited, and a part of a large file is given as many as the whole.
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) && spread.gather() => {
            Region::of(&job, &spread.stay, choice.way)
        }
        result => result,
    };
    let region = region.map_err(|error| failed(file, error))?;
    if !spread.parcels.is_empty() {
        pipeline::run(&job, choice.way, &spread.parcels, request.targets)
            .map_err(|refused| refused_by_device(file, &spread, refused))?;
    }
    request.watch.finish();
    Ok(loaded(spread, structure, region))
}

pub(crate) fn loaded(spread: Spread, structure: Option<Structure>, region: Region) -> Loaded {
    let Spread { homes: storages, tensors, names, .. } = spread;
    // Whoever builds the values knows where each tensor belongs.
    let names = if structure.is_some() { Vec::new() } else { names };
    Loaded { storages, tensors, names, structure, version: String::new(), region }
}

fn spread_out(
    path: &Path,
    plan: Plan,
    names: Vec<(String, usize)>,
    placement: &Placement,
    in_order: bool,
) -> Result<Spread> {
    if placement.is_plain() {
        return Ok(Spread::of_one(plan, names));
    }
    spread(&plan, names, placement, in_order).map_err(|refused| argument(path, refused))
}

/// What a device says of one of the tensors, or of all.
pub(crate) fn refused_by_device(
    file: &dyn Source,
    spread: &Spread,
    refused: pipeline::Failed,
) -> Error {
    use pipeline::Failed;

    let path = file.name();
    let name_of = |parcel: usize| {
        let tensor = spread.parcels[parcel].tensor;
        spread.names.iter().find(|(_, named)| *named == tensor).map(|(name, _)| name)
    };
    let (error, parcel) = match refused {
        Failed::OutOfMemory(parcel, reason) => (Error::out_of_memory(path, reason), Some(parcel)),
        Failed::Target(parcel, error) => (Error::device("load", path, error), Some(parcel)),
        Failed::Device(error) => match error.downcast::<OutOfMemory>() {
            Ok(OutOfMemory(reason)) => (Error::out_of_memory(path, reason), None),
            Err(error) => (Error::device("load", path, error), None),
        },
        Failed::Source(error) => (failed(file, error), None),
    };
    match parcel.and_then(name_of) {
        Some(name) => error.with_tensor(name),
        None => error,
    }
}

/// Says in a sentence which way [`load`] would take, and why.
pub(crate) fn explain(path: &Path, request: &Request<'_>) -> Result<String> {
    let file = open(path, request)?;
    let Described { again, plan, .. } = wanted(&*file, path, request)?;
    let Choice { way, num_thread, reason, .. } = chosen(&*file, &plan, again, request);
    let how = match way {
        _ if file.is_sequential() => "read out of one answer",
        _ if file.file_system().storage == Storage::Object => "read by range",
        Way::Map => "mapped and populated",
        Way::Read => "read through the page cache",
        Way::Direct => "read past the page cache",
        Way::Uring if uring::is_allowed() => "read past the page cache with io_uring",
        Way::Uring => "read past the page cache (io_uring is refused)",
    };
    let bytes = plan.byte_len();
    forget_header(&*file, again);
    Ok(format!(
        "{}: {way}, {bytes} bytes {how}, {num_thread} at a time, because {reason}",
        address::printable(path),
        way = way.name(),
    ))
}

/// Opens what is to be loaded.
pub(crate) fn open(path: &Path, request: &Request<'_>) -> Result<Box<dyn Source>> {
    if request.wish.num_thread == 0 {
        return Err(Error::argument("load", path, "num_thread must be at least 1"));
    }
    if request.placement.dtype.is_some_and(|dtype| !is_floating(dtype)) {
        return Err(Error::argument("load", path, "dtype must be one of floating point"));
    }
    let is_whole = request.selection.is_everything() && !request.header_only;
    let first = if is_whole { request.storage.first } else { FIRST_OF_HEADER };
    storage::open(path, &storage::Options { first, ..request.storage.clone() }, request.watch)
}

/// What `file` holds of what is wanted.
fn wanted(file: &dyn Source, path: &Path, request: &Request<'_>) -> Result<Described> {
    let &Request { structured, placement, .. } = request;
    let selection = &request.selection;
    if selection.is_everything() {
        return describe(file, structured, !placement.is_plain(), request);
    }
    let Described { again, plan, names, deflated, .. } = describe(file, false, true, request)?;
    let (plan, names) =
        select(&plan, names, selection).map_err(|refused| argument(path, refused))?;
    Ok(Described { again, plan, names, alias_count: 0, structure: None, deflated })
}

/// What was asked of a file that is well formed.
pub(crate) fn argument(path: &Path, refused: Malformed) -> Error {
    let error = Error::argument("load", path, refused.reason);
    match refused.tensor {
        Some(name) => error.with_tensor(&name),
        None => error,
    }
}

fn job<'a>(
    file: &'a dyn Source,
    choice: &Choice,
    request: &Request<'a>,
    ready: Ready<'a>,
) -> Job<'a> {
    let &Request { buffers, watch, .. } = request;
    let &Choice { num_thread, segment_len, is_cached, .. } = choice;
    Job { file, ready, num_thread, segment_len, is_cached, buffers, watch }
}

pub(crate) fn chosen(file: &dyn Source, plan: &Plan, again: bool, request: &Request<'_>) -> Choice {
    let facts = facts(file, plan, again);
    if !file.is_sequential() {
        return choose(request.wish, &facts);
    }
    let reason = "the server sends no ranges of one version".to_owned();
    let wish = Wish { num_thread: 1, ..request.wish };
    Choice { reason, ..choose(wish, &facts) }
}

/// The failure of a way to bring in bytes of `file`.
pub(crate) fn failed(file: &dyn Source, error: io::Error) -> Error {
    Error::io("read", file.name(), error)
}
