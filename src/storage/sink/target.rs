//! Which file a path names: the entry of a directory that a save makes or replaces.
//!
//! Symbolic links are followed, so that a save keeps them. The kernel refuses to follow some
//! (`fs.protected_symlinks`): a link in a sticky, world-writable directory that belongs neither to
//! whoever follows it nor to the directory's owner. A save that reads a link's text and renames would
//! pass that by, so the kernel is asked for the path as a whole first, and each link is held to the
//! same rule by descriptor, which nobody can exchange in between.

use super::{
    directory::{self, c_path, Directory, Status},
    LINKS_ARE_PROTECTED,
};
use std::{
    ffi::CString,
    fs, io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

/// Symbolic links followed before a chain of them is taken for a circle, as Linux does.
const MAX_LINKS: usize = 40;

/// How often a path is resolved anew because its file went meanwhile.
const MAX_TRIES: usize = 3;

/// The entry of a directory that a path names, there or not.
#[derive(Debug)]
pub struct Target {
    pub directory: Directory,
    pub name: CString,
    /// What the path leads to.
    pub found: Option<Status>,
    /// The entry as it was then, open for what may be asked of it by descriptor.
    pub old: Option<OwnedFd>,
    /// Whether that has a name at all. A file that was removed, and memory of `memfd_create`, are
    /// reached by the links of `/proc` alone.
    pub is_named: bool,
}

impl Target {
    /// Finds out which file `path` names.
    ///
    /// # Errors
    /// What the kernel answers, `EACCES` for a link that it would not follow among it; `EISDIR` for
    /// a path that ends with a slash.
    pub fn resolve(path: &Path) -> io::Result<Self> {
        let mut tries = 0;
        loop {
            let found = if path.as_os_str().as_bytes().ends_with(b"/") {
                return Err(io::Error::from_raw_os_error(libc::EISDIR));
            } else {
                Status::of(path)?
            };
            let (directory, name, old) = follow(path)?;
            let is_named = match (&found, &old) {
                (None, _) => true,
                // The text of a link in `/proc` may be the name of another file by now.
                (Some(found), Some(old)) => Status::of_open(old)?.id() == found.id(),
                (Some(_), None) => false,
            };
            tries += 1;
            if is_named || tries == MAX_TRIES {
                return Ok(Self { directory, name, found, old, is_named });
            }
        }
    }

    /// The entry as it is now.
    pub fn entry(&self) -> io::Result<Option<Status>> {
        self.directory.entry(&self.name)
    }

    /// The same by descriptor.
    pub fn open_entry(&self) -> io::Result<Option<OwnedFd>> {
        self.directory.open_entry(&self.name)
    }

    /// Whether renaming over the file is known to be refused: it is a mount point, or somebody
    /// else's in a sticky directory.
    pub fn is_held(&self) -> bool {
        let Some(found) = self.found else { return false };
        if !self.is_named || self.directory.is_mount_point(&self.name) {
            return true;
        }
        let Ok(directory) = Status::of_open(&self.directory) else { return false };
        let us = directory::effective_user();
        let is_sticky = directory.mode() & libc::S_ISVTX != 0;
        is_sticky && us != 0 && us != found.owner() && us != directory.owner()
    }
}

/// Follows the links that the last name of `path` is, as far as they go.
fn follow(path: &Path) -> io::Result<(Directory, CString, Option<OwnedFd>)> {
    let mut at: Option<Directory> = None;
    let mut rest = path.as_os_str().as_bytes().to_vec();
    for _ in 0..=MAX_LINKS {
        if rest.is_empty() {
            return Err(io::Error::from_raw_os_error(libc::ENOENT));
        }
        if rest.ends_with(b"/") {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        let (parent, name): (&[u8], &[u8]) = match rest.iter().rposition(|&byte| byte == b'/') {
            Some(0) => (b"/", &rest[1..]),
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (b".", &rest),
        };
        let directory = Directory::open(at.as_ref(), parent)?;
        let name = c_path(name)?;
        let Some(link) = directory.open_entry(&name)? else {
            return Ok((directory, name, None));
        };
        let status = Status::of_open(&link)?;
        if !status.is_link() {
            return Ok((directory, name, Some(link)));
        }
        if !may_follow(&Status::of_open(&directory)?, &status) {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        rest = directory::read_link(&link)?;
        at = Some(directory);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

/// The kernel's rule for symbolic links, where it is in force.
fn may_follow(directory: &Status, link: &Status) -> bool {
    let shared = libc::S_ISVTX | libc::S_IWOTH;
    if directory.mode() & shared != shared {
        return true;
    }
    if link.owner() == directory::effective_user() || link.owner() == directory.owner() {
        return true;
    }
    fs::read(LINKS_ARE_PROTECTED).is_ok_and(|told| told.trim_ascii() == b"0")
}
