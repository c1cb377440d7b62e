//! Failures on their way over the border: no panic crosses, and no error loses its kind.

use super::bridge::Failure;
use crate::error::{Error, Result};
use std::{
    any::Any,
    cell::RefCell,
    collections::VecDeque,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    panic::{catch_unwind, AssertUnwindSafe},
    path::Path,
};

/// How many failures a thread remembers. Between a failure and the question what it was, the handler
/// of a signal may call the core on the same thread, and fail there too.
const REMEMBERED: usize = 8;

thread_local! {
    /// The last failures with the texts of their errors, the latest first.
    static FAILURES: RefCell<VecDeque<(String, Failure)>> = const { RefCell::new(VecDeque::new()) };
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
    if let Err(error) = &result {
        let failure = (error.to_string(), Failure::from(error));
        FAILURES.with_borrow_mut(|failures| {
            failures.truncate(REMEMBERED - 1);
            failures.push_front(failure);
        });
    }
    result
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

/// The kind of this thread's last failure; empty if there was none.
pub(super) fn failure_kind() -> String {
    let kind = |failures: &VecDeque<(String, Failure)>| {
        failures.front().map_or_else(String::new, |(_, failure)| failure.kind.clone())
    };
    FAILURES.with_borrow(kind)
}

/// The failure of this thread whose error has this text, which is forgotten by this.
pub(super) fn take_failure(text: &str) -> Failure {
    let taken = FAILURES.with_borrow_mut(|failures| {
        let at = failures.iter().position(|(of, _)| of == text)?;
        failures.remove(at)
    });
    let nothing = || Failure {
        kind: String::new(),
        errno_: 0,
        has_tensor: false,
        tensor: String::new(),
        reason: String::new(),
    };
    taken.map_or_else(nothing, |(_, failure)| failure)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(reason: &str) -> String {
        let failed =
            border("load", b"file", |path| Err::<(), _>(Error::argument("load", path, reason)));
        failed.unwrap_err().to_string()
    }

    #[test]
    fn a_failure_is_told_although_another_one_came_after_it() {
        let first = fail("first");
        assert!(border("load", b"file", |_| Ok(())).is_ok());
        let second = fail("second");
        assert_eq!(take_failure(&first).reason, "first");
        assert_eq!(take_failure(&first).kind, "");
        assert_eq!(failure_kind(), "invalid argument");
        assert_eq!(take_failure(&second).reason, "second");
        let many: Vec<String> = (0..=REMEMBERED).map(|at| fail(&at.to_string())).collect();
        assert_eq!(take_failure(&many[0]).kind, "");
        assert_eq!(take_failure(&many[1]).reason, "1");
    }
}
