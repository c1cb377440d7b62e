//! What the caller of a running load or save sees of it, and how he stops it.

use std::{
    fmt,
    sync::{
        atomic::{AtomicBool, AtomicI64, Ordering},
        Mutex,
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

/// How often the caller's thread looks whether it is wanted elsewhere.
const LOOK_EVERY: Duration = Duration::from_millis(50);

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

    /// Asks whether to stop, on the caller's thread and nowhere else; now and then, since the answer
    /// may have to be waited for.
    pub fn look(&self) {
        if self.interrupted.is_none() || self.caller != Some(thread::current().id()) {
            return;
        }
        let Ok(mut looked) = self.looked.lock() else { return };
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        drop(looked);
        if self.interrupted.is_some_and(|interrupted| interrupted()) {
            self.stopped.store(true, Ordering::Relaxed);
        }
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
