//! What bytes mean: headers in, tensor descriptions out, and back.
//!
//! Knows no file, no thread and no tensor: everything here is a function of bytes and numbers,
//! so it can be tested without a disk and without torch. Every number that comes from a file
//! is hostile until [`safetensors::Header::parse`] has checked it; whoever holds a `Header`
//! may trust it.

pub mod alias;
pub mod archive;
pub mod dtype;
mod emit;
pub mod encode;
mod hashed;
pub mod identify;
pub mod inflate;
pub mod json;
mod names;
pub mod pickle;
pub mod pytorch;
mod rebuild;
pub mod safetensors;
pub mod steps;
pub mod value;
pub mod zip;

use std::{borrow::Cow, fmt, ops::Range};

/// The longest name shown in a message, in characters: a header may hold one of 100 MB.
const MAX_SHOWN_NAME: usize = 200;

/// A name in quotes, its control characters escaped and its length bounded.
pub(crate) fn shown(name: &str) -> String {
    format!("{:?}", cut(name, MAX_SHOWN_NAME))
}

pub(crate) fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()).into(),
        None => text.into(),
    }
}

/// Why a file is refused: the reason, and the tensor it concerns where it concerns one.
///
/// The format does not know which file it reads; the loader adds the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    pub tensor: Option<String>,
    pub reason: String,
}

impl Malformed {
    pub(crate) fn new(reason: impl fmt::Display) -> Self {
        Self { tensor: None, reason: reason.to_string() }
    }

    pub(crate) fn tensor(name: &str, reason: impl fmt::Display) -> Self {
        Self { tensor: Some(name.to_owned()), reason: reason.to_string() }
    }
}

/// A shape for a message: the first sizes, and how many there are if not all are shown.
pub(crate) struct Shape<'a, T = u64>(pub &'a [T]);

/// Sizes that a message shows of a shape.
const MAX_SHOWN_SIZES: usize = 16;

impl<T: fmt::Debug> fmt::Display for Shape<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..MAX_SHOWN_SIZES) {
            Some(first) if first.len() < self.0.len() => {
                write!(f, "{first:?}… ({} dimensions)", self.0.len())
            }
            _ => write!(f, "{:?}", self.0),
        }
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tensor {
            Some(tensor) => write!(f, "tensor {tensor:?}: {}", self.reason),
            None => f.write_str(&self.reason),
        }
    }
}

impl std::error::Error for Malformed {}

/// Why a pickle is no checkpoint of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Malformed(Malformed),
    /// It is well formed and uses a name that is given no meaning here.
    Unknown(String),
    /// The caller stopped it.
    Stopped,
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl From<steps::Stop> for Refusal {
    fn from(_: steps::Stop) -> Self {
        Self::Stopped
    }
}

/// Why something that is read piece by piece was not: it is malformed, or its source failed.
#[derive(Debug)]
pub enum Unreadable<E> {
    Malformed(Malformed),
    /// It is well formed and uses a name that has no meaning here.
    Unknown(String),
    /// The caller stopped it.
    Stopped,
    Source(E),
}

impl<E> From<Refusal> for Unreadable<E> {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(malformed) => Self::Malformed(malformed),
            Refusal::Unknown(name) => Self::Unknown(name),
            Refusal::Stopped => Self::Stopped,
        }
    }
}

impl<E> From<Malformed> for Unreadable<E> {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// What returns the bytes of ranges of a file, all of which are asked for at once because each may
/// take its time.
pub trait Read<E>: Fn(&[Range<u64>]) -> Result<Vec<Vec<u8>>, E> {}

impl<E, F: Fn(&[Range<u64>]) -> Result<Vec<Vec<u8>>, E>> Read<E> for F {}

/// The bytes of one range.
fn one<E>(read: &impl Read<E>, range: Range<u64>) -> Result<Vec<u8>, Unreadable<E>> {
    let mut read = read(&[range]).map_err(Unreadable::Source)?;
    Ok(read.pop().unwrap_or_default())
}

#[cfg(test)]
#[path = "work_tests.rs"]
mod work_tests;
