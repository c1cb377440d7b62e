//! Threads that live exactly as long as the load or save that needs them.
//!
//! A pool that outlives its load would not survive a `fork` and would keep stacks nobody asked
//! for; starting a few threads costs some tens of microseconds, which only very small files
//! notice, and those run on the caller's thread.

use crate::watch::{Stopped, Watch, LOOK_EVERY};
use rayon::{prelude::*, ThreadBuilder};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};

/// Processors this process may use, as far as its affinity and its control group allow.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for every item on at most `num_thread` threads, beginning with the first ones,
/// and stops at the first error, or when `watch` says so. All threads have ended when it returns.
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
    let work = |item| watch.check().map_err(E::from).and_then(|()| work(item));
    let here = |items: Vec<T>| {
        items.into_iter().try_for_each(|item| {
            watch.look();
            work(item)
        })
    };
    let threads = num_thread.min(items.len());
    if threads <= 1 {
        return here(items);
    }
    let mut items = Some(items);
    let done = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("veturboio-{index}"))
        .build_scoped(ThreadBuilder::run, |pool| {
            let items = items.take().unwrap_or_default();
            let (done, answer) = mpsc::channel();
            pool.in_place_scope(|scope| {
                scope.spawn(|_| {
                    // In their order, so that a storage that reads ahead sees what comes.
                    let result = items.into_iter().par_bridge().try_for_each(&work);
                    let _ = done.send(result);
                });
                wait(&answer, watch)
            })
        });
    match done {
        Ok(result) => result,
        // The system has no more threads to give: the caller's own is enough.
        Err(_) => here(items.take().unwrap_or_default()),
    }
}

/// Waits for the pool on the caller's thread, which looks up now and then.
fn wait<E: From<Stopped>>(answer: &Receiver<Result<(), E>>, watch: &Watch<'_>) -> Result<(), E> {
    loop {
        let heard = if watch.is_looked_at() {
            answer.recv_timeout(LOOK_EVERY)
        } else {
            answer.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match heard {
            Ok(result) => return result,
            Err(RecvTimeoutError::Timeout) => watch.look(),
            // A panic, which the scope hands on once all threads have ended.
            Err(RecvTimeoutError::Disconnected) => return Err(Stopped.into()),
        }
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
        time::{Duration, Instant},
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
        for thread in used.into_inner().unwrap() {
            while Path::new(&format!("/proc/self/task/{thread}")).exists() {
                assert!(Instant::now() < deadline, "thread {thread} is still there");
                std::thread::yield_now();
            }
        }
    }
}
