//! What can go wrong, and how it is said.
//!
//! Every message reads *verb object: cause* (`open model.safetensors: No such file or
//! directory`), and names the tensor where there is one. The text is the same in Rust, C++,
//! TorchScript and Python, because TorchScript keeps nothing of an error but its text.

use crate::{
    address,
    format::{cut, shown, Malformed},
    watch::Stopped,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// What sort of failure it is, for callers that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The operating system refused: [`Error::errno`] has its number.
    Io,
    /// The file is not what its format says it must be, or holds what torch has no type for.
    Format,
    /// The file is well formed, and its pickle imports a name that is given no meaning here.
    Unsupported,
    /// What was asked for does not exist yet.
    NotImplemented,
    /// The caller's arguments cannot be honoured.
    InvalidArgument,
    /// A device has no memory left for a tensor.
    OutOfMemory,
    /// A device failed, or is not there.
    Device,
    /// The caller stopped it.
    Interrupted,
    /// A bug of this library, caught before it could do harm.
    Internal,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Format => "format",
            Self::Unsupported => "unsupported",
            Self::NotImplemented => "not implemented",
            Self::InvalidArgument => "invalid argument",
            Self::OutOfMemory => "out of memory",
            Self::Device => "device",
            Self::Interrupted => "interrupted",
            Self::Internal => "internal",
        }
    }
}

/// The failure of a load or save.
pub struct Error {
    kind: Kind,
    action: &'static str,
    file: PathBuf,
    tensor: Option<String>,
    cause: anyhow::Error,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The longest reason given for a malformed file, in characters: it may quote the file.
const MAX_REASON: usize = 1000;

impl Error {
    fn new(kind: Kind, action: &'static str, file: &Path, cause: anyhow::Error) -> Self {
        // An address may hold a signature or a password.
        let file = address::shown(file).into_owned();
        Self { kind, action, file, tensor: None, cause }
    }

    pub(crate) fn io(action: &'static str, file: &Path, cause: io::Error) -> Self {
        if cause.kind() == io::ErrorKind::UnexpectedEof {
            return Self::format(file, Malformed::new("file became shorter while it was read"));
        }
        if is_stopped(&cause) {
            return Self::new(Kind::Interrupted, action, file, Stopped.into());
        }
        let cause = match cause.downcast::<Damaged>() {
            Ok(Damaged(malformed)) => return Self::format(file, malformed),
            Err(cause) => cause,
        };
        let cause = match cause.downcast::<DeviceFailed>() {
            Ok(DeviceFailed(failed)) => return Self::device(action, file, failed),
            Err(cause) => cause,
        };
        // The standard library's own refusal, such as of a path with a NUL in it, has no number.
        let kind = match cause.kind() {
            io::ErrorKind::InvalidInput if cause.raw_os_error().is_none() => Kind::InvalidArgument,
            _ => Kind::Io,
        };
        Self::new(kind, action, file, cause.into())
    }

    pub(crate) fn errno_of(action: &'static str, file: &Path, errno: i32) -> Self {
        Self::io(action, file, io::Error::from_raw_os_error(errno))
    }

    pub(crate) fn format(file: &Path, malformed: Malformed) -> Self {
        let Malformed { tensor, reason } = malformed;
        let reason = anyhow::Error::msg(cut(&reason, MAX_REASON).into_owned());
        Self { tensor, ..Self::new(Kind::Format, "read", file, reason) }
    }

    pub(crate) fn unsupported(file: &Path, name: &str) -> Self {
        let reason = format!("its pickle uses {}, which no plain checkpoint needs", shown(name));
        Self::new(Kind::Unsupported, "read", file, anyhow::Error::msg(reason))
    }

    pub(crate) fn argument(action: &'static str, file: &Path, cause: impl fmt::Display) -> Self {
        let cause = anyhow::Error::msg(cause.to_string());
        Self::new(Kind::InvalidArgument, action, file, cause)
    }

    pub(crate) fn not_implemented(action: &'static str, file: &Path, what: &str) -> Self {
        let cause = anyhow::Error::msg(format!("{what} is not implemented yet"));
        Self::new(Kind::NotImplemented, action, file, cause)
    }

    pub(crate) fn out_of_memory(file: &Path, reason: String) -> Self {
        Self::new(Kind::OutOfMemory, "load", file, anyhow::anyhow!(reason))
    }

    pub(crate) fn device(action: &'static str, file: &Path, cause: anyhow::Error) -> Self {
        Self::new(Kind::Device, action, file, cause)
    }

    pub(crate) fn internal(action: &'static str, file: &Path, cause: anyhow::Error) -> Self {
        Self::new(Kind::Internal, action, file, cause)
    }

    pub(crate) fn with_tensor(self, name: &str) -> Self {
        Self { tensor: Some(name.to_owned()), ..self }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The operating system's number, where it was the one to refuse.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        let error = self.cause.downcast_ref::<io::Error>()?;
        let said = || error.get_ref()?.downcast_ref::<Said>().map(|said| said.errno);
        error.raw_os_error().or_else(said)
    }

    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The tensor it concerns, where it concerns one.
    #[must_use]
    pub fn tensor(&self) -> Option<&str> {
        self.tensor.as_deref()
    }

    /// The cause alone, without the file's and the tensor's name.
    #[must_use]
    pub fn reason(&self) -> String {
        let text = format!("{:#}", self.cause);
        // The standard library ends the system's words with the number, which errno() has.
        match self.errno().map(|errno| format!(" (os error {errno})")) {
            Some(number) => text.replace(&number, ""),
            None => text,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.action, address::printable(&self.file))?;
        if let Some(name) = &self.tensor {
            write!(f, "tensor {}: ", shown(name))?;
        }
        f.write_str(&self.reason())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.source()
    }
}

/// A refusal of the system's kind in words of our own: a store has no errno, and a program wants one.
#[derive(Debug)]
pub(crate) struct Said {
    errno: i32,
    words: String,
}

impl Said {
    #[cfg_attr(not(feature = "cloud"), allow(dead_code))]
    pub(crate) fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Said {}

/// What the system says of an errno, without the number that the standard library puts behind it.
pub(crate) fn words_of(errno: i32) -> String {
    without_number(&io::Error::from_raw_os_error(errno).to_string()).to_owned()
}

pub(crate) fn without_number(words: &str) -> &str {
    words.split(" (os error").next().unwrap_or_default()
}

/// An error that says `words` and has the errno's kind.
pub(crate) fn said(errno: i32, words: impl Into<String>) -> io::Error {
    let kind = io::Error::from_raw_os_error(errno).kind();
    io::Error::new(kind, Said { errno, words: words.into() })
}

/// Whether it is the caller's own wish that has come to be an error of reading or writing.
/// What a device failed with, on its way through an `io::Error`.
#[derive(Debug)]
pub(crate) struct DeviceFailed(pub anyhow::Error);

impl fmt::Display for DeviceFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for DeviceFailed {}

impl From<DeviceFailed> for io::Error {
    fn from(failed: DeviceFailed) -> Self {
        Self::other(failed)
    }
}

/// What is wrong with the bytes of a file, on its way through an `io::Error`.
#[derive(Debug)]
pub(crate) struct Damaged(pub Malformed);

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for Damaged {}

impl From<Damaged> for io::Error {
    fn from(damaged: Damaged) -> Self {
        Self::new(io::ErrorKind::InvalidData, damaged)
    }
}

/// A device has no memory left for what it was asked to do.
#[derive(Debug)]
pub(crate) struct OutOfMemory(pub String);

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OutOfMemory {}

fn is_stopped(error: &io::Error) -> bool {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Stopped>()).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_systems_number_is_kept_beside_its_words() {
        let error = Error::errno_of("open", Path::new("m.safetensors"), libc::ENOENT);
        assert_eq!(error.to_string(), "open m.safetensors: No such file or directory");
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert_eq!(error.kind(), Kind::Io);
    }

    #[test]
    fn a_tensor_is_named_before_the_reason() {
        let error = Error::format(Path::new("m"), Malformed::tensor("a\n", "is bad"));
        assert_eq!(error.to_string(), r#"read m: tensor "a\n": is bad"#);
        assert_eq!(error.tensor(), Some("a\n"));
    }

    #[test]
    fn an_endless_name_is_cut_in_the_message_alone() {
        let name = "é".repeat(1_000_000);
        let error = Error::format(Path::new("m"), Malformed::tensor(&name, "is bad"));
        assert!(error.to_string().len() < 1000);
        assert_eq!(error.tensor(), Some(name.as_str()));
    }
}
