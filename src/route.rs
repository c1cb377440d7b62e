//! How the bytes of parcels are cut into stages, each of which passes through one segment of host
//! memory. Pure: numbers in, numbers out.
//!
//! ```text
//! file      |--a--|-b-|.|------------c------------|     . is in no parcel
//! stages    |--------------|------------|---------|     cut by bytes, at multiples of a length
//! parts      a     b     c  c            c              of a stage: which bytes go where
//! ```
//!
//! Parcels whose bytes are scattered in the file, or lie where their elements cannot be used, get
//! stages of their own: the runs are picked out of what a block of the file spans.

use crate::{
    placement::Parcel,
    plan::{segments, SEGMENT_LEN},
    slice::{Block, Runs},
};
use std::ops::Range;

/// Parcels nearer to each other than this are read as one, in bytes.
const NEAR: u64 = 64 << 10;

/// The same for the runs of one parcel.
const NEAR_RUNS: u64 = 16 << 10;

/// A page: what readers past the page cache want offsets to be multiples of.
const PAGE: u64 = 4096;

/// Bytes of a segment that go to one parcel's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub parcel: usize,
    /// Offset in the segment.
    pub at: u64,
    /// Offset in the storage, in bytes as the file has them.
    pub to: u64,
    pub len: u64,
}

/// What passes through one segment at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Bytes of the file, at most a segment.
    pub from: Range<u64>,
    /// Where only some of them are wanted: which, to be moved to the beginning of the segment.
    pub picked: Option<Picked>,
    /// In the order of the file.
    pub parts: Vec<Part>,
}

/// Runs of a parcel to be picked out of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picked {
    pub runs: Runs,
    pub block: Block,
    /// Bytes of a number whose order is turned around; 1 leaves them as they are.
    pub swapped: u64,
}

impl Stage {
    /// Bytes that go somewhere.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
    }
}

/// Cuts `parcels` into stages of at most `segment_len` bytes, which a segment has room for.
#[must_use]
pub fn stages(parcels: &[Parcel], segment_len: u64) -> Vec<Stage> {
    let mut whole: Vec<(Range<u64>, usize)> = Vec::new();
    let mut stages = Vec::new();
    for (index, parcel) in parcels.iter().enumerate().filter(|(_, parcel)| parcel.byte_len > 0) {
        match parcel.from.as_range() {
            Some(range) if parcel.may_lie_anywhere() => whole.push((range, index)),
            _ => stages.extend(picked(parcel, index)),
        }
    }
    whole.sort_by_key(|(range, index)| (range.start, range.end, *index));
    stages.extend(together(&whole, segment_len.min(SEGMENT_LEN)));
    stages.sort_by_key(|stage| stage.from.start);
    stages
}

/// The stages of parcels that lie in the file as they are wanted, in its order.
fn together(whole: &[(Range<u64>, usize)], segment_len: u64) -> Vec<Stage> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for (range, _) in whole {
        match ranges.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(NEAR) => {
                last.end = last.end.max(range.end);
            }
            _ => ranges.push(range.start / PAGE * PAGE..range.end),
        }
    }
    let mut first = 0;
    let mut stages = Vec::new();
    for from in ranges.into_iter().flat_map(|range| segments(range, segment_len)) {
        while whole.get(first).is_some_and(|(range, _)| range.end <= from.start) {
            first += 1;
        }
        let parts: Vec<Part> = whole[first..]
            .iter()
            .take_while(|(range, _)| range.start < from.end)
            .filter(|(range, _)| range.end > from.start)
            .map(|(range, parcel)| {
                let (start, end) = (range.start.max(from.start), range.end.min(from.end));
                let (at, to) = (start - from.start, start - range.start);
                Part { parcel: *parcel, at, to, len: end - start }
            })
            .collect();
        if !parts.is_empty() {
            stages.push(Stage { from, picked: None, parts });
        }
    }
    stages
}

/// The stages of a parcel whose bytes have to be put together.
fn picked(parcel: &Parcel, index: usize) -> impl Iterator<Item = Stage> + '_ {
    // So that a block has room in a segment wherever in a page it begins.
    parcel.from.blocks(SEGMENT_LEN - 2 * PAGE, NEAR_RUNS).map(move |block| {
        let Range { start: to, end } = block.to;
        let parts = vec![Part { parcel: index, at: 0, to, len: end - to }];
        let (runs, swapped) = (parcel.from.clone(), parcel.swapped);
        Stage { from: block.from.clone(), picked: Some(Picked { runs, block, swapped }), parts }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Device;

    fn parcel(from: Runs, is_copied: bool) -> Parcel {
        let byte_len = from.byte_len();
        let (device, tensor) = (Device { kind: 1, index: 0 }, 0);
        Parcel { device, from, swapped: 1, is_copied, byte_len, from_type: 6, to_type: 6, tensor }
    }

    fn of(ranges: &[Range<u64>]) -> Vec<Parcel> {
        ranges.iter().map(|range| parcel(Runs::one(range.clone()), false)).collect()
    }

    /// Which byte of the file each byte of each parcel comes from, by following the stages.
    fn follow(parcels: &[Parcel], segment_len: u64) -> Vec<Vec<Option<u64>>> {
        let mut arrived: Vec<Vec<Option<u64>>> =
            parcels.iter().map(|parcel| vec![None; parcel.byte_len as usize]).collect();
        for stage in stages(parcels, segment_len) {
            assert!(stage.from.end - stage.from.start <= SEGMENT_LEN);
            for part in &stage.parts {
                for byte in 0..part.len {
                    let from = match &stage.picked {
                        None => stage.from.start + part.at + byte,
                        Some(picked) => picked.runs.find(picked.block.to.start + byte).0,
                    };
                    assert!(stage.from.contains(&from));
                    let cell = &mut arrived[part.parcel][(part.to + byte) as usize];
                    assert_eq!(cell.replace(from), None, "each byte comes once");
                }
            }
        }
        arrived
    }

    #[test]
    fn every_byte_arrives_once_where_it_belongs() {
        let mut parcels = of(&[5000..9000, 9000..9001, 200_000..230_000, 4096..5000, 9001..9001]);
        parcels.push(parcel(Runs::one(200_000..230_000), false)); // the same on another device
        parcels.push(parcel(Runs { start: 10_000, len: 8, loops: vec![(3, 100), (2, 20)] }, true));
        for segment_len in [4096, 8192, SEGMENT_LEN] {
            let arrived = follow(&parcels, segment_len);
            for (parcel, bytes) in parcels.iter().zip(arrived) {
                for (at, from) in bytes.into_iter().enumerate() {
                    assert_eq!(from, Some(parcel.from.find(at as u64).0));
                }
            }
        }
    }

    #[test]
    fn neighbours_travel_together_and_what_is_far_does_not() {
        let parcels = of(&[100..200, 200..300, 1 << 30..(1 << 30) + 5]);
        let stages = stages(&parcels, SEGMENT_LEN);
        assert_eq!(stages.len(), 2);
        assert_eq!((stages[0].from.clone(), stages[0].parts.len()), (0..300, 2));
        assert_eq!(stages[1].from.start, 1 << 30);
    }

    #[test]
    fn a_large_parcel_is_cut_at_multiples_of_the_segment() {
        let stages = stages(&of(std::slice::from_ref(&(100..3 * SEGMENT_LEN + 1))), SEGMENT_LEN);
        let cuts: Vec<_> = stages.iter().map(|stage| stage.from.start).collect();
        assert_eq!(cuts, [0, SEGMENT_LEN, 2 * SEGMENT_LEN, 3 * SEGMENT_LEN]);
        assert_eq!(stages.iter().map(Stage::byte_len).sum::<u64>(), 3 * SEGMENT_LEN - 99);
    }
}
