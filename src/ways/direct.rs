//! Parallel reads past the page cache (O_DIRECT).
//!
//! Such reads want offset, length and address to be multiples of a block. Where a piece's address
//! fits its offset, its whole pages are read into place, and only its ends pass through a
//! buffer; where it does not, all of it does.

use super::{read::Read, Job, Piece, Reader, PAGE};
use crate::{plan::SEGMENT_LEN, storage::local::LocalFile};
use std::{fs::File, io, os::unix::fs::FileExt};

/// A piece shorter than this is not worth a detour around the page cache.
const MIN_LEN: usize = 64 << 10;

#[derive(Debug)]
pub struct Direct;

impl Reader for Direct {
    /// Falls back to the page cache where the file system refuses.
    fn read(&self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()> {
        let Some(file) = direct(job) else { return Read.read(job, pieces) };
        job.for_each(pieces, |piece| {
            let wanted = piece.wanted as u64;
            read_piece(job, &file, piece)?;
            job.watch.add(wanted);
            Ok(())
        })
    }
}

/// The file opened past the page cache, where it is one and allows that.
pub fn direct(job: &Job<'_>) -> Option<File> {
    job.file.local().and_then(LocalFile::direct)
}

/// Reads one piece, past the page cache as far as that goes.
pub fn read_piece(job: &Job<'_>, file: &File, piece: Piece<'_>) -> io::Result<()> {
    let Piece { offset, bytes, wanted } = piece;
    if bytes.len() < MIN_LEN && !is_aligned(&Piece { offset, bytes: &mut *bytes, wanted }) {
        return job.file.read_exact_at(&mut bytes[..wanted], offset, job.watch);
    }
    if !fits(offset, bytes) {
        return bounce(job, file, &mut bytes[..wanted], offset);
    }
    let head = (offset.next_multiple_of(PAGE) - offset).min(wanted as u64) as usize;
    let (before, rest) = bytes.split_at_mut(head);
    let (offset_of_rest, wanted) = (offset + head as u64, wanted - head);
    let whole = rest.len() / PAGE as usize * PAGE as usize;
    bounce(job, file, before, offset)?;
    let done = pages(file, &mut rest[..whole], offset_of_rest)?.min(wanted);
    bounce(job, file, &mut rest[done..wanted], offset_of_rest + done as u64)
}

/// Whether a piece can be read into place as a whole.
pub fn is_aligned(piece: &Piece<'_>) -> bool {
    let numbers = [piece.offset, piece.bytes.as_ptr() as u64, piece.bytes.len() as u64];
    numbers.iter().all(|number| number.is_multiple_of(PAGE))
}

fn fits(offset: u64, bytes: &[u8]) -> bool {
    offset % PAGE == bytes.as_ptr() as u64 % PAGE
}

/// Reads whole pages into place; returns how many bytes came. What O_DIRECT does not give is left
/// to others: the last block of the file, and all where the file system refuses after all.
fn pages(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_refused(&error) => break,
            Err(error) => return Err(error),
        }
        if !(done as u64).is_multiple_of(PAGE) {
            break;
        }
    }
    Ok(done)
}

/// Whether reading past the page cache is refused, and not these bytes.
fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// Reads bytes to wherever they are wanted, by way of a buffer.
fn bounce(job: &Job<'_>, file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    let mut buffer = job.buffers.lend()?;
    let mut done = 0;
    while done < bytes.len() {
        let at = offset + done as u64;
        let start = at / PAGE * PAGE;
        let skipped = (at - start) as usize;
        let end = (offset + bytes.len() as u64).next_multiple_of(PAGE).min(start + SEGMENT_LEN);
        let came = pages(file, &mut buffer[..(end - start) as usize], start)?;
        if came <= skipped {
            return job.file.read_exact_at(&mut bytes[done..], at, job.watch);
        }
        let len = (came - skipped).min(bytes.len() - done);
        bytes[done..done + len].copy_from_slice(&buffer[skipped..skipped + len]);
        done += len;
    }
    Ok(())
}
