//! The caller's tensors, as a save reads them and a fill writes them.
//!
//! Knows what must be known of a tensor to move its bytes, and not whose it is: `ffi` answers for
//! torch's, and a test may answer for its own.

use crate::{
    share::{Layout, View},
    targets::HostMemory,
};
use anyhow::Result;

/// More devices than there are of any kind.
const DEVICES_A_KIND: i64 = 256;

/// A tensor of the caller's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tensor {
    pub name: String,
    /// `c10::ScalarType`.
    pub scalar_type: i8,
    pub shape: Vec<i64>,
    /// In elements.
    pub strides: Vec<i64>,
    /// Whether the elements are read conjugated or negated.
    pub flips: u8,
    /// One number a device: its kind times [`DEVICES_A_KIND`], and its index.
    pub device: i64,
    /// First and last-plus-one address of the elements.
    pub begin: u64,
    pub end: u64,
    pub byte_len: u64,
    /// Bytes of one element.
    pub item_size: u64,
    /// Whether the elements lie in row-major order without gaps.
    pub contiguous: bool,
    /// Why its bytes cannot be had, if they cannot.
    pub refusal: Option<String>,
}

impl Tensor {
    /// Whether it lies on a device other than the CPU, which is number 0 of the kinds.
    pub fn is_away(&self) -> bool {
        self.device >= DEVICES_A_KIND
    }

    /// Where it lies, for [`crate::share`].
    pub fn view(&self) -> View<'_> {
        View {
            name: &self.name,
            device: self.device,
            begin: self.begin,
            end: self.end,
            layout: Layout {
                scalar_type: self.scalar_type,
                flips: self.flips,
                shape: &self.shape,
                strides: &self.strides,
            },
        }
    }
}

/// Named tensors of the caller's, by position. Any thread may ask.
pub trait StateDict: Sync {
    fn count(&self) -> usize;

    /// What the tensor is.
    fn describe(&self, index: usize) -> Result<Tensor>;

    /// The tensor's bytes, if they lie in host memory as a file is to have them.
    fn bytes(&self, index: usize) -> Result<Option<&[u8]>>;

    /// The address of such bytes to be written to, which counts as a change of the tensor.
    fn writable(&self, index: usize) -> Result<Option<*mut u8>>;

    /// Has what is gathered come after all that was asked of a tensor's device before, on the caller's
    /// own thread.
    ///
    /// # Errors
    /// What a device says.
    fn begin(&self) -> Result<()>;

    /// The kind of device that tensors lie on, if it has host memory of its own.
    ///
    /// # Errors
    /// What a device says.
    fn pinned_kind(&self) -> Result<Option<i8>>;

    /// `len` bytes of such host memory.
    ///
    /// # Errors
    /// There is none left.
    fn host_memory(&self, kind: i8, len: u64) -> Result<Box<dyn HostMemory>>;

    /// Fills `bytes` with the tensor's, in row-major order, from byte `begin` on. Both are
    /// multiples of the element's size. Works for every tensor, wherever it lies.
    fn gather(&self, index: usize, begin: u64, bytes: &mut [u8]) -> Result<()>;

    /// What the owner of the tensors calls a dtype.
    fn dtype_name(&self, scalar_type: i8) -> String;
}
