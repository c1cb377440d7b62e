//! A thread's line to a store: a client, and the loop that its requests run in.
//!
//! A loop has no thread of its own: it runs while somebody waits on it. So nothing goes on between
//! two calls, and nothing is left when the object is closed.

use super::{
    fault::Fault,
    store::{Recipe, Store},
};
use crate::{
    error::said,
    watch::{Watch, LOOK_EVERY},
};
use std::{future::Future, io, pin::pin, sync::Mutex, sync::PoisonError, time::Duration};
use tokio::runtime::{Builder, Runtime};

/// How long the end of a line waits for the system to find a host's address, which cannot be stopped.
const LEAVE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub struct Line {
    runtime: Option<Runtime>,
    pub store: Store,
}

impl Line {
    fn new(recipe: &Recipe) -> io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(4)
            .thread_keep_alive(Duration::from_millis(100))
            .build()?;
        let store = {
            let _inside = runtime.enter();
            recipe.build()
        };
        let store = store.map_err(|error| match Fault::of(&error, &recipe.secrets) {
            Fault::Final(error) => error,
            Fault::Passing { cause, .. } => said(libc::EINVAL, cause),
        })?;
        Ok(Self { runtime: Some(runtime), store })
    }

    /// Waits for `future`, unless the caller wants to stop.
    pub fn wait<T>(
        &self,
        watch: &Watch<'_>,
        future: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let runtime = self.runtime.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut future = pin!(future);
        loop {
            // Outside of the loop that requests run in: the caller's code, which may run in `look`,
            // may use a store too, and no such loop can be started or ended inside of another one.
            watch.look();
            watch.check()?;
            let moment = async { tokio::time::timeout(LOOK_EVERY, future.as_mut()).await };
            if let Ok(done) = runtime.block_on(moment) {
                return done;
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(LEAVE);
        }
    }
}

/// Lines that are not in use.
#[derive(Debug)]
pub struct Lines {
    pub recipe: Recipe,
    idle: Mutex<Vec<Line>>,
}

impl Lines {
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, idle: Mutex::default() }
    }

    /// Does `work` with a line.
    pub fn with<T>(&self, work: impl FnOnce(&Line) -> io::Result<T>) -> io::Result<T> {
        let line = self.take()?;
        let done = work(&line);
        self.give(line);
        done
    }

    /// Hands out a line, to be given back.
    pub fn take(&self) -> io::Result<Line> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match idle {
            Some(line) => Ok(line),
            None => Line::new(&self.recipe),
        }
    }

    /// Takes a line back for the next who wants one.
    pub fn give(&self, line: Line) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}
