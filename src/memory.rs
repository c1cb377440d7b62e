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
use std::{io, ops::Range, ptr::NonNull};

/// The memory of one load: a private map of the file, and copies of the few tensors that do
/// not lie at an address their elements allow.
#[derive(Debug, Default)]
pub struct Region {
    mapped: Option<MmapMut>,
    copies: Option<MmapMut>,
}

impl Region {
    /// Maps `file` and brings all of `plan` into memory on at most `num_thread` threads.
    ///
    /// The map is private: whoever writes to a tensor gets pages of their own, and the file is
    /// never touched. What a map risks is that the file is cut short by someone else while it
    /// is mapped: a page that is gone raises SIGBUS in whoever reads it. Populating finds that
    /// out for a file cut before or during the load; replacing a checkpoint by renaming, as
    /// [`crate::save`] does, never cuts one that is mapped.
    ///
    /// # Errors
    /// What the system says of the map, or a file that has become shorter.
    pub fn map(file: &LocalFile, plan: &Plan, data: Range<u64>, num_thread: usize) -> Result<Self> {
        const ACTION: &str = "map";
        let failed = |error| Error::io(ACTION, file.name(), error);
        // SAFETY: nobody else holds this private mapping, so its bytes change only through the
        // tensors made from it, or, until a page is first touched, if someone writes to the
        // file in place, which shows as other values in a tensor and breaks no invariant here.
        let mapped = unsafe { MmapOptions::new().map_copy(file.file()) }.map_err(failed)?;
        if mapped.len() as u64 != file.len() {
            return Err(shorter(file));
        }
        populate(&mapped, data, num_thread).map_err(|error| match error.raw_os_error() {
            Some(libc::EFAULT) => shorter(file),
            _ => failed(error),
        })?;
        let copies = copy(file, &plan.copies, plan.copies_len)?;
        Ok(Self { mapped: Some(mapped), copies })
    }

    /// The address of `place`, where `len` bytes must lie.
    ///
    /// Returns `None` for a place that is not in this region; a plan never makes one.
    #[must_use]
    pub fn address(&self, place: Place, len: u64) -> Option<NonNull<u8>> {
        let (memory, offset) = match place {
            Place::Mapped(offset) => (&self.mapped, offset),
            Place::Realigned(offset) => (&self.copies, offset),
        };
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        let bytes = memory.as_ref()?.get(offset..end)?;
        NonNull::new(bytes.as_ptr().cast_mut())
    }
}

fn shorter(file: &LocalFile) -> Error {
    Error::io("read", file.name(), io::ErrorKind::UnexpectedEof.into())
}

/// Brings the pages of `range` into memory and into the page table.
fn populate(mapped: &MmapMut, range: Range<u64>, num_thread: usize) -> io::Result<()> {
    let populated = threads::for_each(num_thread, plan::segments(range).collect(), |segment| {
        let start = segment.start as usize;
        mapped.advise_range(Advice::PopulateRead, start, segment.end as usize - start)
    });
    match populated.as_ref().err().and_then(io::Error::raw_os_error) {
        // Linux before 5.14 does not know the advice: pages then come as they are touched.
        Some(libc::EINVAL) => Ok(()),
        _ => populated,
    }
}

fn copy(file: &LocalFile, copies: &[Copy], len: u64) -> Result<Option<MmapMut>> {
    if len == 0 {
        return Ok(None);
    }
    let failed = |error| Error::io("read", file.name(), error);
    let mut memory =
        MmapMut::map_anon(usize::try_from(len).unwrap_or(usize::MAX)).map_err(failed)?;
    for Copy { from, to } in copies {
        let to = *to as usize;
        let target = &mut memory[to..to + (from.end - from.start) as usize];
        file.read_exact_at(target, from.start).map_err(failed)?;
    }
    Ok(Some(memory))
}
