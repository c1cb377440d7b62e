//! Counts the work of a reader, and lets its caller stop it.
//!
//! A file decides what its reader does, so the reader counts every instruction it follows and every
//! value it looks at. The fuzz target asserts that the count is a small multiple of the file's
//! length, and the caller of a load is asked now and then whether it still wants the result.

use std::{cell::Cell, fmt};

/// Steps between two questions: about a millisecond.
const ASK_EVERY: u64 = 1 << 16;

/// The caller does not want the result any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop;

/// The steps of one reader.
pub struct Steps<'a> {
    done: Cell<u64>,
    ask_at: Cell<u64>,
    /// Whether to stop.
    asked: &'a dyn Fn() -> bool,
}

impl<'a> Steps<'a> {
    #[must_use]
    pub fn new(asked: &'a dyn Fn() -> bool) -> Self {
        Self { done: Cell::new(0), ask_at: Cell::new(ASK_EVERY), asked }
    }

    /// Counts `steps` more.
    ///
    /// # Errors
    /// [`Stop`] if the caller says so.
    #[inline]
    pub fn take(&self, steps: usize) -> Result<(), Stop> {
        let done = self.done.get().saturating_add(steps as u64);
        self.done.set(done);
        if done < self.ask_at.get() {
            return Ok(());
        }
        self.ask_at.set(done.saturating_add(ASK_EVERY));
        if (self.asked)() {
            return Err(Stop);
        }
        Ok(())
    }

    /// How many were taken.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.done.get()
    }
}

impl fmt::Debug for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Steps").field("done", &self.done()).finish_non_exhaustive()
    }
}
