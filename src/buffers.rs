//! Host memory that is used again: buffers of one segment each, lent for the time of a piece of
//! work.
//!
//! What passes through a buffer are bytes that cannot go straight from where they lie to where
//! they are wanted. Each load or save has [`Buffers`] of its own unless the caller keeps some
//! from one to the next, which saves the system from giving and taking the memory each time.

use crate::{
    error::DeviceFailed,
    plan::SEGMENT_LEN,
    targets::{HostMemory, Pending},
    watch::Watch,
};
use memmap2::{Advice, MmapMut};
use std::{
    collections::VecDeque,
    fmt, io,
    ops::{Deref, DerefMut},
    sync::{
        atomic::{AtomicU64, Ordering},
        Condvar, Mutex, MutexGuard, PoisonError,
    },
    time::Duration,
};

/// What callers keep at most unless they say otherwise, in bytes.
pub const DEFAULT_CAPACITY: u64 = 256 << 20;

/// How long somebody who waits for a buffer sleeps before he looks up.
const PATIENCE: Duration = Duration::from_millis(50);

/// How often a device is asked whether it is done before its word is given up on.
const TRIES: usize = 3;

/// The size of a huge page: 2 MiB on x86-64, and on aarch64 with pages of 4 KiB.
const HUGE_PAGE: usize = 2 << 20;

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

enum Memory {
    Pages(Pages),
    Host(Box<dyn HostMemory>),
}

/// Ordinary memory that begins at a huge page and consists of such, where the system has them: a disk is
/// handed a few long pieces of memory instead of two thousand short ones.
struct Pages {
    map: MmapMut,
    start: usize,
}

impl Pages {
    fn new() -> io::Result<Self> {
        let map = MmapMut::map_anon(SEGMENT_LEN as usize + HUGE_PAGE)?;
        let start = map.as_ptr().align_offset(HUGE_PAGE).min(HUGE_PAGE);
        // A system without huge pages does without.
        let _ = map.advise_range(Advice::HugePage, start, SEGMENT_LEN as usize);
        Ok(Self { map, start })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[self.start..][..SEGMENT_LEN as usize]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.start..][..SEGMENT_LEN as usize]
    }
}

/// The memory of a buffer, and what a device may still be copying from it or to it.
struct Segment {
    kind: Option<i8>,
    memory: Memory,
    pending: Option<Box<dyn Pending>>,
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl Segment {
    /// Waits until no device needs the memory any more. If that fails, one may still.
    fn wait(&mut self) -> io::Result<()> {
        if let Some(pending) = &self.pending {
            pending.wait().map_err(DeviceFailed)?;
            self.pending = None;
        }
        Ok(())
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // What goes wrong is told by whoever waits for all; here no device may find its memory gone.
        // One that fails every time it is asked copies nothing more.
        let _ = (0..TRIES).any(|_| self.wait().is_ok());
    }
}

/// Where a load takes buffers from that a device copies from.
///
/// Neither the lock of [`Buffers`] nor a buffer is ever waited for in a way that depends on code
/// of the caller: the lock is released before the caller is asked whether to stop, and a ring that
/// has no buffer gets one beyond its limit. So the handler of a signal, which runs while the load
/// that it interrupts keeps its buffers, can load and save with the same ones.
pub struct Ring<'a> {
    buffers: &'a Buffers,
    /// The kind of device whose host memory it is; ordinary memory if `None`.
    kind: Option<i8>,
    /// How many there are to be, at most.
    limit: u64,
    allocate: &'a (dyn Fn(u64) -> io::Result<Box<dyn HostMemory>> + Sync),
    /// How many of them this ring has acquired and not released; changed under the lock.
    held: AtomicU64,
}

impl<'a> Ring<'a> {
    /// A ring of at most `limit` buffers of host memory that `kind` names, which `allocate` makes;
    /// of ordinary memory if `kind` is `None`.
    pub fn new(
        buffers: &'a Buffers,
        kind: Option<i8>,
        limit: u64,
        allocate: &'a (dyn Fn(u64) -> io::Result<Box<dyn HostMemory>> + Sync),
    ) -> Self {
        Self { buffers, kind, limit, allocate, held: AtomicU64::new(0) }
    }

    /// Acquires a buffer: the one that came back first, as soon as no device needs it any more. Of
    /// page-locked memory, which is dear, a load gets as many as there are to be before any is lent
    /// again, so that the next one needs no more, whatever its threads make of it.
    ///
    /// # Errors
    /// There is no memory, a device failed, or the caller wants to stop.
    pub fn lend(&self, watch: &Watch<'_>) -> io::Result<Buffer<'_>> {
        let home = self.buffers;
        loop {
            let state = home.state();
            let is_free = state.free.iter().any(|segment| segment.kind == self.kind);
            if state.counted(self.kind) < self.limit && (self.kind.is_some() || !is_free) {
                return self.make(state);
            }
            if is_free {
                return self.take(state);
            }
            if self.held.load(Ordering::Relaxed) == 0 {
                // Whoever has all of them may be waiting for this very load to end.
                return self.make(state);
            }
            drop(
                home.returned.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner),
            );
            watch.look();
            watch.check()?;
        }
    }

    fn make(&self, mut state: MutexGuard<'_, State>) -> io::Result<Buffer<'_>> {
        let home = self.buffers;
        let gone = state.make_room(self.kind, home.capacity);
        *state.count(self.kind) += 1;
        // Under the lock, so that two threads of one load do not both get one beyond the limit.
        self.held.fetch_add(1, Ordering::Relaxed);
        drop(state);
        drop(gone);
        let mut buffer = Buffer { segment: None, home, held: Some(&self.held) };
        buffer.segment = Some(home.make(self.kind, self.allocate)?);
        Ok(buffer)
    }

    fn take(&self, mut state: MutexGuard<'_, State>) -> io::Result<Buffer<'_>> {
        let segment = state.take(self.kind);
        self.held.fetch_add(1, Ordering::Relaxed);
        drop(state);
        let mut buffer = Buffer { segment, home: self.buffers, held: Some(&self.held) };
        // One that a device failed with goes back like any other.
        buffer.segment.as_mut().map_or(Ok(()), Segment::wait)?;
        Ok(buffer)
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
        if state.closed || state.total() * SEGMENT_LEN > self.capacity {
            drop(state);
            let kind = segment.as_ref().map(|segment| segment.kind);
            // It counts until it is gone, which a device may have to be waited for.
            drop(segment);
            state = self.state();
            if let Some(kind) = kind {
                *state.count(kind) -= 1;
            }
        } else {
            state.free.extend(segment);
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
    use super::*;
    use std::{
        sync::{mpsc, LazyLock},
        thread,
    };

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

    fn no_host_memory(_: u64) -> io::Result<Box<dyn HostMemory>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the handlers of the tests below save with.
    static SHARED: LazyLock<Buffers> = LazyLock::new(|| Buffers::new(SEGMENT_LEN));
    static HANDLED: AtomicU64 = AtomicU64::new(0);

    /// A handler that saves with the same buffers as what it interrupts.
    fn handler() -> bool {
        let ring = Ring::new(&SHARED, None, 1, &no_host_memory);
        drop(ring.lend(&Watch::default()).unwrap());
        HANDLED.fetch_add(1, Ordering::Relaxed);
        false
    }

    #[test]
    fn a_handler_can_use_the_buffers_of_what_it_interrupts() {
        let (ended, end) = mpsc::channel();
        thread::spawn(move || {
            let ring = Ring::new(&SHARED, None, 1, &no_host_memory);
            let only = ring.lend(&Watch::default()).unwrap();
            thread::scope(|scope| {
                // It keeps the only buffer until a handler was done with the same buffers.
                let wait = || HANDLED.load(Ordering::Relaxed) == 0;
                scope.spawn(move || {
                    while wait() {
                        thread::yield_now();
                    }
                    drop(only);
                });
                // Runs the handler while it waits for that one.
                drop(ring.lend(&Watch::new(None, Some(handler))).unwrap());
            });
            // Runs it while it has the only one.
            let only = ring.lend(&Watch::default()).unwrap();
            Watch::new(None, Some(handler)).look();
            drop(only);
            ended.send(SHARED.held()).unwrap();
        });
        let held = end.recv_timeout(Duration::from_secs(60)).expect("the handler waits for ever");
        assert_eq!((held, HANDLED.load(Ordering::Relaxed)), (SEGMENT_LEN, 2));
    }

    #[test]
    fn a_ring_takes_one_beyond_its_limit_only_if_it_has_none() {
        let buffers = Buffers::new(2 * SEGMENT_LEN);
        let rings = [0, 1, 2].map(|_| Ring::new(&buffers, None, 1, &no_host_memory));
        let all = rings.each_ref().map(|ring| ring.lend(&Watch::default()).unwrap());
        assert_eq!(buffers.held(), 3 * SEGMENT_LEN);
        let watch = Watch::new(None, Some(|| true));
        assert!(rings[0].lend(&watch).is_err(), "it waits until it is stopped");
        drop(all);
        assert_eq!(buffers.held(), 2 * SEGMENT_LEN);
        assert!(rings.iter().all(|ring| ring.held.load(Ordering::Relaxed) == 0));
    }
}
