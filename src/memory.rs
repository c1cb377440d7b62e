//! Where bytes land: the memory under a load's tensors.
//!
//! A [`Region`] holds the whole of it, and every tensor of the load keeps a counted reference
//! to it (`csrc/tensor.cpp`), so the bytes go when the last tensor goes.

#![allow(unsafe_code)]

use crate::{
    error::{Error, Result},
    plan::{self, Copy, Place, Plan},
    storage::{local::LocalFile, Source},
    threads,
};
use memmap2::{Advice, MmapMut, MmapOptions};
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, ptr::NonNull};

/// Pages of a file that are asked for to learn whether it is cached.
const SAMPLED_PAGES: u64 = 64;

/// How the bytes of a file come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A private map of the file: the page cache is the memory.
    Map,
    /// Read past the page cache into memory of our own, where the file system allows it, and
    /// through the page cache where it does not.
    Direct,
}

/// The memory of one load: the file at its own offsets, and copies of what cannot stay where it
/// lies.
#[derive(Debug, Default)]
pub struct Region {
    whole: Option<MmapMut>,
    copies: Option<MmapMut>,
}

/// What O_DIRECT wants offsets, lengths and addresses to be multiples of: at most a page on every
/// file system of Linux.
const DIRECT_ALIGN: u64 = 4096;

impl Region {
    /// Brings all that `plan` needs of `file` into memory, on at most `num_thread` threads.
    ///
    /// The map is private: whoever writes to a tensor gets pages of their own, and the file is
    /// never touched. What a map risks is that the file is cut short by someone else while it
    /// is mapped: a page that is gone raises SIGBUS in whoever reads it. Populating finds that
    /// out for a file cut before or during the load; replacing a checkpoint by renaming, as
    /// [`crate::save`] does, never cuts one that is mapped.
    ///
    /// # Errors
    /// What the system says of the map, or a file that has become shorter.
    pub fn of(file: &LocalFile, plan: &Plan, way: Way, num_thread: usize) -> Result<Self> {
        let whole = match way {
            Way::Map => map(file, &plan.ranges, num_thread)?,
            Way::Direct => read(file, &plan.ranges, num_thread)?,
        };
        Ok(Self { whole, copies: copy(file, plan, num_thread)? })
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

fn map(file: &LocalFile, ranges: &[Range<u64>], num_thread: usize) -> Result<Option<MmapMut>> {
    let Some(last) = ranges.last() else { return Ok(None) };
    let failed = |error| Error::io("map", file.name(), error);
    let shorter = || Error::io("read", file.name(), io::ErrorKind::UnexpectedEof.into());
    // SAFETY: nobody else holds this private mapping, so its bytes change only through the
    // tensors made from it, or, until a page is first touched, if someone writes to the
    // file in place, which shows as other values in a tensor and breaks no invariant here.
    let mapped = unsafe { MmapOptions::new().map_copy(file.file()) }.map_err(failed)?;
    if (mapped.len() as u64) < last.end {
        return Err(shorter());
    }
    populate(&mapped, ranges, num_thread).map_err(|error| match error.raw_os_error() {
        Some(libc::EFAULT) => shorter(),
        _ => failed(error),
    })?;
    Ok(Some(mapped))
}

/// Brings the pages of `ranges` into memory and into the page table.
fn populate(mapped: &MmapMut, ranges: &[Range<u64>], num_thread: usize) -> io::Result<()> {
    // Pages that are cached cost only processor time, and more threads than processors only get
    // into each other's way; pages that are not are waited for, and many can be at once.
    let num_thread =
        if is_cached(mapped, ranges) { num_thread.min(threads::processors()) } else { num_thread };
    let segments = ranges.iter().cloned().flat_map(plan::segments).collect();
    let populated = threads::for_each(num_thread, segments, |segment: Range<u64>| {
        let start = segment.start as usize;
        mapped.advise_range(Advice::PopulateRead, start, segment.end as usize - start)
    });
    match populated.as_ref().err().and_then(io::Error::raw_os_error) {
        // Linux before 5.14 does not know the advice: pages then come as they are touched.
        Some(libc::EINVAL) => Ok(()),
        _ => populated,
    }
}

/// Whether the page cache seems to hold `ranges`: a few pages, evenly spread, are asked for.
fn is_cached(mapped: &MmapMut, ranges: &[Range<u64>]) -> bool {
    let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let step = (total / SAMPLED_PAGES).max(1);
    ranges.iter().flat_map(|range| range.clone().step_by(step as usize)).all(|offset| {
        let page = offset / DIRECT_ALIGN * DIRECT_ALIGN;
        let mut resident = 0u8;
        // SAFETY: the page lies in the mapping, whose start is a page's, and mincore writes one
        // byte for it. An error, such as for a file one may not write, counts as not cached.
        let asked = unsafe {
            let address = mapped.as_ptr().add(page as usize).cast_mut();
            libc::mincore(address.cast(), 1, &raw mut resident)
        };
        asked == 0 && resident & 1 == 1
    })
}

/// Reads `ranges` to their own offsets in fresh memory; what lies between stays untouched, and
/// takes no memory.
fn read(file: &LocalFile, ranges: &[Range<u64>], num_thread: usize) -> Result<Option<MmapMut>> {
    let Some(last) = ranges.last() else { return Ok(None) };
    let failed = |error| Error::io("read", file.name(), error);
    let len = usize::try_from(last.end.next_multiple_of(DIRECT_ALIGN)).unwrap_or(usize::MAX);
    let mut memory = MmapMut::map_anon(len).map_err(failed)?;
    // Reading into large pages is nearly twice as fast; without them it is merely slower.
    let _ = memory.advise(Advice::HugePage);

    let direct = file.direct();
    let mut rest: &mut [u8] = &mut memory;
    let mut at = 0;
    let mut pieces = Vec::new();
    for range in ranges {
        // Ranges are further apart than a page, so they stay apart when they grow to whole pages.
        let start = range.start / DIRECT_ALIGN * DIRECT_ALIGN;
        for segment in plan::segments(start..range.end.next_multiple_of(DIRECT_ALIGN)) {
            let (_, after) = std::mem::take(&mut rest).split_at_mut((segment.start - at) as usize);
            let (piece, after) = after.split_at_mut((segment.end - segment.start) as usize);
            (rest, at) = (after, segment.end);
            let wanted = (range.end.min(segment.end) - segment.start) as usize;
            pieces.push((segment.start, piece, wanted));
        }
    }
    threads::for_each(num_thread, pieces, |(offset, piece, wanted)| {
        read_piece(file, direct.as_ref(), piece, offset, wanted).map_err(failed)
    })?;
    Ok(Some(memory))
}

/// Reads the whole of `file` into `bytes`, which has its length and starts at a page.
pub(crate) fn read_whole(
    file: &LocalFile,
    bytes: &mut [u8],
    way: Way,
    num_thread: usize,
) -> Result<()> {
    let direct = if way == Way::Direct { file.direct() } else { None };
    let pieces = bytes.chunks_mut(plan::SEGMENT_LEN as usize).zip(0u64..).collect();
    threads::for_each(num_thread, pieces, |(piece, index): (&mut [u8], u64)| {
        let wanted = piece.len();
        read_piece(file, direct.as_ref(), piece, index * plan::SEGMENT_LEN, wanted)
            .map_err(|error| Error::io("read", file.name(), error))
    })
}

/// Reads `wanted` bytes to the front of `piece`, past the page cache as far as that goes.
fn read_piece(
    file: &LocalFile,
    direct: Option<&File>,
    piece: &mut [u8],
    offset: u64,
    wanted: usize,
) -> io::Result<()> {
    let done = match direct {
        Some(direct) => read_direct(direct, piece, offset)?.min(wanted),
        None => 0,
    };
    file.read_exact_at(&mut piece[done..wanted], offset + done as u64)
}

/// Reads what O_DIRECT gives of an aligned piece; the rest is left to an ordinary read.
fn read_direct(file: &File, piece: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    let whole = piece.len() / DIRECT_ALIGN as usize * DIRECT_ALIGN as usize;
    while done < whole {
        match file.read_at(&mut piece[done..whole], offset + done as u64) {
            // The end of the file, or a read that is no longer aligned: not for O_DIRECT.
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
        if !(done as u64).is_multiple_of(DIRECT_ALIGN) {
            break;
        }
    }
    Ok(done)
}

fn copy(file: &LocalFile, plan: &Plan, num_thread: usize) -> Result<Option<MmapMut>> {
    if plan.copies_len == 0 {
        return Ok(None);
    }
    let failed = |error| Error::io("read", file.name(), error);
    let len = usize::try_from(plan.copies_len).unwrap_or(usize::MAX);
    let mut memory = MmapMut::map_anon(len).map_err(failed)?;

    // Each thread gets slices of its own: the copies follow on from one another in memory.
    let mut rest: &mut [u8] = &mut memory;
    let mut taken = 0;
    let mut pieces = Vec::new();
    for Copy { from, to, swapped } in &plan.copies {
        let (_, after) = std::mem::take(&mut rest).split_at_mut((to - taken) as usize);
        let (mut target, after) = after.split_at_mut((from.end - from.start) as usize);
        (rest, taken) = (after, to + target.len() as u64);
        let mut offset = from.start;
        while !target.is_empty() {
            // A multiple of every element's size, so that no element is cut.
            let (piece, more) = target.split_at_mut(target.len().min(plan::SEGMENT_LEN as usize));
            let len = piece.len() as u64;
            pieces.push((offset, piece, *swapped));
            offset += len;
            target = more;
        }
    }
    threads::for_each(num_thread, pieces, |(offset, piece, swapped)| {
        file.read_exact_at(piece, offset).map_err(failed)?;
        if swapped > 1 {
            piece.chunks_exact_mut(swapped as usize).for_each(<[u8]>::reverse);
        }
        Ok(())
    })?;
    Ok(Some(memory))
}
