//! Bringing the pages of a map into the page table, in as few faults as the folios behind them allow.
//!
//! A fault on one page of what the page cache holds maps its neighbours too: the whole of a folio of
//! 2 MiB, or else a window around it, 64 KiB unless somebody set it otherwise. `MADV_POPULATE_READ` over a
//! range looks at every page of it all the same, which takes longer than the faults do. So one page of
//! each large block is populated first, then one of each window of what is still missing, and only what
//! is missing after that page by page. The page table itself tells what is missing, so nothing is left
//! out whatever the folios are like.

use super::PAGE;
use memmap2::{Advice, MmapMut};
use std::{
    fs::File,
    io,
    ops::Range,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// How far the pages lie apart that are populated first, and next, in bytes: as far as one entry of
/// the page table can reach, and as far as a fault on a smaller folio does unless somebody has set
/// that otherwise.
const STEPS: [u64; 2] = [2 << 20, 64 << 10];

/// Ranges that the kernel is told of, or tells of, in one call.
const BATCH: usize = 128;

/// A map whose pages are to be populated.
#[derive(Debug)]
pub struct Populating<'a> {
    map: &'a MmapMut,
    kernel: Option<Kernel>,
}

impl<'a> Populating<'a> {
    /// Folios are only asked for where the page cache holds the file: what has to be read first
    /// comes in the order of the file.
    pub fn of(map: &'a MmapMut, is_cached: bool) -> Self {
        Self { map, kernel: if is_cached { Kernel::open() } else { None } }
    }

    /// Populates the pages of `range`, offsets in the map.
    ///
    /// # Errors
    /// What the system says; `EFAULT` of a page that the file does not have, or no longer.
    pub fn populate(&self, range: &Range<u64>) -> io::Result<()> {
        let Some(kernel) = &self.kernel else { return self.every_page(range) };
        let mut missing = vec![range.clone()];
        for step in STEPS {
            self.some_pages(kernel, &missing, step)?;
            missing = kernel.missing(self.map, range).unwrap_or_else(|_| vec![range.clone()]);
            if missing.is_empty() {
                return Ok(());
            }
        }
        missing.iter().try_for_each(|range| self.every_page(range))
    }

    /// The first page of each range, and one in every `step` bytes of it.
    fn some_pages(&self, kernel: &Kernel, ranges: &[Range<u64>], step: u64) -> io::Result<()> {
        let base = self.map.as_ptr() as u64;
        let pages: Vec<u64> =
            ranges.iter().flat_map(|range| steps(range.clone(), base, step)).collect();
        for pages in pages.chunks(BATCH) {
            let populated = kernel.populate(self.map, pages);
            // What stopped it short is found out by asking for the others alone.
            for &page in &pages[populated..] {
                self.every_page(&(page..page + 1))?;
            }
        }
        Ok(())
    }

    fn every_page(&self, range: &Range<u64>) -> io::Result<()> {
        let (start, len) = (range.start as usize, (range.end - range.start) as usize);
        loop {
            match self.map.advise_range(Advice::PopulateRead, start, len) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Linux before 5.14 does not know the advice, and a filter of system calls may not
                // allow it: pages then come as they are touched.
                Err(error) if is_refused(&error) => return Ok(()),
                result => return result,
            }
        }
    }
}

/// Whether the advice itself is refused, and not a page.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM))
}

/// The page in which `range` begins, and those in it at multiples of `step` in memory that begins at
/// `base`.
fn steps(range: Range<u64>, base: u64, step: u64) -> impl Iterator<Item = u64> {
    let next = move |at: &u64| Some((base + at) / step * step + step - base);
    let first = range.start / PAGE * PAGE;
    std::iter::successors(Some(first), next).take_while(move |at| *at < range.end)
}

/// What the kernel has for a process that populates its own memory.
#[derive(Debug)]
struct Kernel {
    /// `/proc/self/pagemap`, whose `PAGEMAP_SCAN` tells what is missing (Linux 6.7).
    table: File,
    /// This process, to be advised of many ranges in one call (Linux 6.13 allows every advice).
    process: Option<OwnedFd>,
}

impl Kernel {
    /// `None` where the page table cannot be looked at.
    fn open() -> Option<Self> {
        let kernel =
            Self { table: File::open("/proc/self/pagemap").ok()?, process: this_process() };
        kernel.scan(&mut Scan::of(0..0), &mut []).ok()?;
        Some(kernel)
    }

    /// Populates `pages`, offsets in `map`, and returns how many of them, from the first, it did.
    fn populate(&self, map: &MmapMut, pages: &[u64]) -> usize {
        let Some(process) = &self.process else { return 0 };
        let vectors: Vec<libc::iovec> = pages
            .iter()
            .map(|&page| libc::iovec {
                // No access by this address: it only names the page.
                iov_base: map.as_ptr().wrapping_add(page as usize).cast_mut().cast(),
                iov_len: PAGE as usize,
            })
            .collect();
        // SAFETY: `vectors` outlives the call. The advice changes no byte, whatever memory it is of.
        let advised = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                vectors.as_ptr(),
                vectors.len(),
                libc::MADV_POPULATE_READ,
                0,
            )
        };
        usize::try_from(advised).map_or(0, |bytes| (bytes / PAGE as usize).min(pages.len()))
    }

    /// Which parts of `range`, offsets in `map`, are not in the page table.
    fn missing(&self, map: &MmapMut, range: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        let base = map.as_ptr() as u64;
        let end = base + range.end.next_multiple_of(PAGE);
        let (mut at, mut missing) = (base + range.start / PAGE * PAGE, Vec::new());
        while at < end {
            let mut found = [Found::default(); BATCH];
            let mut scan = Scan::of(at..end);
            let count = self.scan(&mut scan, &mut found)?;
            missing.extend(found[..count].iter().map(|found| {
                (found.start - base).max(range.start)..(found.end - base).min(range.end)
            }));
            if scan.walk_end <= at {
                return Err(io::Error::other("the page table cannot be looked at"));
            }
            at = scan.walk_end;
        }
        Ok(missing)
    }

    /// `PAGEMAP_SCAN`: how many ranges it found.
    fn scan(&self, scan: &mut Scan, found: &mut [Found]) -> io::Result<usize> {
        (scan.vec, scan.vec_len) = (found.as_mut_ptr() as u64, found.len() as u64);
        // SAFETY: the kernel reads and writes `scan`, whose size it is told, and writes at most `vec_len`
        // elements to `found`; both outlive the call.
        let count = unsafe { libc::ioctl(self.table.as_raw_fd(), PAGEMAP_SCAN, scan) };
        let count = usize::try_from(count).map_err(|_| io::Error::last_os_error())?;
        Ok(count.min(found.len()))
    }
}

/// A descriptor of this process.
fn this_process() -> Option<OwnedFd> {
    // SAFETY: no memory is passed; a descriptor that is returned belongs to nobody else.
    unsafe {
        let descriptor = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
        i32::try_from(descriptor)
            .ok()
            .filter(|open| *open >= 0)
            .map(|open| OwnedFd::from_raw_fd(open))
    }
}

/// `_IOWR('f', 16, struct pm_scan_arg)` of linux/fs.h.
const PAGEMAP_SCAN: libc::Ioctl = 0xC060_6610_u32 as libc::Ioctl;

/// `PAGE_IS_PRESENT` of linux/fs.h.
const PAGE_IS_PRESENT: u64 = 1 << 3;

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

impl Scan {
    /// Looks for pages that are not present.
    fn of(addresses: Range<u64>) -> Self {
        Self {
            size: size_of::<Self>() as u64,
            start: addresses.start,
            end: addresses.end,
            category_inverted: PAGE_IS_PRESENT,
            category_mask: PAGE_IS_PRESENT,
            ..Self::default()
        }
    }
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Found {
    start: u64,
    end: u64,
    categories: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapOptions;
    use std::{io::Write, iter};

    const LEN: usize = (5 << 20) + 12_345;

    /// A cached file, whose folios are as large as the writes were.
    fn mapped(portion: usize) -> (File, MmapMut) {
        let mut file = tempfile::tempfile().unwrap();
        for portion in vec![1; LEN].chunks(portion) {
            file.write_all(portion).unwrap();
        }
        // SAFETY: nobody else knows the file, and nothing writes to it while it is mapped.
        let map = unsafe { MmapOptions::new().map_copy(&file) }.unwrap();
        (file, map)
    }

    /// As an old kernel, a newer one and the newest would have it.
    fn kernels(map: &MmapMut) -> impl Iterator<Item = Populating<'_>> {
        let kernels = [Some(None), Some(this_process())].into_iter().map(|process| {
            let kernel = Kernel::open()?;
            Some(Kernel { process: process?, ..kernel })
        });
        kernels.chain(iter::once(None)).map(move |kernel| Populating { map, kernel })
    }

    #[test]
    fn no_page_of_a_range_is_left_out() {
        let Some(kernel) = Kernel::open() else { return };
        for portion in [4096, 100_000, LEN] {
            let (_file, map) = mapped(portion);
            let ranges = [0..LEN as u64, 4097..4098, 70_000..(2 << 20) + 1, 9..LEN as u64 - 4096];
            for (turn, range) in ranges.iter().cycle().take(12).enumerate() {
                // SAFETY: forgets entries of the page table; the bytes are the file's.
                unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) }.unwrap();
                assert_eq!(kernel.missing(&map, range).unwrap(), std::slice::from_ref(range));
                kernels(&map).nth(turn / 4).unwrap().populate(range).unwrap();
                assert_eq!(kernel.missing(&map, range).unwrap(), [], "{portion} {turn} {range:?}");
            }
        }
    }

    #[test]
    fn a_page_that_the_file_does_not_have_is_an_error() {
        for shorter in [LEN as u64 / 2, 4096, 0] {
            let (file, map) = mapped(LEN);
            file.set_len(shorter).unwrap();
            for populating in kernels(&map) {
                let error = populating.populate(&(0..LEN as u64)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EFAULT), "{shorter} {populating:?}");
            }
        }
    }

    #[test]
    fn steps_begin_with_the_range_and_go_on_at_multiples() {
        let pages = |range, base| steps(range, base, 64 << 10).collect::<Vec<_>>();
        assert_eq!(pages(0..1, 0), [0]);
        assert_eq!(pages(5000..65_536, 0), [4096]);
        assert_eq!(pages(5000..65_537, 0), [4096, 65_536]);
        assert_eq!(pages(5000..140_000, 4096), [4096, 61_440, 126_976]);
    }
}
