//! How the program that waits for a load or save sees it, and stops it.
//!
//! A Python program stops it by an exception that the handler of a signal raises. The core asks the
//! interpreter to run the handlers that are due, and keeps what they raise for the thread that was
//! asked, until Python's side of the call (`_interrupts.py`) raises it again.
//!
//! The library is not linked to any Python. `_interrupts.py` hands over the addresses of five
//! functions of the C API through a symbol of the library: no operator takes an address, since
//! operators can be called by any program in TorchScript.

#![allow(unsafe_code)]

use crate::watch::Watch;
use std::{
    cell::RefCell,
    ffi::{c_int, c_void},
    ptr,
    sync::atomic::{AtomicI64, AtomicPtr, Ordering},
};

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

/// An exception as `PyErr_Fetch` gives it: type, value and traceback, each a reference or null.
#[derive(Debug, Clone, Copy)]
struct Raised([*mut c_void; 3]);

/// Functions of Python's C API, in the order of `_FUNCTIONS` in `_interrupts.py`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Interpreter {
    /// `PyGILState_Ensure`
    ensure: unsafe extern "C" fn() -> c_int,
    /// `PyGILState_Release`
    release: unsafe extern "C" fn(c_int),
    /// `PyErr_CheckSignals`
    check_signals: unsafe extern "C" fn() -> c_int,
    /// `PyErr_Fetch`
    fetch: unsafe extern "C" fn(*mut *mut c_void, *mut *mut c_void, *mut *mut c_void),
    /// `PyErr_Restore`
    restore: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut c_void),
}

impl Interpreter {
    /// Runs the handlers that are due; `None` if none of them raised.
    fn run_handlers(&self) -> Option<Raised> {
        let mut raised = [ptr::null_mut(); 3];
        let [kind, value, traceback] = &mut raised;
        // SAFETY: `veturboio_set_interpreter` was given these functions by an interpreter that has
        // not ended. Ensure makes the calls between it and release legal on any thread. Handlers
        // may call back into this library, so nothing is borrowed here.
        let is_raised = unsafe {
            let state = (self.ensure)();
            let is_raised = (self.check_signals)() != 0;
            if is_raised {
                (self.fetch)(kind, value, traceback);
            }
            (self.release)(state);
            is_raised
        };
        is_raised.then_some(Raised(raised))
    }

    /// Makes `raised` the exception that is being raised on this thread, which must hold the
    /// interpreter's lock, and gives the references away.
    fn raise(&self, Raised([kind, value, traceback]): Raised) {
        // SAFETY: the references are owned (`run_handlers`) and given away once.
        unsafe { (self.restore)(kind, value, traceback) };
    }

    /// Gives the references up, which may run code of the program.
    fn discard(&self, raised: Raised) {
        // SAFETY: as in `run_handlers`; restoring nothing clears what was restored before it.
        unsafe {
            let state = (self.ensure)();
            self.raise(raised);
            (self.restore)(ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
            (self.release)(state);
        }
    }
}

/// Whose handlers the main thread runs; null is nobody's. What it points to is never freed.
static INTERPRETER: AtomicPtr<Interpreter> = AtomicPtr::new(ptr::null_mut());

/// How many exceptions are kept that nobody takes, as a scripted call leaves them.
const MAX_UNTAKEN: usize = 8;

thread_local! {
    /// What was raised on this thread, and has to be raised again by the call that it stopped. A
    /// call that runs in a handler takes its own before the one below it does.
    static RAISED: RefCell<Vec<Raised>> = const { RefCell::new(Vec::new()) };
}

fn interpreter() -> Option<&'static Interpreter> {
    // SAFETY: null, or leaked by `veturboio_set_interpreter`.
    unsafe { INTERPRETER.load(Ordering::Acquire).as_ref() }
}

/// Signals are handled on the main thread, so that only a load there has somebody to ask.
pub(super) fn asked() -> Option<fn() -> bool> {
    // SAFETY: both take nothing and cannot fail.
    let is_main = unsafe { libc::getpid() == libc::gettid() };
    (is_main && interpreter().is_some()).then_some(interrupted)
}

fn interrupted() -> bool {
    let Some(interpreter) = interpreter() else { return false };
    let Some(raised) = interpreter.run_handlers() else { return false };
    let oldest = RAISED.with_borrow_mut(|all| {
        all.push(raised);
        (all.len() > MAX_UNTAKEN).then(|| all.remove(0))
    });
    if let Some(oldest) = oldest {
        interpreter.discard(oldest);
    }
    true
}

/// Has the handlers of an interpreter's signals run on the main thread during loads and saves. Null
/// has none run from now on, which is due before the interpreter ends.
///
/// # Safety
/// `functions` is null, or points to functions as [`Interpreter`] names them, which stay valid until
/// this is called again.
#[no_mangle]
pub unsafe extern "C" fn veturboio_set_interpreter(functions: *const Interpreter) {
    // SAFETY: as the caller vouches.
    let functions = unsafe { functions.as_ref() };
    let kept = functions.map_or(ptr::null_mut(), |functions| Box::into_raw(Box::new(*functions)));
    INTERPRETER.store(kept, Ordering::Release);
}

/// How many exceptions wait on this thread to be raised again.
#[no_mangle]
pub extern "C" fn veturboio_count_raised() -> usize {
    RAISED.with_borrow(Vec::len)
}

/// Raises the latest exception that waits on this thread, if more than `before` do.
///
/// # Safety
/// The caller holds the interpreter's lock, and looks whether an exception is raised.
#[no_mangle]
pub unsafe extern "C" fn veturboio_raise(before: usize) {
    let raised = RAISED.with_borrow_mut(|all| if all.len() > before { all.pop() } else { None });
    if let (Some(raised), Some(interpreter)) = (raised, interpreter()) {
        interpreter.raise(raised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// What the interpreter of the tests was told to do.
        static DUE: Cell<bool> = const { Cell::new(false) };
        static RESTORED: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
        static NEXT: Cell<usize> = const { Cell::new(1) };
    }

    extern "C" fn ensure() -> c_int {
        0
    }
    extern "C" fn release(_: c_int) {}
    extern "C" fn check_signals() -> c_int {
        // A handler may ask how many wait, as each call from Python does.
        let _ = veturboio_count_raised();
        -c_int::from(DUE.get())
    }
    unsafe extern "C" fn fetch(kind: *mut *mut c_void, _: *mut *mut c_void, _: *mut *mut c_void) {
        let number = NEXT.get();
        NEXT.set(number + 1);
        // SAFETY: a test's own variable.
        unsafe { *kind = ptr::without_provenance_mut(number) };
    }
    extern "C" fn restore(kind: *mut c_void, _: *mut c_void, _: *mut c_void) {
        RESTORED.with_borrow_mut(|all| all.push(kind.addr()));
    }

    #[test]
    fn what_is_raised_is_raised_again_once_on_its_own_thread() {
        let functions = Interpreter { ensure, release, check_signals, fetch, restore };
        // SAFETY: functions of this test that stay.
        unsafe { veturboio_set_interpreter(&raw const functions) };
        let raised_above = |before| {
            RESTORED.take();
            // SAFETY: these functions need no lock.
            unsafe { veturboio_raise(before) };
            RESTORED.take()
        };
        assert!(!interrupted());
        DUE.set(true);
        assert!(interrupted());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(veturboio_count_raised(), 0);
                // SAFETY: as above.
                unsafe { veturboio_raise(0) };
                assert!(RESTORED.take().is_empty());
            });
        });
        // A call that begins now has nothing to do with it.
        assert_eq!(veturboio_count_raised(), 1);
        assert!(raised_above(1).is_empty());
        assert!(interrupted());
        assert_eq!((raised_above(1), raised_above(1)), (vec![2], vec![]));
        assert_eq!((raised_above(0), raised_above(0)), (vec![1], vec![]));
        (0..100).for_each(|_| assert!(interrupted()));
        assert_eq!(veturboio_count_raised(), MAX_UNTAKEN);
        assert_eq!(
            RESTORED.take().into_iter().filter(|&kind| kind != 0).count(),
            100 - MAX_UNTAKEN
        );
        // SAFETY: null is nobody.
        unsafe { veturboio_set_interpreter(ptr::null()) };
        assert!(!interrupted() && asked().is_none());
    }
}
