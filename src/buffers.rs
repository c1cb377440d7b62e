//! Host memory that is used again: buffers of one segment each, lent for the time of a piece of
//! work.
//!
//! What passes through a buffer are bytes that cannot go straight from where they lie to where
//! they are wanted. Each load or save has [`Buffers`] of its own unless the caller keeps some
//! from one to the next, which saves the system from giving and taking the memory each time.

use crate::plan::SEGMENT_LEN;
use memmap2::MmapMut;
use std::{
    io,
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What callers keep at most unless they say otherwise, in bytes.
pub const DEFAULT_CAPACITY: u64 = 256 << 20;

/// Buffers of [`SEGMENT_LEN`] bytes that start at a page.
#[derive(Debug)]
pub struct Buffers {
    capacity: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<MmapMut>,
    /// Buffers there are, lent ones too.
    count: u64,
    /// Whether loads want page-locked memory; nobody has said yet if `None`.
    pinned: Option<bool>,
    closed: bool,
}

impl Buffers {
    /// Keeps up to `capacity` bytes for later; more are lent if need be, and given back to the
    /// system at once.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { capacity, state: Mutex::default() }
    }

    /// Lends a buffer, whose content is left from its last use.
    ///
    /// # Errors
    /// The system has no memory to give.
    pub fn lend(&self) -> io::Result<Buffer<'_>> {
        let free = self.state().free.pop();
        let memory = if let Some(memory) = free {
            memory
        } else {
            let memory = MmapMut::map_anon(SEGMENT_LEN as usize)?;
            self.state().count += 1;
            memory
        };
        Ok(Buffer { memory: Some(memory), home: self })
    }

    /// Bytes that are held, lent ones too.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.state().count * SEGMENT_LEN
    }

    /// Bytes that are kept at most.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Whether a load may want page-locked memory, or none: memory of one kind cannot serve the
    /// other.
    #[must_use]
    pub fn may_be_pinned(&self, pinned: bool) -> bool {
        self.state().pinned.is_none_or(|decided| decided == pinned)
    }

    /// Remembers what the first load that succeeded wanted, which decides.
    pub fn decide_pinned(&self, pinned: bool) {
        self.state().pinned.get_or_insert(pinned);
    }

    /// Gives all memory back and keeps none from now on. Whoever has a buffer may finish with it.
    pub fn close(&self) {
        let mut state = self.state();
        state.count -= state.free.len() as u64;
        let free = std::mem::take(&mut state.free);
        state.pinned = None;
        state.closed = true;
        drop(state);
        drop(free);
    }

    /// No code panics while it holds the lock, and a list of buffers is whole at any time.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

/// A buffer on loan; it goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer<'a> {
    memory: Option<MmapMut>,
    home: &'a Buffers,
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.memory.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.memory.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let Some(memory) = self.memory.take() else { return };
        let mut state = self.home.state();
        if state.closed || state.count * SEGMENT_LEN > self.home.capacity {
            state.count -= 1;
        } else {
            state.free.push(memory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_came_back_is_lent_again() {
        let buffers = Buffers::default();
        let mut first = buffers.lend().unwrap();
        first[7] = 9;
        let address = first.as_ptr();
        assert_eq!((first.len() as u64, address as usize % 4096), (SEGMENT_LEN, 0));
        drop(first);
        let again = buffers.lend().unwrap();
        assert_eq!((again.as_ptr(), again[7]), (address, 9));
        assert_eq!(buffers.held(), SEGMENT_LEN);
    }

    #[test]
    fn no_more_is_kept_than_the_capacity() {
        let buffers = Buffers::new(2 * SEGMENT_LEN + 1);
        let lent: Vec<_> = (0..5).map(|_| buffers.lend().unwrap()).collect();
        assert_eq!(buffers.held(), 5 * SEGMENT_LEN);
        drop(lent);
        assert_eq!(buffers.held(), 2 * SEGMENT_LEN);
    }

    #[test]
    fn what_is_closed_keeps_nothing_and_still_lends() {
        let buffers = Buffers::default();
        let (one, two) = (buffers.lend().unwrap(), buffers.lend().unwrap());
        drop(one);
        buffers.close();
        assert_eq!(buffers.held(), SEGMENT_LEN, "the other one is still out");
        drop(two);
        assert_eq!(buffers.held(), 0);
        drop(buffers.lend().unwrap());
        assert_eq!(buffers.held(), 0);
    }

    #[test]
    fn the_first_load_decides_about_pinned_memory() {
        let buffers = Buffers::default();
        assert!(buffers.may_be_pinned(false) && buffers.may_be_pinned(true));
        buffers.decide_pinned(false);
        buffers.decide_pinned(true);
        assert!(buffers.may_be_pinned(false) && !buffers.may_be_pinned(true));
        buffers.close();
        assert!(buffers.may_be_pinned(true));
    }
}
