//! Parallel reads through the page cache, from any storage.

use super::{Job, Piece, Reader};
use crate::storage::Scattered;
use std::io;

#[derive(Debug)]
pub struct Read;

impl Reader for Read {
    fn read(&self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()> {
        let mut scattered: Vec<Scattered<'_>> = Vec::new();
        let mut pieces = pieces;
        if job.file.local().is_none() {
            scattered.extend(pieces.drain(..).map(|Piece { offset, bytes, wanted }| Scattered {
                offset,
                bytes: &mut bytes[..wanted],
            }));
            if let Some(done) = job.file.read_scattered(&mut scattered, job.num_thread, job.watch) {
                return done;
            }
            pieces.extend(scattered.into_iter().map(|Scattered { offset, bytes }| {
                let wanted = bytes.len();
                Piece { offset, bytes, wanted }
            }));
        }
        job.for_each(pieces, |piece| {
            job.file.read_exact_at(&mut piece.bytes[..piece.wanted], piece.offset, job.watch)?;
            job.watch.add(piece.wanted as u64);
            Ok(())
        })
    }
}
