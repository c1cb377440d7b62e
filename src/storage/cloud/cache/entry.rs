//! What a file of the cache holds: the object, then digests of its chunks, its key, and a digest of
//! these.
//!
//! The digests tell damage, not malice: CRC-64 at the speed of memory. Who may write to the file is
//! what tells whether it is believed. The key is cryptographic, since a server chooses part of what it
//! is made of.

#![allow(unsafe_code)]

use super::Remote;
use crate::{
    process::PerProcess,
    processors::processors,
    threads,
    watch::{Stopped, Watch},
};
use crc_fast::{checksum, CrcAlgorithm};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::{self, File, FileTimes, OpenOptions},
    io,
    ops::Range,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        Mutex, PoisonError,
    },
    time::{Duration, SystemTime},
};

/// What entries are named by.
pub const SUFFIX: &str = "veturboio";

/// Bytes of which there is one digest: what has to be read to use one of them.
pub const CHUNK: u64 = 1 << 20;

/// Bytes that a thread compares at a time.
const SPAN: u64 = 8 << 20;

/// What the last bytes of an entry say.
const MAGIC: [u8; 8] = *b"vtioent1";

/// How long a use counts as the latest one.
const LATELY: Duration = Duration::from_secs(60);

/// Entries of which it is remembered that they were compared, at most.
const MAX_REMEMBERED: usize = 10_000;

fn digest(bytes: &[u8]) -> u64 {
    checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

/// What names one version of one object of one store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// `None` where the server tells no version.
    pub fn of(remote: &dyn Remote, origin: &str) -> Option<Self> {
        let version = remote.held_version().name()?;
        let mut hash = Sha256::new();
        for part in [origin.as_bytes(), remote.name().as_os_str().as_bytes(), version.as_bytes()] {
            // With its length, so that no part can pass for the end of another.
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Some(Self(hash.finalize().into()))
    }

    #[cfg(test)]
    pub fn for_tests() -> Self {
        Self([7; 32])
    }

    pub fn hex(&self) -> String {
        use std::fmt::Write;
        self.0.iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    pub fn path(&self, directory: &Path) -> PathBuf {
        directory.join(format!("{}.{SUFFIX}", self.hex()))
    }
}

/// What follows the object: a digest for each chunk, its length, the key, a digest of these, and
/// the magic bytes.
fn trailer(digests: &[u64], len: u64, key: &Key) -> Vec<u8> {
    let mut bytes: Vec<u8> = digests.iter().flat_map(|digest| digest.to_le_bytes()).collect();
    bytes.extend(len.to_le_bytes());
    bytes.extend(key.0);
    bytes.extend(digest(&bytes).to_le_bytes());
    bytes.extend(MAGIC);
    bytes
}

fn trailer_len(len: u64) -> u64 {
    len.div_ceil(CHUNK) * 8 + 8 + 32 + 8 + 8
}

/// An entry that may be believed, once its bytes have been compared.
#[derive(Debug)]
pub struct Entry {
    pub file: File,
    len: u64,
    digests: Vec<u64>,
}

impl Entry {
    /// The entry at `path`, of an object of `len` bytes. One that is there and cannot be it is
    /// removed, unless it is of somebody who is not believed: then it is left alone.
    pub fn open(path: &Path, key: &Key, len: u64) -> Option<Self> {
        let file = OpenOptions::new()
            .read(true)
            // Neither another file nor a wait for whoever writes to a pipe.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path);
        let file = match file {
            Ok(file) => file,
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                remove(path);
                return None;
            }
            Err(_) => return None,
        };
        if !is_believed(&file) {
            return None;
        }
        let Some(digests) = digests(&file, key, len) else {
            remove(path);
            return None;
        };
        touch(&file);
        Some(Self { file, len, digests })
    }

    /// Whether this process has compared the whole of it already.
    pub fn is_compared(&self) -> bool {
        let compared = COMPARED.get().lock().unwrap_or_else(PoisonError::into_inner);
        identity(&self.file).is_ok_and(|(place, state)| compared.get(&place) == Some(&state))
    }

    /// Compares it with its digests, unless this process has done so already; false if it is
    /// damaged, or cannot be read.
    ///
    /// # Errors
    /// `Stopped`.
    pub fn compare(&self, watch: &Watch<'_>) -> Result<bool, Stopped> {
        if self.is_compared() {
            return Ok(true);
        }
        let spans = (0..self.len.div_ceil(SPAN)).map(|index| index * SPAN).collect();
        let is_damaged = AtomicBool::new(false);
        threads::for_each(processors(), spans, watch, |start: u64| {
            let end = self.len.min(start + SPAN);
            let mut buffer = vec![0; CHUNK as usize];
            let mut at = start;
            while at < end && !is_damaged.load(Ordering::Relaxed) {
                let chunk = self.chunk_at(at);
                let bytes = &mut buffer[..(chunk.end - chunk.start) as usize];
                if !self.read_chunk(bytes, at) {
                    is_damaged.store(true, Ordering::Relaxed);
                }
                at = chunk.end;
            }
            Ok(())
        })?;
        if !is_damaged.load(Ordering::Relaxed) {
            remember(&self.file);
            return Ok(true);
        }
        Ok(false)
    }

    /// The chunk that has the byte at `offset`.
    pub fn chunk_at(&self, offset: u64) -> Range<u64> {
        let start = offset / CHUNK * CHUNK;
        start..self.len.min(start + CHUNK)
    }

    /// Reads the chunk that begins at `start`; false if it is not what was written.
    pub fn read_chunk(&self, bytes: &mut [u8], start: u64) -> bool {
        let wanted = self.digests[(start / CHUNK) as usize];
        self.file.read_exact_at(bytes, start).is_ok() && digest(bytes) == wanted
    }
}

/// Whether nobody but this user and root can have written the file.
fn is_believed(file: &File) -> bool {
    let Ok(metadata) = file.metadata() else { return false };
    // SAFETY: geteuid takes nothing and cannot fail.
    let us = unsafe { libc::geteuid() };
    metadata.is_file()
        && (metadata.uid() == us || metadata.uid() == 0)
        && metadata.mode() & 0o022 == 0
}

/// The digests in the trailer, if it is one of this key.
fn digests(file: &File, key: &Key, len: u64) -> Option<Vec<u64>> {
    let tail = trailer_len(len);
    if file.metadata().ok()?.len() != len.checked_add(tail)? {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(tail).ok()?];
    file.read_exact_at(&mut bytes, len).ok()?;
    let (told, _) = bytes.as_chunks::<8>();
    let digests = told[..len.div_ceil(CHUNK) as usize].iter().map(|d| u64::from_le_bytes(*d));
    let digests: Vec<u64> = digests.collect();
    (bytes == trailer(&digests, len, key)).then_some(digests)
}

/// Tells the directory that an entry is in use: what was used last goes last. Only the time of
/// access, and not at every use: other times tell whether the entry was changed.
fn touch(file: &File) {
    let used = file.metadata().and_then(|metadata| metadata.accessed());
    if used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > LATELY)) {
        // A directory that may only be read does not get to know.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
    }
}

/// Removes what stands in the place of an entry.
pub fn remove(path: &Path) {
    let _ = fs::remove_file(path);
}

/// Device and inode; length, and when content and inode were changed last.
type Place = (u64, u64);
type State = (u64, [i64; 4]);

/// The entries that this process has compared, as they were then.
static COMPARED: PerProcess<Mutex<HashMap<Place, State>>> = PerProcess::new();

fn identity(file: &File) -> io::Result<(Place, State)> {
    let told = file.metadata()?;
    let times = [told.mtime(), told.mtime_nsec(), told.ctime(), told.ctime_nsec()];
    Ok(((told.dev(), told.ino()), (told.len(), times)))
}

/// Keeps in mind that `file` is an entry as it should be.
pub fn remember(file: &File) {
    let Ok((place, state)) = identity(file) else { return };
    let mut compared = COMPARED.get().lock().unwrap_or_else(PoisonError::into_inner);
    if compared.len() >= MAX_REMEMBERED {
        compared.clear();
    }
    compared.insert(place, state);
}

/// Writes an entry, by any number of threads.
pub struct Writer<'a> {
    file: &'a File,
    len: u64,
    digests: Vec<AtomicU64>,
    failure: Mutex<Option<io::Error>>,
}

impl<'a> Writer<'a> {
    /// # Errors
    /// A disk without space for the entry.
    pub fn new(file: &'a File, len: u64) -> io::Result<Self> {
        let whole = len.checked_add(trailer_len(len)).ok_or(io::ErrorKind::FileTooLarge)?;
        crate::storage::sink::allocate(file, whole)?;
        let digests = (0..len.div_ceil(CHUNK)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { file, len, digests, failure: Mutex::new(None) })
    }

    /// Writes bytes of the object, which begin with a chunk.
    ///
    /// # Errors
    /// What the file system answers; [`finish`](Self::finish) fails then, too.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        for (chunk, number) in bytes.chunks(CHUNK as usize).zip(offset / CHUNK..) {
            if let Some(slot) = self.digests.get(number as usize) {
                slot.store(digest(chunk), Ordering::Relaxed);
            }
        }
        // Not by a map: a full disk is an error here, and a signal there.
        self.file.write_all_at(bytes, offset).map_err(|error| {
            let told = error.raw_os_error().unwrap_or(libc::EIO);
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            io::Error::from_raw_os_error(told)
        })
    }

    /// Writes what ends the entry, and waits until the disk has all of it.
    ///
    /// # Errors
    /// What the file system answered to this or to any write before.
    pub fn finish(self, key: &Key) -> io::Result<()> {
        if let Some(error) = self.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let digests: Vec<u64> = self.digests.into_iter().map(AtomicU64::into_inner).collect();
        self.file.write_all_at(&trailer(&digests, self.len, key), self.len)?;
        self.file.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const LEN: u64 = 3 * CHUNK + 12_345;

    fn content() -> Vec<u8> {
        (0..LEN).map(|at| ((at * 31) >> 3) as u8).collect()
    }

    fn write(path: &Path, key: &Key) {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).unwrap();
        let writer = Writer::new(&file, LEN).unwrap();
        let bytes = content();
        writer.write(2 * CHUNK, &bytes[2 * CHUNK as usize..]).unwrap();
        writer.write(0, &bytes[..2 * CHUNK as usize]).unwrap();
        writer.finish(key).unwrap();
    }

    #[test]
    fn an_entry_is_what_was_written_or_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("entry");
        let (key, other) = (Key([7; 32]), Key([8; 32]));
        write(&path, &key);
        let whole = LEN + trailer_len(LEN);
        let entry = Entry::open(&path, &key, LEN).unwrap();
        assert!(!entry.is_compared() && entry.compare(&Watch::default()).unwrap());
        assert!(entry.is_compared());

        for at in [0, CHUNK + 5, LEN - 1] {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[!content()[at as usize]], at).unwrap();
            let entry = Entry::open(&path, &key, LEN).unwrap();
            assert!(!entry.compare(&Watch::default()).unwrap(), "{at}");
            file.write_all_at(&[content()[at as usize]], at).unwrap();
            assert!(Entry::open(&path, &key, LEN).unwrap().compare(&Watch::default()).unwrap());
        }
        // Another object's, shorter, longer, or with a damaged trailer.
        let damage: [&dyn Fn() -> Option<Entry>; 5] = [
            &|| Entry::open(&path, &other, LEN),
            &|| Entry::open(&path, &key, LEN - 1),
            &|| {
                OpenOptions::new().write(true).open(&path).unwrap().set_len(whole - 1).unwrap();
                Entry::open(&path, &key, LEN)
            },
            &|| {
                OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
                Entry::open(&path, &key, LEN)
            },
            &|| {
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&vec![0; trailer_len(LEN) as usize], LEN).unwrap();
                Entry::open(&path, &key, LEN)
            },
        ];
        for (number, open) in damage.into_iter().enumerate() {
            assert!(open().is_none(), "{number}");
            assert!(!path.exists(), "{number}");
            write(&path, &key);
        }
    }

    #[test]
    fn what_others_may_have_written_is_not_believed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, key) = (directory.path().join("entry"), Key([7; 32]));
        write(&path, &key);
        for mode in [0o620, 0o602, 0o666] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(Entry::open(&path, &key, LEN).is_none(), "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Entry::open(&path, &key, LEN).is_some());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Entry::open(&link, &key, LEN).is_none());
        assert!(!link.is_symlink() && path.exists());
        assert!(Entry::open(directory.path(), &key, LEN).is_none());
    }
}
