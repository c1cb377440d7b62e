//! Parallel reads through the page cache, from any storage.

use super::{Job, Piece, Reader};
use crate::threads;
use std::io;

#[derive(Debug)]
pub struct Read;

impl Reader for Read {
    fn read(&self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()> {
        threads::for_each(job.num_thread, pieces, job.watch, |piece| {
            job.file.read_exact_at(&mut piece.bytes[..piece.wanted], piece.offset, job.watch)?;
            job.watch.add(piece.wanted as u64);
            Ok(())
        })
    }
}
