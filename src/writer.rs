//! Writes the bytes of a file that is laid out, a segment at a time and from several threads.

use crate::{
    buffers::{Buffer, Ring},
    error::{Error, Result},
    plan,
    storage::Sink,
    tensors::{StateDict, Tensor},
    threads,
    watch::{Stopped, Watch},
};
use std::{ops::Range, path::Path};

/// From this length on, bytes are written from where they lie; shorter ones are gathered first.
const LARGE: usize = 256 << 10;

/// A tensor and the bytes of the file it takes.
#[derive(Debug)]
pub struct Item {
    pub tensor: usize,
    pub bytes: Range<u64>,
}

/// What the file is to hold: a header, and tensors in the order of their bytes, without gaps.
pub struct Layout<'a> {
    pub tensors: &'a dyn StateDict,
    pub views: &'a [Tensor],
    pub header: &'a [u8],
    pub items: &'a [Item],
}

impl Layout<'_> {
    fn len(&self) -> u64 {
        self.items.last().map_or(self.header.len() as u64, |item| item.bytes.end)
    }
}

/// Bytes of the file, by where they come from.
enum Source<'a> {
    /// They lie in host memory as the file is to have them.
    Here(&'a [u8]),
    /// The tensor has to be asked for them, from this byte on.
    Gather(usize, u64),
}

pub struct Writer<'a> {
    pub file: Layout<'a>,
    pub sink: &'a dyn Sink,
    pub path: &'a Path,
    /// What is gathered passes through these.
    pub ring: &'a Ring<'a>,
    pub watch: &'a Watch<'a>,
}

/// Why a file was not written to its end.
pub enum Ended {
    Failed(Error),
    Stopped(Stopped),
}

impl From<Stopped> for Ended {
    fn from(stopped: Stopped) -> Self {
        Self::Stopped(stopped)
    }
}

impl Ended {
    /// The same in the words of a save to `path`.
    pub fn told(self, path: &Path) -> Error {
        match self {
            Self::Failed(error) => error,
            Self::Stopped(stopped) => Error::io("save", path, stopped.into()),
        }
    }
}

/// Memory for a part of `len` bytes, which is handed over with it.
pub fn part_of(len: u64, path: &Path) -> Result<Vec<u8>> {
    let mut part = Vec::new();
    part.try_reserve_exact(len as usize)
        .map_err(|_| Error::io("save", path, std::io::Error::from_raw_os_error(libc::ENOMEM)))?;
    Ok(part)
}

impl Writer<'_> {
    /// Writes the whole file on at most `num_thread` threads.
    pub fn write_all(&self, num_thread: usize) -> Result<()> {
        let len = self.sink.part_len().unwrap_or(plan::SEGMENT_LEN);
        let segments = plan::segments(0..self.file.len(), len).collect();
        threads::for_each(num_thread, segments, self.watch, |segment: Range<u64>| {
            let len = segment.end - segment.start;
            let written = if self.sink.part_len().is_some() {
                self.write_part(&segment)
            } else if self.sink.is_direct() {
                self.write_direct(&segment)
            } else {
                self.write(&segment)
            };
            self.watch.add(len);
            written.map_err(Ended::Failed)
        })
        .map_err(|ended: Ended| ended.told(self.path))
    }

    /// Writes a segment through the page cache: what is large from where it lies, the rest through
    /// a buffer.
    fn write(&self, segment: &Range<u64>) -> Result<()> {
        // No segment has more bytes than a buffer.
        let mut gathered: Option<Buffer<'_>> = None;
        let mut len = 0;
        let mut written = segment.start;
        for bytes in self.parts(segment) {
            let (from, part) = self.source(&bytes)?;
            if let Source::Here(here) = from {
                if here.len() >= LARGE {
                    self.put(gathered.as_deref().map_or(&[], |buffer| &buffer[..len]), written)?;
                    len = 0;
                    self.put(here, bytes.start)?;
                    written = bytes.end;
                    continue;
                }
            }
            let buffer = match &mut gathered {
                Some(buffer) => buffer,
                None => gathered.insert(self.lend()?),
            };
            self.copy(&from, &mut buffer[len..][..part])?;
            len += part;
        }
        self.put(gathered.as_deref().map_or(&[], |buffer| &buffer[..len]), written)
    }

    /// Writes a segment past the page cache, by way of a buffer that begins and ends at pages.
    fn write_direct(&self, segment: &Range<u64>) -> Result<()> {
        let mut buffer = self.lend()?;
        let mut len = 0;
        for bytes in self.parts(segment) {
            let (from, part) = self.source(&bytes)?;
            self.copy(&from, &mut buffer[len..][..part])?;
            len += part;
        }
        self.sink.write_direct_at(&mut buffer, len, segment.start)
    }

    /// Writes a segment that the storage takes as a whole.
    fn write_part(&self, segment: &Range<u64>) -> Result<()> {
        let mut buffer = part_of(segment.end - segment.start, self.path)?;
        for bytes in self.parts(segment) {
            let (from, part) = self.source(&bytes)?;
            if let Source::Here(here) = from {
                buffer.extend_from_slice(here);
            } else {
                let len = buffer.len();
                buffer.resize(len + part, 0);
                self.copy(&from, &mut buffer[len..])?;
            }
        }
        self.sink.write_part(buffer, segment.start, self.watch)
    }

    /// Cuts a segment where one tensor ends and the next begins.
    fn parts(&self, segment: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let header = 0..self.file.header.len() as u64;
        let items = self.file.items;
        let first = items.partition_point(|item| item.bytes.end <= segment.start);
        let (start, end) = (segment.start, segment.end);
        let tensors = items[first..].iter().map(|item| item.bytes.clone());
        std::iter::once(header)
            .chain(tensors)
            .take_while(move |bytes| bytes.start < end)
            .map(move |bytes| bytes.start.max(start)..bytes.end.min(end))
            .filter(|bytes| bytes.start < bytes.end)
    }

    /// Where the bytes of a part come from, and how many they are.
    fn source(&self, bytes: &Range<u64>) -> Result<(Source<'_>, usize)> {
        let len = (bytes.end - bytes.start) as usize;
        let Layout { tensors, header, items, .. } = self.file;
        if (bytes.start as usize) < header.len() {
            return Ok((Source::Here(&header[bytes.start as usize..bytes.end as usize]), len));
        }
        let item = &items[items.partition_point(|item| item.bytes.end <= bytes.start)];
        let begin = bytes.start - item.bytes.start;
        let here = tensors.bytes(item.tensor).map_err(|error| self.failed(item.tensor, error))?;
        Ok(match here {
            Some(here) => (Source::Here(&here[begin as usize..begin as usize + len]), len),
            None => (Source::Gather(item.tensor, begin), len),
        })
    }

    fn copy(&self, from: &Source<'_>, to: &mut [u8]) -> Result<()> {
        match from {
            Source::Here(here) => {
                to.copy_from_slice(here);
                Ok(())
            }
            &Source::Gather(tensor, begin) => self
                .file
                .tensors
                .gather(tensor, begin, to)
                .map_err(|error| self.failed(tensor, error)),
        }
    }

    fn lend(&self) -> Result<Buffer<'_>> {
        self.ring.lend(self.watch).map_err(|error| Error::io("save", self.path, error))
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.write_all_at(bytes, offset)
    }

    fn failed(&self, tensor: usize, error: anyhow::Error) -> Error {
        let view = &self.file.views[tensor];
        let error = if view.is_away() {
            Error::device("save", self.path, error)
        } else {
            Error::internal("save", self.path, error)
        };
        error.with_tensor(&view.name)
    }
}
