//! An entry of which a part is wanted: only the chunks that hold it are compared.

use super::{
    entry::{self, Entry, CHUNK},
    Remote,
};
use crate::{
    storage::{FileSystem, Source},
    watch::Watch,
};
use std::{
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

/// An entry that is compared as it is read. What is damaged comes from the store.
#[derive(Debug)]
pub struct Part {
    entry: Entry,
    path: PathBuf,
    remote: Box<dyn Remote>,
    /// Which chunks are as they should be.
    compared: Vec<AtomicBool>,
    is_damaged: AtomicBool,
}

impl Part {
    pub fn new(entry: Entry, path: PathBuf, remote: Box<dyn Remote>) -> Self {
        let chunks = remote.len().div_ceil(CHUNK);
        let compared = (0..chunks).map(|_| AtomicBool::new(false)).collect();
        Self { entry, path, remote, compared, is_damaged: AtomicBool::new(false) }
    }

    /// Fills `bytes` from `offset` on, all of one chunk; false if that is damaged.
    fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<bool> {
        let compared = &self.compared[(offset / CHUNK) as usize];
        if compared.load(Ordering::Relaxed) {
            return self.entry.file.read_exact_at(bytes, offset).map(|()| true);
        }
        let chunk = self.entry.chunk_at(offset);
        let mut whole = vec![0; (chunk.end - chunk.start) as usize];
        if !self.entry.read_chunk(&mut whole, chunk.start) {
            return Ok(false);
        }
        compared.store(true, Ordering::Relaxed);
        let start = (offset - chunk.start) as usize;
        bytes.copy_from_slice(&whole[start..start + bytes.len()]);
        Ok(true)
    }
}

impl Source for Part {
    fn name(&self) -> &Path {
        self.remote.name()
    }

    fn len(&self) -> u64 {
        self.remote.len()
    }

    fn version(&self) -> String {
        self.remote.version()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, watch: &Watch<'_>) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            watch.look();
            watch.check()?;
            let at = offset + done as u64;
            let len = (self.entry.chunk_at(at).end - at).min((buffer.len() - done) as u64) as usize;
            if self.is_damaged.load(Ordering::Relaxed)
                || !self.read(&mut buffer[done..done + len], at)?
            {
                if !self.is_damaged.swap(true, Ordering::Relaxed) {
                    entry::remove(&self.path);
                }
                return self.remote.read_exact_at(&mut buffer[done..], at, watch);
            }
            done += len;
        }
        Ok(())
    }

    fn file_system(&self) -> FileSystem {
        FileSystem::of(&self.entry.file)
    }
}
