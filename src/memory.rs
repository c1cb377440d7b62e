//! Where bytes land: the memory under a load's tensors.
//!
//! A [`Region`] holds the whole of it, and every tensor of the load keeps a counted reference
//! to it (`csrc/tensor.cpp`), so the bytes go when the last tensor goes.

use crate::{
    plan::{Copy, Place, Plan, SEGMENT_LEN},
    slice::{Block, Runs},
    storage::Storage,
    ways::{
        direct::{direct, read_piece},
        Job, Piece, Way, PAGE,
    },
};
use memmap2::MmapMut;
use std::{fs::File, io, ptr::NonNull};

/// Runs nearer to each other than this are read as one: what lies between costs less than another
/// request, even to a disk.
const NEAR: u64 = 16 << 10;

/// The same in a store of objects: a request takes as long as so many bytes.
const NEAR_AFAR: u64 = 512 << 10;

/// What a buffer takes of a file at once, so that it can begin and end at whole pages.
const SPAN: u64 = SEGMENT_LEN - 2 * PAGE;

/// The memory of one load: the file at its own offsets, and copies of what cannot stay where it
/// lies.
#[derive(Debug, Default)]
pub struct Region {
    whole: Option<MmapMut>,
    copies: Option<MmapMut>,
}

impl Region {
    /// Brings all that `plan` needs into memory.
    ///
    /// # Errors
    /// As [`Way::bring`].
    pub fn of(job: &Job<'_>, plan: &Plan, way: Way) -> io::Result<Self> {
        Ok(Self { whole: way.bring(job, &plan.ranges)?, copies: copy(job, plan, way)? })
    }

    /// The address of `place`, where `len` bytes must lie.
    ///
    /// Returns `None` for a place that is not in this region; a plan never makes one.
    #[must_use]
    pub fn address(&self, place: Place, len: u64) -> Option<NonNull<u8>> {
        let (memory, offset) = match place {
            Place::Mapped(offset) => (&self.whole, offset),
            Place::Copied(offset) => (&self.copies, offset),
        };
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        let bytes = memory.as_ref()?.get(offset..end)?;
        NonNull::new(bytes.as_ptr().cast_mut())
    }
}

/// A block of a copy, and the memory it is wanted in.
struct Part<'a> {
    copy: &'a Copy,
    block: Block,
    target: &'a mut [u8],
}

fn copy(job: &Job<'_>, plan: &Plan, way: Way) -> io::Result<Option<MmapMut>> {
    if plan.copies_len == 0 {
        return Ok(None);
    }
    let len = usize::try_from(plan.copies_len).unwrap_or(usize::MAX);
    let mut memory = MmapMut::map_anon(len)?;

    // Each thread gets slices of its own: the copies follow on from one another in memory.
    let mut rest: &mut [u8] = &mut memory;
    let mut taken = 0;
    let mut parts = Vec::new();
    let is_afar = job.file.file_system().storage == Storage::Object;
    let near = if is_afar { NEAR_AFAR } else { NEAR };
    for copy in &plan.copies {
        // What is inflated goes straight to its place, as a whole.
        let is_whole = copy.from.start >= job.file.whole_from() && copy.from.loops.is_empty();
        let span = if is_whole { u64::MAX } else { SPAN };
        for block in copy.from.blocks(span, near) {
            let start = (copy.to + block.to.start - taken) as usize;
            let (_, after) = std::mem::take(&mut rest).split_at_mut(start);
            let (target, after) = after.split_at_mut((block.to.end - block.to.start) as usize);
            (rest, taken) = (after, copy.to + block.to.end);
            parts.push(Part { copy, block, target });
        }
    }
    if job.file.is_sequential() {
        parts.sort_by_key(|part| part.block.from.start);
    }
    let direct = if matches!(way, Way::Direct | Way::Uring) { direct(job) } else { None };
    job.for_each(parts, |Part { copy, block, target }| {
        let read = |offset, bytes: &mut [u8]| {
            let wanted = bytes.len();
            read_block(job, direct.as_ref(), offset, bytes, wanted)
        };
        if block.from.end - block.from.start == target.len() as u64 {
            read(block.from.start, &mut *target)?;
        } else {
            let mut buffer = job.buffers.lend()?;
            // Where the buffer starts at a page, so does what is read into it.
            let before = (block.from.start % PAGE) as usize;
            let spanned = (block.from.end - block.from.start) as usize;
            let bytes = &mut buffer[before..before + spanned];
            read(block.from.start, &mut *bytes)?;
            gather(&copy.from, &block, bytes, target);
        }
        if copy.swapped > 1 {
            target.chunks_exact_mut(copy.swapped as usize).for_each(<[u8]>::reverse);
        }
        job.watch.add(target.len() as u64);
        Ok(())
    })
    .map(|()| Some(memory))
}

/// Reads `wanted` bytes from `offset` on into `bytes`, what follows which may be overwritten: past
/// the page cache, if the file is open that way.
pub fn read_block(
    job: &Job<'_>,
    direct: Option<&File>,
    offset: u64,
    bytes: &mut [u8],
    wanted: usize,
) -> io::Result<()> {
    match direct {
        Some(direct) => read_piece(job, direct, Piece { offset, bytes, wanted }),
        None => job.file.read_exact_at(&mut bytes[..wanted], offset, job.watch),
    }
}

/// Picks the runs of a block out of the bytes it spans.
fn gather(runs: &Runs, block: &Block, spanned: &[u8], target: &mut [u8]) {
    let mut done = 0;
    while done < target.len() {
        let (offset, follow) = runs.find(block.to.start + done as u64);
        let from = (offset - block.from.start) as usize;
        let len = (follow as usize).min(target.len() - done);
        target[done..done + len].copy_from_slice(&spanned[from..from + len]);
        done += len;
    }
}
