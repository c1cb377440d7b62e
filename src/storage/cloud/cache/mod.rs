//! Downloaded objects that are kept in a directory for the next load.
//!
//! An entry is one version of one object, and is there whole or not at all: it is written under
//! another name, synced, and renamed. It ends with digests of its bytes, which are compared before a
//! process uses them for the first time. Any number of processes may share the directory: one of
//! them downloads an object while the others wait, and what one removes while another reads it
//! stays until that one is done.
//!
//! | module | what it knows |
//! |---|---|
//! | [`entry`] | what an entry ends with, and which have been compared |
//! | [`lock`] | who downloads |
//! | [`part`] | reading of an entry that has not been compared as a whole |
//! | [`sweep`] | what goes to make space |
//!
//! An entry is believed if it belongs to this user or root and nobody else may write to it. The
//! directory may be writable by others: all they can do is to remove entries, since an entry names
//! its object and version itself.

mod entry;
mod lock;
mod part;
mod sweep;

use super::version::Version;
use crate::{
    error::{Error, Result},
    storage::{local::LocalFile, Source},
    watch::Watch,
};
use entry::{Entry, Key, Writer};
use lock::Lock;
use part::Part;
use std::{
    fs::{DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
};

/// Entries up to this length, in bytes, are compared as a whole whatever is wanted of them.
const SMALL: u64 = 64 << 20;

/// An object as it comes from its store.
pub trait Remote: Source {
    fn held_version(&self) -> &Version;

    /// Hands all its bytes to `keep`, by pieces that begin at multiples of [`PIECE`] and have that
    /// length but for the last; several threads may do so at once.
    ///
    /// # Errors
    /// What the store or `keep` answers.
    fn download(&self, keep: &Keep<'_>, watch: &Watch<'_>) -> io::Result<()>;
}

/// Takes bytes of an object, which lie at an offset.
pub type Keep<'a> = dyn Fn(u64, &[u8]) -> io::Result<()> + Sync + 'a;

/// Bytes that are downloaded by one request.
pub const PIECE: u64 = 4 << 20;

/// Where copies are kept, and how many bytes of them.
#[derive(Debug)]
pub struct Cache<'a> {
    pub directory: &'a Path,
    pub max_bytes: u64,
}

impl Cache<'_> {
    /// The entry of `remote`, which is downloaded first if there is none and all of it is wanted;
    /// `remote` itself where it cannot be kept.
    ///
    /// # Errors
    /// What the store answers, a `directory` that is none, or `Stopped`. What else keeps a copy from
    /// being written, such as a full disk, is none: the load does without.
    pub fn open(
        &self,
        remote: Box<dyn Remote>,
        origin: &str,
        is_whole: bool,
        watch: &Watch<'_>,
    ) -> Result<Box<dyn Source>> {
        let len = remote.len();
        let Some(key) = Key::of(&*remote, origin).filter(|_| len > 0) else { return Ok(remote) };
        let failed = |error| Error::io("keep", self.directory, error);
        let remote = match self.find(&key, remote, is_whole, watch).map_err(failed)? {
            Found::Here(source) => return Ok(source),
            Found::Not(remote) => remote,
        };
        if !is_whole || len > self.max_bytes || !self.make_directory().map_err(failed)? {
            return Ok(remote);
        }
        let lock = Lock::take(self.directory, &key, watch).map_err(failed)?;
        // Whoever had the lock before has downloaded it.
        let remote = match self.find(&key, remote, is_whole, watch).map_err(failed)? {
            Found::Here(source) => return Ok(source),
            Found::Not(remote) => remote,
        };
        let kept = self.keep(&key, &*remote, watch);
        drop(lock);
        match kept.map_err(|error| Error::io("read", remote.name(), error))? {
            Some(file) => Ok(Box::new(file)),
            None => Ok(remote),
        }
    }

    /// The entry, if there is one and it is what was downloaded; a damaged one is removed.
    fn find(
        &self,
        key: &Key,
        remote: Box<dyn Remote>,
        is_whole: bool,
        watch: &Watch<'_>,
    ) -> io::Result<Found> {
        let path = key.path(self.directory);
        let Some(entry) = Entry::open(&path, key, remote.len()) else {
            return Ok(Found::Not(remote));
        };
        if !is_whole && remote.len() > SMALL && !entry.is_compared() {
            return Ok(Found::Here(Box::new(Part::new(entry, path, remote))));
        }
        if !entry.compare(watch)? {
            entry::remove(&path);
            return Ok(Found::Not(remote));
        }
        let file = LocalFile::of(entry.file, remote.name(), remote.version())?;
        Ok(Found::Here(Box::new(file.cut(remote.len()))))
    }

    /// Downloads an object and keeps it; `None` where it cannot be kept.
    fn keep(
        &self,
        key: &Key,
        remote: &dyn Remote,
        watch: &Watch<'_>,
    ) -> io::Result<Option<LocalFile>> {
        let len = remote.len();
        let Ok(temporary) = sweep::temporary(self.directory) else { return Ok(None) };
        let Ok(writer) = Writer::new(temporary.as_file(), len) else { return Ok(None) };
        watch.begin(len);
        let downloaded = remote.download(&|offset, bytes| writer.write(offset, bytes), watch);
        match (downloaded, writer.finish(key)) {
            (Ok(()), Ok(())) => {}
            // The disk is full, or fails.
            (_, Err(_)) => return Ok(None),
            (Err(error), _) => return Err(error),
        }
        let path = key.path(self.directory);
        let file = match temporary.persist(&path) {
            Ok(file) => file,
            // Somebody has the name who does not give it up: it serves this load at least.
            Err(refused) => {
                let file = refused.file.into_file();
                return Ok(Some(LocalFile::of(file, remote.name(), remote.version())?.cut(len)));
            }
        };
        lock::unlock(&file);
        // Or a power loss takes the name; the entry itself is on the disk.
        let _ = File::open(self.directory).and_then(|directory| directory.sync_all());
        sweep::make_space(self.directory, &path, self.max_bytes);
        entry::remember(&file);
        Ok(Some(LocalFile::of(file, remote.name(), remote.version())?.cut(len)))
    }

    /// Makes the directory, for this user alone; false where it cannot be made.
    fn make_directory(&self) -> io::Result<bool> {
        match DirBuilder::new().recursive(true).mode(0o700).create(self.directory) {
            Ok(()) => Ok(true),
            // What is named is no directory: that is a mistake of the caller, who should know.
            Err(error)
                if matches!(error.raw_os_error(), None | Some(libc::EEXIST | libc::ENOTDIR)) =>
            {
                Err(error)
            }
            Err(_) => Ok(false),
        }
    }
}

enum Found {
    Here(Box<dyn Source>),
    Not(Box<dyn Remote>),
}
