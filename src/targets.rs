//! Storages on devices, as a load fills them.
//!
//! Knows what must be known of a device to bring bytes to it, and not which one it is: `ffi`
//! answers for torch's, and a test may answer for its own.

use crate::{placement::Device, route::Part};
use anyhow::Result;
use std::ops::DerefMut;

/// A storage to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    pub device: Device,
    /// Bytes as the file has them.
    pub byte_len: u64,
    /// `c10::ScalarType` in the file and on the device.
    pub from_type: i8,
    pub to_type: i8,
}

/// Why a device gives no memory.
#[derive(Debug)]
pub enum Refused {
    OutOfMemory(String),
    Other(anyhow::Error),
}

/// Host memory that a device can reach by itself.
pub trait HostMemory: DerefMut<Target = [u8]> + Send {}

/// Copies that go on after they were asked for.
pub trait Pending: Send {
    /// Waits until their source is not needed any more.
    ///
    /// # Errors
    /// What the device says went wrong.
    fn wait(&self) -> Result<()>;
}

/// The storages of one load, by position. What takes no `&mut` may be called by any thread.
pub trait Targets: Sync {
    /// Says which storage is wanted next.
    ///
    /// # Errors
    /// A device that is not there.
    fn add(&self, wanted: &Wanted) -> Result<()>;

    /// Takes the memory of one of the tensors that are to be filled for the next storage, which counts
    /// as a change of the tensor. False if bytes cannot be copied to it as a file has them.
    ///
    /// # Errors
    /// A device that is not there.
    fn adopt(&self, tensor: usize) -> Result<bool>;

    /// Gives a storage its memory.
    ///
    /// # Errors
    /// What the device says.
    fn allocate(&self, index: usize) -> Result<(), Refused>;

    /// The kind of device whose host memory is to be used; `None` for ordinary memory.
    ///
    /// # Errors
    /// What the device says.
    fn pinned_kind(&self) -> Result<Option<i8>>;

    /// `len` bytes of host memory that such a device reaches.
    ///
    /// # Errors
    /// There is none left.
    fn host_memory(&self, len: u64) -> Result<Box<dyn HostMemory>>;

    /// Says that all storages have memory; called, like `finish`, on the caller's own thread.
    ///
    /// # Errors
    /// What a device says.
    fn begin(&self) -> Result<()>;

    /// Copies `parts` out of `segment`, which stays as it is until what is returned has been waited
    /// for.
    ///
    /// # Errors
    /// What a device says. Nothing of the segment is needed any more then.
    fn copy(&self, segment: &[u8], parts: &[Part]) -> Result<Option<Box<dyn Pending>>>;

    /// Waits until all bytes are there.
    ///
    /// # Errors
    /// What a device says went wrong with a copy.
    fn finish(&self) -> Result<()>;

    /// Waits until nothing is under way, whatever has become of it.
    fn abandon(&self);
}
