//! A private map, populated in parallel: the page cache is the memory.

use super::{populate::Populating, Job, PAGE};
use crate::{plan, storage::local::LocalFile};
use memmap2::{MmapMut, MmapOptions};
use std::{io, ops::Range};

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
pub fn map(job: &Job<'_>, file: &LocalFile, ranges: &[Range<u64>]) -> io::Result<MmapMut> {
    let shorter = || io::Error::from(io::ErrorKind::UnexpectedEof);
    // SAFETY: nobody else holds this private mapping, so its bytes change only through the
    // tensors made from it, or, until a page is first touched, if someone writes to the
    // file in place, which shows as other values in a tensor and breaks no invariant here.
    // No swap is reserved for it, so that a file may be larger than the memory.
    let mapped = unsafe { MmapOptions::new().no_reserve_swap().map_copy(file.file()) }?;
    if ranges.last().is_some_and(|last| last.end > mapped.len() as u64) {
        return Err(shorter());
    }
    let len = segment_len(job, ranges);
    let segments = ranges.iter().flat_map(|range| plan::segments(range.clone(), len)).collect();
    let populating = Populating::of(&mapped, job.is_cached);
    job.for_each(segments, |segment: Range<u64>| {
        match populating.populate(&segment) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => {
                return Err(reason(job, &segment));
            }
            result => result?,
        }
        job.watch.add(segment.end - segment.start);
        Ok(())
    })?;
    Ok(mapped)
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

/// Why pages cannot be populated, which a read tells: the file has become shorter, or its storage
/// failed.
fn reason(job: &Job<'_>, segment: &Range<u64>) -> io::Error {
    let mut page = vec![0; PAGE as usize];
    for offset in segment.clone().step_by(PAGE as usize) {
        let wanted = PAGE.min(segment.end - offset) as usize;
        if let Err(error) = job.file.read_exact_at(&mut page[..wanted], offset, job.watch) {
            return error;
        }
    }
    // Whatever it was, it is over; the pages have not come all the same.
    io::Error::from_raw_os_error(libc::EIO)
}
