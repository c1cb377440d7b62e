//! A directory held open, and its entries by name.
//!
//! Everything a save does to a file's name goes through the descriptor of its directory, so that a
//! directory that is renamed or replaced meanwhile cannot lead half of the steps elsewhere.

#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    fs::File,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

/// What `stat` tells of a file.
#[derive(Debug, Clone, Copy)]
pub struct Status(libc::stat);

impl Status {
    /// Of what `path` names, symbolic links followed by the kernel; `None` where there is nothing.
    pub fn of(path: &Path) -> io::Result<Option<Self>> {
        status_at(libc::AT_FDCWD, &c_path(path.as_os_str().as_bytes())?, 0)
    }

    pub fn of_open(file: &impl AsRawFd) -> io::Result<Self> {
        let found = status_at(file.as_raw_fd(), c"", libc::AT_EMPTY_PATH)?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    pub fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }

    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }

    pub fn is_link(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }

    fn kind(&self) -> u32 {
        self.0.st_mode & libc::S_IFMT
    }

    /// Permission bits, with setuid, setgid and sticky.
    pub fn mode(&self) -> u32 {
        self.0.st_mode & 0o7777
    }

    pub fn owner(&self) -> u32 {
        self.0.st_uid
    }

    pub fn group(&self) -> u32 {
        self.0.st_gid
    }

    pub fn links(&self) -> libc::nlink_t {
        self.0.st_nlink
    }

    /// Device and inode, which together are the file.
    pub fn id(&self) -> (u64, u64) {
        (self.0.st_dev, self.0.st_ino)
    }
}

/// A directory, open for looking up names in it; reading it needs another permission.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens `path`, counted from `at`. The kernel resolves it as it does the directories within a
    /// longer path: the trailing `.` keeps the last name from being the last component.
    pub fn open(at: Option<&Self>, path: &[u8]) -> io::Result<Self> {
        let path = c_path(&[path, b"/."].concat())?;
        let at = at.map_or(libc::AT_FDCWD, AsRawFd::as_raw_fd);
        open_at(at, &path, libc::O_PATH | libc::O_DIRECTORY, 0).map(Self)
    }

    /// The entry of that name, itself and not what a symbolic link names.
    pub fn entry(&self, name: &CStr) -> io::Result<Option<Status>> {
        status_at(self.as_raw_fd(), name, libc::AT_SYMLINK_NOFOLLOW)
    }

    /// Opens the entry itself, for what may be asked of it by descriptor.
    pub fn open_entry(&self, name: &CStr) -> io::Result<Option<OwnedFd>> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW;
        match open_at(self.as_raw_fd(), name, flags, 0) {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a new file.
    pub fn create(&self, name: &CStr, mode: u32) -> io::Result<File> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        open_at(self.as_raw_fd(), name, flags, mode).map(File::from)
    }

    /// Whether something is mounted on the entry; false where the kernel is too old to tell.
    pub fn is_mount_point(&self, name: &CStr) -> bool {
        let mut told = MaybeUninit::<libc::statx>::zeroed();
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: `name` ends with a NUL; the call fills `told`, which is valid as zeros too.
        let told = unsafe {
            let (fd, name) = (self.as_raw_fd(), name.as_ptr());
            match libc::statx(fd, name, flags, libc::STATX_BASIC_STATS, told.as_mut_ptr()) {
                0 => told.assume_init(),
                _ => return false,
            }
        };
        let root = libc::STATX_ATTR_MOUNT_ROOT as u64;
        told.stx_attributes & told.stx_attributes_mask & root != 0
    }

    /// Gives the entry another name, in place of what has that name.
    pub fn rename(&self, from: &CStr, to: &CStr) -> io::Result<()> {
        let fd = self.as_raw_fd();
        // SAFETY: both names end with a NUL.
        check(unsafe { libc::renameat(fd, from.as_ptr(), fd, to.as_ptr()) })
    }

    /// The same where nothing has that name.
    pub fn rename_new(&self, from: &CStr, to: &CStr) -> io::Result<()> {
        let (fd, flags) = (self.as_raw_fd(), libc::RENAME_NOREPLACE);
        // By number: C libraries from before 2018 have no function for it.
        // SAFETY: both names end with a NUL.
        let done = unsafe {
            libc::syscall(libc::SYS_renameat2, fd, from.as_ptr(), fd, to.as_ptr(), flags)
        };
        check(done as i32)
    }

    /// Gives the entry a second name, which nothing may have.
    pub fn link(&self, from: &CStr, to: &CStr) -> io::Result<()> {
        let fd = self.as_raw_fd();
        // SAFETY: both names end with a NUL.
        check(unsafe { libc::linkat(fd, from.as_ptr(), fd, to.as_ptr(), 0) })
    }

    pub fn remove(&self, name: &CStr) -> io::Result<()> {
        // SAFETY: `name` ends with a NUL.
        check(unsafe { libc::unlinkat(self.as_raw_fd(), name.as_ptr(), 0) })
    }

    /// Opens the directory for syncing; a directory that may be written but not read refuses.
    pub fn readable(&self) -> io::Result<File> {
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        open_at(self.as_raw_fd(), c".", flags, 0).map(File::from)
    }
}

impl AsRawFd for Directory {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Where a symbolic link leads.
pub fn read_link(link: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut text = vec![0u8; libc::PATH_MAX as usize];
    let (fd, len) = (link.as_raw_fd(), text.len());
    // SAFETY: the buffer has `len` bytes, of which the call tells how many it has filled.
    let read = unsafe { libc::readlinkat(fd, c"".as_ptr(), text.as_mut_ptr().cast(), len) };
    let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
    text.truncate(read);
    Ok(text)
}

/// Opens the file that `path` names for writing, and leaves its bytes alone. The kernel is asked as
/// it is by a program that would make the file (`O_CREAT`), so that it refuses what it would refuse
/// there (`fs.protected_regular`, `fs.protected_symlinks`).
pub fn open_for_writing(path: &Path) -> io::Result<File> {
    // A pipe that has taken the file's place would wait for a reader.
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_NONBLOCK;
    open_at(libc::AT_FDCWD, &c_path(path.as_os_str().as_bytes())?, flags, 0o600).map(File::from)
}

/// Makes a file that lies in memory.
pub fn memory_file() -> io::Result<File> {
    // SAFETY: the name ends with a NUL; a descriptor that is returned belongs to nobody else.
    unsafe {
        match libc::memfd_create(c"veturboio".as_ptr(), libc::MFD_CLOEXEC) {
            fd if fd >= 0 => Ok(File::from_raw_fd(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Whether the process may write to what `path` names.
pub fn may_write(path: &Path) -> io::Result<()> {
    let path = c_path(path.as_os_str().as_bytes())?;
    let (mode, flags) = (libc::W_OK, libc::AT_EACCESS);
    // SAFETY: `path` ends with a NUL.
    check(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, flags) })
}

pub fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The bytes as the kernel takes a path.
pub fn c_path(path: &[u8]) -> io::Result<CString> {
    CString::new(path).map_err(|_| {
        let words = "file name contained an unexpected NUL byte";
        io::Error::new(io::ErrorKind::InvalidInput, words)
    })
}

/// For what the kernel takes by path only: the entry, wherever its directory is now.
pub fn by_descriptor(file: &impl AsRawFd) -> CString {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    CString::new(path).unwrap_or_default()
}

fn open_at(at: RawFd, path: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    loop {
        // SAFETY: `path` ends with a NUL; a descriptor that is returned belongs to nobody else.
        let fd = unsafe { libc::openat(at, path.as_ptr(), flags | libc::O_CLOEXEC, mode) };
        if fd >= 0 {
            // SAFETY: as above.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn status_at(at: RawFd, path: &CStr, flags: i32) -> io::Result<Option<Status>> {
    let mut told = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: `path` ends with a NUL; the call fills `told` if it returns 0.
    unsafe {
        if libc::fstatat(at, path.as_ptr(), told.as_mut_ptr(), flags) == 0 {
            return Ok(Some(Status(told.assume_init())));
        }
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::NotFound {
        return Ok(None);
    }
    Err(error)
}

pub fn check(answer: i32) -> io::Result<()> {
    if answer == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
