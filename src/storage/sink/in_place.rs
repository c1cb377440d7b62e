//! Writing over the bytes of a file that cannot be replaced.
//!
//! The bytes are whole in a temporary file before the first of them is written here, so that tensors
//! that still lie in the file's own pages are saved as they were, and a failure before that leaves
//! the old file. From then on the old bytes are gone: what a rename gives, that a crash leaves one
//! file or the other, is given up.

use super::{disk::allocate_with, maps};
use crate::error::{said, words_of};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
};

/// Makes `to` the same as `from`.
///
/// # Errors
/// Before anything is written: a disk without space for it, and tensors of this process that cannot
/// be kept from changing with the file. After that, what the system answers; the words then say
/// that the file is not whole.
pub fn write(from: &File, to: &File, durable: bool) -> io::Result<()> {
    let len = from.metadata()?.len();
    let was = to.metadata()?.len();
    maps::detach(to, len)?;
    allocate_with(to, len, libc::FALLOC_FL_KEEP_SIZE).inspect_err(|_| {
        // Some file systems keep the part that they found space for, past the end of the file.
        let _ = to.set_len(was);
    })?;
    copy(from, to, len, durable).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let words = words_of(errno);
        said(errno, format!("{words}; it can only be written in place, and is not whole now"))
    })
}

fn copy(mut from: &File, mut to: &File, len: u64, durable: bool) -> io::Result<()> {
    from.seek(SeekFrom::Start(0))?;
    to.seek(SeekFrom::Start(0))?;
    let copied = io::copy(&mut from, &mut to)?;
    if copied != len {
        return Err(io::Error::from_raw_os_error(libc::EIO));
    }
    if to.metadata()?.len() != len {
        to.set_len(len)?;
    }
    if durable {
        to.sync_all()?;
    }
    Ok(())
}
