//! Where bytes lie: sources that are read by range, sinks that become whole or not at all.
//!
//! Knows paths and the operating system, and no tensor. A new kind of storage is a module here
//! that implements [`Source`].

pub mod local;
pub mod sink;
mod system;

pub use system::{FileSystem, Storage};

use crate::error::{Error, Result};
use std::{env, io, os::unix::ffi::OsStrExt, path::Path};

/// Addresses of stores that cannot be reached yet.
const SCHEMES: [&str; 8] = ["sfcs", "s3", "tos", "gs", "az", "http", "https", "hdfs"];

/// Refuses an address that is no path, so that nobody looks for a file of that name.
pub(crate) fn refuse_remote(action: &'static str, path: &Path) -> Result<()> {
    let bytes = path.as_os_str().as_bytes();
    let address = |scheme: &str| {
        bytes.strip_prefix(scheme.as_bytes()).is_some_and(|rest| rest.starts_with(b"://"))
    };
    if let Some(scheme) = SCHEMES.into_iter().find(|scheme| address(scheme)) {
        return Err(Error::not_implemented(action, path, &format!("{scheme}://")));
    }
    let sdk = env::var_os("VETURBOIO_USE_SFCS_SDK").is_some_and(|value| value == "1");
    if sdk && !bytes.starts_with(b"/dev/shm/") {
        return Err(Error::not_implemented(action, path, "VETURBOIO_USE_SFCS_SDK=1"));
    }
    Ok(())
}

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
