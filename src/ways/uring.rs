//! Reads past the page cache with many requests in flight from one thread (io_uring).
//!
//! Where the kernel is too old, or an administrator or a seccomp profile forbids it, the reads
//! are those of [`Direct`].

use super::{
    direct::{direct, is_aligned, Direct},
    read::Read,
    Job, Piece, Reader, PAGE,
};
use crate::watch::LOOK_EVERY;
use io_uring::{
    opcode, squeue,
    types::{Fd, SubmitArgs, Timespec},
    IoUring,
};
use std::{fs::File, io, os::fd::AsRawFd, vec};

/// Requests in flight, at most.
const MAX_DEPTH: usize = 128;

#[derive(Debug)]
pub struct Uring;

impl Reader for Uring {
    fn read(&self, job: &Job<'_>, pieces: Vec<Piece<'_>>) -> io::Result<()> {
        let Some(file) = direct(job) else { return Read.read(job, pieces) };
        let Some(ring) = ring(job.num_thread) else { return Direct.read(job, pieces) };
        let (aligned, others) = pieces.into_iter().partition(is_aligned);
        Flight::new(job, &file, ring, aligned).land()?;
        Direct.read(job, others)
    }
}

/// Whether this process may use io_uring.
#[must_use]
pub fn is_allowed() -> bool {
    ring(1).is_some()
}

fn ring(depth: usize) -> Option<IoUring> {
    let ring = IoUring::new(depth.clamp(1, MAX_DEPTH).next_power_of_two() as u32).ok()?;
    // Waiting with a time limit: Linux 5.11.
    ring.params().is_feature_ext_arg().then_some(ring)
}

/// Pieces on their way. None of them leaves before the kernel is done with its memory.
struct Flight<'a> {
    job: &'a Job<'a>,
    file: &'a File,
    ring: IoUring,
    waiting: vec::IntoIter<Piece<'a>>,
    /// What is in flight, by slot: a piece and how many of its bytes have come.
    slots: Vec<Option<(Piece<'a>, usize)>>,
    free: Vec<usize>,
    error: Option<io::Error>,
    /// Requests that the kernel has taken and not answered.
    in_kernel: usize,
    is_refused: bool,
}

impl<'a> Flight<'a> {
    fn new(job: &'a Job<'a>, file: &'a File, ring: IoUring, pieces: Vec<Piece<'a>>) -> Self {
        let depth = job.num_thread.clamp(1, MAX_DEPTH).min(pieces.len());
        let slots = (0..depth).map(|_| None).collect();
        let free = (0..depth).collect();
        let waiting = pieces.into_iter();
        let (error, in_kernel, is_refused) = (None, 0, false);
        Self { job, file, ring, waiting, slots, free, error, in_kernel, is_refused }
    }

    /// Reads everything, or stops at the first error, with nothing in flight.
    fn land(mut self) -> io::Result<()> {
        loop {
            self.fill();
            if self.free.len() == self.slots.len() {
                return self.error.map_or(Ok(()), Err);
            }
            self.wait();
            let landed: Vec<(u64, i32)> =
                self.ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
            self.in_kernel -= landed.len();
            for (slot, result) in landed {
                self.landed(slot as usize, result);
            }
            if self.is_refused && self.in_kernel == 0 {
                return self.error.map_or(Ok(()), Err);
            }
        }
    }

    fn fail(&mut self, error: io::Error) {
        self.error.get_or_insert(error);
    }

    /// Gives every free slot a piece.
    fn fill(&mut self) {
        if let Err(stopped) = self.job.watch.check() {
            self.fail(stopped.into());
        }
        while self.error.is_none() && !self.free.is_empty() {
            let Some(piece) = self.waiting.next() else { return };
            let Some(slot) = self.free.pop() else { return };
            self.start(slot, piece, 0);
        }
    }

    fn start(&mut self, slot: usize, piece: Piece<'a>, done: usize) {
        let rest = &mut piece.bytes[done..];
        let entry =
            opcode::Read::new(Fd(self.file.as_raw_fd()), rest.as_mut_ptr(), rest.len() as u32)
                .offset(piece.offset + done as u64)
                .build()
                // On workers of the kernel: a file system that answers in its own time would otherwise be
                // asked for one piece after the other, and one thread would clear all the memory.
                .flags(squeue::Flags::ASYNC)
                .user_data(slot as u64);
        self.slots[slot] = Some((piece, done));
        // SAFETY: the memory stays borrowed by the piece in its slot until the request has landed.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            // There are as many entries as slots, so that this cannot be.
            self.slots[slot] = None;
            self.free.push(slot);
            self.fail(io::Error::other("the queue of io_uring is full"));
        }
    }

    /// Hands over what is new and waits until something lands, or for a moment.
    fn wait(&mut self) {
        let limit = Timespec::from(LOOK_EVERY);
        let waited = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit));
        self.job.watch.look();
        match waited.map_err(|error| error.raw_os_error()) {
            // Out of time, interrupted, or short of memory: what is in flight lands all the same.
            Ok(count) => self.in_kernel += count,
            Err(Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
            // Refused after all, and for good: what waits in the queue never leaves it.
            Err(code) => {
                self.is_refused = true;
                self.fail(io::Error::from_raw_os_error(code.unwrap_or(libc::EIO)));
            }
        }
    }

    fn landed(&mut self, slot: usize, result: i32) {
        let Some((piece, mut done)) = self.slots[slot].take() else { return };
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result));
        done += usize::try_from(result).unwrap_or(0);
        let again = match error.as_ref().map(|error| (error.kind(), error.raw_os_error())) {
            // Not at the end of the file yet, which no whole page would show.
            None => result > 0 && done < piece.wanted && (done as u64).is_multiple_of(PAGE),
            Some((io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock, _)) => true,
            Some((_, Some(libc::EINVAL | libc::EOPNOTSUPP))) => false,
            Some(_) => {
                self.free.push(slot);
                self.error = self.error.take().or(error);
                return;
            }
        };
        if again && self.error.is_none() {
            return self.start(slot, piece, done);
        }
        self.free.push(slot);
        // The end of the file, and what io_uring does not give, comes by an ordinary read.
        if self.error.is_none() && done < piece.wanted {
            let rest = &mut piece.bytes[done..piece.wanted];
            if let Err(error) =
                self.job.file.read_exact_at(rest, piece.offset + done as u64, self.job.watch)
            {
                return self.fail(error);
            }
        }
        self.job.watch.add(piece.wanted as u64);
    }
}
