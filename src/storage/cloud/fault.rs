//! What can go wrong on the way to a store, and what is to be done about it: again, later, or never.

use super::service::{Refusal, Refused};
use crate::error::{said, without_number, Said};
use object_store::client::HttpError;
use std::{
    error::Error as StdError,
    io,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// A request that was not answered as it should have been.
#[derive(Debug)]
pub enum Fault {
    /// May succeed if it is tried again, at the earliest after so long.
    Passing { cause: String, after: Option<Duration>, throttled: bool },
    /// Will not succeed.
    Final(io::Error),
}

/// The longest cause that is told, in characters: it may quote what a server said.
const MAX_CAUSE: usize = 300;

impl Fault {
    pub fn passing(cause: impl Into<String>) -> Self {
        Self::Passing { cause: cause.into(), after: None, throttled: false }
    }

    pub fn last(errno: i32, cause: impl Into<String>) -> Self {
        Self::Final(said(errno, cause.into()))
    }

    /// What an error of the store's client means.
    pub fn of(error: &object_store::Error, secrets: &[String]) -> Self {
        use object_store::Error;
        let Some(cause) = Self::told(error) else {
            let cause = hidden(&root(error), secrets);
            return match error {
                // What a server says of ranges does not get better by asking again.
                _ if NO_RANGES_TOLD.iter().any(|told| cause.contains(told)) => Self::no_ranges(),
                Error::NotFound { .. } => Self::last(libc::ENOENT, cause),
                Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
                    Self::last(libc::EACCES, cause)
                }
                Error::AlreadyExists { .. } => Self::last(libc::EEXIST, cause),
                Error::Precondition { .. } | Error::NotModified { .. } => {
                    Self::last(libc::ESTALE, CHANGED)
                }
                Error::InvalidPath { .. }
                | Error::NotSupported { .. }
                | Error::NotImplemented { .. }
                | Error::UnknownConfigurationKey { .. } => Self::last(libc::EINVAL, cause),
                _ => Self::passing(cause),
            };
        };
        cause
    }

    /// What an error of the client beneath it means.
    pub fn of_http(error: &HttpError, secrets: &[String]) -> Self {
        Self::told(error).unwrap_or_else(|| Self::passing(hidden(&root(error), secrets)))
    }

    /// A server that does not answer with the range it was asked for.
    pub fn no_ranges() -> Self {
        Self::last(libc::EOPNOTSUPP, "the server ignores the range it was asked for")
    }

    /// What the server's answer says.
    fn told(error: &(dyn StdError + 'static)) -> Option<Self> {
        if let Some(refusal) = found::<Refusal>(error) {
            return Some(Self::of_refusal(refusal));
        }
        found::<Refused>(error).map(|refused| Self::last(libc::EPROTO, refused.0))
    }

    fn of_refusal(refusal: &Refusal) -> Self {
        let cause = refusal.to_string();
        let slow = matches!(refusal.code.as_deref(), Some("SlowDown" | "RequestTimeout"));
        // Azure's word for an upload that is an object already.
        let is_gone = refusal.code.as_deref() == Some("InvalidBlockList");
        match refusal.status {
            400 if is_gone => Self::last(libc::ENOENT, cause),
            401 | 403 => Self::last(libc::EACCES, cause),
            404 | 410 => Self::last(libc::ENOENT, cause),
            409 | 412 => Self::last(libc::EEXIST, cause),
            status @ (408 | 429 | 500 | 502 | 503 | 504) => Self::Passing {
                cause,
                after: refusal.retry_after,
                throttled: slow || matches!(status, 429 | 503),
            },
            416 => Self::last(libc::ERANGE, cause),
            _ if slow => Self::passing(cause),
            _ => Self::last(libc::EIO, cause),
        }
    }

    /// Why, in words.
    pub fn cause(&self) -> String {
        match self {
            Self::Final(error) => error.to_string(),
            Self::Passing { cause, .. } => cause.clone(),
        }
    }

    /// The errno of a final one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Final(error) => error.get_ref()?.downcast_ref::<Said>().map(Said::errno),
            Self::Passing { .. } => None,
        }
    }
}

pub const CHANGED: &str = "the object was changed while it was read";
/// How the store's client says that a server ignores ranges.
const NO_RANGES_TOLD: [&str; 3] =
    ["non-partial response", "Range request not supported", "Content-Range header not present"];

/// The first error of type `T` among the causes.
fn found<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The words of the innermost cause: those around it repeat it, and quote the request.
fn root(error: &(dyn StdError + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let text = innermost.to_string();
    let text = without_number(&text);
    match text.char_indices().nth(MAX_CAUSE) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

/// The text without anything that is secret.
pub fn hidden(text: &str, secrets: &[String]) -> String {
    let hide = |text: String, secret: &String| text.replace(secret.as_str(), "***");
    secrets.iter().fold(text.to_owned(), hide)
}

/// How often and how long something is tried again.
#[derive(Debug)]
pub struct Patience {
    budget: Duration,
    since: Instant,
    tries: u32,
}

/// The first wait, which doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Tries without progress, whatever time is left.
const MAX_TRIES: u32 = 12;

impl Patience {
    pub fn new(budget: Duration) -> Self {
        Self { budget, since: Instant::now(), tries: 0 }
    }

    /// There was progress: all patience is back.
    pub fn renew(&mut self) {
        *self = Self::new(self.budget);
    }

    /// Waits before the next try.
    ///
    /// # Errors
    /// The fault, once there have been enough or none will help.
    pub async fn wait(&mut self, fault: Fault) -> io::Result<()> {
        let (cause, after) = match fault {
            Fault::Final(error) => return Err(error),
            Fault::Passing { cause, after, .. } => (cause, after),
        };
        self.tries += 1;
        let wait = FIRST_WAIT.saturating_mul(1 << self.tries.min(12)).min(LONGEST_WAIT) / 2;
        // Half of it by chance, so that those who failed together do not come back together.
        let wait = (wait + wait.mul_f64(chance())).max(after.unwrap_or_default());
        let spent = self.since.elapsed();
        if self.tries >= MAX_TRIES || spent + wait > self.budget {
            let tries = self.tries;
            let words =
                format!("{cause}, at the last of {tries} tries in {:.1} s", spent.as_secs_f64());
            let late = cause.contains("timed out") || cause.contains("timeout");
            return Err(said(if late { libc::ETIMEDOUT } else { libc::EIO }, words));
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// A number from 0 to 1 that nobody needs to be unable to guess.
fn chance() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    f64::from(now.subsec_nanos().wrapping_mul(2_654_435_761) >> 8) / f64::from(1 << 24)
}
