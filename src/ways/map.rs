//! A private map, populated in parallel: the page cache is the memory.

use super::{populate::Populating, Job, PAGE};
use crate::{
    plan,
    storage::{local::LocalFile, Source},
    threads,
};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::{io, ops::Range};

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
    let segments =
        ranges.iter().flat_map(|range| plan::segments(range.clone(), job.segment_len)).collect();
    let populating = Populating::of(&mapped, job.is_cached);
    threads::for_each(job.num_thread, segments, job.watch, |segment: Range<u64>| {
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

/// A map of a file that is only looked at.
#[derive(Debug)]
pub struct Residency(Mmap);

impl Residency {
    /// `None` where nothing can be learnt about the file: the kernel tells only who may write to it.
    #[must_use]
    pub fn of(file: &LocalFile) -> Option<Self> {
        if !file.is_ours() || file.len() == 0 {
            return None;
        }
        // SAFETY: no byte of this mapping is ever read or written.
        unsafe { MmapOptions::new().map_copy_read_only(file.file()) }.ok().map(Self)
    }

    /// Which share of `ranges` the page cache holds, judged by `samples` pages, evenly spread.
    #[must_use]
    pub fn share(&self, ranges: &[Range<u64>], samples: u64) -> Option<f64> {
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let step = (total / samples).max(1);
        let (mut asked, mut held) = (0u32, 0u32);
        for offset in ranges.iter().flat_map(|range| range.clone().step_by(step as usize)) {
            asked += 1;
            held += u32::from(self.holds(offset)?);
        }
        (asked > 0).then(|| f64::from(held) / f64::from(asked))
    }

    fn holds(&self, offset: u64) -> Option<bool> {
        let page = offset / PAGE * PAGE;
        if page >= self.0.len() as u64 {
            return None;
        }
        let mut resident = 0u8;
        // SAFETY: the page lies in the mapping, whose start is a page's, and mincore writes one
        // byte for it.
        let asked = unsafe {
            let address = self.0.as_ptr().add(page as usize).cast_mut();
            libc::mincore(address.cast(), 1, &raw mut resident)
        };
        (asked == 0).then_some(resident & 1 == 1)
    }
}
