//! A file that becomes whole or not at all.
//!
//! Bytes go into a temporary file, in any order and from any thread; [`commit`](Sink::commit) makes
//! them durable and puts the file in the target's place in one step. Whatever happens before that,
//! the target stays what it was, and the temporary file goes when the sink is dropped. Only a
//! process killed outright leaves one behind (`.veturboio-*.tmp`).
//!
//! | module | what it knows |
//! |---|---|
//! | [`target`] | which file a path names |
//! | [`directory`] | a directory held open, and what is done to names in it |
//! | [`temporary`] | the file that is written to first |
//! | [`attributes`] | who may do what with the file, passed on to the one that replaces it |
//! | [`disk`] | what a disk is told of a file before its bytes come |
//! | [`in_place`], [`maps`] | writing over a file that cannot be replaced |

mod attributes;
mod directory;
mod disk;
mod in_place;
mod maps;
mod target;
mod temporary;

use super::{order, Creation, FileSystem, Sink};
use crate::{
    address::printable,
    error::{said, Error, Result},
    watch::Watch,
};
pub(super) use disk::allocate;

use directory::Status;
use disk::{open_direct, start_writeback};
use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};
use target::Target;
use temporary::Temporary;

const ACTION: &str = "save";

/// What a new file is created with; the process's umask takes from it.
const MODE: u32 = 0o666;

/// What a file is created with that is to replace another, until it has what the other has.
const PRIVATE: u32 = 0o600;

/// Where Linux tells whether it follows any symbolic link.
const LINKS_ARE_PROTECTED: &str = "/proc/sys/fs/protected_symlinks";

const MOVED: &str = "another file took its place meanwhile";

/// A file in the making.
#[derive(Debug)]
pub struct LocalSink {
    /// What the user called it, for messages.
    name: PathBuf,
    target: Target,
    temporary: Temporary,
    /// The same file, opened past the page cache, where that is worth it.
    direct: Option<File>,
    /// The target itself, where it is known already that it can only be written in place.
    in_place: Option<File>,
    creation: Creation,
}

/// What writes past the page cache want offset, length and address to be multiples of.
const PAGE: usize = 4096;

/// From this length on, a file is written past the page cache: below, it may as well stay there.
const DIRECT_LEN: u64 = 64 << 20;

impl LocalSink {
    /// Begins a file that is to stand at `path`. Its length may be 0 where it is not known yet.
    ///
    /// # Errors
    /// A target that is a directory, no regular file, or not writable; a directory that is
    /// missing or refuses a new file; a disk without space for `len` bytes.
    pub fn create(path: &Path, creation: Creation) -> Result<Self> {
        let Creation { len, durable, overwrite } = creation;
        let failed = |error| Error::io(ACTION, path, error);
        let target = Target::resolve(path).map_err(failed)?;
        check_target(path, &target)?;
        if !overwrite && (target.found.is_some() || target.old.is_some()) {
            return Err(Error::errno_of(ACTION, path, libc::EEXIST));
        }
        let temporary = temporary_for(&target, overwrite).map_err(failed)?;
        let mut sink = Self {
            name: path.to_owned(),
            target,
            temporary,
            direct: None,
            in_place: None,
            creation,
        };
        if sink.temporary.name().is_none() || (overwrite && sink.target.is_held()) {
            // Now, rather than after all has been written.
            sink.in_place = Some(open_in_place(path, sink.target.found.as_ref()).map_err(failed)?);
        }
        let file = sink.temporary.file();
        allocate(file, len).map_err(|error| sink.failed(error))?;
        // What shall not be on the disk yet is best left to the page cache.
        if durable && len >= DIRECT_LEN && sink.in_place.is_none() {
            sink.direct = open_direct(file);
        }
        Ok(sink)
    }

    /// The descriptor that the bytes may be written to by others, from the start.
    pub fn descriptor(&self) -> RawFd {
        self.temporary.file().as_raw_fd()
    }

    fn failed(&self, error: io::Error) -> Error {
        let error =
            if self.temporary.name().is_none() { temporary::elsewhere(&error) } else { error };
        Error::io(ACTION, &self.name, error)
    }

    /// Gives the file the target's name.
    fn put(&mut self, watch: &Watch<'_>) -> io::Result<()> {
        let Some(temporary) = self.temporary.name() else {
            return self.write_in_place(None, watch);
        };
        let (directory, name) = (&self.target.directory, &self.target.name);
        let refused = if self.creation.overwrite {
            let now = self.target.open_entry()?;
            let links = match now.as_ref().or(self.target.old.as_ref()) {
                Some(old) => replaced(old, self.temporary.file())?,
                None => 0,
            };
            match directory.rename(temporary, name) {
                Ok(()) => {
                    self.temporary.renamed();
                    if links > 1 {
                        watch.note(|| self.told(&still_linked(links - 1)));
                    }
                    return Ok(());
                }
                Err(error) => error,
            }
        } else {
            match put_new(&self.target, temporary) {
                Ok(()) => {
                    self.temporary.renamed();
                    return Ok(());
                }
                Err(error) => error,
            }
        };
        if !cannot_be_replaced(&refused) {
            return Err(refused);
        }
        self.write_in_place(Some(refused), watch)
    }

    /// Writes over the target. `refused`: why it is not replaced, if the system has said so.
    fn write_in_place(&self, refused: Option<io::Error>, watch: &Watch<'_>) -> io::Result<()> {
        let Creation { durable, overwrite, .. } = self.creation;
        let from = self.temporary.file();
        let found = if self.target.is_named { self.target.entry()? } else { self.target.found };
        let (directory, name) = (&self.target.directory, &self.target.name);
        if found.is_none() {
            // A file system that renames nothing. The file is new, so that nothing is given up.
            let Ok(to) = directory.create(name, MODE) else {
                return Err(refused.unwrap_or_else(|| io::Error::from_raw_os_error(libc::EEXIST)));
            };
            return in_place::write(from, &to, durable).inspect_err(|_| {
                let _ = directory.remove(name);
            });
        }
        if !overwrite {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let opened;
        let to = if let Some(file) = &self.in_place {
            file
        } else {
            opened = open_in_place(&self.name, found.as_ref())
                .map_err(|error| refused.unwrap_or(error))?;
            &opened
        };
        let is_there = found.as_ref().map(Status::id) == Some(Status::of_open(to)?.id());
        if !is_there {
            return Err(said(libc::EBUSY, MOVED));
        }
        in_place::write(from, to, durable)?;
        watch.note(|| {
            self.told(
                "the file cannot be replaced, and was written in place: a crash during that would \
                 have left neither the old file nor the new one whole",
            )
        });
        Ok(())
    }

    fn told(&self, words: &str) -> String {
        format!("save {}: {words}", printable(&self.name))
    }
}

impl Drop for LocalSink {
    fn drop(&mut self) {
        self.temporary.remove_from(&self.target.directory);
    }
}

impl Sink for LocalSink {
    fn target(&self) -> order::Target {
        // One that is written in place may have other names: several mounts of one file.
        if !self.target.is_named || self.in_place.is_some() {
            if let Some(found) = &self.target.found {
                return order::Target::File(found.id());
            }
        }
        let directory = Status::of_open(&self.target.directory).map_or((0, 0), |s| s.id());
        order::Target::Entry(directory, self.target.name.clone())
    }

    fn replaced(&self) -> Option<order::Target> {
        let there = self.target.entry().ok()??;
        Some(order::Target::File(there.id()))
    }

    fn overwrites(&self) -> bool {
        self.creation.overwrite
    }

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
            result => result.map_err(|error| self.failed(error)),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let file = self.temporary.file();
        file.write_all_at(bytes, offset).map_err(|error| self.failed(error))?;
        if self.creation.durable && self.in_place.is_none() {
            start_writeback(file, bytes.len(), offset);
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>, watch: &Watch<'_>) -> Result<()> {
        let Creation { len, durable, .. } = self.creation;
        let name = self.name.clone();
        let failed = |error| Error::io(ACTION, &name, error);
        if self.direct.is_some() {
            // The last page was written whole.
            self.temporary.file().set_len(len).map_err(failed)?;
        }
        if !durable || self.temporary.name().is_none() {
            return self.put(watch).map_err(failed);
        }
        self.temporary.file().sync_all().map_err(failed)?;
        // Opened before the rename, and not needed for it: a directory that may be written but not
        // read cannot be synced by us.
        let directory = self.target.directory.readable().ok();
        self.put(watch).map_err(failed)?;
        match directory.map_or(Ok(()), |directory| directory.sync_all()) {
            // A file system that does not sync directories has nothing to be told.
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                Err(failed(error))
            }
            _ => Ok(()),
        }
    }
}

/// Where the bytes go first: beside the target or, where its directory takes no new file and the
/// target can be written in place, to the directory for temporary files.
fn temporary_for(target: &Target, overwrite: bool) -> io::Result<Temporary> {
    if !target.is_named {
        return Temporary::elsewhere();
    }
    let replaces = target.found.is_some();
    match Temporary::beside(target, if replaces { PRIVATE } else { MODE }) {
        Err(error) if overwrite && replaces && cannot_be_replaced(&error) => Temporary::elsewhere(),
        made => made,
    }
}

/// Whether the system refuses to give the name another file, where it may still let the file itself
/// be written.
fn cannot_be_replaced(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EACCES
                | libc::EPERM
                | libc::EBUSY
                | libc::EXDEV
                | libc::EROFS
                | libc::ENOSYS
                | libc::EOPNOTSUPP
                | libc::EINVAL
        )
    )
}

/// Opens the target to be written over, if it is still the file that was looked at.
fn open_in_place(path: &Path, found: Option<&Status>) -> io::Result<File> {
    let file = directory::open_for_writing(path)?;
    let opened = Status::of_open(&file)?;
    if !opened.is_file() || found.is_some_and(|found| found.id() != opened.id()) {
        return Err(said(libc::EBUSY, MOVED));
    }
    if FileSystem::is_of_the_kernel(&file) {
        return Err(io::Error::from_raw_os_error(libc::EACCES));
    }
    Ok(file)
}

/// Has the new file be what the old one is to its users; returns how many names the old one has.
fn replaced(old: &OwnedFd, new: &File) -> io::Result<libc::nlink_t> {
    let status = Status::of_open(old)?;
    if !status.is_file() {
        return Ok(0);
    }
    attributes::pass_on(old, new)?;
    Ok(status.links())
}

fn still_linked(others: libc::nlink_t) -> String {
    let (names, keep) = if others == 1 { ("name", "keeps") } else { ("names", "keep") };
    format!("{others} other {names} of the file (hard links) {keep} what it was before")
}

/// Gives the file a name that nothing has, in one step: whoever was faster is not replaced.
fn put_new(target: &Target, temporary: &std::ffi::CStr) -> io::Result<()> {
    let (directory, name) = (&target.directory, &*target.name);
    match directory.rename_new(temporary, name) {
        // Not on this file system, or not in this kernel.
        Err(error) if cannot_be_replaced(&error) => {}
        done => return done,
    }
    match directory.link(temporary, name) {
        Ok(()) => return directory.remove(temporary),
        Err(error) if cannot_be_replaced(&error) => {}
        Err(error) => return Err(error),
    }
    // Without links too: a file of ours holds the name until it is replaced.
    drop(directory.create(name, PRIVATE)?);
    directory.rename(temporary, name).inspect_err(|_| {
        let _ = directory.remove(name);
    })
}

/// Refuses what renaming would replace but opening for writing would not.
fn check_target(path: &Path, target: &Target) -> Result<()> {
    let Some(found) = &target.found else { return Ok(()) };
    if found.is_directory() {
        return Err(Error::errno_of(ACTION, path, libc::EISDIR));
    }
    if !found.is_file() {
        return Err(Error::argument(ACTION, path, "not a regular file"));
    }
    directory::may_write(path).map_err(|error| Error::io(ACTION, path, error))
}
