//! A variable of the environment for a library that takes its settings by no other way.
//!
//! `setenv` may free the list of variables while another thread reads it, so no process with threads
//! may call it. Here nothing is freed and nothing is moved: the variable's text is a static that is
//! put into a copy of the list once, the copy takes the list's place in one step, and from then on
//! only the text changes. Whoever reads meanwhile finds the old list or the new one, both whole,
//! and a text that ends with a NUL whatever of it he sees.

#![allow(unsafe_code)]

use std::{
    ffi::{c_char, CStr},
    io,
    sync::{
        atomic::{AtomicPtr, AtomicU8, Ordering},
        Mutex, PoisonError,
    },
};

/// The variable that names the file of settings.
pub const NAME: &str = "LIBCLOUDFS_CONF";

/// `NAME=value`, the value of which is empty unless somebody connects: that counts as none.
static ENTRY: [AtomicU8; LEN] = entry();

const LEN: usize = 64;
const START: usize = NAME.len() + 1;

/// Of those who set it, one at a time.
static SETTING: Mutex<()> = Mutex::new(());

const fn entry() -> [AtomicU8; LEN] {
    let mut bytes = [const { AtomicU8::new(0) }; LEN];
    let name = NAME.as_bytes();
    let mut at = 0;
    while at < name.len() {
        bytes[at] = AtomicU8::new(name[at]);
        at += 1;
    }
    bytes[at] = AtomicU8::new(b'=');
    bytes
}

type List = *mut *mut c_char;

extern "C" {
    static mut environ: List;
}

/// Does `work` while the variable has the value.
///
/// # Errors
/// A value that is too long.
pub fn with<T>(value: &str, work: impl FnOnce() -> T) -> io::Result<T> {
    if value.len() >= LEN - START {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let _setting = SETTING.lock().unwrap_or_else(PoisonError::into_inner);
    publish();
    // The first byte makes the rest visible, and is the first to go.
    for (byte, slot) in value.bytes().zip(&ENTRY[START..]).skip(1) {
        slot.store(byte, Ordering::Relaxed);
    }
    ENTRY[START].store(value.bytes().next().unwrap_or(0), Ordering::Release);
    let _clearing = Clearing;
    Ok(work())
}

/// Empties the value, even where `work` panics.
struct Clearing;

impl Drop for Clearing {
    fn drop(&mut self) {
        for slot in &ENTRY[START..] {
            slot.store(0, Ordering::Release);
        }
    }
}

/// Puts the entry into the list of variables, unless it is there.
fn publish() {
    // Written by nobody: only the value behind it changes, as an atomic.
    let entry: *mut c_char = ENTRY.as_ptr().cast_mut().cast();
    // SAFETY: `environ` is a pointer of the C library, aligned and there as long as the process;
    // others read and write it as a whole.
    let current = unsafe { AtomicPtr::from_ptr(&raw mut environ) };
    let mut seen = current.load(Ordering::Acquire);
    loop {
        // SAFETY: the list ends with null. It is read as `getenv` reads it.
        let mut list = unsafe { copied(seen) };
        if list.contains(&entry) {
            return;
        }
        // SAFETY: each is a text that ends with a NUL.
        let is_other = |&text: &*mut c_char| !is_named(unsafe { CStr::from_ptr(text) });
        list.retain(is_other);
        list.extend([entry, std::ptr::null_mut()]);
        // Never freed: somebody may always be reading it.
        let new: List = Vec::leak(list).as_mut_ptr();
        match current.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => return,
            Err(now) => seen = now,
        }
    }
}

/// # Safety
/// `list` is null, or ends with null.
unsafe fn copied(list: List) -> Vec<*mut c_char> {
    let mut copy = Vec::new();
    if list.is_null() {
        return copy;
    }
    // SAFETY: no further than to its end.
    unsafe {
        let mut at = list;
        while !(*at).is_null() {
            copy.push(*at);
            at = at.add(1);
        }
    }
    copy
}

fn is_named(text: &CStr) -> bool {
    let rest = text.to_bytes().strip_prefix(NAME.as_bytes());
    rest.is_some_and(|rest| rest.starts_with(b"="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, thread};

    #[test]
    fn the_variable_is_there_for_as_long_as_it_is_needed_and_all_others_stay() {
        let others = || -> Vec<_> {
            let mut others: Vec<_> = env::vars_os().filter(|(name, _)| name != NAME).collect();
            others.sort();
            others
        };
        let before = others();
        let value = || env::var(NAME).unwrap_or_default();
        // SAFETY: `environ` is read as a whole.
        let list = || unsafe { (&raw const environ).read() };
        let mut lists = Vec::new();
        thread::scope(|scope| {
            let reader = scope.spawn(|| (0..2_000).all(|_| others() == before));
            for number in [1, 22, 4_294_967] {
                let text = format!("/proc/self/fd/{number}");
                with(&text, || assert_eq!(value(), text)).unwrap();
                assert_eq!(value(), "");
                lists.push(list());
            }
            assert!(reader.join().unwrap());
        });
        assert!(lists.iter().all(|list| *list == lists[0]), "the list is replaced once");
        assert_eq!(others(), before);
        assert!(with(&"x".repeat(LEN), || ()).is_err());
        let caught = std::panic::catch_unwind(|| with("/x", || panic!("told to")));
        assert!(caught.is_err());
        assert_eq!(value(), "");
    }
}
