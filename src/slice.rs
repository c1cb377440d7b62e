//! Which bytes a slice of a tensor is. Pure: numbers in, numbers out.
//!
//! A slice of a tensor that lies in row-major order is a number of equal runs of bytes at regular
//! distances, in as many nested loops as there are dimensions outside the innermost one that is
//! cut. A slice along the first dimension is a single run.
//!
//! ```text
//! shape [2, 3, 4], [:, 1:3, :]    |....####|####....|....    loop of 2, runs of 2 x 4 elements
//!                                  ----^^^^^^^^^----^^^^^^^^^
//! ```

use std::{collections::HashSet, ops::Range};

/// What is wanted of a dimension, as Python's `start:stop` has it: negative numbers count from the
/// end, and what reaches over the ends is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub dim: i64,
    pub start: i64,
    pub stop: i64,
}

/// Equal runs of bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// Offset of the first one.
    pub start: u64,
    /// Bytes of each.
    pub len: u64,
    /// How often, and how many bytes further each time; the outermost loop first.
    pub loops: Vec<(u64, u64)>,
}

/// Runs that are near enough to be read as one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Bytes of the file.
    pub from: Range<u64>,
    /// Bytes of the result.
    pub to: Range<u64>,
}

impl Runs {
    /// The bytes of `range` as they are.
    #[must_use]
    pub fn one(range: Range<u64>) -> Self {
        Self { start: range.start, len: range.end - range.start, loops: Vec::new() }
    }

    /// The bytes as one range, if they are one.
    #[must_use]
    pub fn as_range(&self) -> Option<Range<u64>> {
        self.loops.is_empty().then_some(self.start..self.start + self.len)
    }

    fn count(&self) -> u64 {
        self.loops.iter().map(|&(count, _)| count).product()
    }

    /// All bytes together.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.count() * self.len
    }

    /// Offset of a run in the file.
    fn offset(&self, mut index: u64) -> u64 {
        let mut offset = self.start;
        for &(count, step) in self.loops.iter().rev() {
            offset += index % count * step;
            index /= count;
        }
        offset
    }

    /// Offset in the file of a byte of the result, and how many follow in its run.
    #[must_use]
    pub fn find(&self, at: u64) -> (u64, u64) {
        let within = at % self.len;
        (self.offset(at / self.len) + within, self.len - within)
    }

    /// Cuts the bytes into blocks that span at most `span` bytes of the file, and no more than
    /// `gap` bytes that are not wanted between one run and the next. Long runs are cut at multiples
    /// of `span`, which every element's size divides.
    pub fn blocks(&self, span: u64, gap: u64) -> impl Iterator<Item = Block> + '_ {
        let total = self.byte_len();
        let mut at = 0;
        std::iter::from_fn(move || {
            if at >= total {
                return None;
            }
            let (start, follow) = self.find(at);
            let mut block =
                Block { from: start..start + follow.min(span), to: at..at + follow.min(span) };
            at = block.to.end;
            while at < total && follow <= span {
                let (next, len) = self.find(at);
                let is_near = next >= block.from.end && next - block.from.end <= gap;
                if !is_near || next + len - start > span {
                    break;
                }
                block.from.end = next + len;
                at += len;
                block.to.end = at;
            }
            Some(block)
        })
    }
}

/// Cuts a tensor of `shape` that begins at byte `start` and has `item` bytes an element, in
/// row-major order. Returns its bytes and the shape of the slice.
///
/// # Errors
/// A dimension that the tensor does not have.
pub fn slice(
    start: u64,
    item: u64,
    shape: &[i64],
    cuts: &[Cut],
) -> Result<(Runs, Vec<i64>), String> {
    let ranges = resolve(shape, cuts)?;
    let sliced: Vec<i64> = ranges.iter().map(|range| range.end - range.start).collect();
    let mut runs = Runs { start, len: item, loops: Vec::new() };
    if sliced.contains(&0) {
        return Ok((Runs { len: 0, ..runs }, sliced));
    }
    // From the inside out: whole dimensions make the run longer until one is cut.
    let mut step = item;
    let mut whole = true;
    for (range, &size) in ranges.iter().zip(shape).rev() {
        let (begin, count) = (range.start as u64, (range.end - range.start) as u64);
        runs.start += begin * step;
        if whole {
            runs.len = count * step;
        } else if count > 1 {
            runs.loops.insert(0, (count, step));
        }
        whole &= count == size as u64;
        step *= size as u64;
    }
    Ok((runs, sliced))
}

/// What `cuts` leave of each dimension.
///
/// # Errors
/// A dimension that the tensor does not have, or that is cut twice.
pub fn resolve(shape: &[i64], cuts: &[Cut]) -> Result<Vec<Range<i64>>, String> {
    let mut ranges: Vec<Range<i64>> = shape.iter().map(|&size| 0..size).collect();
    let mut seen = HashSet::new();
    for cut in cuts {
        let dims = shape.len() as i64;
        let dim = if cut.dim < 0 { cut.dim.saturating_add(dims) } else { cut.dim };
        let range = usize::try_from(dim)
            .ok()
            .and_then(|dim| ranges.get_mut(dim))
            .ok_or_else(|| format!("has {dims} dimensions, and none of number {}", cut.dim))?;
        if !seen.insert(dim) {
            return Err(format!("dimension {dim} of {dims} is cut twice"));
        }
        let size = range.end;
        let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at }.clamp(0, size);
        let (start, stop) = (from_end(cut.start), from_end(cut.stop));
        *range = start..stop.max(start);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(dim: i64, start: i64, stop: i64) -> Cut {
        Cut { dim, start, stop }
    }

    #[test]
    fn along_the_first_dimension_it_is_one_run() {
        let (runs, shape) = slice(100, 2, &[8, 3, 5], &[cut(0, 2, 4)]).unwrap();
        assert_eq!((runs.as_range(), shape), (Some(160..220), vec![2, 3, 5]));
    }

    #[test]
    fn numbers_count_as_in_python() {
        let left = |start, stop| resolve(&[10], &[cut(-1, start, stop)]).unwrap()[0].clone();
        assert_eq!(left(-3, i64::MAX), 7..10);
        assert_eq!(left(i64::MIN, -9), 0..1);
        assert_eq!(left(8, 3), 8..8);
        assert!(resolve(&[10], &[cut(1, 0, 1)]).unwrap_err().contains("none of number 1"));
        assert!(resolve(&[], &[cut(-1, 0, 1)]).is_err());
        let twice = [cut(0, 0, 1), cut(-2, 0, 1)];
        assert!(resolve(&[4, 4], &twice).unwrap_err().contains("is cut twice"));
    }

    #[test]
    fn runs_that_are_near_are_one_block() {
        let (runs, _) = slice(0, 1, &[100, 10], &[cut(1, 0, 4)]).unwrap();
        let blocks: Vec<_> = runs.blocks(50, 8).collect();
        assert_eq!(blocks[0], Block { from: 0..44, to: 0..20 });
        assert_eq!(blocks.last().unwrap().to.end, 400);
        assert_eq!(runs.blocks(50, 5).count(), 100, "too far apart");
    }

    proptest! {
        /// The bytes of a slice are those that indexing each element finds.
        #[test]
        fn a_slice_has_the_bytes_of_its_elements(
            shape in prop::collection::vec(0i64..5, 0..5),
            cuts in prop::collection::vec((0i64..5, -6i64..7, -6i64..7), 0..4),
            item in 1u64..5,
            span in 1u64..40,
            gap in 0u64..20,
        ) {
            let cuts: Vec<Cut> = cuts.into_iter().map(|(d, a, b)| cut(d, a, b)).collect();
            let Ok((runs, sliced)) = slice(1000, item, &shape, &cuts) else { return Ok(()) };
            let ranges = resolve(&shape, &cuts).unwrap();
            let mut expected = Vec::new();
            let total: i64 = sliced.iter().product();
            for mut index in 0..total {
                let mut element = 0;
                let mut step = 1;
                for (range, &size) in ranges.iter().zip(&shape).rev() {
                    let count = range.end - range.start;
                    element += (range.start + index % count) * step;
                    index /= count;
                    step *= size;
                }
                expected.extend((0..item).map(|byte| 1000 + element as u64 * item + byte));
            }
            let span = span * item;
            let mut found = vec![0; runs.byte_len() as usize];
            for block in runs.blocks(span, gap) {
                prop_assert!(block.from.end - block.from.start <= span.max(item));
                for at in block.to {
                    let (offset, _) = runs.find(at);
                    prop_assert!(block.from.contains(&offset));
                    found[at as usize] = offset;
                }
            }
            prop_assert_eq!(found, expected);
        }
    }
}
