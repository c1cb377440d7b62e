//! Buffers for one load or save, of which it has a limited number at a time.

use super::{segment::Segment, Buffer, Buffers, State};
use crate::{
    targets::HostMemory,
    watch::{is_within_look, Watch, LOOK_EVERY},
};
use std::{
    io,
    sync::{
        atomic::{AtomicU64, Ordering},
        MutexGuard, PoisonError,
    },
};

/// Where a load takes buffers from that a device copies from.
///
/// Neither the lock of [`Buffers`] nor a buffer is ever waited for in a way that depends on code
/// of the caller: the lock is released before the caller is asked whether to stop, and a ring of such
/// code that has no buffer gets one beyond its limit. So the handler of a signal, which runs while the load
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
            if is_within_look() && self.held.load(Ordering::Relaxed) == 0 {
                // Whoever has all of them may be waiting for this very load to end.
                return self.make(state);
            }
            drop(
                home.returned
                    .wait_timeout(state, LOOK_EVERY)
                    .unwrap_or_else(PoisonError::into_inner),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::SEGMENT_LEN;
    use std::{
        sync::{mpsc, LazyLock},
        thread,
        time::Duration,
    };

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
    fn a_ring_waits_at_its_limit() {
        let buffers = Buffers::new(SEGMENT_LEN);
        let rings = [0, 1].map(|_| Ring::new(&buffers, None, 1, &no_host_memory));
        let only = rings[0].lend(&Watch::default()).unwrap();
        let watch = || Watch::new(None, Some(|| true));
        assert!(rings.iter().all(|ring| ring.lend(&watch()).is_err()), "it waits until stopped");
        assert_eq!(buffers.held(), SEGMENT_LEN);
        drop(only);
        assert!(rings.iter().all(|ring| ring.held.load(Ordering::Relaxed) == 0));
    }
}
