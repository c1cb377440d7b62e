//! Keeps tensors that this process has mapped from a file from changing when the file is written in
//! place.
//!
//! A private map shows a page of the file until something is written to that page, and its own copy
//! from then on. `MADV_POPULATE_WRITE` makes all pages copies without changing them.

#![allow(unsafe_code)]

use super::directory::by_descriptor;
use crate::error::said;
use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::Path,
};

const PAGE: u64 = 4096;

/// Makes the pages of `file` that this process has mapped privately its own. `len`: how long the
/// file is to be.
///
/// # Errors
/// `EBUSY` for pages that cannot be copied, or that end with a file that is to become shorter:
/// the kernel takes copies away too. `ENOMEM` where there is no memory for them.
pub fn detach(file: &File, len: u64) -> io::Result<()> {
    let was = file.metadata()?.len();
    // A file that nobody may read is mapped by nobody, and one without bytes has no pages.
    let Some(probe) = Probe::of(file).filter(|_| was > 0) else { return Ok(()) };
    let mut tried: Vec<u64> = Vec::new();
    loop {
        let mut again = false;
        for map in probe.maps()? {
            let pages = map.pages_of(was);
            if pages.is_empty() || tried.contains(&map.memory.start) {
                continue;
            }
            if !map.is_writable || map.offset + (pages.end - pages.start) > ceil(len) {
                return Err(busy());
            }
            match populate(&pages) {
                Ok(()) => {}
                // It may have been unmapped meanwhile, which the next list shows.
                Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
                    if probe.maps()?.iter().any(|other| other.memory == map.memory) {
                        return Err(error);
                    }
                    again = true;
                }
                Err(_) => return Err(busy()),
            }
            tried.push(map.memory.start);
        }
        if !again {
            return Ok(());
        }
    }
}

fn busy() -> io::Error {
    let words = "the file cannot be replaced, and writing it in place would change tensors that \
                 this process has mapped from it: save to another file, drop them, or load them \
                 with way=\"read\"";
    said(libc::EBUSY, words)
}

fn ceil(len: u64) -> u64 {
    len.next_multiple_of(PAGE)
}

/// A private map of the file.
#[derive(Debug)]
struct Map {
    memory: Range<u64>,
    offset: u64,
    is_writable: bool,
}

impl Map {
    /// The memory that shows pages of a file of `len` bytes.
    fn pages_of(&self, len: u64) -> Range<u64> {
        let shown = ceil(len).saturating_sub(self.offset);
        self.memory.start..self.memory.end.min(self.memory.start.saturating_add(shown))
    }
}

/// A map of the file's first page that only serves to be found: by its line, the kernel's list of
/// maps tells what it calls the file. `stat` may call it otherwise (overlayfs, btrfs).
struct Probe {
    address: *mut libc::c_void,
}

impl Probe {
    fn of(file: &File) -> Option<Self> {
        let path = by_descriptor(file);
        let path = Path::new(OsStr::from_bytes(path.to_bytes()));
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        let (protection, flags) = (libc::PROT_NONE, libc::MAP_SHARED);
        // SAFETY: a new map at an address that the kernel chooses; nobody touches its memory.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE as usize, protection, flags, fd, 0) };
        (address != libc::MAP_FAILED).then_some(Self { address })
    }

    /// The private maps of the file, as they are now.
    fn maps(&self) -> io::Result<Vec<Map>> {
        let list = fs::read("/proc/self/maps")?;
        let lines = || list.split(|&byte| byte == b'\n').filter_map(line);
        let own = lines().find(|(map, ..)| map.memory.start == self.address as u64);
        let Some((_, _, name)) = own else { return Ok(Vec::new()) };
        Ok(lines()
            .filter(|(_, is_private, other)| *is_private && *other == name)
            .map(|(map, ..)| map)
            .collect())
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // SAFETY: the map is this one's own.
        unsafe { libc::munmap(self.address, PAGE as usize) };
    }
}

/// One line of the list: `start-end perms offset device inode path`. Returns the map, whether it is
/// private, and device with inode.
fn line(line: &[u8]) -> Option<(Map, bool, [&str; 2])> {
    let end = line.iter().position(|&byte| byte == b'/').unwrap_or(line.len());
    let mut words = std::str::from_utf8(&line[..end]).ok()?.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?.as_bytes();
    let number = |text| u64::from_str_radix(text, 16).ok();
    let offset = number(words.next()?)?;
    let memory = number(start)?..number(end)?;
    let is_writable = permissions.get(1) == Some(&b'w');
    let is_private = permissions.get(3) == Some(&b'p');
    Some((Map { memory, offset, is_writable }, is_private, [words.next()?, words.next()?]))
}

fn populate(pages: &Range<u64>) -> io::Result<()> {
    let (start, len) = (pages.start as *mut libc::c_void, (pages.end - pages.start) as usize);
    loop {
        // SAFETY: the advice changes no byte that a thread can see, whosoever's the memory is.
        if unsafe { libc::madvise(start, len, libc::MADV_POPULATE_WRITE) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use memmap2::MmapOptions;
    use std::os::unix::fs::FileExt;

    fn mapped(len: usize) -> (File, memmap2::MmapMut) {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![1; len], 0).unwrap();
        // SAFETY: the test alone changes the file, to see what the map shows then.
        let map = unsafe { MmapOptions::new().map_copy(&file).unwrap() };
        (file, map)
    }

    #[test]
    fn a_private_map_keeps_its_bytes_when_the_file_changes() {
        let (file, mut map) = mapped(10_000);
        map[5000] = 7;
        detach(&file, 10_000).unwrap();
        file.write_all_at(&[9; 12_000], 0).unwrap();
        assert_eq!((map[0], map[4096], map[5000], map[9999]), (1, 1, 7, 1));
    }

    #[test]
    fn pages_that_would_end_are_refused() {
        let (file, map) = mapped(10_000);
        assert_eq!(detach(&file, 8192).unwrap_err().kind(), io::ErrorKind::ResourceBusy);
        detach(&file, 8193).unwrap();
        drop(map);
        detach(&file, 0).unwrap();
    }

    #[test]
    fn a_map_that_cannot_be_copied_is_refused_and_a_shared_one_is_meant_to_change() {
        let (file, map) = mapped(10_000);
        drop(map);
        // SAFETY: as above.
        let shared = unsafe { MmapOptions::new().map_mut(&file).unwrap() };
        detach(&file, 10_000).unwrap();
        drop(shared);
        // SAFETY: as above.
        let read_only = unsafe { MmapOptions::new().map_copy_read_only(&file).unwrap() };
        assert!(detach(&file, 10_000).is_err());
        drop(read_only);
    }
}
