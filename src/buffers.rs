//! Host memory that is used again: buffers of one segment each, lent for the time of a piece of
//! work.
//!
//! What passes through a buffer are bytes that cannot go straight from where they lie to where
//! they are wanted. Each load or save has [`Buffers`] of its own unless the caller keeps some
//! from one to the next, which saves the system from giving and taking the memory each time.

mod ring;
mod segment;

use crate::{
    plan::SEGMENT_LEN,
    targets::{HostMemory, Pending},
};
pub use ring::Ring;
use segment::{Memory, Pages, Segment};
use std::{
    collections::VecDeque,
    io,
    ops::{Deref, DerefMut},
    sync::{
        atomic::{AtomicU64, Ordering},
        Condvar, Mutex, MutexGuard, PoisonError,
    },
};

/// What callers keep at most unless they say otherwise, in bytes.
pub const DEFAULT_CAPACITY: u64 = 256 << 20;

/// Buffers of [`SEGMENT_LEN`] bytes that start at a page, those of ordinary memory at a huge one.
#[derive(Debug)]
pub struct Buffers {
    capacity: u64,
    state: Mutex<State>,
    /// A buffer came back.
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What came back first stands first.
    free: VecDeque<Segment>,
    /// Buffers there are, lent ones too, with the kind of device whose memory they are.
    counts: Vec<(Option<i8>, u64)>,
    /// How many of them are not kept, and about to go.
    leaving: u64,
    /// Whether loads want page-locked memory; nobody has said yet if `None`.
    pinned: Option<bool>,
    closed: bool,
}

impl State {
    fn count(&mut self, kind: Option<i8>) -> &mut u64 {
        let at = self.counts.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            self.counts.push((kind, 0));
            self.counts.len() - 1
        });
        &mut self.counts[at].1
    }

    fn counted(&self, kind: Option<i8>) -> u64 {
        self.counts.iter().find(|(known, _)| *known == kind).map_or(0, |(_, count)| *count)
    }

    fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count).sum()
    }

    /// Whether a buffer that comes back is kept. Those that are about to go have made room already:
    /// of two that come back at once, both would go otherwise.
    fn keeps(&self, capacity: u64) -> bool {
        !self.closed && (self.total() - self.leaving) * SEGMENT_LEN <= capacity
    }

    fn take(&mut self, kind: Option<i8>) -> Option<Segment> {
        let at = self.free.iter().position(|segment| segment.kind == kind)?;
        self.free.remove(at)
    }

    /// Takes out what is of another kind, if there is no room for one more.
    fn make_room(&mut self, kind: Option<i8>, capacity: u64) -> Vec<Segment> {
        let mut gone = Vec::new();
        while (self.total() + 1) * SEGMENT_LEN > capacity {
            let Some(at) = self.free.iter().position(|segment| segment.kind != kind) else { break };
            gone.extend(self.free.remove(at));
        }
        for segment in &gone {
            *self.count(segment.kind) -= 1;
        }
        gone
    }
}

impl Buffers {
    /// Keeps up to `capacity` bytes for later; more are lent if need be, and given back to the
    /// system at once.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self { capacity, state: Mutex::default(), returned: Condvar::new() }
    }

    /// Lends a buffer of ordinary memory, whose content is left from its last use.
    ///
    /// # Errors
    /// The system has no memory to give.
    pub fn lend(&self) -> io::Result<Buffer<'_>> {
        let mut state = self.state();
        let segment = if let Some(mut segment) = state.take(None) {
            drop(state);
            segment.wait()?;
            segment
        } else {
            *state.count(None) += 1;
            drop(state);
            self.make(None, &|_| Err(io::ErrorKind::Unsupported.into()))?
        };
        Ok(Buffer { segment: Some(segment), home: self, held: None })
    }

    /// Makes a buffer that is counted already.
    fn make(
        &self,
        kind: Option<i8>,
        allocate: &dyn Fn(u64) -> io::Result<Box<dyn HostMemory>>,
    ) -> io::Result<Segment> {
        let made = match kind {
            None => Pages::new().map(Memory::Pages),
            Some(_) => allocate(SEGMENT_LEN).map(Memory::Host),
        };
        match made {
            Ok(memory) => Ok(Segment { kind, memory, pending: None }),
            Err(error) => {
                *self.state().count(kind) -= 1;
                self.returned.notify_all();
                Err(error)
            }
        }
    }

    /// Keeps what came back, unless there is too much, and counts it out of the ring that had it.
    fn take_back(&self, segment: Option<Segment>, ring: Option<&AtomicU64>) {
        let mut state = self.state();
        match segment {
            Some(segment) if !state.keeps(self.capacity) => {
                let kind = segment.kind;
                state.leaving += 1;
                drop(state);
                // It counts until it is gone, which a device may have to be waited for.
                drop(segment);
                state = self.state();
                state.leaving -= 1;
                *state.count(kind) -= 1;
            }
            segment => state.free.extend(segment),
        }
        if let Some(held) = ring {
            held.fetch_sub(1, Ordering::Relaxed);
        }
        drop(state);
        self.returned.notify_all();
    }

    /// Bytes that are held, lent ones too.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.state().total() * SEGMENT_LEN
    }

    /// Bytes that are kept at most.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// How many buffers somebody may have who would like `wanted`. Ordinary memory is lent beyond the
    /// capacity, and given back; page-locked memory is not.
    #[must_use]
    pub fn room_for(&self, kind: Option<i8>, wanted: u64) -> u64 {
        match kind {
            None => wanted.max(1),
            Some(_) => wanted.min(self.capacity / SEGMENT_LEN).max(1),
        }
    }

    /// Whether a load may want page-locked memory, or none: memory of one kind cannot serve the
    /// other.
    #[must_use]
    pub fn may_be_pinned(&self, pinned: bool) -> bool {
        self.state().pinned.is_none_or(|decided| decided == pinned)
    }

    /// Whether the loads before wanted page-locked memory.
    #[must_use]
    pub fn are_pinned(&self) -> bool {
        self.state().pinned == Some(true)
    }

    /// Remembers what the first load that succeeded wanted, which decides.
    pub fn decide_pinned(&self, pinned: bool) {
        self.state().pinned.get_or_insert(pinned);
    }

    /// Gives all memory back and keeps none from now on. Whoever has a buffer may finish with it.
    pub fn close(&self) {
        let mut state = self.state();
        let free = std::mem::take(&mut state.free);
        for segment in &free {
            *state.count(segment.kind) -= 1;
        }
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
    segment: Option<Segment>,
    home: &'a Buffers,
    /// The count of the ring that acquired it.
    held: Option<&'a AtomicU64>,
}

impl Buffer<'_> {
    /// Gives the buffer back although a device still needs what is in it: whoever gets it next waits
    /// for that.
    pub fn leave(mut self, pending: Option<Box<dyn Pending>>) {
        if let Some(segment) = &mut self.segment {
            segment.pending = pending;
        }
    }
}

impl Deref for Buffer<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.segment.as_ref().map(|segment| &segment.memory) {
            Some(Memory::Pages(memory)) => memory,
            Some(Memory::Host(memory)) => memory,
            None => &[],
        }
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self.segment.as_mut().map(|segment| &mut segment.memory) {
            Some(Memory::Pages(memory)) => memory,
            Some(Memory::Host(memory)) => memory,
            None => &mut [],
        }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.home.take_back(self.segment.take(), self.held);
    }
}

#[cfg(test)]
mod tests {
    use super::{segment::HUGE_PAGE, *};

    #[test]
    fn of_two_that_come_back_at_once_one_is_kept() {
        let mut state = State::default();
        *state.count(None) = 2;
        assert!(!state.keeps(SEGMENT_LEN));
        // The first is about to go.
        state.leaving = 1;
        assert!(state.keeps(SEGMENT_LEN));
        state.closed = true;
        assert!(!state.keeps(SEGMENT_LEN));
    }

    #[test]
    fn a_buffer_that_came_back_is_lent_again() {
        let buffers = Buffers::default();
        let mut first = buffers.lend().unwrap();
        first[7] = 9;
        let address = first.as_ptr();
        assert_eq!((first.len() as u64, address as usize % HUGE_PAGE), (SEGMENT_LEN, 0));
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
