//! Who may do what with a file: mode, owner, group, access control lists and extended attributes,
//! passed on from a file to the one that takes its place.
//!
//! The new file is readable for its owner alone until all is passed on, and never for anybody who
//! could not read the old one. Where the system refuses the owner or the group, permissions that
//! would then mean somebody else are dropped.

#![allow(unsafe_code)]

use super::directory::{by_descriptor, check, Status};
use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
};

const ACL: &CStr = c"system.posix_acl_access";

/// Tags of an access control list's entries (linux/posix_acl.h), and its only version.
const GROUP_OBJ: u16 = 0x04;
const OTHER: u16 = 0x20;
const ACL_VERSION: u32 = 2;

/// The largest value of an extended attribute, by the kernel's rules.
const MAX_VALUE: usize = 64 << 10;

/// Extended attributes that belong to the bytes or to one file system's own book-keeping, and would
/// be wrong on another file.
const NOT_PASSED_ON: [&[u8]; 11] = [
    b"security.capability",
    b"security.ima",
    b"security.evm",
    b"trusted.overlay.",
    b"trusted.glusterfs.",
    b"trusted.gfid",
    b"trusted.afr.",
    b"trusted.SGI_ACL_",
    b"user.overlay.",
    b"system.posix_acl_",
    b"btrfs.",
];

/// Passes on what the file `old` has to `new`, which belongs to this process and is readable for
/// its owner alone.
///
/// # Errors
/// A disk or an account without space for them. What the user may not set is left out.
pub fn pass_on(old: &OwnedFd, new: &File) -> io::Result<()> {
    let was = Status::of_open(old)?;
    let is = Status::of_open(new)?;
    let fd = new.as_raw_fd();
    if is.mode() & 0o777 != 0o600 {
        // Extended attributes ask for the right to write, whatever the umask left of it; and the file
        // may have been made before there was one to be replaced.
        change_mode(fd, 0o600)?;
    }
    let keeps_group = was.group() == is.group() || own(fd, u32::MAX, was.group()).is_ok();
    pass_on_attributes(old, new)?;
    let mut mode = was.mode() & 0o777;
    match acl_of(old) {
        Acl::None => {
            // One that comes from the directory would give more than the old file did.
            drop_acl(fd);
            if !keeps_group {
                mode = stricter(mode);
            }
        }
        Acl::Some(mut acl) => {
            if !keeps_group {
                mode = mode & !0o7 | stricter(mode) & stricter_in(&mut acl);
            }
            if set(fd, ACL, &acl).is_err() {
                drop_acl(fd);
                mode &= 0o700;
            }
        }
        Acl::Unknown => {
            drop_acl(fd);
            mode &= 0o700;
        }
    }
    change_mode(fd, mode)?;
    let keeps_owner = was.owner() == is.owner() || own(fd, was.owner(), u32::MAX).is_ok();
    // Last, since changing the owner takes them away; and only for whom they were meant.
    let special = was.mode() & 0o7000;
    if keeps_owner && keeps_group && special != 0 {
        change_mode(fd, mode | special)?;
    }
    Ok(())
}

/// What the group's and the others' permissions have in common: the file gets another group, whose
/// members were others, and the old group's members become others.
fn stricter(mode: u32) -> u32 {
    let common = mode >> 3 & mode & 0o7;
    mode & 0o700 | common << 3 | common
}

/// The same for a list, where the mode's middle bits are the mask and stay; returns what is common.
fn stricter_in(acl: &mut [u8]) -> u32 {
    let permissions = |acl: &[u8], wanted: u16| {
        let entry = acl[4..].chunks_exact(8).find(|entry| tag(entry) == wanted);
        entry.map_or(0, |entry| u16::from_le_bytes([entry[2], entry[3]]))
    };
    let common = permissions(acl, GROUP_OBJ) & permissions(acl, OTHER);
    for entry in acl[4..].chunks_exact_mut(8).filter(|e| matches!(tag(e), GROUP_OBJ | OTHER)) {
        entry[2..4].copy_from_slice(&common.to_le_bytes());
    }
    u32::from(common)
}

fn tag(entry: &[u8]) -> u16 {
    u16::from_le_bytes([entry[0], entry[1]])
}

enum Acl {
    None,
    Some(Vec<u8>),
    /// It cannot be found out: what the mode's middle bits mean is not known either.
    Unknown,
}

fn acl_of(file: &OwnedFd) -> Acl {
    match get(&by_descriptor(file), ACL) {
        Ok(acl)
            if acl.len() >= 4
                && (acl.len() - 4).is_multiple_of(8)
                && acl[..4] == ACL_VERSION.to_le_bytes() =>
        {
            Acl::Some(acl)
        }
        Ok(_) => Acl::Unknown,
        Err(error) => match error.raw_os_error() {
            Some(libc::ENODATA | libc::EOPNOTSUPP) => Acl::None,
            _ => Acl::Unknown,
        },
    }
}

fn pass_on_attributes(old: &OwnedFd, new: &File) -> io::Result<()> {
    let path = by_descriptor(old);
    let Ok(names) = list(&path) else { return Ok(()) };
    for name in names.split_inclusive(|&byte| byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        if NOT_PASSED_ON.iter().any(|prefix| name.to_bytes().starts_with(prefix)) {
            continue;
        }
        let Ok(value) = get(&path, name) else { continue };
        match set(new.as_raw_fd(), name, &value) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT)) => {
                return Err(error);
            }
            // What this user may not set, or this file system does not know.
            _ => {}
        }
    }
    Ok(())
}

fn list(path: &CString) -> io::Result<Vec<u8>> {
    // SAFETY: `path` ends with a NUL, and the buffer has the length that is told.
    filled(|buffer, len| unsafe { libc::listxattr(path.as_ptr(), buffer.cast(), len) })
}

fn get(path: &CString, name: &CStr) -> io::Result<Vec<u8>> {
    let (path, name) = (path.as_ptr(), name.as_ptr());
    // SAFETY: both names end with a NUL, and the buffer has the length that is told.
    filled(|buffer, len| unsafe { libc::getxattr(path, name, buffer.cast(), len) })
}

fn filled(call: impl Fn(*mut u8, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut small = [0u8; 512];
    if let Ok(len) = usize::try_from(call(small.as_mut_ptr(), small.len())) {
        return Ok(small[..len].to_vec());
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() != Some(libc::ERANGE) {
        return Err(error);
    }
    let mut bytes = vec![0u8; MAX_VALUE];
    let len = usize::try_from(call(bytes.as_mut_ptr(), bytes.len()));
    bytes.truncate(len.map_err(|_| io::Error::last_os_error())?);
    Ok(bytes)
}

fn set(fd: i32, name: &CStr, value: &[u8]) -> io::Result<()> {
    let (bytes, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: the descriptor is open, `name` ends with a NUL, and `bytes` has `len` bytes.
    check(unsafe { libc::fsetxattr(fd, name.as_ptr(), bytes, len, 0) })
}

fn drop_acl(fd: i32) {
    // SAFETY: the descriptor is open and the name ends with a NUL. A refusal says that there is none.
    unsafe { libc::fremovexattr(fd, ACL.as_ptr()) };
}

fn own(fd: i32, owner: u32, group: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchown(fd, owner, group) })
}

fn change_mode(fd: i32, mode: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open.
    match check(unsafe { libc::fchmod(fd, mode) }) {
        // A file system without modes, on which all files have the same; or no right to, which
        // leaves the file to its owner.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
            Ok(())
        }
        done => done,
    }
}
