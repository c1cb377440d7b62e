//! A load into tensors that are already there: look at both sides, refuse before anything is
//! written, then read straight into the tensors' memory.

use crate::{
    choice::Choice,
    error::{Error, Kind, Result},
    facts::is_begun,
    format::shown,
    load::{self, chosen, describe, open, Described, Loaded},
    memory::Region,
    pipeline,
    placement::{Parcel, Spread},
    plan::{self, Place, Plan},
    select::{select, Selection},
    share,
    slice::Runs,
    storage::{inflated::Inflated, Source},
    tensors::{StateDict, Tensor},
    threads::Ready,
    ways::{Job, Piece},
};
use std::{
    collections::{HashMap, HashSet},
    path::Path,
};

const ACTION: &str = "load";

/// What [`fill`] leaves to its caller.
#[derive(Debug, Default)]
pub(crate) struct Filled {
    /// Positions of targets that are left to be copied.
    pub left: Vec<usize>,
    /// The file's tensors for them, in the same order.
    pub loaded: Loaded,
}

/// Fills `targets` from `path`, each with the file's tensor of its name.
///
/// What does not lie in host memory, or what the file does not have in row-major order, is left to be
/// copied: the file's tensors for it are loaded beside the targets, from the same open file.
///
/// # Errors
/// Names that are missing on either side, and targets of another dtype, that are too small, not
/// contiguous, or that overlap: all before anything is written. Otherwise as a load.
pub(crate) fn fill(
    path: &Path,
    request: &load::Request<'_>,
    targets: &dyn StateDict,
) -> Result<Filled> {
    let file = open(path, request)?;
    let mut described = described(&*file, request, false)?;
    let inflated = Inflated::of(&*file, std::mem::take(&mut described.deflated));
    let file = inflated.as_ref().map_or(&*file, |inflated| inflated as &dyn Source);
    let views = look_at(targets, path)?;
    let pairs = matched(&described, &views, targets, path)?;
    let Described { again, plan, names, .. } = described;
    let twins = refuse_overlaps(&views, &pairs, path)?;

    let choice = chosen(file, &plan, again, request);
    let mut left = Vec::new();
    let mut pieces = Vec::new();
    let mut away = Spread::default();
    for (target, source) in pairs.into_iter().enumerate() {
        if twins.contains(&target) || views[target].byte_len == 0 {
            continue;
        }
        let tensor = &plan.tensors[source];
        let at = in_file(&plan, tensor);
        let view = &views[target];
        let refused = |error| failed(path, view, error);
        let memory = targets.writable(target).map_err(refused)?;
        match (at, memory) {
            (Some(at), Some(memory)) => {
                let len = byte_len(tensor, view) as usize;
                // SAFETY: `writable` vouches for a contiguous tensor, of at least this many bytes
                // (`matched`), which the StateDict keeps alive; no two overlap
                // (`refuse_overlaps`, twins left out). That nobody else uses them meanwhile is the
                // caller's part.
                #[allow(unsafe_code)]
                let bytes = unsafe { std::slice::from_raw_parts_mut(memory, len) };
                pieces.extend(Piece::cut(at, bytes, choice.segment_len));
            }
            (Some(at), None) if request.targets.adopt(target).map_err(refused)? => {
                let range = at..at + byte_len(tensor, view);
                let index = away.names.len();
                away.parcels.push(Parcel::raw(Runs::one(range), view.scalar_type, index));
                away.names.push((view.name.clone(), index));
            }
            _ => left.push(target),
        }
    }
    let wanted = left.iter().map(|&target| views[target].name.clone()).collect();
    let rest = rest(&plan, names, wanted, path)?;
    let region = read(file, &choice, request, pieces, &away, &rest.0)?;
    let loaded = load::loaded(Spread::of_one(rest.0, rest.1), None, region);
    Ok(Filled { left, loaded })
}

/// Plans a load of the tensors `wanted`, in that order.
fn rest(
    plan: &Plan,
    names: Vec<(String, usize)>,
    wanted: Vec<String>,
    path: &Path,
) -> Result<(Plan, Vec<(String, usize)>)> {
    if wanted.is_empty() {
        return Ok(Default::default());
    }
    let selection = Selection { names: Some(wanted), ..Selection::default() };
    select(plan, names, &selection).map_err(|refused| load::argument(path, refused))
}

/// Reads the file at `path` into `bytes`, as it is, once it has been found well formed.
///
/// A PyTorch file whose pickle imports an unknown name is well formed, and is read too: the reader
/// of the bytes may know the name.
pub(crate) fn fill_bytes(path: &Path, request: &load::Request<'_>, bytes: &mut [u8]) -> Result<()> {
    let file = open(path, request)?;
    let begun = is_begun(&*file);
    let (again, plan) = match described(&*file, request, true) {
        Ok(Described { again, plan, .. }) => (again, plan),
        Err(error) if error.kind() == Kind::Unsupported => (begun, Plan::of_bytes(file.len())),
        Err(error) => return Err(error),
    };
    if file.len() != bytes.len() as u64 {
        let reason = format!("file has {} bytes, and the memory {}", file.len(), bytes.len());
        return Err(Error::argument(ACTION, path, reason));
    }
    let choice = chosen(&*file, &plan, again, request);
    let pieces = Piece::cut(0, bytes, choice.segment_len).collect();
    read(&*file, &choice, request, pieces, &Spread::default(), &Plan::default()).map(|_| ())
}

fn described(
    file: &dyn Source,
    request: &load::Request<'_>,
    structured: bool,
) -> Result<Described> {
    describe(file, structured, false, request)
}

/// Reads into memory that is there already: past the page cache where a load would, and through it
/// where a load would map. What is away is on devices. Returns memory with the `rest`, which comes
/// first: where there is none for it, nothing is written.
fn read(
    file: &dyn Source,
    choice: &Choice,
    request: &load::Request<'_>,
    pieces: Vec<Piece<'_>>,
    away: &Spread,
    rest: &Plan,
) -> Result<Region> {
    let &load::Request { buffers, watch, .. } = request;
    let &Choice { way, num_thread, segment_len, is_cached, .. } = choice;
    let job =
        Job { file, ready: Ready::default(), num_thread, segment_len, is_cached, buffers, watch };
    let here: u64 = pieces.iter().map(|piece| piece.wanted as u64).sum();
    watch.begin(here + away.byte_len() + rest.byte_len());
    let failed = |error| load::failed(file, error);
    let region = Region::of(&job, rest, way).map_err(failed)?;
    way.read(&job, pieces).map_err(failed)?;
    if !away.parcels.is_empty() {
        pipeline::run(&job, way, &away.parcels, request.targets)
            .map_err(|refused| load::refused_by_device(file, away, refused))?;
    }
    watch.finish();
    Ok(region)
}

fn failed(path: &Path, view: &Tensor, error: anyhow::Error) -> Error {
    Error::internal(ACTION, path, error).with_tensor(&view.name)
}

fn look_at(targets: &dyn StateDict, path: &Path) -> Result<Vec<Tensor>> {
    (0..targets.count())
        .map(|index| {
            let view =
                targets.describe(index).map_err(|error| Error::internal(ACTION, path, error))?;
            let refused =
                |reason: &str| Err(Error::argument(ACTION, path, reason).with_tensor(&view.name));
            if let Some(refusal) = &view.refusal {
                return refused(refusal);
            }
            if !view.contiguous {
                return refused("allocated tensor not contiguous");
            }
            Ok(view)
        })
        .collect()
}

/// The file's tensor for each target, checked against it. A tensor that has aliases may be wanted by
/// any of its names.
fn matched(
    described: &Described,
    views: &[Tensor],
    targets: &dyn StateDict,
    path: &Path,
) -> Result<Vec<usize>> {
    let Described { plan, names, .. } = described;
    let sources: HashMap<&str, usize> =
        names.iter().map(|(name, tensor)| (name.as_str(), *tensor)).collect();
    let given: HashSet<&str> = views.iter().map(|view| view.name.as_str()).collect();
    let aliases = &names[names.len() - described.alias_count..];
    let has_alias: HashSet<usize> = aliases.iter().map(|&(_, tensor)| tensor).collect();
    let by_alias: HashSet<usize> = names
        .iter()
        .filter(|(name, tensor)| has_alias.contains(tensor) && given.contains(name.as_str()))
        .map(|&(_, tensor)| tensor)
        .collect();
    let is_left_out = |(name, tensor): &&(String, usize)| {
        !given.contains(name.as_str()) && !by_alias.contains(tensor)
    };
    if let Some((name, _)) = names.iter().find(is_left_out) {
        let reason = format!("the file's tensor {} is not in state_dict", shown(name));
        return Err(Error::argument(ACTION, path, reason));
    }
    let check = |view: &Tensor| {
        let refused =
            |reason: String| Error::argument(ACTION, path, reason).with_tensor(&view.name);
        let source = *sources
            .get(view.name.as_str())
            .ok_or_else(|| refused("is in state_dict but not in the file".to_owned()))?;
        let tensor = &plan.tensors[source];
        if tensor.scalar_type != view.scalar_type {
            let [file, given] =
                [tensor.scalar_type, view.scalar_type].map(|dtype| targets.dtype_name(dtype));
            return Err(refused(format!(
                "allocated tensor dtype not match: the file has {file}, not {given}"
            )));
        }
        let needed = byte_len(tensor, view);
        if needed > view.byte_len {
            let has = view.byte_len;
            return Err(refused(format!(
                "allocated tensor size not enough: {has} bytes, not {needed}"
            )));
        }
        Ok(source)
    };
    views.iter().map(check).collect()
}

/// Bytes of a tensor's elements, whose dtype is the view's; `u64::MAX` where there are more, as
/// there may be of a tensor that is expanded from a few.
fn byte_len(tensor: &plan::Tensor, view: &Tensor) -> u64 {
    tensor.shape.iter().fold(view.item_size, |len, &size| len.saturating_mul(size as u64))
}

/// Two targets may share memory only if they take the very same bytes: tied weights. Returns the
/// ones that another one fills.
fn refuse_overlaps(views: &[Tensor], sources: &[usize], path: &Path) -> Result<HashSet<usize>> {
    let mut twins = HashSet::new();
    let extents: Vec<_> = views.iter().map(Tensor::view).collect();
    for group in share::overlapping(&extents) {
        let duplicates = share::duplicates(&extents, &group);
        let same = duplicates.len() + 1 == group.len();
        if !same || group.iter().any(|&i| sources[i] != sources[group[0]]) {
            let names: Vec<_> = group.iter().take(2).map(|&i| shown(&views[i].name)).collect();
            let reason = format!("tensors {} to be filled share memory", names.join(", "));
            return Err(Error::argument(ACTION, path, reason));
        }
        twins.extend(duplicates.into_iter().map(|(twin, _)| twin));
    }
    Ok(twins)
}

/// Where the file has the tensor's elements in row-major order and in this machine's byte order.
fn in_file(plan: &Plan, tensor: &plan::Tensor) -> Option<u64> {
    let storage = plan.storages[tensor.storage];
    let start = match storage.place {
        Place::Mapped(offset) => offset,
        Place::Copied(to) => {
            let at = plan.copies.binary_search_by_key(&to, |copy| copy.to).ok()?;
            let copy = &plan.copies[at];
            (copy.swapped == 1).then_some(copy.from.start)?
        }
    };
    match &tensor.strides {
        None => Some(start),
        // A part of a storage needs the size of an element, which torch has at hand.
        Some(_) if tensor.offset != 0 => None,
        Some(_) => tensor.is_row_major().then_some(start),
    }
}
