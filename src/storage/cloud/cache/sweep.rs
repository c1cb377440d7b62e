//! What goes from the directory of a cache: entries that were used longest ago, and what killed
//! processes left behind.

use super::{
    entry,
    lock::{self, try_lock},
};
use std::{
    fs::{self, DirEntry, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tempfile::NamedTempFile;

const TEMPORARY: &str = ".veturboio-";

/// How long nobody must have written to what is left behind by a process that was killed: where locks
/// tell whether it lives, and where they do not.
const QUIET: Duration = Duration::from_secs(60);
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// A file for an entry in the making, for this user alone, which is locked as long as it is written.
pub fn temporary(directory: &Path) -> io::Result<NamedTempFile> {
    let temporary = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory)?;
    // Without locks, its age has to tell whether somebody writes to it.
    let _ = try_lock(temporary.as_file());
    Ok(temporary)
}

/// Removes what was used longest ago until the rest may stay, but for the `newest`.
pub fn make_space(directory: &Path, newest: &Path, max_bytes: u64) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut kept = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let has = |suffix: &str| path.extension().is_some_and(|found| found == suffix);
        if has(entry::SUFFIX) {
            kept.extend(used(&entry).map(|(used, len)| (used, len, path)));
        } else {
            let name = entry.file_name();
            let is_temporary = name.as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
            if is_temporary || (name.as_encoded_bytes().starts_with(b".") && has(lock::SUFFIX)) {
                remove_abandoned(&path);
            }
        }
    }
    kept.sort();
    let mut held: u64 = kept.iter().map(|(_, len, _)| len).sum();
    for (_, len, path) in kept {
        if held <= max_bytes {
            return;
        }
        if path != newest && fs::remove_file(&path).is_ok() {
            held -= len;
        }
    }
}

/// When an entry was used last, and its length.
fn used(entry: &DirEntry) -> Option<(SystemTime, u64)> {
    let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
    let used = metadata.modified().ok().max(metadata.accessed().ok())?;
    Some((used, metadata.len()))
}

/// Removes a file that nobody writes to any more.
fn remove_abandoned(path: &PathBuf) {
    let age = |file: &File| file.metadata().ok()?.modified().ok()?.elapsed().ok();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()
        .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
    let Some(file) = file else { return };
    let Some(age) = age(&file).filter(|&age| age > QUIET) else { return };
    let is_abandoned = match try_lock(&file) {
        Ok(is_free) => is_free,
        Err(_) => age > STALE,
    };
    let is_at = fs::symlink_metadata(path)
        .ok()
        .zip(file.metadata().ok())
        .is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()));
    if is_abandoned && is_at {
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::FileTimes;

    fn file(path: &Path, len: usize, age: u64) -> File {
        fs::write(path, vec![0; len]).unwrap();
        let file = OpenOptions::new().write(true).open(path).unwrap();
        let then = SystemTime::now() - Duration::from_secs(age);
        file.set_times(FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
        file
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_what_is_new_stays() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(format!("{name}.{}", entry::SUFFIX));
        for (name, age) in [("a", 500), ("b", 900), ("c", 100), ("new", 1000)] {
            file(&at(name), 10, age);
        }
        file(&directory.path().join("other"), 1000, 5000);
        fs::create_dir(at("directory")).unwrap();
        make_space(directory.path(), &at("new"), 30);
        assert_eq!(names(directory.path()).len(), 5);
        assert!(!at("b").exists());
        make_space(directory.path(), &at("new"), 5);
        assert_eq!(names(directory.path()), ["directory.veturboio", "new.veturboio", "other"]);
    }

    #[test]
    fn what_nobody_writes_to_goes() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(format!("{TEMPORARY}{name}"));
        file(&at("left"), 10, 100);
        file(&at("young"), 10, 1);
        let held = file(&at("held"), 10, 100);
        assert!(try_lock(&held).unwrap());
        file(&directory.path().join(".x.lock"), 0, 100);
        make_space(directory.path(), Path::new(""), 1000);
        assert_eq!(names(directory.path()), [".veturboio-held", ".veturboio-young"]);
        // An entry in the making is for this user alone, and held as long as it is written.
        let made = temporary(directory.path()).unwrap();
        assert_eq!(made.as_file().metadata().unwrap().mode() & 0o777, 0o600);
        assert!(!try_lock(&File::open(made.path()).unwrap()).unwrap());
    }
}
