//! The core's types in the words of the bridge, and the other way round.

#![allow(unsafe_code)]

use super::bridge::{
    self, LoadRequest, Loaded, Name, SliceSpec, StateDict, StorageOptions, StorageSpec, TensorSpec,
    TensorView,
};
use crate::{
    buffers::Buffers,
    choice::Wish,
    error::{Error, Result},
    format::shown,
    load as loading,
    plan::{self, Place},
    select::Selection,
    slice::Cut,
    storage, tensors,
    watch::Watch,
    ways::Way,
};
use std::path::{Path, PathBuf};

/// The core's request for what C++ asks.
pub(super) fn wanted<'a>(
    path: &Path,
    request: &LoadRequest,
    storage: &'a storage::Options,
    buffers: &'a Buffers,
    watch: &'a Watch<'a>,
) -> Result<loading::Request<'a>> {
    let asked = match request.way.as_str() {
        "" => std::env::var("VETURBOIO_WAY").unwrap_or_default(),
        way => way.to_owned(),
    };
    let way = match asked.as_str() {
        _ if request.use_direct_io && request.way.is_empty() => Some(Way::Direct),
        "" | "auto" => None,
        name => Some(Way::from_name(name).ok_or_else(|| {
            let names = Way::ALL.map(Way::name).join(", ");
            Error::argument("load", path, format!("way is auto, {names}, and not {}", shown(name)))
        })?),
    };
    let mut selection = Selection::default();
    if request.some {
        selection.names = Some(request.names.clone());
    }
    for SliceSpec { name, cuts } in &request.slices {
        if cuts.len() % 3 != 0 {
            let count = cuts.len();
            let reason =
                format!("slices has dimension, start and stop for a cut, not {count} numbers");
            return Err(Error::argument("load", path, reason).with_tensor(name));
        }
        let cuts = cuts.chunks_exact(3);
        let cuts = cuts.map(|cut| Cut { dim: cut[0], start: cut[1], stop: cut[2] }).collect();
        selection.slices.insert(name.clone(), cuts);
    }
    let wish = Wish { way, num_thread: threads(request.num_thread) };
    let &LoadRequest { header_only, structured, .. } = request;
    Ok(loading::Request { wish, selection, header_only, structured, storage, buffers, watch })
}

/// What the caller says of a store.
pub(super) fn options(told: &StorageOptions) -> storage::Options {
    let pairs = told.pairs.iter().map(|pair| (&*pair.first, &*pair.second));
    let cache_dir = Some(&told.cache_dir).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    storage::Options { cache_dir, ..storage::Options::new(pairs) }
}

/// No thread at all is asked for by 0 and by every negative number; the core refuses it.
pub(super) fn threads(num_thread: i64) -> usize {
    usize::try_from(num_thread).unwrap_or(0)
}

impl tensors::StateDict for StateDict {
    fn count(&self) -> usize {
        self.size()
    }

    fn describe(&self, index: usize) -> anyhow::Result<tensors::Tensor> {
        Ok(StateDict::describe(self, index)?.into())
    }

    fn bytes(&self, index: usize) -> anyhow::Result<Option<&[u8]>> {
        let data = self.data(index)?;
        if data.is_null() {
            return Ok(None);
        }
        let len = self.byte_len(index)?;
        // SAFETY: `data` vouches for a contiguous tensor of this many bytes, which the
        // StateDict keeps alive. That nobody writes to a tensor while it is being saved is the
        // caller's part, as it is for torch.save.
        Ok(Some(unsafe { std::slice::from_raw_parts(data, len) }))
    }

    fn writable(&self, index: usize) -> anyhow::Result<Option<*mut u8>> {
        let data = StateDict::writable(self, index)?;
        Ok((!data.is_null()).then_some(data))
    }

    fn gather(&self, index: usize, begin: u64, bytes: &mut [u8]) -> anyhow::Result<()> {
        Ok(StateDict::gather(self, index, begin, bytes)?)
    }

    fn dtype_name(&self, scalar_type: i8) -> String {
        bridge::scalar_type_name(scalar_type)
    }
}

impl From<TensorView> for tensors::Tensor {
    fn from(view: TensorView) -> Self {
        Self {
            name: view.name,
            scalar_type: view.scalar_type,
            shape: view.shape,
            strides: view.strides,
            flips: view.flips,
            device: view.device,
            begin: view.begin,
            end: view.end,
            byte_len: view.byte_len,
            item_size: view.item_size,
            contiguous: view.contiguous,
            refusal: Some(view.refusal).filter(|refusal| !refusal.is_empty()),
        }
    }
}

// SAFETY: a StateDict does not change after it is filled, `describe` and `data` only read it,
// and `gather` reads tensors, which torch allows from any thread.
unsafe impl Sync for StateDict {}

impl From<loading::Loaded> for Loaded {
    fn from(loaded: loading::Loaded) -> Self {
        let name = |(name, tensor)| Name { name, tensor };
        Self {
            storages: loaded.storages.into_iter().map(StorageSpec::from).collect(),
            tensors: loaded.tensors.into_iter().map(TensorSpec::from).collect(),
            names: loaded.names.into_iter().map(name).collect(),
            structure: loaded.structure.unwrap_or_default(),
            region: Box::new(loaded.region),
        }
    }
}

impl From<plan::Storage> for StorageSpec {
    fn from(storage: plan::Storage) -> Self {
        let (copied, offset) = match storage.place {
            Place::Mapped(offset) => (false, offset),
            Place::Copied(offset) => (true, offset),
        };
        Self { copied, offset, byte_len: storage.byte_len }
    }
}

impl From<plan::Tensor> for TensorSpec {
    fn from(tensor: plan::Tensor) -> Self {
        let plan::Tensor { storage, scalar_type, offset, shape, .. } = tensor;
        let plan::Tensor { requires_grad, settle, .. } = tensor;
        let strides = tensor.strides.unwrap_or_default();
        Self { storage, scalar_type, offset, shape, strides, requires_grad, settle }
    }
}
