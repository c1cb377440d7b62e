//! Who downloads an object: whoever holds the lock of its entry, while others wait for him.
//!
//! The lock is one of the kernel's, on a file beside the entry, so it goes with its holder. Where
//! there are no locks, or the file cannot be made, everybody downloads. So does the handler of a signal
//! that came while its thread held the lock: it would wait for what it interrupts.

#![allow(unsafe_code)]

use super::entry::Key;
use crate::watch::{self, Watch, LOOK_EVERY};
use std::{
    cell::Cell,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// What the files of locks are named by.
pub const SUFFIX: &str = "lock";

/// How long the handler of a signal may run before nobody here waits for what it interrupts.
const HANDLER: Duration = Duration::from_secs(1);

thread_local! {
    /// How many locks this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock; `None` where there can be none, and where this thread would wait for itself.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn take(directory: &Path, key: &Key, watch: &Watch<'_>) -> io::Result<Option<Self>> {
        let path = directory.join(format!(".{}.{SUFFIX}", key.hex()));
        loop {
            let Some(mut file) = open(&path) else { return Ok(None) };
            match try_lock(&file) {
                Ok(true) if is_at(&file, &path) => {
                    // Whoever waits can see whether we live, even where a child of ours does not
                    // know that it holds the lock, too.
                    let _ = file.set_len(0).and_then(|()| file.write_all(name().as_bytes()));
                    HELD.set(HELD.get() + 1);
                    return Ok(Some(Self { file, path }));
                }
                // Its last holder has removed it.
                Ok(true) => continue,
                Ok(false) if HELD.get() > 0 || is_dead(&mut file) => return Ok(None),
                // That handler may wait for this thread.
                Ok(false) if watch::is_asked_for(HANDLER, None) => return Ok(None),
                Ok(false) => {}
                Err(_) => return Ok(None),
            }
            watch.look();
            watch.check()?;
            thread::sleep(LOOK_EVERY);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        HELD.set(HELD.get().saturating_sub(1));
        let _ = fs::remove_file(&self.path);
        unlock(&self.file);
    }
}

/// The file of a lock, which must be ours: whoever else can open it could hold it for ever.
fn open(path: &Path) -> Option<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    // SAFETY: geteuid takes nothing and cannot fail.
    let us = unsafe { libc::geteuid() };
    let is_ours = metadata.is_file() && metadata.uid() == us && metadata.mode() & 0o777 == 0o600;
    is_ours.then_some(file)
}

/// Takes the lock of a file if nobody holds it.
///
/// # Errors
/// A file system without locks.
pub fn try_lock(file: &File) -> io::Result<bool> {
    loop {
        // SAFETY: the descriptor is open for the call; no memory is passed.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(true);
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EWOULDBLOCK) => return Ok(false),
            _ => return Err(error),
        }
    }
}

/// Gives the lock back, for children that have the same descriptor, too.
pub fn unlock(file: &File) {
    // SAFETY: as above.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) };
}

fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(one), Ok(other)) = (file.metadata(), fs::symlink_metadata(path)) else { return false };
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// This process, and among which processes its number counts.
fn name() -> String {
    format!("{} {}\n", std::process::id(), namespace())
}

fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |metadata| metadata.ino())
}

/// Whether the holder that the file names is no more: a child that it left behind has the lock.
fn is_dead(file: &mut File) -> bool {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(64).read_to_string(&mut text));
    let told = text.trim_end().split_once(' ').filter(|_| read.is_ok() && text.ends_with('\n'));
    let told = told.and_then(|(process, space)| {
        Some((process.parse::<libc::pid_t>().ok()?, space.parse::<u64>().ok()?))
    });
    let Some((process, space)) = told.filter(|&(process, _)| process > 0) else { return false };
    // SAFETY: signal 0 is sent to nobody; only whether there is such a process is asked.
    let is_gone = unsafe { libc::kill(process, 0) } != 0
        && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH);
    space == namespace() && space != 0 && is_gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn key() -> Key {
        Key::for_tests()
    }

    #[test]
    fn one_at_a_time_holds_it_and_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let holders = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let lock = Lock::take(directory.path(), &key(), &Watch::default());
                        assert!(lock.as_ref().unwrap().is_some());
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        thread::yield_now();
                        assert_eq!(holders.fetch_sub(1, Ordering::SeqCst), 1);
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_handler_does_not_wait_for_what_it_interrupts() {
        let directory = tempfile::tempdir().unwrap();
        let take = || Lock::take(directory.path(), &key(), &Watch::default()).unwrap();
        let held = take();
        assert!(held.is_some() && take().is_none());
        drop(held);
        assert!(take().is_some());
    }

    #[test]
    fn nobody_waits_for_the_dead_or_for_what_is_not_ours() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!(".{}.{SUFFIX}", key().hex()));
        let take = || Lock::take(directory.path(), &key(), &Watch::default()).unwrap();
        // Held by a process that is gone, which the lock's file names.
        let mut held = open(&path).unwrap();
        assert!(try_lock(&held).unwrap());
        let gone = i32::MAX;
        held.write_all(format!("{gone} {}\n", namespace()).as_bytes()).unwrap();
        assert!(take().is_none());
        drop(held);
        assert!(take().is_some() && !path.exists());

        fs::create_dir(&path).unwrap();
        assert!(take().is_none());
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(take().is_none(), "others can open it");
        assert!(Lock::take(&directory.path().join("none"), &key(), &Watch::default())
            .unwrap()
            .is_none());
    }
}
