//! How bytes of a file come into memory.
//!
//! Each way is a module of its own. The private map ([`map`]) makes the page cache itself the memory;
//! the readers ([`Reader`]) fill memory that is already there: through the page cache
//! ([`read`]), past it ([`direct`]), or past it with many requests in flight from one thread
//! ([`uring`]). All of them pass the suite in `conformance`.

#![allow(unsafe_code)]

#[cfg(test)]
mod conformance;
pub mod direct;
pub mod map;
mod populate;
pub mod read;
pub mod uring;

use crate::{
    buffers::Buffers,
    plan,
    storage::Source,
    threads::Ready,
    watch::{Stopped, Watch},
};
use memmap2::{Advice, MmapMut, MmapOptions};
use std::{io, ops::Range};

/// What offsets, lengths and addresses are multiples of where a reader can choose: O_DIRECT wants
/// at most this on every file system of Linux.
pub const PAGE: u64 = 4096;

/// How the bytes of a file come into memory. `docs/architecture.md` tells when which is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A private map of the file: the page cache is the memory.
    Map,
    /// Parallel reads through the page cache.
    Read,
    /// Parallel reads past the page cache, where the file system allows them.
    Direct,
    /// The same with io_uring, where the kernel allows it.
    Uring,
}

impl Way {
    pub(crate) const ALL: [Self; 4] = [Self::Map, Self::Read, Self::Direct, Self::Uring];

    /// What users call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::Read => "read",
            Self::Direct => "direct",
            Self::Uring => "uring",
        }
    }

    #[must_use]
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|way| way.name() == name)
    }

    /// How it fills memory that is already there. What would be a map is read.
    fn reader(self) -> &'static dyn Reader {
        match self {
            Self::Map | Self::Read => &read::Read,
            Self::Direct => &direct::Direct,
            Self::Uring => &uring::Uring,
        }
    }

    /// Memory that has the bytes of `ranges`, which are in order and apart, at their own offsets.
    ///
    /// # Errors
    /// What the system says, `UnexpectedEof` of a file that has become shorter, or [`Stopped`].
    ///
    /// [`Stopped`]: crate::watch::Stopped
    pub(crate) fn bring(self, job: &Job<'_>, ranges: &[Range<u64>]) -> io::Result<Option<MmapMut>> {
        let Some(last) = ranges.last() else { return Ok(None) };
        if let (Self::Map, Some(file)) = (self, job.file.local()) {
            if let Some(mapped) = map::map(job, file, ranges)? {
                return Ok(Some(mapped));
            }
            // Not every file system can be mapped, nor may every process map files: such are read.
        }
        let mut memory = room(last.end, ranges)?;
        let mut rest: &mut [u8] = &mut memory;
        let mut at = 0;
        let mut pieces = Vec::new();
        for range in ranges {
            // Whole pages: ranges are further apart than that, so they stay apart.
            let start = range.start / PAGE * PAGE;
            for segment in plan::segments(start..range.end.next_multiple_of(PAGE), job.segment_len)
            {
                let (_, after) =
                    std::mem::take(&mut rest).split_at_mut((segment.start - at) as usize);
                let (bytes, after) = after.split_at_mut((segment.end - segment.start) as usize);
                (rest, at) = (after, segment.end);
                let wanted = (range.end.min(segment.end) - segment.start) as usize;
                pieces.push(Piece { offset: segment.start, bytes, wanted });
            }
        }
        self.read(job, pieces)?;
        Ok(Some(memory))
    }

    /// Fills `pieces`.
    ///
    /// # Errors
    /// As [`bring`](Self::bring).
    pub(crate) fn read(self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()> {
        self.reader().read(job, pieces)
    }
}

/// What every way needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    pub file: &'a dyn Source,
    pub ready: Ready<'a>,
    /// Reads at once, at most.
    pub num_thread: usize,
    /// Bytes of each, at most; a multiple of [`PAGE`].
    pub segment_len: u64,
    /// Whether the page cache holds what is wanted.
    pub is_cached: bool,
    pub buffers: &'a Buffers,
    pub watch: &'a Watch<'a>,
}

impl Job<'_> {
    /// Does `work` for every item on its threads, as [`Ready::for_each`].
    pub fn for_each<T, E>(
        &self,
        items: Vec<T>,
        work: impl Fn(T) -> Result<(), E> + Send + Sync,
    ) -> Result<(), E>
    where
        T: Send,
        E: From<Stopped> + Send,
    {
        self.ready.for_each(self.num_thread, items, self.watch, work)
    }
}

/// Bytes of the file that are wanted at an address.
#[derive(Debug)]
pub struct Piece<'a> {
    pub offset: u64,
    pub bytes: &'a mut [u8],
    /// How many of them are wanted; what follows may be overwritten.
    pub wanted: usize,
}

impl<'a> Piece<'a> {
    /// Cuts memory for the bytes from `offset` on into pieces.
    pub fn cut(offset: u64, bytes: &'a mut [u8], len: u64) -> impl Iterator<Item = Self> {
        bytes.chunks_mut(len as usize).zip(0u64..).map(move |(bytes, index)| {
            let wanted = bytes.len();
            Piece { offset: offset + index * len, bytes, wanted }
        })
    }
}

/// A way of filling memory that is already there.
pub trait Reader: Sync {
    /// Fills each piece with the file's bytes from its offset on.
    ///
    /// # Errors
    /// As [`Way::bring`].
    fn read(&self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()>;
}

/// Fresh memory of `len` bytes in whole pages; large ones if most of it will be used.
fn room(len: u64, ranges: &[Range<u64>]) -> io::Result<MmapMut> {
    let used: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let memory = anonymous(len)?;
    // Reading past the page cache into large pages is nearly twice as fast. Around ranges that are
    // far apart they would take memory for what nobody wants.
    let advice = if used > len / 10 * 9 { Advice::HugePage } else { Advice::NoHugePage };
    let _ = memory.advise(advice);
    Ok(memory)
}

/// Memory that is counted as it is used: of a part of a large file it is little.
fn anonymous(len: u64) -> io::Result<MmapMut> {
    let len = usize::try_from(len.next_multiple_of(PAGE)).unwrap_or(usize::MAX);
    MmapOptions::new().len(len).no_reserve_swap().map_anon()
}
