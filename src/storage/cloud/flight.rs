//! Many ranges in flight at once, straight into the memory they are wanted in.
//!
//! A few threads, no more than processors, run a loop each, and every loop has its share of the
//! requests in flight. All take from one queue. When the store says that it is too much, fewer are
//! sent, and then one more for each that comes back well.

use super::{
    cache::{Keep, PIECE},
    line::Line,
    object::Object,
};
use crate::{
    processors::processors,
    storage::Scattered,
    watch::{Watch, LOOK_EVERY},
};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::{
    io,
    ops::Range,
    sync::{
        atomic::{AtomicBool, AtomicUsize, Ordering},
        Condvar, Mutex, PoisonError,
    },
    time::Duration,
    vec,
};

/// Requests that one loop looks after before another is worth a thread and a client.
const EACH: usize = 4;

/// Loops at most: some threads fill any wire.
const MAX_LOOPS: usize = 16;

/// What the loops have in common.
struct Flight<'a, 'p> {
    object: &'a Object,
    queue: Mutex<vec::IntoIter<Task<'p>>>,
    /// Memory for what is kept elsewhere, while it is not in use.
    idle: Mutex<Vec<Vec<u8>>>,
    /// How many may be in flight, and how many are.
    limit: AtomicUsize,
    flying: AtomicUsize,
    most: usize,
    is_over: AtomicBool,
    error: Mutex<Option<io::Error>>,
    running: Running,
}

/// How many loops run beside that of the caller's thread.
#[derive(Debug, Default)]
struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

/// Bytes that are asked for.
enum Task<'p> {
    Fill(Scattered<'p>),
    Keep(Range<u64>, &'p Keep<'p>),
}

/// Requests in flight while an object is downloaded to be kept.
const DOWNLOADS: usize = 32;

/// Hands the whole of an object to `keep`, by pieces.
pub fn download(object: &Object, len: u64, keep: &Keep<'_>, watch: &Watch<'_>) -> io::Result<()> {
    let pieces = (0..len.div_ceil(PIECE)).map(|index| {
        let start = index * PIECE;
        Task::Keep(start..len.min(start + PIECE), keep)
    });
    run(object, pieces.collect(), DOWNLOADS, watch)
}

/// Fills `pieces` with at most `num_thread` requests in flight.
pub fn fly(
    object: &Object,
    pieces: Vec<Scattered<'_>>,
    num_thread: usize,
    watch: &Watch<'_>,
) -> io::Result<()> {
    run(object, pieces.into_iter().map(Task::Fill).collect(), num_thread, watch)
}

fn run(
    object: &Object,
    tasks: Vec<Task<'_>>,
    num_thread: usize,
    watch: &Watch<'_>,
) -> io::Result<()> {
    let most = num_thread.min(tasks.len()).max(1);
    let loops = most.div_ceil(EACH).min(processors()).clamp(1, MAX_LOOPS);
    let flight = Flight {
        object,
        queue: Mutex::new(tasks.into_iter()),
        idle: Mutex::default(),
        limit: AtomicUsize::new(most),
        flying: AtomicUsize::new(0),
        most,
        is_over: AtomicBool::new(false),
        error: Mutex::new(None),
        running: Running::default(),
    };
    let share = most.div_ceil(loops);
    std::thread::scope(|scope| {
        for index in 1..loops {
            *lock(&flight.running.count) += 1;
            let work = || {
                let _leaving = Leaving(&flight.running);
                flight.run(share, watch);
            };
            let name = format!("veturboio-{index}");
            if std::thread::Builder::new().name(name).spawn_scoped(scope, work).is_err() {
                // The others do its work.
                *lock(&flight.running.count) -= 1;
            }
        }
        flight.run(share, watch);
        flight.running.wait(watch);
    });
    match flight.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

impl<'p> Flight<'_, 'p> {
    fn run(&self, share: usize, watch: &Watch<'_>) {
        let lines = self.object.lines();
        let done = lines.with(|line| line.wait(watch, self.empty(line, share, watch)));
        if let Err(error) = done {
            self.is_over.store(true, Ordering::Relaxed);
            lock(&self.error).get_or_insert(error);
        }
    }

    /// Keeps `share` requests in flight until there is nothing left to be asked for.
    async fn empty(&self, line: &Line, share: usize, watch: &Watch<'_>) -> io::Result<()> {
        let mut flying = FuturesUnordered::new();
        loop {
            let mut is_held = false;
            while flying.len() < share && !self.is_over.load(Ordering::Relaxed) {
                if self.flying.load(Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed) {
                    is_held = true;
                    break;
                }
                let Some(task) = lock(&self.queue).next() else { break };
                self.flying.fetch_add(1, Ordering::Relaxed);
                flying.push(self.fetch(line, task, watch));
            }
            match flying.next().await {
                Some(done) => done?,
                None if is_held => tokio::time::sleep(Duration::from_millis(10)).await,
                None => return Ok(()),
            }
        }
    }

    async fn fetch(&self, line: &Line, task: Task<'p>, watch: &Watch<'_>) -> io::Result<()> {
        let _landed = Landed(&self.flying);
        match task {
            Task::Fill(Scattered { offset, bytes }) => self.ask(line, bytes, offset, watch).await,
            Task::Keep(Range { start, end }, keep) => {
                let mut bytes = lock(&self.idle).pop().unwrap_or_default();
                bytes.resize((end - start) as usize, 0);
                self.ask(line, &mut bytes, start, watch).await?;
                keep(start, &bytes)?;
                lock(&self.idle).push(bytes);
                Ok(())
            }
        }
    }

    async fn ask(
        &self,
        line: &Line,
        bytes: &mut [u8],
        offset: u64,
        watch: &Watch<'_>,
    ) -> io::Result<()> {
        let fewer = || {
            let halve = |limit: usize| Some((limit / 2).max(1));
            let _ = self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, halve);
        };
        self.object.fetch(line, bytes, offset, &fewer).await?;
        watch.add(bytes.len() as u64);
        let more = |limit: usize| (limit < self.most).then_some(limit + 1);
        let _ = self.limit.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        Ok(())
    }
}

impl Running {
    /// Waits on the caller's thread for the others, who see by `watch` when he wants to stop.
    fn wait(&self, watch: &Watch<'_>) {
        loop {
            let count = lock(&self.count);
            if *count == 0 {
                return;
            }
            // The lock is released before the caller's code runs, as it may in `look`.
            drop(
                self.ended.wait_timeout(count, LOOK_EVERY).unwrap_or_else(PoisonError::into_inner),
            );
            watch.look();
        }
    }
}

/// Counts a request out, however it ends.
struct Landed<'a>(&'a AtomicUsize);

impl Drop for Landed<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a loop out, even one that panics.
struct Leaving<'a>(&'a Running);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        *lock(&self.0.count) -= 1;
        self.0.ended.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    static RUNNING: Running = Running { count: Mutex::new(0), ended: Condvar::new() };

    /// The handler of a signal, which does not end before a loop has.
    fn handler() -> bool {
        let Ok(mut count) = RUNNING.count.try_lock() else { panic!("the lock is held") };
        *count = 0;
        false
    }

    #[test]
    fn no_lock_is_held_while_the_caller_is_asked() {
        *lock(&RUNNING.count) = 1;
        RUNNING.wait(&Watch::new(None, Some(handler)));
    }
}
