//! Which of several saves to one target is the last one called.
//!
//! Each save takes a [`Ticket`] when it is called, and its [`Turn`] when its bytes are written and it
//! is about to take the target's place. A save that comes when a later one has taken it already is
//! overtaken, and leaves what is there; if the later one failed, nothing has been overtaken. No lock
//! is held during a turn, since taking an object's place may take long and the caller is asked
//! meanwhile whether to stop.

use crate::{
    error::said,
    process::PerProcess,
    watch::{self, Watch, LOOK_EVERY},
};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::CString,
    io,
    sync::{
        atomic::{AtomicU64, Ordering},
        Condvar, Mutex, MutexGuard, PoisonError,
    },
    thread::{self, ThreadId},
    time::Duration,
};

/// What is written to, however its name is spelt.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// A name in a directory, which is known by device and inode.
    Entry((u64, u64), CString),
    /// A file without a name, by device and inode.
    File((u64, u64)),
    /// An object of a store.
    Object(String),
}

/// The time of a call.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
}

impl Ticket {
    /// Takes one now: saves that are called later have higher numbers.
    #[must_use]
    pub fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let registry = registry();
        let mut held = registry.lock();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        held.outstanding.insert(number);
        Self { number }
    }

    /// Whether a later save has taken the place of `target` already.
    #[must_use]
    pub fn is_overtaken(&self, target: &Target) -> bool {
        registry().lock().places.get(target).is_some_and(|place| place.last > self.number)
    }
}

impl Default for Ticket {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        registry().lock().release(self.number);
    }
}

#[derive(Debug, Default)]
struct Place {
    /// The number of the save that has taken it last.
    last: u64,
    /// The thread of the save that is taking it.
    turn: Option<ThreadId>,
}

#[derive(Debug, Default)]
struct Held {
    outstanding: BTreeSet<u64>,
    places: HashMap<Target, Place>,
}

impl Held {
    /// Ends a save, and forgets what no outstanding save can come after.
    fn release(&mut self, number: u64) {
        let was_first = self.outstanding.first() == Some(&number);
        self.outstanding.remove(&number);
        if was_first {
            let first = self.outstanding.first().copied().unwrap_or(u64::MAX);
            self.places.retain(|_, place| place.turn.is_some() || place.last > first);
        }
    }
}

/// The saves of this process. Those that its parent was doing are not going on in it.
#[derive(Debug, Default)]
struct Registry {
    held: Mutex<Held>,
    ended: Condvar,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn registry() -> &'static Registry {
    static REGISTRY: PerProcess<Registry> = PerProcess::new();
    REGISTRY.get()
}

/// The right to take a target's place, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    ticket: &'a Ticket,
    target: Target,
}

impl Turn<'_> {
    /// Says that the place is taken.
    pub fn taken(self) {
        let mut held = registry().lock();
        let place = held.places.entry(self.target.clone()).or_default();
        place.last = place.last.max(self.ticket.number);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let registry = registry();
        if let Some(place) = registry.lock().places.get_mut(&self.target) {
            place.turn = None;
        }
        registry.ended.notify_all();
    }
}

/// How long the handler of a signal may run before it counts as one that waits for this save.
const HANDLER: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 5000 });

const INTERRUPTED: &str =
    "another save to it is being finished, and the handler of a signal that interrupts it has to \
     return first";

/// Waits until no other save takes the target's place; `None` if a later save has taken it.
///
/// # Errors
/// `Stopped`, and `EDEADLK` where this thread is taking it already, or one that runs the handler of a
/// signal for long: a handler cannot wait for what it interrupts, nor for who waits for that.
pub fn turn<'a>(
    ticket: &'a Ticket,
    target: &Target,
    watch: &Watch<'_>,
) -> io::Result<Option<Turn<'a>>> {
    let registry = registry();
    let us = thread::current().id();
    loop {
        let mut held = registry.lock();
        let place = held.places.entry(target.clone()).or_default();
        match place.turn {
            Some(thread) if thread == us => {
                return Err(said(libc::EDEADLK, INTERRUPTED));
            }
            Some(thread) if watch::is_asked_for(HANDLER, Some(thread)) => {
                return Err(said(libc::EDEADLK, INTERRUPTED));
            }
            Some(_) => {
                drop(registry.ended.wait_timeout(held, LOOK_EVERY));
                watch.look();
                watch.check()?;
            }
            None if place.last > ticket.number => return Ok(None),
            None => {
                place.turn = Some(us);
                return Ok(Some(Turn { ticket, target: target.clone() }));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str) -> Target {
        Target::Object(name.to_owned())
    }

    fn take(ticket: &Ticket, target: &Target) -> bool {
        turn(ticket, target, &Watch::default()).unwrap().map(Turn::taken).is_some()
    }

    #[test]
    fn an_older_save_is_overtaken_by_one_that_has_taken_the_place() {
        let (older, newer, target) = (Ticket::new(), Ticket::new(), target("a"));
        assert!(!older.is_overtaken(&target));
        assert!(take(&newer, &target));
        assert!(older.is_overtaken(&target));
        assert!(!take(&older, &target));
        assert!(take(&Ticket::new(), &target));
    }

    #[test]
    fn a_save_that_failed_overtakes_nobody() {
        let (older, newer, target) = (Ticket::new(), Ticket::new(), target("b"));
        drop(turn(&newer, &target, &Watch::default()).unwrap().unwrap());
        assert!(take(&older, &target));
        assert!(take(&newer, &target));
    }

    #[test]
    fn one_thread_cannot_wait_for_itself() {
        let (older, newer, target) = (Ticket::new(), Ticket::new(), target("c"));
        let held = turn(&older, &target, &Watch::default()).unwrap();
        let refused = turn(&newer, &target, &Watch::default()).unwrap_err();
        assert_eq!(refused.kind(), io::Error::from_raw_os_error(libc::EDEADLK).kind());
        drop(held);
        assert!(take(&newer, &target));
    }

    #[test]
    fn nobody_waits_for_a_thread_whose_handler_may_wait_for_him() {
        /// The handler of a signal, which waits for a save on another thread.
        fn handler() -> bool {
            let saved = thread::spawn(|| {
                let (ticket, target) = (Ticket::new(), target("handled"));
                let refused = turn(&ticket, &target, &Watch::default()).unwrap_err();
                refused.kind() == io::Error::from_raw_os_error(libc::EDEADLK).kind()
            });
            saved.join().unwrap()
        }
        let (older, target) = (Ticket::new(), target("handled"));
        let held = turn(&older, &target, &Watch::default()).unwrap();
        let watch = Watch::new(None, Some(handler));
        watch.look();
        assert!(watch.check().is_err(), "the handler was not refused");
        drop(held);
    }

    #[test]
    fn a_later_save_waits_for_one_that_is_taking_the_place() {
        let (older, newer, target) = (Ticket::new(), Ticket::new(), target("d"));
        let held = turn(&older, &target, &Watch::default()).unwrap().unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| take(&newer, &target));
            held.taken();
            assert!(waiting.join().unwrap());
        });
        assert!(!take(&older, &target));
    }

    #[test]
    fn what_no_save_can_come_after_is_forgotten() {
        let mut held = Held { outstanding: (1..=3).collect(), places: HashMap::new() };
        held.places.insert(target("taken by 2"), Place { last: 2, turn: None });
        held.places
            .insert(target("being taken"), Place { last: 0, turn: Some(thread::current().id()) });
        held.release(2);
        assert_eq!(held.places.len(), 2);
        held.release(1);
        assert!(!held.places.contains_key(&target("taken by 2")));
        assert!(held.places.contains_key(&target("being taken")));
    }
}
