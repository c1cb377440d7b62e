//! Where bytes lie: sources that are read by range, sinks that become whole or not at all.
//!
//! Knows paths and the operating system, and no tensor. A new kind of storage is a module here
//! that implements [`Source`].

#[cfg(feature = "cloud")]
mod cloud;
pub mod inflated;
pub mod local;
mod options;
pub mod order;
mod sfcs;
pub mod sink;
mod system;

pub use options::{Options, FIRST_OF_HEADER};
pub use system::{FileSystem, Storage};

use crate::{
    address::{self, Place, Unnamed},
    error::{Error, Result},
    watch::Watch,
};
use local::LocalFile;
use std::{fmt::Debug, io, path::Path};

/// Opens what `path` names for reading.
///
/// # Errors
/// What the storage answers, and an address of a kind that cannot be reached.
pub fn open(path: &Path, options: &Options, watch: &Watch<'_>) -> Result<Box<dyn Source>> {
    match place("open", path)? {
        Place::Local(path) => Ok(Box::new(LocalFile::open(&path)?)),
        Place::Cloud(scheme, rest) => open_object(path, (scheme, rest), options, watch),
        Place::Sfcs(rooted) => Ok(Box::new(sfcs::SfcsFile::open(path, &rooted)?)),
    }
}

pub(crate) fn place<'a>(action: &'static str, path: &'a Path) -> Result<Place<'a>> {
    address::place(path).map_err(|unnamed| match unnamed {
        Unnamed::Unknown(scheme) => Error::not_implemented(action, path, scheme),
        Unnamed::Because(reason) => Error::argument(action, path, reason),
    })
}

/// A file that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct Creation {
    /// Its length in bytes.
    pub len: u64,
    /// Whether the storage is to keep it, once it is whole, whatever happens then.
    pub durable: bool,
    /// Whether it may take the place of another.
    pub overwrite: bool,
}

/// Begins a file that is to stand at `path`.
///
/// # Errors
/// A target that cannot be written, and an address of a kind that cannot be reached.
pub fn create(
    path: &Path,
    creation: Creation,
    options: &Options,
    watch: &Watch<'_>,
) -> Result<Box<dyn Sink>> {
    match place("save", path)? {
        Place::Local(path) => Ok(Box::new(sink::LocalSink::create(&path, creation)?)),
        Place::Cloud(scheme, rest) => create_object(path, (scheme, rest), creation, options, watch),
        Place::Sfcs(rooted) => Ok(Box::new(sfcs::SfcsSink::create(path, &rooted, creation)?)),
    }
}

/// Puts the file that `sink` holds in its place, unless a save that was called later has done so
/// already: then what is there stays.
///
/// # Errors
/// As [`Sink::commit`]; `EEXIST` where an overtaken save was not to replace anything.
pub fn commit(
    sink: Box<dyn Sink>,
    path: &Path,
    ticket: &order::Ticket,
    watch: &Watch<'_>,
) -> Result<()> {
    let turn = order::turn(ticket, &sink.target(), watch);
    let Some(turn) = turn.map_err(|error| Error::io("save", path, error))? else {
        return overtaken(&*sink, path);
    };
    if is_overtaken(&*sink, ticket) {
        return overtaken(&*sink, path);
    }
    sink.commit(watch)?;
    turn.taken();
    Ok(())
}

/// Whether a save that was called later has taken the place already.
#[must_use]
pub fn is_overtaken(sink: &dyn Sink, ticket: &order::Ticket) -> bool {
    let mut targets = [Some(sink.target()), sink.replaced()].into_iter().flatten();
    targets.any(|target| ticket.is_overtaken(&target))
}

/// What becomes of a save when a later one has taken its target's place.
///
/// # Errors
/// `EEXIST` where it was not to replace anything.
pub fn overtaken(sink: &dyn Sink, path: &Path) -> Result<()> {
    if sink.overwrites() {
        return Ok(());
    }
    Err(Error::errno_of("save", path, libc::EEXIST))
}

#[cfg(feature = "cloud")]
use cloud::{create as create_object, open as open_object};

#[cfg(not(feature = "cloud"))]
fn open_object(
    path: &Path,
    (scheme, _): (Scheme, &str),
    _: &Options,
    _: &Watch<'_>,
) -> Result<Box<dyn Source>> {
    Err(left_out("open", path, scheme))
}

#[cfg(not(feature = "cloud"))]
fn create_object(
    path: &Path,
    (scheme, _): (Scheme, &str),
    _: Creation,
    _: &Options,
    _: &Watch<'_>,
) -> Result<Box<dyn Sink>> {
    Err(left_out("save", path, scheme))
}

#[cfg(not(feature = "cloud"))]
use crate::address::Scheme;

/// This library was built without the feature.
#[cfg(not(feature = "cloud"))]
fn left_out(action: &'static str, path: &Path, scheme: Scheme) -> Error {
    Error::not_implemented(
        action,
        path,
        &format!("{}:// without the feature `cloud`", scheme.name()),
    )
}

/// Memory for bytes of a source.
#[derive(Debug)]
pub struct Scattered<'a> {
    pub offset: u64,
    pub bytes: &'a mut [u8],
}

/// Bytes of a known length that any thread may read any range of.
pub trait Source: Send + Sync + Debug {
    /// What the user calls it, for messages.
    fn name(&self) -> &Path;

    /// Its length in bytes when it was opened.
    #[allow(clippy::len_without_is_empty)] // an empty file is malformed like any short one
    fn len(&self) -> u64;

    /// Tells one version of it from another, as far as its storage does.
    fn version(&self) -> String {
        self.len().to_string()
    }

    /// Fills `buffer` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the source has become shorter than the range needs; otherwise what
    /// the storage answered, or `Stopped` where reading may take long. Interrupted and short reads are continued, never reported.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64, watch: &Watch<'_>) -> io::Result<()>;

    /// Fills all `pieces`, with at most `num_thread` requests at once, where the source does that better
    /// than as many threads would; `None` where it does not.
    ///
    /// # Errors
    /// As [`read_exact_at`](Self::read_exact_at).
    fn read_scattered(
        &self,
        _pieces: &mut Vec<Scattered<'_>>,
        _num_thread: usize,
        _watch: &Watch<'_>,
    ) -> Option<io::Result<()>> {
        None
    }

    /// From where on a range is best read whole, because parts of it cost as much.
    fn whole_from(&self) -> u64 {
        u64::MAX
    }

    /// Whether it is read from its beginning to its end only: what has passed costs another passage.
    fn is_sequential(&self) -> bool {
        false
    }

    /// What sort of storage it lies on.
    fn file_system(&self) -> FileSystem;

    /// The file that it is, where it is one: such can be mapped, and read past the page cache.
    fn local(&self) -> Option<&LocalFile> {
        None
    }
}

/// Threads that write to a file at once, at most: each may hold a buffer of a segment, and more of
/// them do not make a file system faster.
const MAX_WRITERS: usize = 4;

/// A file that becomes whole or not at all: whatever stood in its place before stays there until
/// [`commit`](Self::commit), and what was written goes if that is never called.
pub trait Sink: Send + Sync {
    /// What it is about to write, by a name that all spellings have in common.
    fn target(&self) -> order::Target;

    /// The file that it would replace now, which a save by another name may have written in place.
    fn replaced(&self) -> Option<order::Target> {
        None
    }

    /// Whether it may take the place of another.
    fn overwrites(&self) -> bool;

    /// Writes `bytes` at `offset`; threads may write disjoint ranges at once.
    ///
    /// # Errors
    /// What the storage answered.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()>;

    /// Whether segments are to be given to [`write_direct_at`](Self::write_direct_at).
    fn is_direct(&self) -> bool {
        false
    }

    /// Writes the first `len` bytes of `buffer`, which starts at a page and is longer by less than
    /// one, at `offset`, which is a multiple of a page's size. What follows the bytes in their last
    /// page is overwritten with zeros; only the end of the file may lie in mid-page.
    ///
    /// # Errors
    /// What the storage answered.
    fn write_direct_at(&self, buffer: &mut [u8], len: usize, offset: u64) -> Result<()> {
        self.write_all_at(&buffer[..len], offset)
    }

    /// The length of the parts that it takes whole, where it takes nothing else.
    fn part_len(&self) -> Option<u64> {
        None
    }

    /// How many may write at once where `num_thread` want to.
    fn writers(&self, num_thread: usize) -> usize {
        num_thread.min(MAX_WRITERS)
    }

    /// Writes a part, which begins at a multiple of [`part_len`](Self::part_len) and has that length
    /// unless it is the last.
    ///
    /// # Errors
    /// What the storage answered, or `Stopped`.
    fn write_part(&self, bytes: Vec<u8>, offset: u64, _watch: &Watch<'_>) -> Result<()> {
        self.write_all_at(&bytes, offset)
    }

    /// Makes the bytes durable, if they are to be, and puts the file in its place.
    ///
    /// # Errors
    /// What the storage answered; what stood there before is then as it was, unless only the last
    /// step, making the new name durable, failed.
    fn commit(self: Box<Self>, watch: &Watch<'_>) -> Result<()>;
}
