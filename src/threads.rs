//! Threads that live exactly as long as the load or save that needs them.
//!
//! A pool that outlives its load would not survive a `fork` and would keep stacks nobody asked
//! for; starting a few threads costs some tens of microseconds, which only very small files
//! notice, and those run on the caller's thread.

use rayon::{prelude::*, ThreadBuilder};

/// Processors this process may use, as far as its affinity and its control group allow.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Does `work` for every item on at most `num_thread` threads, and stops at the first error.
/// All threads have ended when it returns.
pub fn for_each<T, E>(
    num_thread: usize,
    items: Vec<T>,
    work: impl Fn(T) -> Result<(), E> + Send + Sync,
) -> Result<(), E>
where
    T: Send,
    E: Send,
{
    let threads = num_thread.min(items.len());
    if threads <= 1 {
        return items.into_iter().try_for_each(work);
    }
    let mut items = Some(items);
    let done = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("veturboio-{index}"))
        .build_scoped(ThreadBuilder::run, |pool| {
            let items = items.take().unwrap_or_default();
            pool.install(|| items.into_par_iter().with_max_len(1).try_for_each(&work))
        });
    match done {
        Ok(result) => result,
        // The system has no more threads to give: the caller's own is enough.
        Err(_) => items.take().unwrap_or_default().into_iter().try_for_each(work),
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
                Ok::<(), ()>(())
            };
            for_each(num_thread, (1..=100).collect(), add).unwrap();
            assert_eq!(sum.into_inner(), 5050);
        }
    }

    #[test]
    fn an_error_is_returned_and_no_thread_is_left() {
        let used = Mutex::new(HashSet::new());
        let failed = for_each(8, (0..100).collect(), |item| {
            // SAFETY: takes nothing and cannot fail.
            used.lock().unwrap().insert(unsafe { libc::gettid() });
            if item == 50 {
                Err(item)
            } else {
                Ok(())
            }
        });
        assert_eq!(failed, Err(50));
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
