//! What the caller of a running load or save sees of it, and how he stops it.

use crate::process::PerProcess;
use std::{
    cell::Cell,
    fmt,
    sync::{
        atomic::{AtomicBool, AtomicI64, Ordering},
        Mutex, MutexGuard, PoisonError,
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// How often whoever waits looks whether the caller wants to stop.
pub const LOOK_EVERY: Duration = Duration::from_millis(50);

thread_local! {
    /// How many callers are being asked on this thread, each by the code that another one runs.
    static ASKING: Cell<usize> = const { Cell::new(0) };
}

/// The threads whose callers are being asked, and since when.
static ASKED: PerProcess<Mutex<Vec<(ThreadId, Instant)>>> = PerProcess::new();

/// Counts a caller that is being asked.
struct Asking;

impl Asking {
    fn begin() -> Self {
        if ASKING.replace(ASKING.get() + 1) == 0 {
            asked().push((thread::current().id(), Instant::now()));
        }
        Self
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if ASKING.replace(ASKING.get() - 1) == 1 {
            let us = thread::current().id();
            asked().retain(|&(thread, _)| thread != us);
        }
    }
}

fn asked() -> MutexGuard<'static, Vec<(ThreadId, Instant)>> {
    ASKED.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the caller of `thread`, or of any other thread where none is named, has been asked for that
/// long by now. His code may wait for the thread that calls this, which must not wait for what his
/// load or save has, then.
#[must_use]
pub fn is_asked_for(time: Duration, thread: Option<ThreadId>) -> bool {
    let us = thread::current().id();
    asked().iter().any(|&(asked, since)| {
        asked != us && thread.is_none_or(|thread| thread == asked) && since.elapsed() >= time
    })
}

/// Whether this thread runs code of a caller that is being asked: what that load or save has is not
/// released before this code ends.
#[must_use]
pub fn is_within_look() -> bool {
    ASKING.get() > 0
}

/// The work was stopped because the caller asked for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Stopped {}

impl From<Stopped> for std::io::Error {
    fn from(stopped: Stopped) -> Self {
        Self::other(stopped)
    }
}

/// One running load or save, as its caller sees it.
#[derive(Debug, Default)]
pub struct Watch<'a> {
    /// Bytes done and bytes in all, which another thread may look at meanwhile.
    counters: Option<[&'a AtomicI64; 2]>,
    /// Asked on the caller's own thread; true stops the work.
    interrupted: Option<fn() -> bool>,
    /// The caller's own thread.
    caller: Option<ThreadId>,
    stopped: AtomicBool,
    /// When that was asked.
    looked: Mutex<Option<Instant>>,
    /// What the caller is to be told of work that succeeded.
    notes: Mutex<Vec<String>>,
}

impl<'a> Watch<'a> {
    #[must_use]
    pub fn new(counters: Option<[&'a AtomicI64; 2]>, interrupted: Option<fn() -> bool>) -> Self {
        let caller = Some(thread::current().id());
        Self { counters, interrupted, caller, ..Self::default() }
    }

    /// Says how many bytes there are to be moved, of which none is moved yet.
    pub fn begin(&self, total: u64) {
        if let Some([done, of]) = self.counters {
            done.store(0, Ordering::Relaxed);
            of.store(i64::try_from(total).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }

    /// Says that `bytes` more are moved. Ends of pages that come beside what is wanted count too, but
    /// never to more than there is to be moved.
    pub fn add(&self, bytes: u64) {
        if let Some([done, of]) = self.counters {
            let (bytes, most) =
                (i64::try_from(bytes).unwrap_or(i64::MAX), of.load(Ordering::Relaxed));
            let more = |done: i64| Some(done.saturating_add(bytes).min(most));
            let _ = done.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
    }

    /// Says that `bytes` of those that counted as moved have to be moved after all.
    pub fn take_back(&self, bytes: u64) {
        if let Some([done, _]) = self.counters {
            done.fetch_sub(i64::try_from(bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
        }
    }

    /// Says that everything is moved, whatever was counted beside it.
    pub fn finish(&self) {
        if let Some([done, of]) = self.counters {
            done.store(of.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Tells the caller something that is no failure.
    pub fn note(&self, words: impl FnOnce() -> String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(words());
    }

    /// What was noted, in the order in which it was.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Asks whether to stop, on the caller's thread and nowhere else; now and then, since the answer
    /// may have to be waited for.
    ///
    /// Whoever is asked may run any code of the caller on this thread, another load or save with the
    /// same memory among it: no lock may be held here, and nothing that such a load waits for.
    pub fn look(&self) {
        if self.interrupted.is_none() || self.caller != Some(thread::current().id()) {
            return;
        }
        if self.stopped.load(Ordering::Relaxed) {
            // What stopped it is on its way to the caller, who must not get another one in its place.
            return;
        }
        let Ok(mut looked) = self.looked.lock() else { return };
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        drop(looked);
        let asking = Asking::begin();
        if self.interrupted.is_some_and(|interrupted| interrupted()) {
            self.stopped.store(true, Ordering::Relaxed);
        }
        drop(asking);
    }

    /// # Errors
    /// [`Stopped`] once the caller has asked for it.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        Ok(())
    }
}
