//! The Rust API: a state_dict as names and `tch` tensors.

#![allow(unsafe_code)]

use crate::{
    buffers::Buffers,
    choice::Wish,
    error::{Error, Result},
    ffi::{bridge, Tensor},
    load::{self, Request, DEFAULT_NUM_THREAD},
    placement::{Device, Placement},
    save::SaveOptions,
    select::Selection,
    slice::{Cut, Part},
    storage::{self, order::Ticket, FIRST_OF_HEADER},
    watch::Watch,
    ways::Way,
};
use std::{
    borrow::Borrow,
    collections::HashMap,
    ops::Range,
    path::{Path, PathBuf},
};

/// How a file is loaded.
///
/// ```
/// # fn main() -> Result<(), veturboio::Error> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("model.safetensors");
/// # veturboio::save([("bias", tch::Tensor::from_slice(&[1f32, 2.0]))], &path)?;
/// let tensors = veturboio::LoadOptions::new().num_thread(4).load(&path)?;
/// assert_eq!(tensors["bias"].size(), [2]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LoadOptions {
    num_thread: usize,
    way: Option<Way>,
    selection: Selection,
    placement: Placement,
    restore_aliases: bool,
    skip_unknown: bool,
    storage: storage::Options,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            num_thread: DEFAULT_NUM_THREAD,
            way: None,
            selection: Selection::default(),
            placement: Placement::default(),
            restore_aliases: true,
            skip_unknown: false,
            storage: storage::Options::default(),
        }
    }
}

impl LoadOptions {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Upper bound of reader threads.
    #[must_use]
    pub fn num_thread(mut self, num_thread: usize) -> Self {
        self.num_thread = num_thread;
        self
    }

    /// Reads past the page cache into memory of the load's own, instead of mapping the file; where
    /// the file system refuses that, through the page cache.
    #[must_use]
    pub fn use_direct_io(mut self, yes: bool) -> Self {
        self.way = yes.then_some(Way::Direct);
        self
    }

    /// How the bytes come, instead of what is chosen by where they lie.
    #[must_use]
    pub fn way(mut self, way: Way) -> Self {
        self.way = Some(way);
        self
    }

    /// Options of the store, by the names of its own tools' variables in lower case, such as
    /// `aws_endpoint_url`. They precede the environment.
    #[must_use]
    pub fn storage_options<K: Into<String>, V: Into<String>>(
        mut self,
        options: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        let pairs = storage::Options::new(options).pairs;
        self.storage = storage::Options { pairs, ..self.storage };
        self
    }

    /// Keeps downloaded objects in `directory`, by version, for the next load.
    #[must_use]
    pub fn cache_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.storage.cache_dir = Some(directory.into());
        self
    }

    /// Loads only the tensors of these names. Nothing else of the file is read.
    #[must_use]
    pub fn names<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.selection.names = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Loads of the tensor `name` only `range` of dimension `dim`, as [`narrow`](tch::Tensor::narrow)
    /// cuts it; may be said once for each dimension. Nothing else of that tensor is read.
    ///
    /// ```
    /// # fn main() -> Result<(), veturboio::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("model.safetensors");
    /// # let weight = tch::Tensor::arange(6, (tch::Kind::Float, tch::Device::Cpu)).view([2, 3]);
    /// # veturboio::save([("weight", &weight)], &path)?;
    /// let tensors = veturboio::LoadOptions::new().slice("weight", 1, 1..3).load(&path)?;
    /// assert_eq!(tensors["weight"], weight.narrow(1, 1, 2));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn slice(mut self, name: impl Into<String>, dim: i64, range: Range<i64>) -> Self {
        let part = Part::Range { start: range.start, stop: range.end, step: 1 };
        let cut = Cut { dim, part };
        self.selection.slices.entry(name.into()).or_default().push(cut);
        self
    }

    /// The device of the tensors, the CPU by default. The bytes pass through a few segments of host
    /// memory, whatever the size of the file.
    #[must_use]
    pub fn map_location(mut self, device: tch::Device) -> Self {
        // c10::DeviceType's numbers.
        self.placement.otherwise = Some(match device {
            tch::Device::Cpu => Device::CPU,
            // What is no number of torch's is no device it has.
            tch::Device::Cuda(index) => {
                Device { kind: 1, index: i8::try_from(index).unwrap_or(i8::MAX) }
            }
            tch::Device::Vulkan => Device { kind: 10, index: -1 },
            tch::Device::Mps => Device { kind: 13, index: -1 },
        });
        self
    }

    /// Converts tensors of floating point to `kind` on their way; others stay as they are.
    ///
    /// ```
    /// # fn main() -> Result<(), veturboio::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("model.safetensors");
    /// # veturboio::save([("bias", tch::Tensor::from_slice(&[1f32, 2.0]))], &path)?;
    /// let tensors = veturboio::LoadOptions::new().dtype(tch::Kind::BFloat16).load(&path)?;
    /// assert_eq!(tensors["bias"].kind(), tch::Kind::BFloat16);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn dtype(mut self, kind: tch::Kind) -> Self {
        // tch keeps torch's numbers to itself, except in the kind of a tensor.
        self.placement.dtype = Some(match kind {
            tch::Kind::Half => 5,
            tch::Kind::Float => 6,
            tch::Kind::Double => 7,
            tch::Kind::BFloat16 => 15,
            tch::Kind::Float8e5m2 => 23,
            tch::Kind::Float8e4m3fn => 24,
            tch::Kind::Float8e5m2fnuz => 25,
            tch::Kind::Float8e4m3fnuz => 26,
            // Refused when it is loaded.
            _ => -1,
        });
        self
    }

    /// Whether the names that a safetensors file keeps in its metadata for a tensor that is stored
    /// under another name, as tied weights are, come back as that tensor (the default).
    ///
    /// ```
    /// # fn main() -> Result<(), veturboio::Error> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let path = dir.path().join("model.safetensors");
    /// # let weight = tch::Tensor::from_slice(&[1f32, 2.0]);
    /// let tied = [("embed", &weight), ("head", &weight)];
    /// veturboio::SaveOptions::new().force_save_shared_tensor(true).save(tied, &path)?;
    /// assert_eq!(veturboio::load(&path)?["head"], weight);
    /// let stored = veturboio::LoadOptions::new().restore_aliases(false).load(&path)?;
    /// assert!(!stored.contains_key("head"));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn restore_aliases(mut self, yes: bool) -> Self {
        self.restore_aliases = yes;
        self
    }

    /// Leaves out what a PyTorch file holds of unknown classes, instead of refusing the file. The
    /// names of tensors lead through it: those of a pickled `torch.nn.Module` are those of its
    /// state_dict. Nothing of the file is run.
    #[must_use]
    pub fn skip_unknown(mut self, yes: bool) -> Self {
        self.skip_unknown = yes;
        self
    }

    /// Loads every tensor of `file`. See [`load`](crate::load).
    ///
    /// # Errors
    /// As [`load`](crate::load) says.
    pub fn load(&self, file: impl AsRef<Path>) -> Result<HashMap<String, tch::Tensor>> {
        let path = file.as_ref();
        let (buffers, watch) = (Buffers::default(), Watch::default());
        let targets = bridge::new_targets(false, false);
        let request = self.request(&targets, &buffers, &watch);
        let loaded: bridge::Loaded = load::load(path, &request)?.into();
        let made = bridge::make_tensors(&loaded.tensors, &loaded.storages, loaded.region, &targets)
            .map_err(|error| Error::internal("load", path, error.into()))?;
        let made: Vec<&Tensor> = made.iter().collect();
        let mut tensors = HashMap::with_capacity(loaded.names.len());
        for bridge::Name { name, tensor } in loaded.names {
            let pointer = std::ptr::from_ref::<Tensor>(made[tensor]).cast_mut();
            // SAFETY: `pointer` is a live at::Tensor, which is what torch-sys's C_tensor is.
            tensors.insert(name, unsafe { tch::Tensor::clone_from_ptr(pointer.cast()) });
        }
        Ok(tensors)
    }

    /// Says in a sentence which way [`load`](Self::load) would take, and why. Nothing but the header
    /// is read.
    ///
    /// # Errors
    /// As [`load`](crate::load) says.
    pub fn explain(&self, file: impl AsRef<Path>) -> Result<String> {
        let (buffers, watch) = (Buffers::default(), Watch::default());
        let targets = bridge::new_targets(false, false);
        let storage = storage::Options { first: FIRST_OF_HEADER, ..self.storage.clone() };
        let request = Request { storage: &storage, ..self.request(&targets, &buffers, &watch) };
        load::explain(file.as_ref(), &request)
    }

    fn request<'a>(
        &'a self,
        targets: &'a bridge::Targets,
        buffers: &'a Buffers,
        watch: &'a Watch<'a>,
    ) -> Request<'a> {
        Request {
            wish: Wish { way: self.way, num_thread: self.num_thread },
            selection: self.selection.clone(),
            header_only: false,
            structured: false,
            version: None,
            restore_aliases: self.restore_aliases,
            skip_unknown: self.skip_unknown,
            placement: &self.placement,
            targets,
            storage: &self.storage,
            buffers,
            watch,
        }
    }
}

impl SaveOptions {
    /// Saves `tensors` to `file`. See [`save`](crate::save).
    ///
    /// # Errors
    /// As [`save`](crate::save) says.
    pub fn save<N, T>(
        &self,
        tensors: impl IntoIterator<Item = (N, T)>,
        file: impl AsRef<Path>,
    ) -> Result<()>
    where
        N: AsRef<str>,
        T: Borrow<tch::Tensor>,
    {
        let ticket = Ticket::new();
        let mut state_dict = bridge::new_state_dict();
        for (name, tensor) in tensors {
            let pointer = tensor.borrow().as_ptr().cast::<Tensor>();
            // SAFETY: torch-sys's C_tensor is an at::Tensor, alive while it is borrowed;
            // `push` copies the reference.
            unsafe { state_dict.pin_mut().push(name.as_ref(), pointer) };
        }
        let watch = Watch::default();
        self.write(&*state_dict, file.as_ref(), &Buffers::default(), &ticket, &watch)
    }
}
