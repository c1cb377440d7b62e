//! A file that becomes whole or not at all.
//!
//! Bytes go into a temporary sibling, in any order and from any thread; [`commit`](Sink::commit) makes
//! them durable and puts the sibling in the target's place in one step. Whatever happens before
//! that, the target stays what it was, and the sibling goes when the sink is dropped. Only a
//! process killed outright leaves one behind (`.veturboio-*.tmp`).

#![allow(unsafe_code)]

use super::{Creation, FileSystem, Sink};
use crate::{
    error::{Error, Result},
    watch::Watch,
};
use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

const ACTION: &str = "save";

/// What a new file is created with; the process's umask takes from it.
const MODE: u32 = 0o666;

/// Symbolic links followed before a chain of them is taken for a circle, as Linux does.
const MAX_LINKS: usize = 40;

/// A file in the making.
#[derive(Debug)]
pub struct LocalSink {
    /// What the user called it, for messages.
    name: PathBuf,
    /// Where it will stand: `name` with symbolic links followed.
    target: PathBuf,
    directory: PathBuf,
    temporary: NamedTempFile,
    /// The same file, opened past the page cache, where that is worth it.
    direct: Option<File>,
    creation: Creation,
}

/// What writes past the page cache want offset, length and address to be multiples of.
const PAGE: usize = 4096;

/// From this length on, a file is written past the page cache: below, it may as well stay there.
const DIRECT_LEN: u64 = 64 << 20;

impl LocalSink {
    /// Begins a file that is to stand at `path`.
    ///
    /// # Errors
    /// A target that is a directory, no regular file, or not writable; a directory that is
    /// missing or refuses a new file; a disk without room for `len` bytes.
    pub fn create(path: &Path, creation: Creation) -> Result<Self> {
        let Creation { len, durable, overwrite } = creation;
        let failed = |error| Error::io(ACTION, path, error);
        let target = follow_links(path).map_err(failed)?;
        check_target(path, &target)?;
        if !overwrite && fs::symlink_metadata(&target).is_ok() {
            return Err(Error::errno_of(ACTION, path, libc::EEXIST));
        }
        let directory = match target.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let temporary = tempfile::Builder::new()
            .prefix(".veturboio-")
            .suffix(".tmp")
            .make_in(&directory, |path| {
                OpenOptions::new().write(true).create_new(true).mode(MODE).open(path)
            })
            .map_err(failed)?;
        allocate(temporary.as_file(), len).map_err(failed)?;
        // What shall not be on the disk yet is best left to the page cache.
        let direct =
            if durable && len >= DIRECT_LEN { open_direct(temporary.as_file()) } else { None };
        let name = path.to_owned();
        Ok(Self { name, target, directory, temporary, direct, creation })
    }
}

impl Sink for LocalSink {
    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    fn write_direct_at(&self, buffer: &mut [u8], len: usize, offset: u64) -> Result<()> {
        let Some(direct) = &self.direct else { return self.write_all_at(&buffer[..len], offset) };
        let whole = len.next_multiple_of(PAGE);
        buffer[len..whole].fill(0);
        match direct.write_all_at(&buffer[..whole], offset) {
            // The file system takes back what it promised when the file was opened.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                self.write_all_at(&buffer[..len], offset)
            }
            result => result.map_err(|error| Error::io(ACTION, &self.name, error)),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let file = self.temporary.as_file();
        file.write_all_at(bytes, offset).map_err(|error| Error::io(ACTION, &self.name, error))?;
        if self.creation.durable {
            start_writeback(file, bytes.len(), offset);
        }
        Ok(())
    }

    fn commit(self: Box<Self>, _: &Watch<'_>) -> Result<()> {
        let Self { name, target, directory, temporary, direct, creation } = *self;
        let Creation { len, durable, overwrite } = creation;
        let failed = |error| Error::io(ACTION, &name, error);
        if direct.is_some() {
            // The last page was written whole.
            temporary.as_file().set_len(len).map_err(failed)?;
        }
        if !durable {
            return put(temporary, &target, overwrite).map_err(failed);
        }
        temporary.as_file().sync_all().map_err(failed)?;
        // Opened before the rename, and not needed for it: a directory that may be written but not
        // read cannot be synced by us.
        let directory = File::open(&directory).ok();
        put(temporary, &target, overwrite).map_err(failed)?;
        match directory.map_or(Ok(()), |directory| directory.sync_all()) {
            // A file system that does not sync directories has nothing to be told.
            Err(error)
                if !matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }
}

/// Puts the file in its place.
fn put(temporary: NamedTempFile, target: &Path, overwrite: bool) -> io::Result<()> {
    if overwrite {
        return temporary.persist(target).map(drop).map_err(|refused| refused.error);
    }
    // One step as well: whoever was faster is not replaced.
    temporary.persist_noclobber(target).map(drop).map_err(|refused| refused.error)
}

/// The file that a symbolic link names, there or not, so that saving makes or replaces that file
/// and keeps the link.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&target) {
            Ok(link) => target = target.parent().unwrap_or(Path::new("")).join(link),
            // What is no link, or not there, is where the file goes.
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// Refuses what renaming would replace but opening for writing would not.
fn check_target(path: &Path, target: &Path) -> Result<()> {
    if target.as_os_str().as_bytes().ends_with(b"/") {
        return Err(Error::errno_of(ACTION, path, libc::EISDIR));
    }
    let metadata = match fs::metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(ACTION, path, error)),
    };
    if metadata.is_dir() {
        return Err(Error::errno_of(ACTION, path, libc::EISDIR));
    }
    if !metadata.is_file() {
        return Err(Error::argument(ACTION, path, "not a regular file"));
    }
    let name = CString::new(target.as_os_str().as_bytes())
        .map_err(|error| Error::argument(ACTION, path, error))?;
    // SAFETY: `name` is a NUL-terminated path that outlives the call.
    if unsafe { libc::access(name.as_ptr(), libc::W_OK) } != 0 {
        return Err(Error::io(ACTION, path, io::Error::last_os_error()));
    }
    Ok(())
}

/// Reserves the blocks of a file: a full disk is found before anything is written.
pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let len = libc::off_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: the descriptor is open for the call; no memory is passed.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // The file system cannot reserve; writing will find out whether there is room.
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => return Ok(()),
            _ => return Err(error),
        }
    }
}

/// The same file opened so that writes bypass the page cache, where it lies on a disk of this
/// machine; what the others make of such writes differs too much.
fn open_direct(file: &File) -> Option<File> {
    if FileSystem::of(file).storage != super::Storage::Disk {
        return None;
    }
    // By descriptor, since the path may by now name another file.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).ok()
}

/// Lets the disk begin on what was just written while the next range is being copied, so that
/// the sync at the end finds little left to do.
fn start_writeback(file: &File, len: usize, offset: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else { return };
    // SAFETY: the descriptor is open for the call; no memory is passed. A refusal is only a
    // hint not taken: an error of the disk is reported by the sync in `commit`.
    unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
}
