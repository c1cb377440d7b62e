//! What a disk is told of a file before all of its bytes are there: how long it is to be, that its
//! bytes need not stay in the page cache, and that writing may begin.

#![allow(unsafe_code)]

use crate::storage::{FileSystem, Storage};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
};

/// Reserves the blocks of a file: a full disk is found before anything is written.
pub fn allocate(file: &File, len: u64) -> io::Result<()> {
    allocate_with(file, len, 0)
}

/// The same in the way that `mode` says, as `fallocate` takes it.
pub fn allocate_with(file: &File, len: u64, mode: i32) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let len = libc::off_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: the descriptor is open for the call; no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // The file system cannot reserve; writing will find out whether there is room.
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// The same file opened so that writes bypass the page cache, where it lies on a disk of this
/// machine; what the others make of such writes differs too much.
pub fn open_direct(file: &File) -> Option<File> {
    if FileSystem::of(file).storage != Storage::Disk {
        return None;
    }
    // By descriptor, since the path may by now name another file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Lets the disk begin on what was just written while the next range is being copied, so that
/// the sync at the end finds little left to do.
pub fn start_writeback(file: &File, len: usize, offset: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open for the call; no memory is passed. A refusal is only a
    // hint not taken: an error of the disk is reported by the sync in `commit`.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
