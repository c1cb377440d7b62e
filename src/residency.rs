//! What the page cache holds of a file, without a byte of it being read.

#![allow(unsafe_code)]

use crate::{
    storage::{local::LocalFile, Source},
    ways::PAGE,
};
use memmap2::{Mmap, MmapOptions};
use std::{cell::OnceCell, ops::Range, os::fd::AsRawFd};

/// A file whose pages in the page cache are asked for.
#[derive(Debug)]
pub struct Residency<'a> {
    file: &'a LocalFile,
    /// Made when it is needed: a map to ask by.
    map: OnceCell<Option<Mmap>>,
}

impl<'a> Residency<'a> {
    /// `None` where nothing can be learnt about the file: the kernel tells only who may write to it.
    #[must_use]
    pub fn of(file: &'a LocalFile) -> Option<Self> {
        (file.is_ours() && file.len() > 0).then(|| Self { file, map: OnceCell::new() })
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

    /// Asked of the file, a page costs a third of what it costs by a map. But a file system that lies
    /// on another, as overlayfs does, may keep its pages there, and only a map finds them.
    fn holds(&self, offset: u64) -> Option<bool> {
        if offset >= self.file.len() {
            return None;
        }
        let page = offset / PAGE * PAGE;
        Some(self.file_holds(page) || self.map_holds(page)?)
    }

    /// By `cachestat(2)`, which Linux has since 6.5; false where it does not answer.
    fn file_holds(&self, page: u64) -> bool {
        let range = CachestatRange { off: page, len: PAGE };
        let mut found = Cachestat::default();
        // SAFETY: the kernel reads `range` and writes `found`, which are as it declares them, and both
        // outlive the call.
        let asked = unsafe {
            let fd = self.file.file().as_raw_fd();
            libc::syscall(CACHESTAT, fd, &raw const range, &raw mut found, 0)
        };
        asked == 0 && found.cached > 0
    }

    /// By `mincore(2)`.
    fn map_holds(&self, page: u64) -> Option<bool> {
        let map = || {
            // SAFETY: no byte of this mapping is ever read or written.
            unsafe { MmapOptions::new().map_copy_read_only(self.file.file()) }.ok()
        };
        let map = self.map.get_or_init(map).as_ref()?;
        if page >= map.len() as u64 {
            return None;
        }
        let mut resident = 0u8;
        // SAFETY: the page lies in the mapping, whose start is a page's, and mincore writes one
        // byte for it.
        let asked = unsafe {
            let address = map.as_ptr().add(page as usize).cast_mut();
            libc::mincore(address.cast(), 1, &raw mut resident)
        };
        (asked == 0).then_some(resident & 1 == 1)
    }
}

/// Its number, the same on x86-64, 64-bit ARM, RISC-V, POWER and s390x.
const CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

/// `struct cachestat` of linux/mman.h: numbers of pages.
#[repr(C)]
#[derive(Debug, Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, slice::from_ref};

    /// In the working directory, whose file system keeps nothing in memory alone.
    fn file(len: usize) -> (tempfile::TempDir, LocalFile) {
        let dir = tempfile::tempdir_in(".").unwrap();
        let path = dir.path().join("file");
        fs::write(&path, vec![1; len]).unwrap();
        (dir, LocalFile::open(&path).unwrap())
    }

    #[test]
    fn what_the_cache_holds_is_told_by_either_call() {
        let (_dir, file) = file(1 << 20);
        let held = Residency::of(&file).unwrap();
        let share = |range: Range<u64>| held.share(from_ref(&range), 64);
        assert_eq!(share(0..1 << 20), Some(1.0));
        assert_eq!(held.map_holds(4096), Some(true));
        // SAFETY: the descriptor is open, and no memory is passed.
        unsafe {
            let fd = file.file().as_raw_fd();
            assert_eq!(libc::fsync(fd), 0);
            assert_eq!(libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED), 0);
        }
        assert_eq!((held.file_holds(4096), held.map_holds(4096)), (false, Some(false)));
        assert_eq!(share(0..1 << 20), Some(0.0));
    }

    #[test]
    fn nothing_is_told_of_what_the_file_does_not_have() {
        let (_dir, file) = file(5000);
        let held = Residency::of(&file).unwrap();
        let share = |range: Range<u64>| held.share(from_ref(&range), 64);
        assert_eq!(share(4999..5000), Some(1.0));
        assert_eq!(share(5000..5001), None);
        assert_eq!(held.share(&[], 64), None);
    }
}
