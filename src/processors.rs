//! How many processors this process may use.

#![allow(unsafe_code)]

use crate::limits;
use std::{
    mem::MaybeUninit,
    sync::atomic::{AtomicU64, Ordering},
    thread,
};

/// Processors that the calling thread may use, as far as its affinity and its control group allow.
///
/// The control group is asked only where the affinity is not what it was the time before: finding and
/// reading its files takes longer than a small load, and affinity is what changes in a process.
pub fn processors() -> usize {
    /// By how many processors the affinity allowed, and how many there were then.
    static LAST: AtomicU64 = AtomicU64::new(0);
    // The standard library looks for quotas in the usual places alone.
    let ask = || {
        let found = thread::available_parallelism().map_or(1, usize::from);
        limits::quota().map_or(found, |quota| quota.min(found))
    };
    let Some(allowed) = affinity() else { return ask() };
    let last = LAST.load(Ordering::Relaxed);
    if (last >> 32) as u32 == allowed {
        return last as u32 as usize;
    }
    let found = u32::try_from(ask()).unwrap_or(u32::MAX);
    LAST.store(u64::from(allowed) << 32 | u64::from(found), Ordering::Relaxed);
    found as usize
}

/// How many processors the affinity of the calling thread has; `None` where it has too many for that.
fn affinity() -> Option<u32> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel writes at most `size_of` bytes to `set`, for which zeros are a value too.
    unsafe {
        let told = libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr());
        (told == 0).then(|| libc::CPU_COUNT(set.assume_init_ref()) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_the_affinity_is_seen() {
        let of_thread = |allowed: Option<usize>| {
            if let Some(only) = allowed {
                // SAFETY: zeros are an empty set, and the kernel reads as much as it is told.
                unsafe {
                    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init();
                    libc::CPU_SET(only, &mut set);
                    libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
                }
            }
            processors()
        };
        let all = thread::available_parallelism().unwrap().get();
        let all = limits::quota().map_or(all, |quota| quota.min(all));
        // SAFETY: takes nothing; where it fails, no processor has that number, and nothing changes.
        let here = unsafe { libc::sched_getcpu() } as usize;
        assert_eq!(of_thread(None), all);
        assert_eq!(thread::spawn(move || of_thread(Some(here))).join().unwrap(), 1);
        assert_eq!(of_thread(None), all);
    }
}
