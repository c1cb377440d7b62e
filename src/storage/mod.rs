//! Where bytes lie: sources that are read by range, sinks that become whole or not at all.
//!
//! Knows paths and the operating system, and no tensor. A new kind of storage is a module here
//! that implements [`Source`].

pub mod local;
pub mod sink;
mod system;

pub use system::{FileSystem, Storage};

use std::{io, path::Path};

/// Bytes of a known length that any thread may read any range of.
pub trait Source: Send + Sync {
    /// What the user calls it, for messages.
    fn name(&self) -> &Path;

    /// Its length in bytes when it was opened.
    #[allow(clippy::len_without_is_empty)] // an empty file is malformed like any short one
    fn len(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the source has become shorter than the range needs; otherwise what
    /// the storage answered. Interrupted and short reads are continued, never reported.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}
