//! Threads that live exactly as long as the load or save that needs them.
//!
//! A pool that outlives its load would not survive a `fork` and would keep stacks nobody asked
//! for. The caller's thread works like the others, so that what is small needs no other one, and
//! looks between two items whether it is wanted elsewhere.

use crate::watch::{Stopped, Watch};
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc, Mutex, PoisonError,
    },
    thread,
    time::Duration,
    vec,
};

/// How long the caller's thread waits for each of the others to begin.
const ARRIVAL: Duration = Duration::from_millis(5);

/// Threads that have begun already, if there are some.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ready<'a>(Option<&'a ThreadPool>);

/// Has `count` threads begin while `story` finds out what there is to do for them, and ends them with
/// it. Where the system has no more threads to give, none are ready.
pub fn with_ready<R>(count: usize, story: impl FnOnce(Ready<'_>) -> R) -> R {
    if count == 0 {
        return story(Ready::default());
    }
    thread::scope(|scope| {
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .spawn_handler(|begun| {
                let name = format!("veturboio-{}", begun.index());
                thread::Builder::new().name(name).spawn_scoped(scope, || begun.run()).map(drop)
            })
            .build();
        story(Ready(pool.as_ref().ok()))
    })
}

impl Ready<'_> {
    /// Does `work` for every item on at most `num_thread` threads, beginning with the first ones,
    /// and stops at the first error, or when `watch` says so. All threads that were not `ready` before
    /// have ended when it returns.
    pub fn for_each<T, E>(
        self,
        num_thread: usize,
        items: Vec<T>,
        watch: &Watch<'_>,
        work: impl Fn(T) -> Result<(), E> + Send + Sync,
    ) -> Result<(), E>
    where
        T: Send,
        E: From<Stopped> + Send,
    {
        let others = num_thread.min(items.len()).saturating_sub(1);
        let queue = Queue::new(items);
        let work = |item| watch.check().map_err(E::from).and_then(|()| work(item));
        let here = || {
            queue.empty(|item| {
                watch.look();
                work(item)
            });
        };
        let there = || queue.empty(work);
        match self.0.filter(|pool| pool.current_num_threads() >= others) {
            _ if others == 0 => here(),
            Some(pool) => pool.in_place_scope(|scope| {
                (0..others).for_each(|_| scope.spawn(|_| there()));
                here();
            }),
            None => with_ready(others, |Ready(pool)| {
                // The system may have no more threads to give: the caller's own is enough.
                let Some(pool) = pool else { return here() };
                pool.in_place_scope(|scope| {
                    let (arrived, arrivals) = mpsc::channel();
                    for _ in 0..others {
                        let (arrived, there) = (arrived.clone(), &there);
                        scope.spawn(move |_| {
                            let _ = arrived.send(());
                            there();
                        });
                    }
                    // A thread that begins allocates, and would have to wait for that while pages are
                    // being mapped.
                    (0..others).all(|_| arrivals.recv_timeout(ARRIVAL).is_ok());
                    here();
                });
            }),
        }
        queue.result()
    }
}

/// Does `work` for every item, as [`Ready::for_each`] with none ready.
pub fn for_each<T, E>(
    num_thread: usize,
    items: Vec<T>,
    watch: &Watch<'_>,
    work: impl Fn(T) -> Result<(), E> + Send + Sync,
) -> Result<(), E>
where
    T: Send,
    E: From<Stopped> + Send,
{
    Ready::default().for_each(num_thread, items, watch, work)
}

/// Items in their order, so that a storage that reads ahead sees what comes.
struct Queue<T, E> {
    items: Mutex<vec::IntoIter<T>>,
    is_over: AtomicBool,
    error: Mutex<Option<E>>,
}

impl<T, E> Queue<T, E> {
    fn new(items: Vec<T>) -> Self {
        let items = Mutex::new(items.into_iter());
        Self { items, is_over: AtomicBool::new(false), error: Mutex::new(None) }
    }

    /// Does `work` for what nobody else takes, until nothing is left or somebody fails.
    fn empty(&self, work: impl Fn(T) -> Result<(), E>) {
        while !self.is_over.load(Ordering::Relaxed) {
            let next = self.items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = next else { return };
            // A panic of one is the end for all.
            let over = Over(&self.is_over);
            match work(item) {
                Ok(()) => std::mem::forget(over),
                Err(error) => {
                    let mut first = self.error.lock().unwrap_or_else(PoisonError::into_inner);
                    first.get_or_insert(error);
                }
            }
        }
    }

    fn result(self) -> Result<(), E> {
        self.error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Ends the work when it is dropped.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(unsafe_code)]

    use super::*;
    use std::{
        collections::HashSet,
        path::Path,
        sync::{
            atomic::{AtomicUsize, Ordering},
            Mutex,
        },
        time::Instant,
    };

    #[test]
    fn every_item_is_done_once_whatever_the_number_of_threads() {
        for num_thread in [1, 2, 7, 1000] {
            let sum = AtomicUsize::new(0);
            let add = |item| {
                sum.fetch_add(item, Ordering::Relaxed);
                Ok::<(), Stopped>(())
            };
            for_each(num_thread, (1..=100).collect(), &Watch::default(), add).unwrap();
            assert_eq!(sum.into_inner(), 5050);
        }
    }

    #[test]
    fn threads_that_are_ready_take_part_and_others_are_begun_if_they_are_too_few() {
        for (count, num_thread) in [(0, 1), (0, 3), (1, 1), (1, 2), (1, 4), (3, 2)] {
            let started = AtomicUsize::new(0);
            let used = Mutex::new(HashSet::new());
            let all = with_ready(count, |ready| {
                ready.for_each(num_thread, vec![(); num_thread], &Watch::default(), |()| {
                    started.fetch_add(1, Ordering::Relaxed);
                    used.lock().unwrap().insert(std::thread::current().id());
                    // Each waits for all: so many threads there are at once.
                    let deadline = Instant::now() + Duration::from_secs(10);
                    while started.load(Ordering::Relaxed) < num_thread {
                        if Instant::now() > deadline {
                            return Err(Failed::At(num_thread));
                        }
                        std::thread::yield_now();
                    }
                    Ok(())
                })
            });
            assert_eq!(all, Ok(()), "{count} {num_thread}");
            assert_eq!(used.into_inner().unwrap().len(), num_thread, "{count} {num_thread}");
        }
    }

    #[derive(Debug, PartialEq)]
    enum Failed {
        At(usize),
        Stopped,
    }

    impl From<Stopped> for Failed {
        fn from(_: Stopped) -> Self {
            Self::Stopped
        }
    }

    #[test]
    fn the_caller_can_stop_it_whatever_the_number_of_threads() {
        for num_thread in [1, 3] {
            let done = AtomicUsize::new(0);
            let watch = Watch::new(None, Some(|| true));
            let stopped = for_each(num_thread, (0..100_000).collect(), &watch, |_: usize| {
                std::thread::sleep(Duration::from_millis(1));
                done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            assert_eq!(stopped, Err(Failed::Stopped));
            assert!(done.into_inner() < 100_000);
        }
    }

    #[test]
    fn an_error_is_returned_and_no_thread_is_left() {
        let used = Mutex::new(HashSet::new());
        let failed = for_each(8, (0..100).collect(), &Watch::default(), |item| {
            // SAFETY: takes nothing and cannot fail.
            used.lock().unwrap().insert(unsafe { libc::gettid() });
            if item == 50 {
                Err(Failed::At(item))
            } else {
                Ok(())
            }
        });
        assert_eq!(failed, Err(Failed::At(50)));
        // A thread that has done its work may take a moment to leave the kernel's list.
        let deadline = Instant::now() + Duration::from_secs(10);
        // SAFETY: as above.
        let caller = unsafe { libc::gettid() };
        for thread in used.into_inner().unwrap().into_iter().filter(|&used| used != caller) {
            while Path::new(&format!("/proc/self/task/{thread}")).exists() {
                assert!(Instant::now() < deadline, "thread {thread} is still there");
                std::thread::yield_now();
            }
        }
    }
}
