//! The Rust API: a state_dict as names and `tch` tensors.

#![allow(unsafe_code)]

use crate::{
    error::{Error, Result},
    ffi::{bridge, Tensor},
    load::{self, Request, DEFAULT_NUM_THREAD},
    memory::Way,
    save::SaveOptions,
};
use std::{borrow::Borrow, collections::HashMap, path::Path};

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
    use_direct_io: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { num_thread: DEFAULT_NUM_THREAD, use_direct_io: false }
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
        self.use_direct_io = yes;
        self
    }

    /// Loads every tensor of `file` into CPU memory. See [`load`](crate::load).
    ///
    /// # Errors
    /// As [`load`](crate::load) says.
    pub fn load(&self, file: impl AsRef<Path>) -> Result<HashMap<String, tch::Tensor>> {
        let path = file.as_ref();
        let request = Request {
            num_thread: self.num_thread,
            way: if self.use_direct_io { Way::Direct } else { Way::Map },
            header_only: false,
            structured: false,
        };
        let loaded: bridge::Loaded = load::load(path, request)?.into();
        let made = bridge::make_tensors(&loaded.tensors, &loaded.storages, loaded.region)
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
        let mut state_dict = bridge::new_state_dict();
        for (name, tensor) in tensors {
            let pointer = tensor.borrow().as_ptr().cast::<Tensor>();
            // SAFETY: torch-sys's C_tensor is an at::Tensor, alive while it is borrowed;
            // `push` copies the reference.
            unsafe { state_dict.pin_mut().push(name.as_ref(), pointer) };
        }
        self.write(&*state_dict, file.as_ref(), None)
    }
}
