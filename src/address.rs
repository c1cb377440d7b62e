//! What a name names: a file, or an object of a store.
//!
//! Knows the forms of addresses, and nothing of stores.

use std::{
    borrow::Cow,
    env,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// The stores that an address names by its scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    S3,
    Tos,
    Gs,
    Az,
    Http,
}

impl Scheme {
    pub fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Tos => "tos",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::Http => "http",
        }
    }
}

/// What a name names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place<'a> {
    Local(Cow<'a, Path>),
    /// The rest of the address: `bucket/key`, or the whole of it for a web server.
    Cloud(Scheme, &'a str),
    /// A path in SFCS.
    Sfcs(Cow<'a, Path>),
}

/// Why an address names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unnamed {
    /// A store that cannot be reached yet.
    Unknown(&'static str),
    Because(&'static str),
}

/// Says what `path` names.
///
/// # Errors
/// An address that names nothing, or a store that cannot be reached.
pub fn place(path: &Path) -> Result<Place<'_>, Unnamed> {
    let bytes = path.as_os_str().as_bytes();
    let Some((scheme, rest)) = split(bytes) else {
        let sdk = env::var_os("VETURBOIO_USE_SFCS_SDK").is_some_and(|value| value == "1");
        if sdk && !bytes.starts_with(b"/dev/shm/") {
            return Ok(Place::Sfcs(Cow::Borrowed(path)));
        }
        return Ok(Place::Local(Cow::Borrowed(path)));
    };
    let scheme = match scheme {
        b"file" => return Ok(Place::Local(file(rest).ok_or(Unnamed::Because(NOT_HERE))?)),
        b"sfcs" => return Ok(Place::Sfcs(Cow::Owned(rooted(rest)))),
        b"hdfs" => return Err(Unnamed::Unknown("hdfs://")),
        b"s3" => Scheme::S3,
        b"tos" => Scheme::Tos,
        b"gs" => Scheme::Gs,
        b"az" => Scheme::Az,
        _ => Scheme::Http,
    };
    let text =
        std::str::from_utf8(bytes).map_err(|_| Unnamed::Because("an address must be UTF-8"))?;
    if scheme == Scheme::Http {
        return Ok(Place::Cloud(scheme, text));
    }
    let rest = &text[text.len() - rest.len()..];
    let named = rest
        .split_once('/')
        .is_some_and(|(bucket, key)| !bucket.is_empty() && !key.is_empty() && !key.ends_with('/'));
    if !named {
        return Err(Unnamed::Because(NO_OBJECT));
    }
    Ok(Place::Cloud(scheme, rest))
}

const NO_OBJECT: &str = "an address names a bucket and an object, such as s3://bucket/object";
const NOT_HERE: &str = "a file:// address names an absolute path of this machine";

/// The name as messages may show it: what follows `?` in an address of a web server may be a
/// signature, and what precedes `@` a password. Where it is not clear which host is meant, neither
/// is what a password is, and nothing is shown but the scheme.
pub fn shown(path: &Path) -> Cow<'_, Path> {
    let bytes = path.as_os_str().as_bytes();
    match split(bytes) {
        Some((scheme @ (b"http" | b"https"), rest)) => {
            let end = |bytes: &[u8], marks: &[u8]| {
                bytes.iter().position(|byte| marks.contains(byte)).unwrap_or(bytes.len())
            };
            let bare = &rest[..end(rest, b"?#")];
            let host = &bare[..end(bare, b"/\\")];
            let user = host.iter().rposition(|&byte| byte == b'@').map_or(0, |at| at + 1);
            let is_clear = is_host(&host[user..]);
            let bare = if is_clear { &bare[user..] } else { b"***".as_slice() };
            Cow::Owned(PathBuf::from(OsStr::from_bytes(&[scheme, b"://", bare].concat())))
        }
        _ => Cow::Borrowed(path),
    }
}

/// The same for a message, in one line of UTF-8: other bytes and control characters are escaped, as
/// Python does it.
pub fn printable(path: &Path) -> String {
    let path = shown(path);
    let mut text = String::with_capacity(path.as_os_str().len());
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                // A NUL would end the text for C++, and with it the reason.
                '\0' => text.push_str("\\0"),
                letter if letter.is_control() => text.extend(letter.escape_default()),
                letter => text.push(letter),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    text
}

/// Whether it is a host, perhaps with a port: what follows a colon is a number.
fn is_host(host: &[u8]) -> bool {
    let address = host.iter().rposition(|&byte| byte == b']').map_or(0, |at| at + 1);
    let mut parts = host[address..].split(|&byte| byte == b':');
    let is_named = parts.next().is_some_and(|name| address > 0 || !name.is_empty());
    let port = parts.next().unwrap_or_default();
    is_named && port.iter().all(u8::is_ascii_digit) && parts.next().is_none()
}

const SCHEMES: [&[u8]; 9] =
    [b"file", b"sfcs", b"hdfs", b"s3", b"tos", b"gs", b"az", b"http", b"https"];

/// Splits an address of a kind that is known by name; anything else is a path, whatever colons are
/// in it.
fn split(bytes: &[u8]) -> Option<(&'static [u8], &[u8])> {
    SCHEMES.into_iter().find_map(|scheme| {
        let rest = bytes.strip_prefix(scheme)?.strip_prefix(b"://")?;
        Some((scheme, rest))
    })
}

/// The path of `file:///path` or `file://localhost/path`, its percent signs resolved.
fn file(rest: &[u8]) -> Option<Cow<'static, Path>> {
    let path = rest.strip_prefix(b"localhost").unwrap_or(rest);
    let path = decoded(path)?;
    path.starts_with(b"/").then(|| Cow::Owned(PathBuf::from(OsStr::from_bytes(&path))))
}

fn decoded(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            rest = after;
            let digit = |byte: u8| char::from(byte).to_digit(16);
            decoded.push((digit(digits[0])? * 16 + digit(digits[1])?) as u8);
        } else {
            decoded.push(*byte);
        }
    }
    Some(decoded)
}

/// `sfcs://x/y` is `/x/y` to SFCS.
fn rooted(rest: &[u8]) -> PathBuf {
    let path = rest.strip_prefix(b"/").unwrap_or(rest);
    PathBuf::from(OsStr::from_bytes(&[b"/", path].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<Place<'_>> {
        place(Path::new(text)).ok()
    }

    #[test]
    fn what_has_no_known_scheme_is_a_path() {
        for text in ["model", "/a/b", "a://b", "s3:/a", "C://x", "file:/a"] {
            assert_eq!(at(text), Some(Place::Local(Path::new(text).into())), "{text}");
        }
    }

    #[test]
    fn a_message_shows_every_byte_of_a_name() {
        let printed = |bytes: &[u8]| printable(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!(printed("a/é \\x".as_bytes()), "a/é \\x");
        assert_eq!(printed(b"caf\xe9.pt"), "caf\\xe9.pt");
        assert_eq!(printed(b"a\nb\x1b\0\xff"), "a\\nb\\u{1b}\\0\\xff");
        assert_eq!(printed(b"https://u:p\xe9@host/a\xe9?b"), "https://host/a\\xe9");
    }

    #[test]
    fn an_address_names_a_store_and_an_object() {
        assert_eq!(at("s3://bucket/a b/c%20"), Some(Place::Cloud(Scheme::S3, "bucket/a b/c%20")));
        assert_eq!(at("az://c/k"), Some(Place::Cloud(Scheme::Az, "c/k")));
        assert_eq!(at("http://h:1/k?x=y"), Some(Place::Cloud(Scheme::Http, "http://h:1/k?x=y")));
        for text in ["s3://", "s3://bucket", "s3://bucket/", "s3:///key", "gs://bucket/dir/"] {
            assert_eq!(at(text), None, "{text}");
        }
        assert_eq!(at("sfcs://x/y"), Some(Place::Sfcs(Path::new("/x/y").into())));
        assert_eq!(at("sfcs:///x"), Some(Place::Sfcs(Path::new("/x").into())));
    }

    #[test]
    fn a_file_address_is_a_path_of_this_machine() {
        let path = |text: &'static str| Some(Place::Local(Path::new(text).into()));
        assert_eq!(at("file:///a/b%20c"), path("/a/b c"));
        assert_eq!(at("file://localhost/a"), path("/a"));
        for text in ["file://a", "file://other/a", "file:///%z0", "file:///%2"] {
            assert_eq!(at(text), None, "{text}");
        }
    }

    #[test]
    fn what_may_be_secret_is_not_shown() {
        let told = |text: &'static str| shown(Path::new(text)).display().to_string();
        assert_eq!(told("https://me:pass@host/a?Signature=x#y"), "https://host/a");
        assert_eq!(told("http://host/a@b"), "http://host/a@b");
        assert_eq!(told("http://me:a@b@[::1]:80/a"), "http://[::1]:80/a");
        for unclear in ["http://me:pa?ss@host/a", "http://me:pa#ss@host", "http://me:pa\\@host/"] {
            assert_eq!(told(unclear), "http://***");
        }
        assert_eq!(told("s3://bucket/a?b@c"), "s3://bucket/a?b@c");
        assert_eq!(told("/a?b@c"), "/a?b@c");
    }
}
