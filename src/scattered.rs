//! Small ranges all over a file: what a format says of its tensors beside the tensors.

use crate::{
    error::{Error, Result},
    storage::{Scattered, Source, Storage},
    threads,
    watch::Watch,
};
use std::{io, ops::Range};

/// What lies between ranges that are read as one, in bytes, shared among the readers: where each
/// request takes its time, a few bytes more cost less than another, if it has to wait for others.
const NEAR: u64 = 512 << 10;

/// What is read as one is no longer than this, in bytes, but for a range that is.
const MOST: u64 = 1 << 20;

/// How much of that is asked for before any of it is looked at: what bounds the memory.
const AT_ONCE: usize = 64;

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
    let failed = |error: io::Error| Error::io("read", source.name(), error);
    let is_far = matches!(source.file_system().storage, Storage::Remote | Storage::Object);
    if ranges.len() < 2 || !is_far {
        let bytes_of = |range: &Range<u64>| {
            let mut bytes = room(range);
            source.read_exact_at(&mut bytes, range.start, watch).map(|()| bytes)
        };
        return ranges.iter().map(|range| bytes_of(range).map_err(failed)).collect();
    }
    let mut found = vec![Vec::new(); ranges.len()];
    for blocks in together(ranges, NEAR / num_thread.max(1) as u64).chunks(AT_ONCE) {
        let mut read: Vec<Vec<u8>> = blocks.iter().map(|block| room(&block.whole)).collect();
        at_once(source, blocks, &mut read, num_thread, watch).map_err(failed)?;
        for (Block { whole, held }, bytes) in blocks.iter().zip(read) {
            if let [index] = held[..] {
                found[index] = bytes;
                continue;
            }
            for &index in held {
                let Range { start, end } = ranges[index];
                let place = (start - whole.start) as usize..(end - whole.start) as usize;
                found[index] = bytes[place].to_vec();
            }
        }
    }
    Ok(found)
}

fn room(range: &Range<u64>) -> Vec<u8> {
    vec![0; (range.end - range.start) as usize]
}

fn at_once(
    source: &dyn Source,
    blocks: &[Block],
    memory: &mut [Vec<u8>],
    num_thread: usize,
    watch: &Watch<'_>,
) -> io::Result<()> {
    let mut pieces: Vec<Scattered<'_>> = blocks
        .iter()
        .zip(memory)
        .map(|(block, bytes)| Scattered { offset: block.whole.start, bytes })
        .collect();
    if let Some(done) = source.read_scattered(&mut pieces, num_thread, watch) {
        return done;
    }
    threads::for_each(num_thread, pieces, watch, |Scattered { offset, bytes }| {
        source.read_exact_at(bytes, offset, watch)
    })
}

/// Ranges that are read as one.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    whole: Range<u64>,
    /// Which they are.
    held: Vec<usize>,
}

/// Puts together what is less than `near` apart, in the order of the file.
fn together(ranges: &[Range<u64>], near: u64) -> Vec<Block> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&index| ranges[index].start);
    let mut blocks: Vec<Block> = Vec::new();
    for index in order {
        let range = &ranges[index];
        match blocks.last_mut() {
            Some(Block { whole, held })
                if range.start.saturating_sub(whole.end) < near
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
            together(ranges, NEAR).into_iter().map(|Block { whole, held }| (whole, held)).collect()
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
