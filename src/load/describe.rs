//! What a file says of itself: a safetensors header, or the archive of PyTorch.

use super::{Request, Structure};
use crate::{
    error::{Error, Kind, Result},
    facts::is_begun,
    format::{
        alias,
        archive::{is_pytorch, Archive},
        identify,
        inflate::Deflated,
        safetensors::{Header, TensorInfo, LENGTH_BYTES},
        steps::Steps,
        Malformed, Refusal, Unreadable,
    },
    plan::Plan,
    scattered,
    storage::{self, Source, FIRST_OF_HEADER},
    watch::{Stopped, Watch},
};
use std::{ops::Range, path::Path};

/// How much of a file is read at first, in bytes: the header of most checkpoints fits.
const PREFIX_LEN: u64 = 64 << 10;

/// Reads and checks the header of a safetensors file; nothing else of the file is touched.
///
/// # Errors
/// A file that cannot be opened or read, or whose header is malformed ([`Kind::Format`]).
///
/// [`Kind::Format`]: crate::Kind::Format
///
/// ```
/// # fn main() -> Result<(), veturboio::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// # let weight = tch::Tensor::zeros([4, 3], (tch::Kind::BFloat16, tch::Device::Cpu));
/// # veturboio::save([("weight", weight)], &path)?;
/// let header = veturboio::read_header(&path)?;
/// let weight = &header.tensors()[0];
/// assert_eq!((weight.name(), weight.shape()), ("weight", &[4, 3][..]));
/// assert_eq!(weight.dtype().name(), "BF16");
/// # Ok(())
/// # }
/// ```
pub fn read_header(file: impl AsRef<Path>) -> Result<Header> {
    let watch = Watch::default();
    read_header_of(file.as_ref(), &storage::Options::default(), &watch)
}

/// The same with options of the storage.
pub(crate) fn read_header_of(
    path: &Path,
    options: &storage::Options,
    watch: &Watch<'_>,
) -> Result<Header> {
    let options = storage::Options { first: FIRST_OF_HEADER, ..options.clone() };
    let file = storage::open(path, &options, watch)?;
    let again = is_begun(&*file);
    let header = prefix_of(&*file, watch).and_then(|prefix| {
        if is_pytorch(&prefix) {
            return Err(no_header(&*file, watch));
        }
        header_of(&*file, prefix, watch)
    });
    forget_header(&*file, again);
    header
}

/// Why what begins like a PyTorch file has no header: it is one, or its own fault.
fn no_header(file: &dyn Source, watch: &Watch<'_>) -> Error {
    let reason = "file is one of PyTorch, and safetensors files alone have a header with metadata";
    let asked = || {
        watch.look();
        watch.check().is_err()
    };
    match archive_of(file, 1, false, &Steps::new(&asked), watch) {
        Err(error) if error.kind() != Kind::Unsupported => error,
        _ => Error::format(file.name(), Malformed::new(reason)),
    }
}

/// The header of a safetensors file, the first bytes of which are read already.
fn header_of(source: &dyn Source, prefix: Vec<u8>, watch: &Watch<'_>) -> Result<Header> {
    let len = source.len();
    let refused = |prefix: &[u8], malformed| {
        Error::format(source.name(), identify::refusal(prefix, len, malformed))
    };
    let end = match Header::json_len(&prefix, len) {
        Ok(json_len) => LENGTH_BYTES + json_len,
        Err(malformed) => return Err(refused(&prefix, malformed)),
    };
    let (already, mut bytes) = (prefix.len() as u64, prefix);
    if already < end {
        bytes.extend(read(source, already..end, watch)?);
    }
    Header::parse(&bytes[LENGTH_BYTES as usize..end as usize], len)
        .map_err(|malformed| refused(&bytes, malformed))
}

/// What a file says of itself.
pub(crate) struct Described {
    /// Whether somebody had read it before.
    pub again: bool,
    pub plan: Plan,
    pub names: Vec<(String, usize)>,
    /// How many of the names, the last ones, are aliases of a safetensors file.
    pub alias_count: usize,
    pub structure: Option<Structure>,
    /// What is deflated, by its offsets behind the end of the file.
    pub deflated: Vec<(u64, Deflated)>,
}

/// Reads what `file` holds, without its tensors. Values that are `structured` need no names, and get
/// them `with_names` as far as that goes.
pub(crate) fn describe(
    file: &dyn Source,
    structured: bool,
    with_names: bool,
    request: &Request<'_>,
) -> Result<Described> {
    let &Request { skip_unknown, watch, .. } = request;
    let num_thread = request.wish.num_thread;
    let refused = |malformed| Error::format(file.name(), malformed);
    let again = is_begun(file);
    let prefix = prefix_of(file, watch)?;
    if !is_pytorch(&prefix) {
        let header = header_of(file, prefix, watch)?;
        let plan = Plan::of_header(&header).map_err(refused)?;
        let (names, alias_count) = names_of(header, request.restore_aliases);
        let (structure, deflated) = (None, Vec::new());
        return Ok(Described { again, plan, names, alias_count, structure, deflated });
    }
    let asked = || {
        watch.look();
        watch.check().is_err()
    };
    let steps = Steps::new(&asked);
    let failed = |refusal: Refusal| unreadable(file, refusal.into());
    let archive = archive_of(file, num_thread, skip_unknown, &steps, watch)?;
    let plan = Plan::of_archive(&archive);
    let Archive { checkpoint, deflated, .. } = archive;
    let (names, structure) = if structured && !checkpoint.is_module() {
        let names = match with_names.then(|| checkpoint.names(&steps)) {
            None | Some(Err(Refusal::Malformed(_) | Refusal::Unknown(_))) => Vec::new(),
            Some(names) => names.map_err(failed)?,
        };
        let pickle = checkpoint.to_pickle(&steps).map_err(failed)?;
        (names, Some(Structure { pickle, locations: checkpoint.locations() }))
    } else {
        (checkpoint.names(&steps).map_err(failed)?, None)
    };
    Ok(Described { again, plan, names, alias_count: 0, structure, deflated })
}

/// Leaves the page cache as it was before the header was read.
pub(super) fn forget_header(file: &dyn Source, again: bool) {
    if let Some(file) = file.local() {
        file.forget_header(again);
    }
}

fn prefix_of(source: &dyn Source, watch: &Watch<'_>) -> Result<Vec<u8>> {
    read(source, 0..source.len().min(PREFIX_LEN), watch)
}

fn read(source: &dyn Source, range: Range<u64>, watch: &Watch<'_>) -> Result<Vec<u8>> {
    let mut bytes = vec![0; (range.end - range.start) as usize];
    match source.read_exact_at(&mut bytes, range.start, watch) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(Error::io("read", source.name(), error)),
    }
}

fn archive_of(
    source: &dyn Source,
    num_thread: usize,
    skip_unknown: bool,
    steps: &Steps<'_>,
    watch: &Watch<'_>,
) -> Result<Archive> {
    let read = |ranges: &[Range<u64>]| scattered::read(source, ranges, num_thread, watch);
    Archive::read(source.len(), &read, skip_unknown, steps)
        .map_err(|refused| unreadable(source, refused))
}

fn unreadable(source: &dyn Source, refused: Unreadable<Error>) -> Error {
    match refused {
        Unreadable::Malformed(malformed) => Error::format(source.name(), malformed),
        Unreadable::Unknown(name) => Error::unsupported(source.name(), &name),
        Unreadable::Stopped => Error::io("read", source.name(), Stopped.into()),
        Unreadable::Source(error) => error,
    }
}

/// The names of a safetensors file: its tensors in the order of the file, then the aliases. How many
/// those are comes with them.
fn names_of(header: Header, restore_aliases: bool) -> (Vec<(String, usize)>, usize) {
    let aliases = if restore_aliases { alias::aliases(&header) } else { Vec::new() };
    let alias_count = aliases.len();
    let tensors = header.into_tensors().into_iter().map(TensorInfo::into_name).zip(0..);
    (tensors.chain(aliases).collect(), alias_count)
}
