//! State of a process that a forked child does not share.
//!
//! A child has its parent's memory but none of its other threads: a lock that one of them held stays
//! locked in it for ever, and what is written down of them does not hold.

#![allow(unsafe_code)]

use std::{
    process, ptr,
    sync::atomic::{AtomicPtr, Ordering},
};

/// A value for each process: a child gets a new one when it first asks.
#[derive(Debug)]
pub struct PerProcess<T: 'static> {
    /// What it points to is never freed.
    current: AtomicPtr<Owned<T>>,
}

#[derive(Debug)]
struct Owned<T> {
    process: u32,
    value: T,
}

impl<T: Default + Send + Sync> PerProcess<T> {
    pub const fn new() -> Self {
        Self { current: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The value of this process.
    pub fn get(&self) -> &'static T {
        let process = process::id();
        loop {
            let current = self.current.load(Ordering::Acquire);
            // SAFETY: null, or leaked below.
            let owned: Option<&'static Owned<T>> = unsafe { current.as_ref() };
            if let Some(owned) = owned.filter(|owned| owned.process == process) {
                return &owned.value;
            }
            let made = Box::into_raw(Box::new(Owned { process, value: T::default() }));
            let exchanged =
                self.current.compare_exchange(current, made, Ordering::AcqRel, Ordering::Acquire);
            if exchanged.is_err() {
                // Another thread was faster.
                // SAFETY: nobody else has seen it.
                drop(unsafe { Box::from_raw(made) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_child_does_not_wait_for_a_lock_that_its_parent_holds() {
        static STATE: PerProcess<Mutex<u32>> = PerProcess::new();
        let mut held = STATE.get().lock().unwrap();
        *held = 7;
        // SAFETY: the child asks for its value and ends, without running what the parent registered.
        let answer = unsafe {
            let child = libc::fork();
            if child == 0 {
                let is_new = STATE.get().try_lock().is_ok_and(|value| *value == 0);
                libc::_exit(i32::from(!is_new));
            }
            let mut status = -1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            status
        };
        assert_eq!(answer, 0);
        drop(held);
        assert_eq!(*STATE.get().lock().unwrap(), 7);
    }
}
