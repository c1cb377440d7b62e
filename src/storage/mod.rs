//! Where bytes lie: sources that are read by range, sinks that become whole or not at all.
//!
//! Knows paths and the operating system, and no tensor. A new kind of storage is a module here
//! that implements [`Source`].

pub mod local;
pub mod sink;
mod system;

pub use system::{FileSystem, Storage};

use crate::{
    error::{Error, Result},
    watch::Watch,
};
use local::LocalFile;
use std::{env, fmt::Debug, io, os::unix::ffi::OsStrExt, path::Path};

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

/// Opens what `path` names for reading.
///
/// # Errors
/// What the storage answers, and an address of a kind that cannot be reached.
pub fn open(path: &Path, _watch: &Watch<'_>) -> Result<Box<dyn Source>> {
    refuse_remote("open", path)?;
    Ok(Box::new(LocalFile::open(path)?))
}

/// Begins a file of `len` bytes that is to stand at `path`; `durable` has the storage keep it, once
/// it is whole, whatever happens then.
///
/// # Errors
/// A target that cannot be written, and an address of a kind that cannot be reached.
pub fn create(path: &Path, len: u64, durable: bool) -> Result<Box<dyn Sink>> {
    refuse_remote("save", path)?;
    Ok(Box::new(sink::LocalSink::create(path, len, durable)?))
}

/// Bytes of a known length that any thread may read any range of.
pub trait Source: Send + Sync + Debug {
    /// What the user calls it, for messages.
    fn name(&self) -> &Path;

    /// Its length in bytes when it was opened.
    #[allow(clippy::len_without_is_empty)] // an empty file is malformed like any short one
    fn len(&self) -> u64;

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the source has become shorter than the range needs; otherwise what
    /// the storage answered, or `Stopped` where reading may take long. Interrupted and short reads are continued, never reported.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, watch: &Watch<'_>) -> io::Result<()>;

    /// What sort of storage it lies on.
    fn file_system(&self) -> FileSystem;

    /// The file that it is, where it is one: such can be mapped, and read past the page cache.
    fn local(&self) -> Option<&LocalFile> {
        None
    }
}

/// A file that becomes whole or not at all: whatever stood in its place before stays there until
/// [`commit`](Self::commit), and what was written goes if that is never called.
pub trait Sink: Send + Sync {
    /// Writes `bytes` at `offset`; threads may write disjoint ranges at once.
    ///
    /// # Errors
    /// What the storage answered.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// What addresses given to [`write_direct_at`](Self::write_direct_at) are multiples of; `None` where
    /// nothing is to be given to it.
    fn direct_align(&self) -> Option<usize> {
        None
    }

    /// Writes whole pages past the page cache, at an offset that is a multiple of a page's size. Only
    /// the last page may reach beyond the end of the file.
    ///
    /// # Errors
    /// What the storage answered.
    fn write_direct_at(&self, pages: &[u8], offset: u64) -> Result<()> {
        self.write_all_at(pages, offset)
    }

    /// Makes the bytes durable, if they are to be, and puts the file in its place.
    ///
    /// # Errors
    /// What the storage answered; what stood there before is then as it was, unless only the last
    /// step, making the new name durable, failed.
    fn commit(self: Box<Self>) -> Result<()>;
}
