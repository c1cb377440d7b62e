//! Failures on their way over the border: no panic crosses, and no error loses its kind.

use super::bridge::Failure;
use crate::error::{Error, Result};
use std::{
    any::Any,
    cell::RefCell,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    panic::{catch_unwind, AssertUnwindSafe},
    path::Path,
};

thread_local! {
    static FAILURE: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Runs an entry of the core for C++: a panic becomes an error, an error is remembered.
pub(super) fn border<T>(
    action: &'static str,
    file: &[u8],
    work: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let path = Path::new(OsStr::from_bytes(file));
    let result = catch_unwind(AssertUnwindSafe(|| work(path))).unwrap_or_else(|panic| {
        let text = panic_text(panic.as_ref());
        Err(Error::internal(action, path, anyhow::anyhow!("panic in the core: {text}")))
    });
    FAILURE.set(result.as_ref().err().map(Failure::from));
    result
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// The kind of this thread's last failure; empty if its last entry did not fail.
pub(super) fn failure_kind() -> String {
    FAILURE.with_borrow(|failure| failure.as_ref().map(|f| f.kind.clone())).unwrap_or_default()
}

/// The failure of this thread's last entry, which is forgotten by this.
pub(super) fn take_failure() -> Failure {
    FAILURE.take().unwrap_or_else(|| Failure {
        kind: String::new(),
        errno_: 0,
        has_tensor: false,
        tensor: String::new(),
        reason: String::new(),
    })
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            kind: error.kind().name().to_owned(),
            errno_: error.errno().unwrap_or(0),
            has_tensor: error.tensor().is_some(),
            tensor: error.tensor().unwrap_or_default().to_owned(),
            reason: error.reason(),
        }
    }
}
