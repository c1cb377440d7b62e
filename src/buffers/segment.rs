//! The memory of a buffer, and what a device may still be copying from it or to it.

use crate::{
    error::DeviceFailed,
    plan::SEGMENT_LEN,
    targets::{HostMemory, Pending},
};
use memmap2::{Advice, MmapMut};
use std::{
    fmt, io,
    ops::{Deref, DerefMut},
};

/// How often a device is asked whether it is done before its word is given up on.
const TRIES: usize = 3;

/// The size of a huge page: 2 MiB on x86-64, and on aarch64 with pages of 4 KiB.
pub(super) const HUGE_PAGE: usize = 2 << 20;

pub(super) enum Memory {
    Pages(Pages),
    Host(Box<dyn HostMemory>),
}

/// Ordinary memory that begins at a huge page and consists of such, where the system has them: a disk is
/// handed a few long pieces of memory instead of two thousand short ones.
pub(super) struct Pages {
    map: MmapMut,
    start: usize,
}

impl Pages {
    pub(super) fn new() -> io::Result<Self> {
        let map = MmapMut::map_anon(SEGMENT_LEN as usize + HUGE_PAGE)?;
        let start = map.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // A system without huge pages does without.
        let _ = map.advise_range(Advice::HugePage, start, SEGMENT_LEN as usize);
        Ok(Self { map, start })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..][..SEGMENT_LEN as usize]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..SEGMENT_LEN as usize]
    }
}

/// See the module.
pub(super) struct Segment {
    pub(super) kind: Option<i8>,
    pub(super) memory: Memory,
    pub(super) pending: Option<Box<dyn Pending>>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Segment {
    /// Waits until no device needs the memory any more. If that fails, one may still.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        if let Some(pending) = &self.pending {
            pending.wait().map_err(DeviceFailed)?;
            self.pending = None;
        }
        Ok(())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // What goes wrong is told by whoever waits for all; here no device may find its memory gone.
        // One that fails every time it is asked copies nothing more.
        let _ = (0..TRIES).any(|_| self.wait().is_ok());
    }
}
