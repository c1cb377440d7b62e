//! What C++ asks of a load.

#![allow(unsafe_code)]

use super::{
    bridge::{Filled, LoadRequest, Loaded, Pair, StateDict, StorageOptions, StorageSpec, Targets},
    convert::{options, Wanted},
    failure::border,
    interrupts::{asked, watch},
    Buffers, Region,
};
use crate::{
    error::{Error, Result},
    fill as filling,
    format::alias::user_metadata,
    load as loading,
    plan::Place,
    storage,
    watch::Watch,
};
use std::path::Path;

/// # Safety
/// `progress` is null or points to two aligned integers that outlive the call.
pub(super) unsafe fn load(
    file: &[u8],
    request: &LoadRequest,
    targets: &Targets,
    buffers: &Buffers,
    progress: *mut i64,
) -> Result<Loaded> {
    // SAFETY: as this function's caller vouches.
    let watch = unsafe { watch(progress) };
    border("load", file, |path| {
        let request = Wanted::of(path, request)?;
        loading::load(path, &request.with(targets, buffers, &watch)).map(Loaded::from)
    })
}

/// # Safety
/// As [`load`].
pub(super) unsafe fn fill(
    file: &[u8],
    request: &LoadRequest,
    tensors: &StateDict,
    targets: &Targets,
    buffers: &Buffers,
    progress: *mut i64,
) -> Result<Filled> {
    // SAFETY: as this function's caller vouches.
    let watch = unsafe { watch(progress) };
    border("load", file, |path| {
        let request = Wanted::of(path, request)?;
        filling::fill(path, &request.with(targets, buffers, &watch), tensors).map(Filled::from)
    })
}

pub(super) fn fill_bytes(
    file: &[u8],
    request: &LoadRequest,
    bytes: &mut [u8],
    targets: &Targets,
    buffers: &Buffers,
) -> Result<()> {
    let watch = Watch::new(None, asked());
    border("load", file, |path| {
        let request = Wanted::of(path, request)?;
        filling::fill_bytes(path, &request.with(targets, buffers, &watch), bytes)
    })
}

pub(super) fn explain(file: &[u8], request: &LoadRequest, targets: &Targets) -> Result<String> {
    let (buffers, watch) = (Buffers::default(), Watch::new(None, asked()));
    border("load", file, |path| {
        let mut request = Wanted::of(path, request)?;
        request.storage.first = storage::FIRST_OF_HEADER;
        loading::explain(path, &request.with(targets, &buffers, &watch))
    })
}

pub(super) fn refuse_load(file: &[u8], reason: &str) -> Result<()> {
    border("load", file, |path| Err(Error::argument("load", path, reason)))
}

pub(super) fn byte_len(file: &[u8], told: &StorageOptions) -> Result<i64> {
    let watch = Watch::new(None, asked());
    border("open", file, |path| {
        let options = storage::Options { first: storage::FIRST_OF_HEADER, ..options(told) };
        let len = storage::open(path, &options, &watch)?.len();
        i64::try_from(len).map_err(|error| Error::internal("open", path, error.into()))
    })
}

pub(super) fn metadata(file: &[u8], storage: &StorageOptions) -> Result<Vec<Pair>> {
    let watch = Watch::new(None, asked());
    border("read", file, |path| {
        let header = loading::read_header_of(path, &options(storage), &watch)?;
        let metadata = user_metadata(&header);
        Ok(metadata.into_iter().map(|(first, second)| Pair { first, second }).collect())
    })
}

pub(super) fn address(region: &Region, storage: &StorageSpec) -> Result<*mut u8> {
    let &StorageSpec { copied, offset, byte_len, .. } = storage;
    let place = if copied { Place::Copied(offset) } else { Place::Mapped(offset) };
    let address = region.address(place, byte_len).ok_or_else(|| {
        let cause = anyhow::anyhow!("{byte_len} bytes at {place:?} are in no region");
        Error::internal("place", Path::new("a storage"), cause)
    })?;
    Ok(address.as_ptr())
}
