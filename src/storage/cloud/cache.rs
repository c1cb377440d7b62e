//! Downloaded objects that are kept in a directory for the next load.
//!
//! A file there is one version of one object, and is there whole or not at all. Any number of
//! processes may share the directory: what one removes while another reads it stays until that one
//! is done.

#![allow(unsafe_code)]

use super::{flight, object::Object};
use crate::{
    error::{Error, Result},
    plan::SEGMENT_LEN,
    storage::{local::LocalFile, Scattered, Source},
    watch::Watch,
};
use memmap2::MmapMut;
use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

const SUFFIX: &str = "veturboio";
const TEMPORARY: &str = ".veturboio-";

/// What is left of a process that was killed goes after so long.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Where copies are kept, and how many bytes of them.
#[derive(Debug)]
pub struct Cache<'a> {
    pub directory: &'a Path,
    pub max_bytes: u64,
    /// Requests in flight, at most, while an object is downloaded.
    pub num_thread: usize,
}

impl Cache<'_> {
    /// The copy of `object`, if there is one.
    pub fn find(&self, object: &Object, origin: &str) -> Option<LocalFile> {
        let path = self.path(object, origin)?;
        let file = LocalFile::open(&path).ok()?;
        if file.len() != object.len() {
            return None;
        }
        // What was used last goes last. A directory that may only be read does not get to know.
        let _ = file.file().set_modified(SystemTime::now());
        Some(file.called(object.name()))
    }

    /// Downloads `object` and keeps it; `None` where it cannot be kept.
    ///
    /// # Errors
    /// What the store or the directory's file system answers.
    pub fn keep(
        &self,
        object: &Object,
        origin: &str,
        watch: &Watch<'_>,
    ) -> Result<Option<LocalFile>> {
        let Some(path) = self.path(object, origin) else { return Ok(None) };
        let len = object.len();
        if len == 0 || len > self.max_bytes {
            return Ok(None);
        }
        let failed = |error| Error::io("keep", self.directory, error);
        fs::create_dir_all(self.directory).map_err(failed)?;
        let temporary = tempfile::Builder::new()
            .prefix(TEMPORARY)
            .tempfile_in(self.directory)
            .map_err(failed)?;
        crate::storage::sink::allocate(temporary.as_file(), len).map_err(failed)?;
        temporary.as_file().set_len(len).map_err(failed)?;
        watch.begin(len);
        self.download(object, temporary.as_file(), watch)
            .map_err(|error| Error::io("read", object.name(), error))?;
        temporary.persist(&path).map_err(|refused| failed(refused.error))?;
        self.make_room(&path);
        Ok(LocalFile::open(&path).ok().map(|file| file.called(object.name())))
    }

    fn download(&self, object: &Object, file: &File, watch: &Watch<'_>) -> io::Result<()> {
        // SAFETY: the file is ours alone until it gets its name, so nobody cuts it short.
        let mut memory = unsafe { MmapMut::map_mut(file)? };
        let pieces = memory.chunks_mut(SEGMENT_LEN as usize).zip(0u64..);
        let pieces =
            pieces.map(|(bytes, index)| Scattered { offset: index * SEGMENT_LEN, bytes }).collect();
        flight::fly(object, pieces, self.num_thread, watch)
    }

    /// The name tells the object and its version. Without a tag there is no telling.
    fn path(&self, object: &Object, origin: &str) -> Option<PathBuf> {
        let tag = object.version().e_tag.as_deref()?;
        let name = object.name().to_string_lossy();
        let mut hash = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128;
        for part in [origin, &name, tag, &object.len().to_string()] {
            for byte in part.bytes().chain([0]) {
                hash = (hash ^ u128::from(byte)).wrapping_mul(0x0100_0000_0000_0000_0000_013b);
            }
        }
        Some(self.directory.join(format!("{hash:032x}.{SUFFIX}")))
    }

    /// Removes what was used longest ago until the rest may stay.
    fn make_room(&self, newest: &Path) {
        let Ok(entries) = fs::read_dir(self.directory) else { return };
        let mut kept = Vec::new();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = entry.metadata() else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let is_copy = path.extension().is_some_and(|suffix| suffix == SUFFIX);
            let is_stale = used.elapsed().is_ok_and(|age| age > STALE);
            if is_copy {
                kept.push((used, metadata.len(), path));
            } else if is_stale && entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                let _ = fs::remove_file(path);
            }
        }
        kept.sort();
        let mut held: u64 = kept.iter().map(|(_, len, _)| len).sum();
        for (_, len, path) in kept {
            if held <= self.max_bytes {
                return;
            }
            if path != newest && fs::remove_file(&path).is_ok() {
                held -= len;
            }
        }
    }
}
