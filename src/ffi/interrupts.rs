//! How the program that waits for a load or save sees it, and stops it.

#![allow(unsafe_code)]

use crate::watch::Watch;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

/// What the caller sees of the work, through two counters or none.
///
/// # Safety
/// `progress` is null or points to two aligned integers that outlive the watch.
pub(super) unsafe fn watch<'a>(progress: *mut i64) -> Watch<'a> {
    let counters = (!progress.is_null()).then(|| {
        // SAFETY: the caller vouches for them, and every access of this library to them is atomic.
        unsafe { [AtomicI64::from_ptr(progress), AtomicI64::from_ptr(progress.add(1))] }
    });
    Watch::new(counters, asked())
}

/// Whom the main thread asks whether to stop; 0 is nobody.
static INTERRUPTED: AtomicUsize = AtomicUsize::new(0);

pub(super) fn ask_for_interrupts(address: i64) {
    IS_ASKING.store(false, Ordering::Release);
    INTERRUPTED.store(usize::try_from(address).unwrap_or(0), Ordering::Release);
}

/// Signals are handled on the main thread, so that only a load there has somebody to ask.
pub(super) fn asked() -> Option<fn() -> bool> {
    // SAFETY: both take nothing and cannot fail.
    let is_main = unsafe { libc::getpid() == libc::gettid() };
    (is_main && INTERRUPTED.load(Ordering::Acquire) != 0).then_some(interrupted)
}

/// Whether the main thread is just asking: the handler of a signal may save a checkpoint, and must
/// not be asked by that in turn.
static IS_ASKING: AtomicBool = AtomicBool::new(false);

fn interrupted() -> bool {
    let address = INTERRUPTED.load(Ordering::Acquire);
    if address == 0 || IS_ASKING.swap(true, Ordering::Acquire) {
        return false;
    }
    // SAFETY: whoever gave the address vouches for a function of this type that is there until 0 is
    // given instead.
    let function = unsafe { std::mem::transmute::<usize, extern "C" fn() -> i32>(address) };
    let answer = function() != 0;
    IS_ASKING.store(false, Ordering::Release);
    answer
}
