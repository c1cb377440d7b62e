//! SFCS by the vendor's client library: files that are read by many handles at once and written under
//! another name.
//!
//! | module | what it knows |
//! |---|---|
//! | [`settings`] | the environment, and the file that the library reads |
//! | [`environment`] | how the library learns of that file |
//! | [`library`] | the library's C interface |

mod environment;
mod library;
mod settings;

use super::{order, Creation, FileSystem, Sink, Source, Storage};
use crate::{
    error::{said, Error, Result},
    watch::Watch,
};
use library::{connection, Connection, Handle, Info};
use std::{
    ffi::{CStr, CString, OsStr},
    fmt, io,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    process,
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex, PoisonError,
    },
    time::{SystemTime, UNIX_EPOCH},
};

/// Bytes of one read, at most: so long it takes to stop.
const MAX_READ: usize = 8 << 20;

/// Bytes of one write.
const PART: u64 = 8 << 20;

pub struct SfcsFile {
    /// What the user calls it.
    name: PathBuf,
    path: CString,
    connection: Arc<Connection>,
    info: Info,
    /// Handles that nobody uses at the moment: each reader has one to himself.
    idle: Mutex<Vec<Handle>>,
}

impl fmt::Debug for SfcsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SfcsFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl SfcsFile {
    /// Opens `path`, which the user calls `name`.
    ///
    /// # Errors
    /// A library that cannot be loaded, variables that are missing, and what SFCS answers.
    pub fn open(name: &Path, path: &Path) -> Result<Self> {
        let opened = || {
            let path = named(path)?;
            let connection = connection()?;
            let info = connection.info(&path)?;
            if info.is_directory {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            }
            if info.len < 0 {
                return Err(said(libc::EPROTO, "SFCS: a length below 0"));
            }
            let name = name.to_owned();
            Ok(Self { name, path, connection, info, idle: Mutex::default() })
        };
        opened().map_err(|error| Error::io("open", name, error))
    }

    fn handle(&self) -> io::Result<Handle> {
        if let Some(handle) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(handle);
        }
        let handle = Handle::open(&self.connection, &self.path)?;
        // Another file may have taken its place since the first one was opened.
        if self.connection.info(&self.path)? != self.info {
            return Err(said(libc::ESTALE, "the file was replaced while it was read"));
        }
        Ok(handle)
    }
}

impl Source for SfcsFile {
    fn name(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> u64 {
        self.info.len as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, watch: &Watch<'_>) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut handle = self.handle()?;
        let mut done = 0;
        while done < buffer.len() {
            watch.look();
            watch.check()?;
            let rest = &mut buffer[done..];
            let len = rest.len().min(MAX_READ);
            match handle.read_at(&mut rest[..len], (offset + done as u64) as i64) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
        Ok(())
    }

    fn file_system(&self) -> FileSystem {
        FileSystem { name: "SFCS", storage: Storage::Object }
    }
}

/// A file in the making, under another name.
pub struct SfcsSink {
    name: PathBuf,
    target: CString,
    temporary: CString,
    connection: Arc<Connection>,
    creation: Creation,
    /// The file and how much of it is written: SFCS takes bytes in their order only.
    writing: Mutex<Option<(Handle, u64)>>,
    is_there: bool,
}

impl SfcsSink {
    /// Begins a file that is to stand at `path`.
    ///
    /// # Errors
    /// As [`SfcsFile::open`].
    pub fn create(name: &Path, path: &Path, creation: Creation) -> Result<Self> {
        let begun = || {
            let target = named(path)?;
            let connection = connection()?;
            match connection.info(&target) {
                Ok(info) if info.is_directory => {
                    return Err(io::Error::from_raw_os_error(libc::EISDIR));
                }
                Ok(_) if !creation.overwrite => {
                    return Err(io::Error::from_raw_os_error(libc::EEXIST));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let temporary = named(&beside(path))?;
            let handle = Handle::create(&connection, &temporary)?;
            let writing = Mutex::new(Some((handle, 0)));
            let name = name.to_owned();
            Ok(Self { name, target, temporary, connection, creation, writing, is_there: true })
        };
        begun().map_err(|error| failed(name, error))
    }

    fn finish(&mut self) -> io::Result<()> {
        let writing = self.writing.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        let Some((mut handle, written)) = writing else {
            return Err(said(libc::EIO, "SFCS: an earlier write failed"));
        };
        if written != self.creation.len {
            return Err(said(libc::EIO, "not all bytes were written"));
        }
        if self.creation.durable {
            handle.sync()?;
        }
        handle.close()?;
        self.put()?;
        self.is_there = false;
        Ok(())
    }

    /// Puts the file in its place. Whether SFCS renames over a file is not known: where it does not,
    /// the old one steps aside, and comes back if the new one cannot be put there.
    fn put(&mut self) -> io::Result<()> {
        if !self.creation.overwrite {
            return self.put_new();
        }
        let Err(refused) = self.connection.rename(&self.temporary, &self.target) else {
            return Ok(());
        };
        if self.connection.info(&self.target).is_err() {
            return Err(refused);
        }
        let aside = self.temporary_with(b".old")?;
        self.connection.rename(&self.target, &aside)?;
        if let Err(error) = self.connection.rename(&self.temporary, &self.target) {
            self.connection.rename(&aside, &self.target)?;
            return Err(error);
        }
        self.connection.delete(&aside)
    }

    /// The same where nothing may stand there, whoever makes it meanwhile. A rename that replaces
    /// nothing decides that by itself. Where a rename replaces what is there, an empty file that is
    /// made with `O_EXCL` takes the name first; a library that does not know the flag leaves the
    /// moment between a look at the name and the rename.
    fn put_new(&mut self) -> io::Result<()> {
        let exists = || io::Error::from_raw_os_error(libc::EEXIST);
        let renaming_replaces = self.renaming_replaces()?;
        if self.is_taken()? {
            return Err(exists());
        }
        if !renaming_replaces {
            return match self.connection.rename(&self.temporary, &self.target) {
                Err(_) if self.is_taken()? => Err(exists()),
                done => done,
            };
        }
        match Handle::create_new(&self.connection, &self.target) {
            Ok(handle) => self.closed(handle, &self.target)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists || self.is_taken()? => {
                return Err(exists());
            }
            // A library that refuses the flag; the look at the name has to do.
            Err(_) => return self.connection.rename(&self.temporary, &self.target),
        }
        self.connection.rename(&self.temporary, &self.target).inspect_err(|_| {
            let _ = self.connection.delete(&self.target);
        })
    }

    /// Whether something has the target's name.
    fn is_taken(&self) -> io::Result<bool> {
        match self.connection.info(&self.target) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Finds out whether a rename replaces a file, by renaming the finished file over an empty one.
    fn renaming_replaces(&mut self) -> io::Result<bool> {
        let empty = self.temporary_with(b".new")?;
        self.closed(Handle::create(&self.connection, &empty)?, &empty)?;
        if self.connection.rename(&self.temporary, &empty).is_ok() {
            self.temporary = empty;
            return Ok(true);
        }
        self.connection.delete(&empty)?;
        Ok(false)
    }

    /// Closes an empty file that was made here, which goes if that fails.
    fn closed(&self, handle: Handle, path: &CStr) -> io::Result<()> {
        handle.close().inspect_err(|_| {
            let _ = self.connection.delete(path);
        })
    }

    fn temporary_with(&self, suffix: &[u8]) -> io::Result<CString> {
        Ok(CString::new([self.temporary.as_bytes(), suffix].concat())?)
    }
}

impl Sink for SfcsSink {
    fn target(&self) -> order::Target {
        let mut path = PathBuf::new();
        for part in Path::new(OsStr::from_bytes(self.target.as_bytes())).components() {
            match part {
                Component::ParentDir => drop(path.pop()),
                part => path.push(part),
            }
        }
        order::Target::Object(format!("sfcs {}", path.display()))
    }

    fn overwrites(&self) -> bool {
        self.creation.overwrite
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((handle, written)) = &mut *writing else { return Ok(()) };
        let put = if *written == offset {
            handle.write_all(bytes)
        } else {
            Err(said(libc::EINVAL, "SFCS takes bytes in their order only"))
        };
        if let Err(error) = put {
            *writing = None;
            return Err(failed(&self.name, error));
        }
        *written += bytes.len() as u64;
        Ok(())
    }

    fn part_len(&self) -> Option<u64> {
        Some(PART)
    }

    fn writers(&self, _: usize) -> usize {
        1
    }

    fn commit(mut self: Box<Self>, _: &Watch<'_>) -> Result<()> {
        self.finish().map_err(|error| failed(&self.name, error))
    }
}

impl Drop for SfcsSink {
    fn drop(&mut self) {
        if self.is_there {
            self.writing.get_mut().unwrap_or_else(PoisonError::into_inner).take();
            let _ = self.connection.delete(&self.temporary);
        }
    }
}

fn failed(name: &Path, error: io::Error) -> Error {
    Error::io("save", name, error)
}

/// A path as the library takes it: absolute.
fn named(path: &Path) -> io::Result<CString> {
    let path = std::path::absolute(path)?;
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// A name beside `path` that nobody else has.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".veturboio-{}-{count}-{now:x}.tmp", process::id()))
}
