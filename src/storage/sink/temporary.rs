//! The file that a save writes to before it is put in the target's place.

use super::{
    directory::{self, Directory},
    target::Target,
};
use crate::{
    address::printable,
    error::{said, words_of},
};
use std::{
    ffi::{CStr, CString},
    fs::File,
    io, process,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// How many names are tried before it is said that all are taken.
const MAX_NAMES: usize = 100;

/// A file that goes when this does.
#[derive(Debug)]
pub struct Temporary {
    file: File,
    /// Its name beside the target; none for a file without a name elsewhere.
    name: Option<CString>,
    /// The process whose it is: a forked child must not remove what its parent writes.
    process: u32,
}

impl Temporary {
    /// Makes one in the target's directory.
    pub fn beside(target: &Target, mode: u32) -> io::Result<Self> {
        for _ in 0..MAX_NAMES {
            let name = new_name();
            match target.directory.create(&name, mode) {
                Ok(file) => return Ok(Self::of(file, Some(name))),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EEXIST))
    }

    /// Makes one without a name in the directory for temporary files, or in memory where that
    /// takes none either.
    pub fn elsewhere() -> io::Result<Self> {
        let file = tempfile::tempfile()
            .or_else(|error| directory::memory_file().map_err(|_| elsewhere(&error)))?;
        Ok(Self::of(file, None))
    }

    fn of(file: File, name: Option<CString>) -> Self {
        Self { file, name, process: process::id() }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn name(&self) -> Option<&CStr> {
        self.name.as_deref()
    }

    /// Forgets the name, which is the file's no more.
    pub fn renamed(&mut self) {
        self.name = None;
    }

    pub fn remove_from(&mut self, directory: &Directory) {
        if let Some(name) = self.name.take().filter(|_| self.process == process::id()) {
            // Nobody can be told; the next save has another name.
            let _ = directory.remove(&name);
        }
    }
}

/// Says that it is not the target that was refused.
pub fn elsewhere(error: &io::Error) -> io::Error {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let words = words_of(errno);
    let directory = printable(&std::env::temp_dir());
    said(errno, format!("a temporary file in {directory} (TMPDIR names another place): {words}"))
}

fn new_name() -> CString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let (process, count) = (process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    CString::new(format!(".veturboio-{process:x}-{now:x}-{count:x}.tmp")).unwrap_or_default()
}
