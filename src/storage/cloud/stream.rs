//! An object that is read out of one answer, from its beginning to its end.
//!
//! So comes what a server sends that ignores ranges, and what has no version that further answers
//! could be held to: one answer is one version. What is wanted is put in its place as it passes,
//! and what is not is dropped, so nothing is held beside it but a chunk. Where bytes are wanted that
//! have passed, and where the connection is lost, the object is asked for again.

use super::{
    answer::Body,
    cache::{Keep, Remote, PIECE},
    fault::{Fault, Patience, CHANGED},
    line::{Line, Lines},
    version::Version,
    wanted::Wanted,
};
use crate::{
    storage::{FileSystem, Scattered, Source, Storage},
    watch::Watch,
};
use bytes::Bytes;
use futures_util::StreamExt;
use std::{
    collections::VecDeque,
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// What has passed last is kept to this length, in bytes, as far as chunks go: formats that tell at
/// their end what they hold are read backwards there.
const RECENT: usize = 1 << 20;

/// An answer that is being read.
pub struct Flow {
    pub body: Body,
    /// What came and is not taken yet.
    pub rest: Bytes,
    /// Where in the object that lies.
    pub at: u64,
    /// What came just before it.
    recent: VecDeque<Bytes>,
    recent_len: usize,
}

impl Flow {
    pub fn new(body: Body) -> Self {
        Self { body, rest: Bytes::new(), at: 0, recent: VecDeque::new(), recent_len: 0 }
    }

    /// Goes on behind `taken`, which lay at `at`.
    pub fn pass(&mut self, taken: Bytes) {
        self.at += taken.len() as u64;
        self.recent_len += taken.len();
        self.recent.push_back(taken);
        while let Some(first) = self.recent.front().filter(|f| self.recent_len - f.len() >= RECENT)
        {
            self.recent_len -= first.len();
            self.recent.pop_front();
        }
    }

    /// Fills a piece that has passed just now; false if it is not all there.
    fn fill(&self, piece: &mut Scattered<'_>) -> bool {
        let mut at = self.at - self.recent_len as u64;
        if piece.offset < at || piece.offset + piece.bytes.len() as u64 > self.at {
            return false;
        }
        let mut done = 0;
        for chunk in &self.recent {
            if done == piece.bytes.len() {
                break;
            }
            let skipped = (piece.offset + done as u64 - at).min(chunk.len() as u64) as usize;
            let len = (chunk.len() - skipped).min(piece.bytes.len() - done);
            piece.bytes[done..done + len].copy_from_slice(&chunk[skipped..skipped + len]);
            done += len;
            at += chunk.len() as u64;
        }
        true
    }
}

pub struct Stream {
    name: PathBuf,
    lines: Lines,
    version: Version,
    /// The first bytes, which every answer must have.
    head: Vec<u8>,
    /// The answer, and the line that it comes by. None while somebody reads it.
    flow: Mutex<Option<(Flow, Line)>>,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What is read at a time.
struct Reading<'a> {
    wanted: Wanted<'a>,
    flow: Option<Flow>,
    /// How far it has come at best.
    furthest: u64,
}

impl Stream {
    /// The rest of an answer, of which the `head` is there already.
    pub fn new(
        name: PathBuf,
        lines: Lines,
        (version, head): (Version, Vec<u8>),
        flow: Option<(Flow, Line)>,
    ) -> Self {
        Self { name, lines, version, head, flow: Mutex::new(flow) }
    }

    /// Fills `pieces`; `count` is told how many bytes have come.
    fn read(
        &self,
        mut pieces: Vec<Scattered<'_>>,
        watch: &Watch<'_>,
        count: &(dyn Fn(u64) + Sync),
    ) -> io::Result<()> {
        for Scattered { offset, bytes } in &pieces {
            let end = offset.checked_add(bytes.len() as u64);
            if end.is_none_or(|end| end > self.version.len) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        for piece in &mut pieces {
            count(self.take_head(piece));
        }
        let held = self.flow.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((flow, _)) = &held {
            pieces.retain_mut(|piece| {
                let is_there = flow.fill(piece);
                if is_there {
                    count(piece.bytes.len() as u64);
                }
                !is_there
            });
        }
        let wanted = Wanted::new(pieces);
        if wanted.first(0).is_none() {
            *self.flow.lock().unwrap_or_else(PoisonError::into_inner) = held;
            return Ok(());
        }
        let (flow, line) = match held {
            Some((flow, line)) => (Some(flow), line),
            None => (None, self.lines.take()?),
        };
        let mut reading = Reading { wanted, flow, furthest: 0 };
        line.wait(watch, self.fill(&line, &mut reading, count))?;
        let flow = reading.flow.map(|flow| (flow, line));
        *self.flow.lock().unwrap_or_else(PoisonError::into_inner) = flow;
        Ok(())
    }

    /// Fills what the head has of a piece, leaves the rest, and returns how much that was.
    fn take_head(&self, piece: &mut Scattered<'_>) -> u64 {
        let start = usize::try_from(piece.offset).unwrap_or(usize::MAX).min(self.head.len());
        let len = piece.bytes.len().min(self.head.len() - start);
        let (taken, rest) = std::mem::take(&mut piece.bytes).split_at_mut(len);
        taken.copy_from_slice(&self.head[start..start + len]);
        *piece = Scattered { offset: piece.offset + len as u64, bytes: rest };
        len as u64
    }

    async fn fill(
        &self,
        line: &Line,
        reading: &mut Reading<'_>,
        count: &(dyn Fn(u64) + Sync),
    ) -> io::Result<()> {
        let mut patience = Patience::new(self.lines.recipe.budget);
        loop {
            let before = reading.furthest;
            let Err(fault) = self.attempt(line, reading, count).await else { return Ok(()) };
            reading.flow = None;
            if !self.version.is_held {
                // What has come may be of another version than what will.
                reading.wanted.restart();
            }
            if reading.furthest > before {
                patience.renew();
            }
            patience.wait(fault).await?;
        }
    }

    async fn attempt(
        &self,
        line: &Line,
        reading: &mut Reading<'_>,
        count: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Fault> {
        let Reading { wanted, flow, furthest } = reading;
        let mut at = flow.as_ref().map_or(0, |flow| flow.at);
        // Nothing is wanted any more where `at` is past all of it; `first` knows what has begun.
        while let Some(first) = wanted.first(at) {
            if flow.as_ref().is_none_or(|flow| flow.at > first) {
                *flow = Some(self.begin(line).await?);
                at = 0;
                continue;
            }
            let Some(flow) = flow else { continue };
            let mut chunk = std::mem::take(&mut flow.rest);
            if chunk.is_empty() {
                let Some(next) = flow.body.next().await else {
                    return Err(Fault::passing("the server sent fewer bytes than it said"));
                };
                chunk = next?;
            }
            if chunk.len() as u64 > self.version.len - flow.at {
                return Err(Fault::last(libc::EPROTO, "the server sent more bytes than it said"));
            }
            self.compare(flow.at, &chunk)?;
            let wished = wanted.end().saturating_sub(flow.at).min(chunk.len() as u64);
            let taken = chunk.split_to(wished as usize);
            let filled = wanted.take(flow.at, &taken);
            flow.rest = chunk;
            flow.pass(taken);
            at = flow.at;
            if at > *furthest {
                *furthest = at;
                count(filled);
            }
        }
        Ok(())
    }

    /// Begins anew, with the same version.
    async fn begin(&self, line: &Line) -> Result<Flow, Fault> {
        let recipe = &self.lines.recipe;
        let answer = line.store.get_version(recipe, None, &self.version).await?;
        Ok(Flow::new(answer.body))
    }

    /// Holds what comes first against what came first at first.
    fn compare(&self, at: u64, chunk: &[u8]) -> Result<(), Fault> {
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(self.head.len());
        let known = &self.head[start..];
        let len = known.len().min(chunk.len());
        if known[..len] != chunk[..len] {
            return Err(Fault::last(libc::ESTALE, CHANGED));
        }
        Ok(())
    }
}

impl Source for Stream {
    fn name(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> u64 {
        self.version.len
    }

    fn version(&self) -> String {
        self.version.told()
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, watch: &Watch<'_>) -> io::Result<()> {
        self.read(vec![Scattered { offset, bytes: buffer }], watch, &|_| ())
    }

    fn read_scattered(
        &self,
        pieces: &mut Vec<Scattered<'_>>,
        _: usize,
        watch: &Watch<'_>,
    ) -> Option<io::Result<()>> {
        Some(self.read(std::mem::take(pieces), watch, &|bytes| watch.add(bytes)))
    }

    fn is_sequential(&self) -> bool {
        true
    }

    fn file_system(&self) -> FileSystem {
        FileSystem { name: "the web server", storage: Storage::Object }
    }
}

impl Remote for Stream {
    fn held_version(&self) -> &Version {
        &self.version
    }

    fn download(&self, keep: &Keep<'_>, watch: &Watch<'_>) -> io::Result<()> {
        let len = self.version.len;
        let mut bytes = vec![0; PIECE.min(len) as usize];
        let mut at = 0;
        while at < len {
            let piece = &mut bytes[..PIECE.min(len - at) as usize];
            self.read_exact_at(piece, at, watch)?;
            keep(at, piece)?;
            watch.add(piece.len() as u64);
            at += piece.len() as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    #[test]
    fn what_has_just_passed_can_be_read_again() {
        let object: Vec<u8> = (0..3 * RECENT).map(|at| ((at * 7) >> 3) as u8).collect();
        let mut flow = Flow::new(stream::empty().boxed());
        for chunk in object.chunks(300_000) {
            flow.pass(Bytes::copy_from_slice(chunk));
        }
        assert_eq!(flow.at, object.len() as u64);
        assert!((RECENT..RECENT + 300_000).contains(&flow.recent_len));
        let first = object.len() - RECENT;
        for (start, len) in [(first, RECENT), (first + 5, 1), (object.len() - 9, 9), (first, 0)] {
            let mut bytes = vec![0; len];
            let mut piece = Scattered { offset: start as u64, bytes: &mut bytes };
            assert!(flow.fill(&mut piece));
            assert_eq!(bytes, object[start..start + len]);
        }
        for (start, len) in [(0, 10), (object.len() - 9, 10)] {
            let mut bytes = vec![0; len];
            let mut piece = Scattered { offset: start as u64, bytes: &mut bytes };
            assert!(!flow.fill(&mut piece));
        }
    }
}
