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

/// What is wanted of a dimension. Negative numbers count from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub dim: i64,
    pub part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// As Python's `start:stop:step` has it, with a positive step: what reaches over the ends is cut
    /// off.
    Range { start: i64, stop: i64, step: i64 },
    /// One element, whose dimension the result does not have.
    Index(i64),
}

/// What is left of a dimension of `size` elements: `count` of them, `step` apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Axis {
    pub start: i64,
    pub count: i64,
    pub step: i64,
    pub size: i64,
    /// Whether the result does not have the dimension.
    pub is_dropped: bool,
}

impl Axis {
    fn is_whole(&self) -> bool {
        self.count == self.size
    }
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

    /// The bytes of the file from the first run to the end of the last.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        let last = self.count().saturating_sub(1);
        self.start..self.offset(last) + self.len
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
/// As [`resolve`].
pub fn slice(
    start: u64,
    item: u64,
    shape: &[i64],
    cuts: &[Cut],
) -> Result<(Runs, Vec<i64>), String> {
    let axes = resolve(shape, cuts)?;
    let sliced = axes.iter().filter(|axis| !axis.is_dropped).map(|axis| axis.count).collect();
    let mut runs = Runs { start, len: item, loops: Vec::new() };
    if axes.iter().any(|axis| axis.count == 0) {
        return Ok((Runs { len: 0, ..runs }, sliced));
    }
    // From the inside out: whole dimensions make the run longer until one is cut.
    let mut stride = item;
    let mut whole = true;
    for axis in axes.iter().rev() {
        let (begin, count, step) = (axis.start as u64, axis.count as u64, axis.step as u64);
        runs.start += begin * stride;
        if whole && step == 1 {
            runs.len = count * stride;
        } else if count > 1 {
            runs.loops.insert(0, (count, step * stride));
        }
        whole &= axis.is_whole();
        stride *= axis.size as u64;
    }
    Ok((runs, sliced))
}

/// What `cuts` leave of each dimension.
///
/// # Errors
/// A dimension that the tensor does not have or that is cut twice, an index that is out of range, and a
/// step that is not positive.
pub fn resolve(shape: &[i64], cuts: &[Cut]) -> Result<Vec<Axis>, String> {
    let whole = |&size| Axis { start: 0, count: size, step: 1, size, is_dropped: false };
    let mut axes: Vec<Axis> = shape.iter().map(whole).collect();
    let mut seen = HashSet::new();
    for cut in cuts {
        let dims = shape.len() as i64;
        let dim = if cut.dim < 0 { cut.dim.saturating_add(dims) } else { cut.dim };
        let found = usize::try_from(dim)
            .ok()
            .and_then(|dim| axes.get_mut(dim))
            .ok_or_else(|| format!("has {dims} dimensions, and none of number {}", cut.dim))?;
        if !seen.insert(dim) {
            return Err(format!("dimension {dim} of {dims} is cut twice"));
        }
        *found =
            left(found.size, cut.part).map_err(|reason| format!("{reason} of dimension {dim}"))?;
    }
    Ok(axes)
}

/// What `part` leaves of a dimension of `size` elements.
fn left(size: i64, part: Part) -> Result<Axis, String> {
    let from_end = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    match part {
        Part::Index(index) => {
            let start = from_end(index);
            if !(0..size).contains(&start) {
                return Err(format!("index {index} is out of range for the {size} elements"));
            }
            Ok(Axis { start, count: 1, step: 1, size, is_dropped: true })
        }
        Part::Range { step, .. } if step < 1 => Err(format!("step {step} must be positive")),
        Part::Range { start, stop, step } => {
            let [start, end] = [start, stop].map(|at| from_end(at).clamp(0, size));
            let span = (end - start).max(0);
            let count = span / step + i64::from(span % step > 0);
            // Of one element nobody asks where the next one is.
            let apart = if count > 1 { step } else { 1 };
            Ok(Axis { start, count, step: apart, size, is_dropped: false })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(dim: i64, start: i64, stop: i64) -> Cut {
        Cut { dim, part: Part::Range { start, stop, step: 1 } }
    }

    fn index(dim: i64, index: i64) -> Cut {
        Cut { dim, part: Part::Index(index) }
    }

    #[test]
    fn along_the_first_dimension_it_is_one_run() {
        let (runs, shape) = slice(100, 2, &[8, 3, 5], &[cut(0, 2, 4)]).unwrap();
        assert_eq!((runs.as_range(), shape), (Some(160..220), vec![2, 3, 5]));
    }

    #[test]
    fn numbers_count_as_in_python() {
        let left = |start, stop| {
            let axis = resolve(&[10], &[cut(-1, start, stop)]).unwrap()[0];
            axis.start..axis.start + axis.count
        };
        assert_eq!(left(-3, i64::MAX), 7..10);
        assert_eq!(left(i64::MIN, -9), 0..1);
        assert_eq!(left(8, 3), 8..8);
        assert!(resolve(&[10], &[cut(1, 0, 1)]).unwrap_err().contains("none of number 1"));
        assert!(resolve(&[], &[cut(-1, 0, 1)]).is_err());
        let twice = [cut(0, 0, 1), cut(-2, 0, 1)];
        assert!(resolve(&[4, 4], &twice).unwrap_err().contains("is cut twice"));
    }

    #[test]
    fn one_element_takes_its_dimension_away() {
        let (runs, shape) = slice(100, 2, &[8, 3, 5], &[index(0, -1)]).unwrap();
        assert_eq!((runs.as_range(), shape), (Some(310..340), vec![3, 5]));
        let (runs, shape) = slice(0, 1, &[4, 6], &[index(1, 2)]).unwrap();
        assert_eq!((runs.loops, runs.start, shape), (vec![(4, 6)], 2, vec![4]));
        for outside in [8, -9, i64::MIN, i64::MAX] {
            let refused = resolve(&[8], &[index(0, outside)]).unwrap_err();
            assert!(refused.contains(&format!("index {outside} is out of range")), "{refused}");
        }
        assert!(resolve(&[0], &[index(0, 0)]).is_err());
    }

    #[test]
    fn a_step_is_positive_and_may_be_long() {
        let stepped = |step| Cut { dim: 0, part: Part::Range { start: 1, stop: 9, step } };
        let counts =
            [1, 2, 3, 8, i64::MAX].map(|step| resolve(&[9], &[stepped(step)]).unwrap()[0].count);
        assert_eq!(counts, [8, 4, 3, 1, 1]);
        for wrong in [0, -1, i64::MIN] {
            assert!(resolve(&[9], &[stepped(wrong)]).unwrap_err().contains("must be positive"));
        }
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
            cuts in prop::collection::vec((0i64..5, -6i64..7, -6i64..7, 0i64..4), 0..4),
            item in 1u64..5,
            span in 1u64..40,
            gap in 0u64..20,
        ) {
            let part = |start, stop, step| match step {
                0 => Part::Index(start),
                step => Part::Range { start, stop, step },
            };
            let cuts: Vec<Cut> = cuts
                .into_iter()
                .map(|(dim, start, stop, step)| Cut { dim, part: part(start, stop, step) })
                .collect();
            let Ok((runs, sliced)) = slice(1000, item, &shape, &cuts) else { return Ok(()) };
            let axes = resolve(&shape, &cuts).unwrap();
            let mut expected = Vec::new();
            let total: i64 = sliced.iter().product();
            for mut index in 0..total {
                let mut element = 0;
                let mut step = 1;
                for axis in axes.iter().rev() {
                    element += (axis.start + index % axis.count * axis.step) * step;
                    index /= axis.count;
                    step *= axis.size;
                }
                expected.extend((0..item).map(|byte| 1000 + element as u64 * item + byte));
            }
            if runs.len > 0 {
                let last = expected.iter().max().map_or(0, |last| last + 1);
                prop_assert_eq!(runs.span(), expected[0]..last);
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
