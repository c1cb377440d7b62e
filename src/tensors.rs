//! The caller's tensors, as a save reads them and a fill writes them.
//!
//! Knows what must be known of a tensor to move its bytes, and not whose it is: `ffi` answers for
//! torch's, and a test may answer for its own.

use crate::share::{Layout, View};
use anyhow::Result;

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
    /// One number a device.
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

    /// Fills `bytes` with the tensor's, in row-major order, from byte `begin` on. Both are
    /// multiples of the element's size. Works for every tensor, wherever it lies.
    fn gather(&self, index: usize, begin: u64, bytes: &mut [u8]) -> Result<()>;

    /// What the owner of the tensors calls a dtype.
    fn dtype_name(&self, scalar_type: i8) -> String;
}
