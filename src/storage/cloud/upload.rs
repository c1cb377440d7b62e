//! An object in the making: parts that are sent at once, and become an object in one step.
//!
//! Nothing is seen of it before [`commit`](Sink::commit). An upload that is not committed is
//! aborted, so that no parts are left behind for somebody to pay for.

use super::{
    fault::{Fault, Patience},
    line::{Line, Lines},
    sent::{tag_of, tag_of_whole, Sent, Standing},
    store::Recipe,
};
use crate::{
    error::{said, Error, Result},
    storage::{order, Creation, Sink},
    watch::Watch,
};
use bytes::Bytes;
use object_store::{
    multipart::{MultipartStore, PartId},
    Error as StoreError, MultipartId, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Mutex, PoisonError,
    },
    time::Duration,
};

const ACTION: &str = "save";

/// The least length of a part, and what all are multiples of.
const PART: u64 = 8 << 20;

/// Parts of an object, at most, by the rules of S3.
const MAX_PARTS: u64 = 10_000;

/// Bytes in flight at most: parts are kept until the store has them.
const IN_FLIGHT: u64 = 96 << 20;

/// How long an abort is tried; a shorter time where the caller wants to leave.
const ABORT: Duration = Duration::from_secs(10);
const ABORT_AT_ONCE: Duration = Duration::from_millis(500);

/// How often a store may say that there is no such upload, or that it is not to be aborted, before it is
/// believed: what fails in passing may look so, and an upload left behind is paid for.
const REFUSALS: usize = 6;
const BETWEEN_REFUSALS: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Upload {
    name: PathBuf,
    lines: Lines,
    len: u64,
    part_len: u64,
    overwrite: bool,
    /// The upload, unless the object is sent whole.
    id: Option<MultipartId>,
    /// What the store called each part; the bytes of an object that is sent whole.
    parts: Mutex<Vec<Option<PartId>>>,
    sent: Sent,
    whole: Mutex<Option<Vec<u8>>>,
    is_done: bool,
    /// Whether the caller has stopped it, and waits.
    is_stopped: AtomicBool,
}

impl Upload {
    /// Begins an object.
    ///
    /// # Errors
    /// What the store answers.
    pub fn create(
        path: &Path,
        recipe: Recipe,
        creation: Creation,
        watch: &Watch<'_>,
    ) -> Result<Self> {
        let Creation { len, overwrite, .. } = creation;
        let lines = Lines::new(recipe.only_new(!overwrite));
        let part_len = len.div_ceil(MAX_PARTS).next_multiple_of(PART).max(PART);
        let mut upload = Self {
            name: path.to_owned(),
            lines,
            len,
            part_len,
            overwrite,
            id: None,
            parts: Mutex::default(),
            sent: Sent::new(len, part_len),
            whole: Mutex::default(),
            is_done: false,
            is_stopped: AtomicBool::new(false),
        };
        upload.begin(watch).map_err(|error| upload.failed(error))?;
        Ok(upload)
    }

    fn begin(&mut self, watch: &Watch<'_>) -> io::Result<()> {
        if !self.overwrite {
            self.refuse_existing(watch)?;
        }
        if self.len > self.part_len {
            let count = self.len.div_ceil(self.part_len) as usize;
            self.parts = Mutex::new(vec![None; count]);
            let id = self
                .ask(watch, &async |parts| parts.create_multipart(&self.lines.recipe.path).await)?;
            self.id = Some(id);
        }
        Ok(())
    }

    /// Finds out before anything is sent. The store is asked again when the object is made.
    fn refuse_existing(&self, watch: &Watch<'_>) -> io::Result<()> {
        let path = &self.lines.recipe.path;
        let found =
            self.repeat(watch, &async |line| match line.store.objects()?.head(path).await {
                Ok(_) => Ok(true),
                Err(error) => match Fault::of(&error, &self.lines.recipe.secrets) {
                    fault if fault.errno() == Some(libc::ENOENT) => Ok(false),
                    fault => Err(fault),
                },
            })?;
        if found {
            return Err(said(libc::EEXIST, EXISTS));
        }
        Ok(())
    }

    /// Asks the store for parts until it answers, or patience is over.
    fn ask<T>(
        &self,
        watch: &Watch<'_>,
        work: &impl AsyncFn(&dyn MultipartStore) -> Result<T, StoreError>,
    ) -> io::Result<T> {
        self.repeat(watch, &async |line| {
            let parts = line.store.parts()?;
            work(parts).await.map_err(|error| Fault::of(&error, &self.lines.recipe.secrets))
        })
    }

    fn repeat<T>(
        &self,
        watch: &Watch<'_>,
        work: &impl AsyncFn(&Line) -> Result<T, Fault>,
    ) -> io::Result<T> {
        self.lines.with(|line| {
            line.wait(watch, async {
                let mut patience = Patience::new(self.lines.recipe.budget);
                loop {
                    match work(line).await {
                        Ok(answer) => return Ok(answer),
                        Err(fault) => patience.wait(fault).await?,
                    }
                }
            })
        })
    }

    fn put_whole(&self, watch: &Watch<'_>) -> io::Result<()> {
        let bytes = self.whole.lock().unwrap_or_else(PoisonError::into_inner).take();
        let bytes = Bytes::from(bytes.unwrap_or_default());
        let tag = tag_of_whole(&bytes);
        self.sent.add(0, &bytes);
        let mode = if self.overwrite { PutMode::Overwrite } else { PutMode::Create };
        let recipe = &self.lines.recipe;
        let tries = AtomicUsize::new(0);
        self.repeat(watch, &async |line| {
            let again = tries.fetch_add(1, Ordering::Relaxed) > 0;
            let options = PutOptions { mode: mode.clone(), ..Default::default() };
            let payload = PutPayload::from_bytes(bytes.clone());
            match line.store.objects()?.put_opts(&recipe.path, payload, options).await {
                Ok(_) => Ok(()),
                Err(error) => match self.refused(Fault::of(&error, &recipe.secrets)) {
                    // The answer to an earlier try may have been lost.
                    fault if again && fault.errno() == Some(libc::EEXIST) => {
                        match self.sent.compare(line, recipe, Some(&tag)).await? {
                            Standing::Ours => Ok(()),
                            Standing::Another => Err(fault),
                            Standing::Nothing => Err(Fault::passing(LOST)),
                        }
                    }
                    fault => Err(fault),
                },
            }
        })
    }

    fn complete(&self, id: &MultipartId, watch: &Watch<'_>) -> io::Result<()> {
        let parts: Option<Vec<PartId>> =
            self.parts.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect();
        let parts = parts.ok_or_else(|| said(libc::EIO, "not all parts were written"))?;
        let recipe = &self.lines.recipe;
        let tag = tag_of(&parts);
        let tries = AtomicUsize::new(0);
        self.repeat(watch, &async |line| {
            let again = tries.fetch_add(1, Ordering::Relaxed) > 0;
            let store = line.store.parts()?;
            let Err(error) = store.complete_multipart(&recipe.path, id, parts.clone()).await else {
                return Ok(());
            };
            let fault = self.refused(Fault::of(&error, &recipe.secrets));
            // The answer to an earlier try may have been lost, and the upload be an object already.
            let is_gone = matches!(fault.errno(), Some(libc::ENOENT | libc::EACCES));
            if !again || !(is_gone || fault.errno() == Some(libc::EEXIST)) {
                return Err(fault);
            }
            match self.sent.compare(line, recipe, tag.as_deref()).await? {
                Standing::Ours => Ok(()),
                Standing::Another if !is_gone => Err(fault),
                // Or it is just about to become one: that takes a store its time.
                Standing::Another => Err(Fault::passing(REPLACED)),
                Standing::Nothing => Err(Fault::passing(LOST)),
            }
        })
    }

    /// A condition that was not met has one meaning here.
    fn refused(&self, fault: Fault) -> Fault {
        match fault.errno() {
            Some(libc::EEXIST | libc::ESTALE) if !self.overwrite => {
                Fault::last(libc::EEXIST, EXISTS)
            }
            _ => fault,
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(ACTION, &self.name, error)
    }
}

const EXISTS: &str = "File exists";

/// What may have become of an object when the store's answer was lost.
const LOST: &str = "the store's answer was lost, and the object is not in place";
const REPLACED: &str = "the store's answer was lost, and another object stands there now";

impl Sink for Upload {
    fn target(&self) -> order::Target {
        let name = self.name.to_string_lossy();
        let name = name.split_once("://").map_or(&*name, |(_, rest)| rest);
        let origin = self.lines.recipe.origin.trim_end_matches('/');
        order::Target::Object(format!("{origin} {name}"))
    }

    fn overwrites(&self) -> bool {
        self.overwrite
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_part(bytes.to_vec(), offset, &Watch::default())
    }

    fn part_len(&self) -> Option<u64> {
        Some(self.part_len)
    }

    fn writers(&self, num_thread: usize) -> usize {
        num_thread.min((IN_FLIGHT / self.part_len) as usize).max(1)
    }

    fn write_part(&self, bytes: Vec<u8>, offset: u64, watch: &Watch<'_>) -> Result<()> {
        let Some(id) = &self.id else {
            *self.whole.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
            return Ok(());
        };
        let index = (offset / self.part_len) as usize;
        self.sent.add(index, &bytes);
        let bytes = Bytes::from(bytes);
        let path = &self.lines.recipe.path;
        let part = self.ask(watch, &async |parts| {
            parts.put_part(path, id, index, PutPayload::from_bytes(bytes.clone())).await
        });
        let part = part.map_err(|error| {
            self.is_stopped.fetch_or(watch.check().is_err(), Ordering::Relaxed);
            self.failed(error)
        })?;
        if let Some(slot) = self.parts.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index)
        {
            *slot = Some(part);
        }
        Ok(())
    }

    fn commit(mut self: Box<Self>, watch: &Watch<'_>) -> Result<()> {
        match &self.id {
            None => self.put_whole(watch),
            Some(id) => self.complete(id, watch),
        }
        .map_err(|error| self.failed(error))?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(id) = self.id.take().filter(|_| !self.is_done) else { return };
        let recipe = &self.lines.recipe;
        let is_stopped = self.is_stopped.load(Ordering::Relaxed);
        let budget = if is_stopped { ABORT_AT_ONCE } else { ABORT };
        // What cannot be aborted is left to the store's own rules; there is nobody to tell.
        let _ = self.lines.with(|line| {
            line.wait(&Watch::default(), async {
                let abort = async {
                    let mut patience = Patience::new(budget);
                    let mut refusals = 0;
                    loop {
                        let Ok(parts) = line.store.parts() else { return Ok(()) };
                        match parts.abort_multipart(&recipe.path, &id).await {
                            Ok(()) => return Ok(()),
                            Err(error) => {
                                let fault = Fault::of(&error, &recipe.secrets);
                                if patience.wait(fault).await.is_ok() {
                                    continue;
                                }
                                refusals += 1;
                                if refusals == REFUSALS {
                                    return Ok(());
                                }
                                tokio::time::sleep(BETWEEN_REFUSALS).await;
                            }
                        }
                    }
                };
                tokio::time::timeout(budget, abort).await.unwrap_or(Ok(()))
            })
        });
    }
}
