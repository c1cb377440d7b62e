//! Unmounts what a process left behind that was killed: a second process, which waits for the end
//! of the first and outlives it.
//!
//! Fuse's own means for this, `auto_unmount`, needs libfuse's fusermount.

use crate::Result;
use nix::{
    errno::Errno,
    mount::{umount2, MntFlags},
    sys::{signal::SigSet, statvfs::statvfs},
};
use std::{
    env,
    ffi::OsString,
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// The first argument of the second process, which its second, the mount point, follows.
const WATCH: &str = "--unmount-orphan";

/// The mount point to be watched, if this is the second process.
pub fn mount_point_to_watch(arguments: impl IntoIterator<Item = OsString>) -> Option<PathBuf> {
    let mut arguments = arguments.into_iter().skip(1);
    arguments.next().filter(|first| first == WATCH)?;
    arguments.next().map(PathBuf::from)
}

/// Waits for the end of standard input, whose other end only the first process has, and unmounts
/// what it then finds dead.
pub fn watch(mount_point: &Path) -> Result<()> {
    SigSet::all().thread_block()?;
    io::copy(&mut io::stdin(), &mut io::sink())?;
    // Of all that ask a mount for something, this asks the process behind it each time.
    match statvfs(mount_point) {
        Err(Errno::ENOTCONN | Errno::ECONNABORTED) => {
            Ok(umount2(mount_point, MntFlags::MNT_DETACH)?)
        }
        _ => Ok(()),
    }
}

/// The second process, seen from the first.
#[derive(Debug)]
pub struct Watcher(Child);

impl Watcher {
    pub fn start(mount_point: &Path) -> io::Result<Self> {
        Command::new(env::current_exe()?)
            .arg(WATCH)
            .arg(mount_point)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What kills the first process's group must not reach it.
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// Ends it, once there is nothing left to unmount.
    pub fn dismiss(mut self) -> io::Result<()> {
        drop(self.0.stdin.take());
        self.0.wait().map(drop)
    }
}
