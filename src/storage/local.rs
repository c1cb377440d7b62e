//! A regular file, opened by path.

#![allow(unsafe_code)]

use super::{FileSystem, Source};
use crate::{
    error::{Error, Result},
    watch::Watch,
};
use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

/// What reading the first page of a file may have brought into the page cache, in bytes.
const BEGINNING: i64 = 1 << 20;

/// A regular file open for reading.
#[derive(Debug)]
pub struct LocalFile {
    path: PathBuf,
    file: File,
    len: u64,
    owner: u32,
    /// Tells it from another version: its device and number, when it was written to, its length.
    version: String,
}

impl LocalFile {
    /// Opens `path`.
    ///
    /// # Errors
    /// What the system says of a path that cannot be opened; `EISDIR` for a directory, and an
    /// invalid argument for anything else that is no regular file: a pipe would block for ever.
    pub fn open(path: &Path) -> Result<Self> {
        const ACTION: &str = "open";
        let file = OpenOptions::new()
            .read(true)
            // Opening a pipe without a writer would otherwise wait for one.
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|error| Error::io(ACTION, path, error))?;
        let metadata = file.metadata().map_err(|error| Error::io(ACTION, path, error))?;
        if metadata.is_dir() {
            return Err(Error::errno_of(ACTION, path, libc::EISDIR));
        }
        if !metadata.is_file() {
            return Err(Error::argument(ACTION, path, "not a regular file"));
        }
        let (len, owner) = (metadata.len(), metadata.uid());
        let (device, number) = (metadata.dev(), metadata.ino());
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        let version = format!("{device} {number} {seconds}.{nanoseconds} {len}");
        Ok(Self { path: path.to_owned(), file, len, owner, version })
    }

    /// A copy of an object that is open already, by the name that messages are to use. Its version
    /// is the object's.
    #[cfg(feature = "cloud")]
    pub(crate) fn of(file: File, name: &Path, version: String) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (len, owner) = (metadata.len(), metadata.uid());
        Ok(Self { path: name.to_owned(), file, len, owner, version })
    }

    /// The same file as if it ended after `len` bytes, no later than it does.
    #[cfg(feature = "cloud")]
    pub(crate) fn cut(self, len: u64) -> Self {
        Self { len: len.min(self.len), ..self }
    }

    /// Whether the kernel tells this process what the page cache holds of the file: it tells the
    /// owner, and whoever may write to it.
    pub(crate) fn is_ours(&self) -> bool {
        let path = format!("/proc/self/fd/{}\0", self.file.as_raw_fd());
        // SAFETY: geteuid takes nothing and cannot fail; `path` ends with a NUL and outlives the
        // call.
        unsafe {
            libc::geteuid() == self.owner || libc::access(path.as_ptr().cast(), libc::W_OK) == 0
        }
    }

    /// Takes the beginning of the file out of the page cache again, unless it was there before this
    /// process came: whoever loads the file next shall find it as it was.
    pub(crate) fn forget_header(&self, again: bool) {
        if !again {
            let fd = self.file.as_raw_fd();
            // SAFETY: the descriptor is open for the call; no memory is passed. A refusal is only a
            // hint not taken.
            unsafe { libc::posix_fadvise(fd, 0, BEGINNING, libc::POSIX_FADV_DONTNEED) };
        }
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The same file, opened so that reads bypass the page cache; `None` where its file system
    /// refuses that.
    pub(crate) fn direct(&self) -> Option<File> {
        // By descriptor, since the path may by now name another file.
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).ok()
    }
}

impl Source for LocalFile {
    fn name(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, _: &Watch<'_>) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn file_system(&self) -> FileSystem {
        FileSystem::of(&self.file)
    }

    fn local(&self) -> Option<&LocalFile> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use std::{ffi::CString, fs, io::ErrorKind, os::unix::ffi::OsStrExt};

    #[test]
    fn any_range_can_be_read_and_none_past_the_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"0123456789").unwrap();
        let source = LocalFile::open(file.path()).unwrap();
        let mut buffer = [0; 4];
        source.read_exact_at(&mut buffer, 6, &Watch::default()).unwrap();
        assert_eq!((&buffer, source.len()), (b"6789", 10));
        let past = source.read_exact_at(&mut buffer, 7, &Watch::default()).unwrap_err();
        assert_eq!(past.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let refused = LocalFile::open(directory.path()).unwrap_err();
        assert_eq!(refused.errno(), Some(libc::EISDIR));

        let pipe = directory.path().join("pipe");
        let name = CString::new(pipe.as_os_str().as_bytes()).unwrap();
        // SAFETY: `name` is a NUL-terminated path.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let refused = LocalFile::open(&pipe).unwrap_err();
        assert_eq!(refused.kind(), Kind::InvalidArgument);
        assert!(refused.to_string().ends_with("pipe: not a regular file"), "{refused}");
    }
}
