//! The core's types in the words of the bridge, and the other way round.

#![allow(unsafe_code)]

use super::bridge::{
    self, DeviceRule, Filled, LoadRequest, Loaded, Name, SliceSpec, StateDict, StorageOptions,
    StorageSpec, Targets, TensorSpec, TensorView,
};
use super::devices::Host;
use crate::{
    buffers::Buffers,
    choice::Wish,
    error::{Error, Result},
    fill as filling,
    format::shown,
    load::{self as loading, Structure},
    placement::{Device, Home, Placement},
    plan::{self, Place},
    select::Selection,
    slice::{Cut, Part},
    storage,
    targets::HostMemory,
    tensors,
    watch::Watch,
    ways::Way,
};
use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What C++ asks of a load, in the core's words.
#[allow(clippy::struct_excessive_bools)] // each is a parameter of its own
pub(super) struct Wanted {
    wish: Wish,
    selection: Selection,
    placement: Placement,
    pub(super) storage: storage::Options,
    header_only: bool,
    structured: bool,
    version: String,
    restore_aliases: bool,
    skip_unknown: bool,
}

impl Wanted {
    pub(super) fn of(path: &Path, request: &LoadRequest) -> Result<Self> {
        let wish = Wish { way: way(path, request)?, num_thread: threads(request.num_thread) };
        let (selection, placement) = (selection(path, request)?, placement(request));
        let &LoadRequest { header_only, structured, restore_aliases, skip_unknown, .. } = request;
        let (storage, version) = (options(&request.storage), request.version.clone());
        Ok(Self {
            wish,
            selection,
            placement,
            storage,
            header_only,
            structured,
            version,
            restore_aliases,
            skip_unknown,
        })
    }

    pub(super) fn with<'a>(
        &'a self,
        targets: &'a Targets,
        buffers: &'a Buffers,
        watch: &'a Watch<'a>,
    ) -> loading::Request<'a> {
        let Self { wish, selection, placement, storage, version, .. } = self;
        loading::Request {
            wish: *wish,
            selection: selection.clone(),
            placement,
            targets,
            storage,
            header_only: self.header_only,
            structured: self.structured,
            version: Some(version.as_str()).filter(|version| !version.is_empty()),
            restore_aliases: self.restore_aliases,
            skip_unknown: self.skip_unknown,
            buffers,
            watch,
        }
    }
}

fn way(path: &Path, request: &LoadRequest) -> Result<Option<Way>> {
    let asked = match request.way.as_str() {
        "" => std::env::var("VETURBOIO_WAY").unwrap_or_default(),
        way => way.to_owned(),
    };
    Ok(match asked.as_str() {
        _ if request.use_direct_io && request.way.is_empty() => Some(Way::Direct),
        "" | "auto" => None,
        name => Some(Way::from_name(name).ok_or_else(|| {
            let names = Way::ALL.map(Way::name).join(", ");
            Error::argument("load", path, format!("way is auto, {names}, and not {}", shown(name)))
        })?),
    })
}

fn selection(path: &Path, request: &LoadRequest) -> Result<Selection> {
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
        let cuts = cuts.chunks_exact(3).fold(Vec::new(), with_cut);
        selection.slices.insert(name.clone(), cuts);
    }
    Ok(selection)
}

/// A stop that says that `start` is one element, whose dimension the result does not have.
const INDEX: i64 = i64::MIN;

/// A stop that says that `start` is the step of the cut before.
const STEP: i64 = i64::MIN + 1;

/// `cuts` with one more, which has dimension, start and stop.
fn with_cut(mut cuts: Vec<Cut>, numbers: &[i64]) -> Vec<Cut> {
    let (dim, start, stop) = (numbers[0], numbers[1], numbers[2]);
    let part = match (stop, cuts.last_mut()) {
        (INDEX, _) => Part::Index(start),
        (STEP, Some(Cut { dim: same, part: Part::Range { step, .. } })) if *same == dim => {
            *step = start;
            return cuts;
        }
        _ => Part::Range { start, stop, step: 1 },
    };
    cuts.push(Cut { dim, part });
    cuts
}

fn placement(request: &LoadRequest) -> Placement {
    let mut placement = Placement::default();
    if request.placed {
        placement.otherwise = None;
    }
    for &DeviceRule { ref name, kind, index } in &request.devices {
        let device = Device { kind, index };
        let device = if device.is_cpu() { Device::CPU } else { device };
        if name.is_empty() {
            placement.otherwise = Some(device);
        } else {
            placement.rules.insert(name.clone(), device);
        }
    }
    placement.dtype = request.converted.then_some(request.dtype);
    placement
}

/// What the caller says of a store.
pub(super) fn options(told: &StorageOptions) -> storage::Options {
    let pairs = told.pairs.iter().map(|pair| (&*pair.first, &*pair.second));
    let cache_dir = Some(&told.cache_dir).filter(|dir| !dir.is_empty());
    let cache_dir = cache_dir.map(|dir| PathBuf::from(OsStr::from_bytes(dir)));
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

    fn begin(&self) -> anyhow::Result<()> {
        Ok(StateDict::begin(self)?)
    }

    fn pinned_kind(&self) -> anyhow::Result<Option<i8>> {
        let kind = StateDict::pinned_kind(self)?;
        Ok((kind >= 0).then_some(kind))
    }

    fn host_memory(&self, kind: i8, len: u64) -> anyhow::Result<Box<dyn HostMemory>> {
        let len = usize::try_from(len)?;
        Host::boxed(StateDict::host_memory(self, kind, len)?, len)
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
        let Structure { pickle, locations } = loaded.structure.unwrap_or_default();
        Self {
            storages: loaded.storages.into_iter().map(StorageSpec::from).collect(),
            tensors: loaded.tensors.into_iter().map(TensorSpec::from).collect(),
            names: loaded.names.into_iter().map(name).collect(),
            structure: locations,
            values: pickle,
            version: loaded.version,
            region: Box::new(loaded.region),
        }
    }
}

impl From<filling::Filled> for Filled {
    fn from(filled: filling::Filled) -> Self {
        Self { left: filled.left, loaded: filled.loaded.into() }
    }
}

impl From<Home> for StorageSpec {
    fn from(home: Home) -> Self {
        let storage = match home {
            Home::Region(storage) => storage,
            Home::Parcel { index, byte_len } => {
                return Self { target: index as i64, copied: false, offset: 0, byte_len }
            }
        };
        let (copied, offset) = match storage.place {
            Place::Mapped(offset) => (false, offset),
            Place::Copied(offset) => (true, offset),
        };
        Self { target: -1, copied, offset, byte_len: storage.byte_len }
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
