//! An object that is read by ranges, all of one version.
//!
//! The first request brings length, version and the first bytes; every further one names the version,
//! and its answer is held against it. A range that breaks off goes on from where its bytes stopped.

use super::{
    cache::{Keep, Remote},
    fault::{Fault, Patience},
    flight,
    line::{Line, Lines},
    version::Version,
};
use crate::{
    storage::{FileSystem, Scattered, Source, Storage},
    watch::Watch,
};
use futures_util::StreamExt;
use std::{
    io,
    path::{Path, PathBuf},
};

#[derive(Debug)]
pub struct Object {
    name: PathBuf,
    kind: &'static str,
    lines: Lines,
    version: Version,
    /// The bytes that came with the first answer.
    head: Vec<u8>,
}

impl Object {
    pub fn new(
        name: PathBuf,
        kind: &'static str,
        lines: Lines,
        (version, head): (Version, Vec<u8>),
    ) -> Self {
        Self { name, kind, lines, version, head }
    }

    pub fn lines(&self) -> &Lines {
        &self.lines
    }

    /// Copies what came with the first answer, and returns how much that was.
    pub fn take_head(&self, buffer: &mut [u8], offset: u64) -> usize {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.head.len());
        let len = buffer.len().min(self.head.len() - start);
        buffer[..len].copy_from_slice(&self.head[start..start + len]);
        len
    }

    /// Fills `buffer` from `offset` on; `throttled` is told when the store asks for patience.
    pub async fn fetch(
        &self,
        line: &Line,
        buffer: &mut [u8],
        offset: u64,
        throttled: &(dyn Fn() + Sync),
    ) -> io::Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.version.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = self.take_head(buffer, offset);
        let mut patience = Patience::new(self.lines.recipe.budget);
        while done < buffer.len() {
            let before = done;
            let fault = self.attempt(line, buffer, &mut done, offset).await;
            let Err(fault) = fault else { continue };
            if matches!(fault, Fault::Passing { throttled: true, .. }) {
                throttled();
            }
            if done > before {
                patience.renew();
            }
            patience.wait(fault).await?;
        }
        Ok(())
    }

    /// Asks once for what is missing of `buffer`.
    async fn attempt(
        &self,
        line: &Line,
        buffer: &mut [u8],
        done: &mut usize,
        offset: u64,
    ) -> Result<(), Fault> {
        let recipe = &self.lines.recipe;
        let range = offset + *done as u64..offset + buffer.len() as u64;
        let answer = line.store.get_version(recipe, Some(range.clone()), &self.version).await?;
        if answer.range == (0..self.version.len) && range != answer.range {
            // Another machine of the same site, perhaps, than the one that knew ranges.
            return Err(Fault::passing("the server ignored the range it was asked for"));
        }
        // Less may come than was asked for, from where it was asked for.
        if answer.range.start != range.start || answer.range.end > range.end {
            return Err(Fault::passing("the server sent another range than was asked for"));
        }
        let end = (answer.range.end - offset) as usize;
        let mut body = answer.body;
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            let rest = &mut buffer[*done..end];
            let fits = chunk.len() <= rest.len();
            let chunk = &chunk[..chunk.len().min(rest.len())];
            rest[..chunk.len()].copy_from_slice(chunk);
            *done += chunk.len();
            if !fits {
                return Err(Fault::last(libc::EPROTO, "the server sent more bytes than it said"));
            }
        }
        if *done < end {
            return Err(Fault::passing("the server sent fewer bytes than it said"));
        }
        Ok(())
    }
}

impl Source for Object {
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
        let inside = usize::try_from(offset)
            .is_ok_and(|at| at.checked_add(buffer.len()).is_some_and(|end| end <= self.head.len()));
        if inside {
            self.take_head(buffer, offset);
            return Ok(());
        }
        self.lines.with(|line| line.wait(watch, self.fetch(line, buffer, offset, &|| ())))
    }

    fn read_scattered(
        &self,
        pieces: &mut Vec<Scattered<'_>>,
        num_thread: usize,
        watch: &Watch<'_>,
    ) -> Option<io::Result<()>> {
        Some(flight::fly(self, std::mem::take(pieces), num_thread, watch))
    }

    fn file_system(&self) -> FileSystem {
        FileSystem { name: self.kind, storage: Storage::Object }
    }
}

impl Remote for Object {
    fn held_version(&self) -> &Version {
        &self.version
    }

    fn download(&self, keep: &Keep<'_>, watch: &Watch<'_>) -> io::Result<()> {
        flight::download(self, self.version.len, keep, watch)
    }
}
