//! A private map, populated in parallel: the page cache is the memory.

use super::{populate::Populating, Job};
use crate::{plan, storage::local::LocalFile, watch::Stopped};
use memmap2::{MmapMut, MmapOptions};
use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// What is cached is cut so that each thread has so many pieces of it.
const PIECES_EACH: u64 = 8;

/// The longest of them, in bytes: in pages of 4 KiB it takes a few milliseconds.
const MAX_CACHED: u64 = 64 << 20;

/// Maps the file and brings the pages of `ranges` into memory and into the page table.
///
/// The map is private: whoever writes to a tensor gets pages of their own, and the file is never
/// touched. What a map risks is that the file is cut short by someone else while it is mapped: a
/// page that is gone raises SIGBUS in whoever reads it. Populating finds that out for a file cut
/// before or during the load; replacing a checkpoint by renaming, as [`crate::save`] does, never
/// cuts one that is mapped.
///
/// Returns `None` where the system refuses: file systems that cannot be mapped or whose pages cannot be
/// faulted in, filters of system calls, limits of the number of maps. Reading then does it, or says why
/// the bytes do not come.
pub fn map(job: &Job<'_>, file: &LocalFile, ranges: &[Range<u64>]) -> io::Result<Option<MmapMut>> {
    let shorter = || io::Error::from(io::ErrorKind::UnexpectedEof);
    // SAFETY: nobody else holds this private mapping, so its bytes change only through the
    // tensors made from it, or, until a page is first touched, if someone writes to the
    // file in place, which shows as other values in a tensor and breaks no invariant here.
    // No swap is reserved for it, so that a file may be larger than the memory.
    let mapped = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file.file()) };
    let Ok(mapped) = mapped else { return Ok(None) };
    if ranges.last().is_some_and(|last| last.end > mapped.len() as u64) {
        return Err(shorter());
    }
    let len = segment_len(job, ranges);
    let segments = ranges.iter().flat_map(|range| plan::segments(range.clone(), len)).collect();
    let populating = Populating::of(&mapped, job.is_cached);
    let populated = AtomicU64::new(0);
    let done = job.for_each(segments, |segment: Range<u64>| {
        populating.populate(&segment).map_err(Failed::Populating)?;
        let bytes = segment.end - segment.start;
        populated.fetch_add(bytes, Ordering::Relaxed);
        job.watch.add(bytes);
        Ok::<_, Failed>(())
    });
    match done {
        Ok(()) => Ok(Some(mapped)),
        Err(Failed::Stopped(stopped)) => Err(stopped.into()),
        // No memory for the pages leaves none for a copy of them either.
        Err(Failed::Populating(error)) if error.raw_os_error() == Some(libc::ENOMEM) => Err(error),
        Err(Failed::Populating(_)) => {
            job.watch.take_back(populated.into_inner());
            Ok(None)
        }
    }
}

/// Why not all pages came.
enum Failed {
    Populating(io::Error),
    Stopped(Stopped),
}

impl From<Stopped> for Failed {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

/// Bytes that a thread populates at a time. In large folios it takes a microsecond for two megabytes,
/// so that a system call counts; but the threads are to finish together, and to be stopped soon.
fn segment_len(job: &Job<'_>, ranges: &[Range<u64>]) -> u64 {
    if !job.is_cached {
        return job.segment_len;
    }
    let wanted: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let share = wanted / (PIECES_EACH * job.num_thread.max(1) as u64);
    share.next_multiple_of(job.segment_len).min(MAX_CACHED).max(job.segment_len)
}
