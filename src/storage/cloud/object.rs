//! An object that is read by ranges, all of one version.
//!
//! The first request brings length, version and the first bytes; every further one names the version,
//! and its answer is held against it. A range that breaks off goes on from where its bytes stopped.

use super::{
    fault::{Fault, Patience, CHANGED},
    flight,
    line::{Line, Lines},
    store::Recipe,
};
use crate::{
    error::{said, Error, Result},
    storage::{FileSystem, Scattered, Source, Storage},
    watch::Watch,
};
use futures_util::StreamExt;
use object_store::{GetOptions, GetRange, GetResult, ObjectMeta};
use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
};

/// The longest object that is believed in: what torch and the system can address.
const MAX_LEN: u64 = 1 << 60;

#[derive(Debug)]
pub struct Object {
    name: PathBuf,
    kind: &'static str,
    lines: Lines,
    version: Version,
    /// The bytes that came with the first answer.
    head: Vec<u8>,
}

/// What tells one version of an object from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    pub len: u64,
    pub e_tag: Option<String>,
    /// Where there is no tag; by itself it is too coarse.
    modified: i64,
}

impl Version {
    fn of(meta: &ObjectMeta) -> Self {
        let e_tag = meta.e_tag.clone().filter(|tag| !tag.is_empty());
        let modified = if e_tag.is_some() { 0 } else { meta.last_modified.timestamp() };
        Self { len: meta.size, e_tag, modified }
    }
}

impl Object {
    /// Opens an object with a request for its first bytes.
    ///
    /// # Errors
    /// What the store answers, once trying again has not helped.
    pub fn open(
        path: &Path,
        kind: &'static str,
        recipe: Recipe,
        first: u64,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        let lines = Lines::new(recipe);
        let opened = lines.with(|line| line.wait(watch, open(&lines.recipe, line, first)));
        let (version, head) = opened.map_err(|error| Error::io("open", path, error))?;
        Ok(Self { name: path.to_owned(), kind, lines, version, head })
    }

    pub fn version(&self) -> &Version {
        &self.version
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
            let Err(fault) = fault else { break };
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
        let if_match = self.version.e_tag.clone().filter(|tag| !tag.starts_with("W/"));
        let options = GetOptions {
            range: Some(GetRange::Bounded(range.clone())),
            if_match,
            ..Default::default()
        };
        let answer = line.store.objects().get_opts(&recipe.path, options).await;
        let answer = answer.map_err(|error| match Fault::of(&error, &recipe.secrets) {
            fault if matches!(fault.errno(), Some(libc::EEXIST | libc::ERANGE | libc::ENOENT)) => {
                Fault::last(libc::ESTALE, CHANGED)
            }
            fault => fault,
        })?;
        if Version::of(&answer.meta) != self.version {
            return Err(Fault::last(libc::ESTALE, CHANGED));
        }
        if answer.range != range {
            return Err(Fault::passing("the server sent another range than was asked for"));
        }
        body(answer, &recipe.secrets, |chunk| {
            let rest = &mut buffer[*done..];
            let fits = chunk.len() <= rest.len();
            let chunk = &chunk[..chunk.len().min(rest.len())];
            rest[..chunk.len()].copy_from_slice(chunk);
            *done += chunk.len();
            fits
        })
        .await?;
        if *done < buffer.len() {
            return Err(Fault::passing("the server sent fewer bytes than it said"));
        }
        Ok(())
    }
}

/// The first request.
async fn open(recipe: &Recipe, line: &Line, first: u64) -> io::Result<(Version, Vec<u8>)> {
    let mut patience = Patience::new(recipe.budget);
    loop {
        match begin(recipe, line, first).await {
            Ok(opened) => return Ok(opened),
            Err(fault) => patience.wait(fault).await?,
        }
    }
}

async fn begin(recipe: &Recipe, line: &Line, first: u64) -> Result<(Version, Vec<u8>), Fault> {
    let options = GetOptions { range: Some(GetRange::Bounded(0..first)), ..Default::default() };
    let answer = match line.store.objects().get_opts(&recipe.path, options).await {
        Ok(answer) => answer,
        Err(error) => match Fault::of(&error, &recipe.secrets) {
            // There is no first byte.
            fault if fault.errno() == Some(libc::ERANGE) => {
                return Ok((Version { len: 0, e_tag: None, modified: 0 }, Vec::new()));
            }
            fault => return Err(fault),
        },
    };
    let version = Version::of(&answer.meta);
    if version.len > MAX_LEN {
        let words = format!("the server says the object has {} bytes", version.len);
        return Err(Fault::Final(said(libc::EFBIG, words)));
    }
    let Range { start, end } = answer.range;
    if start != 0 || end != first.min(version.len) {
        return Err(Fault::passing("the server sent another range than was asked for"));
    }
    let mut head = Vec::with_capacity(end as usize);
    body(answer, &recipe.secrets, |chunk| {
        let fits = chunk.len() <= end as usize - head.len();
        head.extend_from_slice(&chunk[..chunk.len().min(end as usize - head.len())]);
        fits
    })
    .await?;
    if (head.len() as u64) < end {
        return Err(Fault::passing("the server sent fewer bytes than it said"));
    }
    Ok((version, head))
}

/// Hands the body on as it comes, as long as it is wanted.
async fn body(
    answer: GetResult,
    secrets: &[String],
    mut take: impl FnMut(&[u8]) -> bool,
) -> Result<(), Fault> {
    let mut chunks = answer.into_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Fault::of(&error, secrets))?;
        if !take(&chunk) {
            return Err(Fault::last(libc::EPROTO, "the server sent more bytes than it said"));
        }
    }
    Ok(())
}

impl Source for Object {
    fn name(&self) -> &Path {
        &self.name
    }

    fn len(&self) -> u64 {
        self.version.len
    }

    fn version(&self) -> String {
        format!("{:?}", self.version)
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
