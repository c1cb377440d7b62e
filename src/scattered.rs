//! Small ranges all over a file: what a format says of its tensors beside the tensors.

use crate::{
    error::{Error, Result},
    storage::{Source, Storage},
    threads,
    watch::Watch,
};
use std::{
    io,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// Ranges nearer to each other than this are read as one where each request takes its time, in bytes:
/// what lies between them costs less than another request.
const NEAR: u64 = 512 << 10;

/// What is read as one is no longer than this, in bytes, but for a range that is: every thread
/// holds so much.
const MOST: u64 = 1 << 20;

/// The bytes of each of `ranges`: one after the other from this machine, from far away at most
/// `num_thread` at once.
///
/// # Errors
/// What the storage answers, and a file that has become shorter.
pub fn read(
    source: &dyn Source,
    ranges: &[Range<u64>],
    num_thread: usize,
    watch: &Watch<'_>,
) -> Result<Vec<Vec<u8>>> {
    let bytes_of = |range: &Range<u64>| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        source.read_exact_at(&mut bytes, range.start, watch).map(|()| bytes)
    };
    let failed = |error: io::Error| Error::io("read", source.name(), error);
    let is_far = matches!(source.file_system().storage, Storage::Remote | Storage::Object);
    if ranges.len() < 2 || !is_far {
        return ranges.iter().map(|range| bytes_of(range).map_err(failed)).collect();
    }
    let found = Mutex::new(vec![Vec::new(); ranges.len()]);
    threads::for_each(num_thread, together(ranges), watch, |Block { whole, held }| {
        let bytes = bytes_of(&whole)?;
        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
        for index in held {
            let Range { start, end } = ranges[index];
            found[index] =
                bytes[(start - whole.start) as usize..(end - whole.start) as usize].into();
        }
        Ok::<(), io::Error>(())
    })
    .map_err(failed)?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Ranges that are read as one.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    whole: Range<u64>,
    /// Which they are.
    held: Vec<usize>,
}

/// Puts together what is near, in the order of the file.
fn together(ranges: &[Range<u64>]) -> Vec<Block> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&index| ranges[index].start);
    let mut blocks: Vec<Block> = Vec::new();
    for index in order {
        let range = &ranges[index];
        match blocks.last_mut() {
            Some(Block { whole, held })
                if range.start.saturating_sub(whole.end) < NEAR
                    && range.end.max(whole.end) - whole.start <= MOST =>
            {
                whole.end = whole.end.max(range.end);
                held.push(index);
            }
            _ => blocks.push(Block { whole: range.clone(), held: vec![index] }),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_is_read_as_one_and_no_more() {
        let blocks = |ranges: &[Range<u64>]| -> Vec<(Range<u64>, Vec<usize>)> {
            together(ranges).into_iter().map(|Block { whole, held }| (whole, held)).collect()
        };
        assert_eq!(blocks(&[]), []);
        assert_eq!(blocks(&[9..12, 0..8, 4..6]), [(0..12, vec![1, 2, 0])]);
        let far = 8 + NEAR;
        assert_eq!(blocks(&[far..far + 1, 0..8]), [(0..8, vec![1]), (far..far + 1, vec![0])]);
        assert_eq!(blocks(&[far - 1..far, 0..8]), [(0..far, vec![1, 0])]);
        let steps: Vec<_> = (0..100).map(|step| step * (NEAR - 1)..step * (NEAR - 1) + 1).collect();
        let all = blocks(&steps);
        assert!(all.len() > 5 && all.iter().all(|(whole, _)| whole.end - whole.start <= MOST));
        assert_eq!(blocks(&[0..2 * MOST, 1..2]), [(0..2 * MOST, vec![0]), (1..2, vec![1])]);
    }
}
