//! A file with deflated entries, as if their bytes stood behind its end.
//!
//! ```text
//! file      | PK | a deflated | b stored | c deflated | directory |
//! this one  | PK | a deflated | b stored | c deflated | directory |   | aaaaaaaa | cccccccc |
//! ```
//!
//! Whoever wants a whole entry has it inflated straight into his memory. Of one that is wanted in
//! parts, as by a device, the whole is held until all of it was read.

use super::{FileSystem, Source};
use crate::{
    error::Damaged,
    format::{inflate::Deflated, Unreadable},
    watch::{Watch, LOOK_EVERY},
};
use std::{
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

/// A source with more behind its end.
#[derive(Debug)]
pub struct Inflated<'a> {
    file: &'a dyn Source,
    /// In the order of their offsets, which do not overlap.
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    at: u64,
    deflated: Deflated,
    held: Mutex<Held>,
    changed: Condvar,
}

/// What is held of an entry that is read in parts.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    /// A thread inflates it.
    Soon,
    /// The bytes, and how many of them were not read yet.
    Whole(Arc<Vec<u8>>, u64),
}

impl<'a> Inflated<'a> {
    /// `None` if nothing is deflated. The entries are in the order of their offsets.
    #[must_use]
    pub fn of(file: &'a dyn Source, deflated: Vec<(u64, Deflated)>) -> Option<Self> {
        let entry = |(at, deflated)| Entry {
            at,
            deflated,
            held: Mutex::default(),
            changed: Condvar::new(),
        };
        let entries: Vec<Entry> = deflated.into_iter().map(entry).collect();
        (!entries.is_empty()).then_some(Self { file, entries })
    }

    fn inflate(&self, entry: &Entry, target: &mut [u8], watch: &Watch<'_>) -> io::Result<()> {
        let read = |bytes: &mut [u8], offset: u64| {
            watch.look();
            watch.check()?;
            self.file.read_exact_at(bytes, offset, watch)
        };
        entry.deflated.inflate(target, read).map_err(|unreadable| match unreadable {
            Unreadable::Malformed(malformed) => Damaged(malformed).into(),
            Unreadable::Source(error) => error,
            Unreadable::Unknown(_) | Unreadable::Stopped => crate::watch::Stopped.into(),
        })
    }

    /// Fills `buffer` with bytes of an entry from `from` on.
    fn read_entry(
        &self,
        entry: &Entry,
        buffer: &mut [u8],
        from: u64,
        watch: &Watch<'_>,
    ) -> io::Result<()> {
        if buffer.len() as u64 == entry.deflated.len {
            return self.inflate(entry, buffer, watch);
        }
        let whole = self.whole(entry, watch)?;
        let from = from as usize;
        buffer.copy_from_slice(&whole[from..from + buffer.len()]);
        let mut held = entry.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Held::Whole(_, left) = &mut *held {
            *left = left.saturating_sub(buffer.len() as u64);
            if *left == 0 {
                *held = Held::Nothing;
            }
        }
        Ok(())
    }

    /// The whole of an entry, which one thread inflates while others wait. No lock is held meanwhile.
    fn whole(&self, entry: &Entry, watch: &Watch<'_>) -> io::Result<Arc<Vec<u8>>> {
        loop {
            let mut held = entry.held.lock().unwrap_or_else(PoisonError::into_inner);
            match &*held {
                Held::Whole(bytes, _) => return Ok(Arc::clone(bytes)),
                Held::Nothing => {
                    *held = Held::Soon;
                    break;
                }
                Held::Soon => {
                    let waited = entry.changed.wait_timeout(held, LOOK_EVERY);
                    drop(waited.unwrap_or_else(PoisonError::into_inner));
                    watch.look();
                    watch.check()?;
                }
            }
        }
        let len = entry.deflated.len;
        let inflated = memory(len)
            .and_then(|mut bytes| self.inflate(entry, &mut bytes, watch).map(|()| Arc::new(bytes)));
        let mut held = entry.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held = match &inflated {
            Ok(bytes) => Held::Whole(Arc::clone(bytes), len),
            Err(_) => Held::Nothing,
        };
        entry.changed.notify_all();
        inflated
    }

    /// Which entry has a byte at `offset`, or the next that begins behind it.
    fn entry_at(&self, offset: u64) -> Option<(&Entry, Range<u64>)> {
        let index = self.entries.partition_point(|entry| entry.at + entry.deflated.len <= offset);
        self.entries.get(index).map(|entry| (entry, entry.at..entry.at + entry.deflated.len))
    }
}

/// Memory for the whole of an entry.
fn memory(len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

impl Source for Inflated<'_> {
    fn name(&self) -> &Path {
        self.file.name()
    }

    fn len(&self) -> u64 {
        self.entries.last().map_or(self.file.len(), |last| last.at + last.deflated.len)
    }

    fn version(&self) -> String {
        self.file.version()
    }

    fn is_sequential(&self) -> bool {
        self.file.is_sequential()
    }

    fn read_exact_at(
        &self,
        mut buffer: &mut [u8],
        mut offset: u64,
        watch: &Watch<'_>,
    ) -> io::Result<()> {
        while !buffer.is_empty() {
            let end = offset + buffer.len() as u64;
            let stop = if offset < self.file.len() {
                let stop = self.file.len().min(end);
                let (now, _) = buffer.split_at_mut((stop - offset) as usize);
                self.file.read_exact_at(now, offset, watch)?;
                stop
            } else {
                let (entry, range) = self.entry_at(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
                if range.start > offset {
                    let stop = range.start.min(end);
                    buffer[..(stop - offset) as usize].fill(0);
                    stop
                } else {
                    let stop = range.end.min(end);
                    let (now, _) = buffer.split_at_mut((stop - offset) as usize);
                    self.read_entry(entry, now, offset - range.start, watch)?;
                    stop
                }
            };
            buffer = &mut buffer[(stop - offset) as usize..];
            offset = stop;
        }
        Ok(())
    }

    fn file_system(&self) -> FileSystem {
        self.file.file_system()
    }

    fn whole_from(&self) -> u64 {
        self.file.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::local::LocalFile;
    use flate2::{write::DeflateEncoder, Compression, Crc};
    use std::io::Write;

    fn entry(file: &mut Vec<u8>, data: &[u8]) -> Deflated {
        let start = file.len() as u64;
        let mut encoder = DeflateEncoder::new(file, Compression::fast());
        encoder.write_all(data).unwrap();
        let end = encoder.finish().unwrap().len() as u64;
        let mut crc32 = Crc::new();
        crc32.update(data);
        let (name, len, crc32) = ("e".to_owned(), data.len() as u64, crc32.sum());
        Deflated { name, from: start..end, len, crc32 }
    }

    #[test]
    fn any_range_is_that_of_file_and_entries_in_a_row() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (one, two) = (b"one".repeat(50), b"two!".repeat(100));
        let mut bytes = b"begin".to_vec();
        let entries = [entry(&mut bytes, &one), entry(&mut bytes, &two)];
        std::fs::write(&path, &bytes).unwrap();
        let file = LocalFile::open(&path).unwrap();
        let first = bytes.len() as u64 + 11;
        let second = first + one.len() as u64 + 7;
        let [a, b] = entries;
        let inflated = Inflated::of(&file, vec![(first, a), (second, b)]).unwrap();
        let all = [&bytes[..], &[0; 11], &one, &[0; 7], &two].concat();
        assert_eq!(inflated.len(), all.len() as u64);
        let watch = Watch::default();
        for start in (0..all.len()).step_by(13) {
            for end in (start..=all.len()).step_by(17).chain([all.len()]) {
                let mut buffer = vec![9; end - start];
                inflated.read_exact_at(&mut buffer, start as u64, &watch).unwrap();
                assert_eq!(buffer, all[start..end]);
            }
        }
        let past = inflated.read_exact_at(&mut [0; 2], inflated.len() - 1, &watch);
        assert_eq!(past.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_is_damaged_fails_every_reader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut bytes = Vec::new();
        let mut entry = entry(&mut bytes, &[1; 1000]);
        entry.crc32 ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let file = LocalFile::open(&path).unwrap();
        let at = bytes.len() as u64;
        let inflated = Inflated::of(&file, vec![(at, entry)]).unwrap();
        for len in [1000, 10, 10] {
            let read = inflated.read_exact_at(&mut vec![0; len], at, &Watch::default());
            assert!(read.unwrap_err().to_string().contains("checksum"));
        }
    }
}
