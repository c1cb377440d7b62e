//! Which bytes of a file become which tensor, and how the work is cut. Pure: numbers in,
//! numbers out.
//!
//! ```text
//! file     | header |####a####|##b##|#########c#########|
//! mapped   | header |    a    |     |         c         |   where they lie, nothing is moved
//! copies                      |  b  |                       b starts at an address its elements
//!                                                           do not allow, and is copied
//! ranges            |---------|     |-------------------|   what is brought in
//! segments          |----|----|     |----|---------|----|   cut by bytes, whatever the tensors
//! ```
//!
//! The file is mapped whole, so an offset in it is an offset in the mapping, and since a mapping
//! starts at a page, alignment can be decided from the offset alone. Files written by this
//! library or by safetensors are aligned throughout, and so are zip checkpoints; what has to be
//! copied are tensors behind a foreign header of odd length, the old format of PyTorch, and bytes
//! in the other byte order.

use crate::{
    format::{
        archive::Archive,
        dtype::Dtype,
        pytorch,
        safetensors::{Header, TensorInfo},
        Malformed, Shape,
    },
    slice::Runs,
};
use std::ops::Range;

/// What one thread takes at a time: large enough that a system call costs nothing beside it,
/// small enough that the threads finish together.
pub const SEGMENT_LEN: u64 = 8 << 20;

/// Alignment of what is copied: a cache line, which suits every vector unit.
pub const COPY_ALIGN: u64 = 64;

/// Ranges nearer to each other than this are brought in as one: a page or two more cost less
/// than another system call.
const MERGE_GAP: u64 = 64 << 10;

/// Where bytes are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this offset of the file.
    Mapped(u64),
    /// At this offset of the memory for copies.
    Copied(u64),
}

/// Bytes that one tensor has to itself, or that several share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Storage {
    pub place: Place,
    pub byte_len: u64,
}

/// A tensor as torch is to have it; offset and strides count elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub storage: usize,
    /// `c10::ScalarType`.
    pub scalar_type: i8,
    /// Bytes of one element of torch's.
    pub item_size: u64,
    pub offset: i64,
    pub shape: Vec<i64>,
    /// `None` where the elements lie in row-major order.
    pub strides: Option<Vec<i64>>,
    pub requires_grad: bool,
    /// Whether it is to be copied into row-major order, once its bytes are there.
    pub settle: bool,
}

/// Bytes of the file that have to be moved, and where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub from: Runs,
    pub to: u64,
    /// Bytes of a number whose order is turned around; 1 leaves them as they are.
    pub swapped: u64,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    /// What is mapped and brought into memory, in the order of the file, merged.
    pub ranges: Vec<Range<u64>>,
    pub copies: Vec<Copy>,
    /// Bytes that the copies need together.
    pub copies_len: u64,
    /// From which offset on nothing lies in the file as it is, and so nothing can be mapped: what is
    /// deflated has offsets behind the file's end.
    pub inflated_from: Option<u64>,
}

impl Plan {
    /// Plans a load of every tensor of a safetensors file, in the order of the file.
    ///
    /// # Errors
    /// A tensor that the format allows and torch cannot hold.
    pub fn of_header(header: &Header) -> Result<Self, Malformed> {
        let data_start = header.data_start();
        let mut plan = Self::default();
        plan.storages.reserve(header.tensors().len());
        plan.tensors.reserve(header.tensors().len());
        for info in header.tensors() {
            let (scalar_type, shape) =
                torch_type(info).map_err(|reason| Malformed::tensor(info.name(), reason))?;
            // Within the file, whose length is a u64: a checked header says so.
            let bytes = data_start + info.bytes().start..data_start + info.bytes().end;
            let storage = plan.place(Runs::one(bytes), element_align(info.dtype()), 1);
            let (offset, strides, requires_grad) = (0, None, false);
            plan.tensors.push(Tensor {
                storage,
                scalar_type,
                item_size: info.dtype().bits() * info.dtype().packing() / 8,
                offset,
                shape,
                strides,
                requires_grad,
                settle: false,
            });
        }
        Ok(plan)
    }

    /// Plans a read of a file of which only the length is known.
    #[must_use]
    pub fn of_bytes(len: u64) -> Self {
        let mut plan = Self::default();
        plan.place(Runs::one(0..len), 1, 1);
        plan
    }

    /// Plans a load of every tensor of a PyTorch file.
    #[must_use]
    pub fn of_archive(archive: &Archive) -> Self {
        let inflated_from = archive.deflated.first().map(|&(at, _)| at);
        let mut plan = Self { inflated_from, ..Self::default() };
        let mut aligns: Vec<u64> =
            archive.checkpoint.storages.iter().map(|storage| storage.dtype.item_size()).collect();
        for tensor in &archive.checkpoint.tensors {
            // The dtypes without a typed storage lie in storages of bytes.
            aligns[tensor.storage] = aligns[tensor.storage].max(tensor.dtype.item_size());
        }
        for (index, bytes) in archive.storages.iter().enumerate() {
            let dtype = archive.checkpoint.storages[index].dtype;
            let swapped = if archive.swapped { dtype.swapped_size() } else { 1 };
            plan.place(Runs::one(bytes.clone()), aligns[index], swapped);
        }
        plan.put_ranges_in_order();
        plan.tensors = archive.checkpoint.tensors.iter().map(Tensor::from).collect();
        plan
    }

    /// Sorts and merges what is brought in: storages have the order in which a pickle or a caller
    /// names them, which need not be the file's.
    pub(crate) fn put_ranges_in_order(&mut self) {
        self.ranges.sort_by_key(|range| range.start);
        let ranges = std::mem::take(&mut self.ranges);
        for range in ranges {
            self.bring_in(range);
        }
    }

    /// Decides where bytes of the file are to be found, and returns which storage that is.
    pub(crate) fn place(&mut self, from: Runs, align: u64, swapped: u64) -> usize {
        let byte_len = from.byte_len();
        let range = from.as_range().filter(|range| range.start.is_multiple_of(align));
        let place = match range {
            _ if byte_len == 0 => Place::Mapped(from.start),
            Some(range)
                if swapped == 1 && self.inflated_from.is_none_or(|from| range.end <= from) =>
            {
                self.bring_in(range);
                Place::Mapped(from.start)
            }
            _ => {
                let to = self.copies_len;
                // At most the file's length and a cache line a tensor: far below 2^64.
                self.copies_len = (to + byte_len).next_multiple_of(COPY_ALIGN);
                self.copies.push(Copy { from, to, swapped });
                Place::Copied(to)
            }
        };
        self.storages.push(Storage { place, byte_len });
        self.storages.len() - 1
    }

    /// Where the file has the bytes of a storage, and how they are turned around.
    pub(crate) fn source(&self, storage: Storage) -> (Runs, u64) {
        match storage.place {
            Place::Mapped(offset) => (Runs::one(offset..offset + storage.byte_len), 1),
            Place::Copied(to) => {
                let found = self.copies.binary_search_by_key(&to, |copy| copy.to);
                found.map_or_else(
                    |_| (Runs::one(0..0), 1),
                    |at| (self.copies[at].from.clone(), self.copies[at].swapped),
                )
            }
        }
    }

    /// Bytes that are brought in and copied, together.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        let ranges: u64 = self.ranges.iter().map(|range| range.end - range.start).sum();
        ranges + self.copies.iter().map(|copy| copy.from.byte_len()).sum::<u64>()
    }

    fn bring_in(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        match self.ranges.last_mut() {
            Some(last)
                if (last.start..=last.end.saturating_add(MERGE_GAP)).contains(&range.start) =>
            {
                last.end = last.end.max(range.end);
            }
            _ => self.ranges.push(range),
        }
    }
}

impl Tensor {
    /// Whether the elements lie in row-major order without gaps.
    #[must_use]
    pub fn is_row_major(&self) -> bool {
        let Some(strides) = &self.strides else { return true };
        let mut wanted = 1i64;
        for (&size, &stride) in self.shape.iter().zip(strides).rev() {
            if size != 1 && stride != wanted {
                return false;
            }
            wanted = wanted.saturating_mul(size.max(1));
        }
        true
    }
}

impl From<&pytorch::Tensor> for Tensor {
    fn from(tensor: &pytorch::Tensor) -> Self {
        Self {
            storage: tensor.storage,
            scalar_type: tensor.dtype.scalar_type(),
            item_size: tensor.dtype.item_size(),
            offset: tensor.offset,
            shape: tensor.shape.clone(),
            strides: Some(tensor.strides.clone()),
            requires_grad: tensor.requires_grad,
            settle: false,
        }
    }
}

/// Cuts `range` at multiples of `len`, so that all but the ends are aligned to it.
pub fn segments(range: Range<u64>, len: u64) -> impl Iterator<Item = Range<u64>> {
    let Range { mut start, end } = range;
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let cut = (start / len + 1).saturating_mul(len).min(end);
        let segment = start..cut;
        start = cut;
        Some(segment)
    })
}

/// The alignment torch's kernels may assume, in bytes: complex numbers are pairs of floats, but
/// vectors of them are loaded as wholes.
fn element_align(dtype: Dtype) -> u64 {
    (dtype.bits() / 8).max(1)
}

/// The `c10::ScalarType` and sizes torch needs.
fn torch_type(info: &TensorInfo) -> Result<(i8, Vec<i64>), String> {
    let dtype = info.dtype();
    let scalar_type =
        dtype.scalar_type().ok_or_else(|| format!("dtype {} has no torch dtype", dtype.name()))?;
    let mut shape = info
        .shape()
        .iter()
        .map(|&size| i64::try_from(size).map_err(|_| format!("dimension {size} is over 2^63 - 1")))
        .collect::<Result<Vec<_>, _>>()?;
    let packing = dtype.packing() as i64;
    if packing > 1 {
        match shape.last_mut() {
            Some(last) if *last % packing == 0 => *last /= packing,
            _ => return Err(format!("last dimension of {} must be even", dtype.name())),
        }
    }
    // Torch computes strides of empty tensors too, as if sizes of zero were one.
    shape
        .iter()
        .skip(1)
        .try_fold(1i64, |stride, &size| stride.checked_mul(size.max(1)))
        .ok_or_else(|| format!("strides of shape {} overflow", Shape(info.shape())))?;
    Ok((scalar_type, shape))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::safetensors::LENGTH_BYTES;

    fn plan(json: &str, data_len: u64) -> Result<Plan, Malformed> {
        let file_len = LENGTH_BYTES + json.len() as u64 + data_len;
        Plan::of_header(&Header::parse(json.as_bytes(), file_len).unwrap())
    }

    fn one(dtype: &str, shape: &str, len: u64) -> Result<Plan, Malformed> {
        plan(
            &format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{len}]}}}}"#),
            len,
        )
    }

    #[test]
    fn segments_cover_a_range_once_and_are_aligned_inside() {
        let range = 5..3 * SEGMENT_LEN + 7;
        let cuts: Vec<_> = segments(range.clone(), SEGMENT_LEN).collect();
        assert_eq!(cuts.len(), 4);
        assert_eq!((cuts[0].start, cuts[3].end), (range.start, range.end));
        for pair in cuts.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert_eq!(pair[1].start % SEGMENT_LEN, 0);
        }
        assert_eq!(segments(9..9, SEGMENT_LEN).count(), 0);
        assert_eq!(segments(u64::MAX - 1..u64::MAX, SEGMENT_LEN).count(), 1);
    }

    #[test]
    fn what_is_misaligned_is_copied_and_nothing_else() {
        // 8 + 119 bytes of header: odd, so that only the bytes can stay where they are.
        let json = r#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"f":{"dtype":"F32","shape":[2],"data_offsets":[3,11]}}"#;
        let json = format!("{json:<119}");
        let plan = plan(&json, 11).unwrap();
        assert_eq!(plan.storages[0].place, Place::Mapped(127));
        assert_eq!(plan.storages[1].place, Place::Copied(0));
        assert_eq!(plan.ranges, vec![127..130; 1], "what is copied is not brought in twice");
        assert_eq!(plan.copies, [Copy { from: Runs::one(130..138), to: 0, swapped: 1 }]);
        assert_eq!(plan.copies_len, COPY_ALIGN);
    }

    #[test]
    fn two_f4_are_one_element_of_torch() {
        let plan = one("F4", "[3,4]", 6).unwrap();
        assert_eq!(plan.tensors[0].shape, [3, 2]);
        assert!(one("F4", "[2,3]", 3).unwrap_err().reason.contains("must be even"));
    }

    #[test]
    fn what_torch_cannot_hold_is_refused_by_name() {
        let f6 = one("F6_E2M3", "[4]", 3).unwrap_err();
        assert_eq!(f6, Malformed::tensor("w", "dtype F6_E2M3 has no torch dtype"));
        let long = one("U8", "[9223372036854775808,0]", 0).unwrap_err();
        assert!(long.reason.contains("over 2^63 - 1"), "{long}");
        let wide = one("U8", "[0,4294967296,4294967296]", 0).unwrap_err();
        assert!(wide.reason.contains("overflow"), "{wide}");
        assert!(one("U8", "[4294967296,4294967295,0]", 0).is_ok(), "no stride leaves an i64");
    }
}
