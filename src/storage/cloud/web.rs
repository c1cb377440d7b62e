//! Files of web servers, which keep fewer promises than stores: ranges may be ignored, lengths left
//! out, tags weak or missing.

use super::{
    answer::{Answer, Body},
    fault::Fault,
    service::{Connector, Refusal},
    version::Version,
};
use futures_util::StreamExt;
use http::{
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, IF_MATCH,
        RANGE,
    },
    HeaderMap, HeaderValue, StatusCode, Uri,
};
use object_store::{
    client::{HttpClient, HttpConnector, HttpRequestBody},
    ClientOptions,
};
use reqwest::Url;
use std::ops::Range;

/// The address of a file, and as whom it is asked for.
#[derive(Debug, Clone)]
pub struct Page {
    /// With its query, which may be a signature.
    uri: Uri,
    /// User and password, as the header has them.
    authorization: Option<HeaderValue>,
}

impl Page {
    /// Takes an address apart; what of it may be secret goes to `secrets` too.
    ///
    /// # Errors
    /// In words: an address that names no host or no file.
    pub fn new(address: &str, secrets: &mut Vec<String>) -> Result<Self, String> {
        const NO_FILE: &str = "an address names a host and a file, such as https://host/file";
        let mut url = Url::parse(address).map_err(|_| NO_FILE)?;
        if url.path() == "/" && url.query().is_none() {
            return Err(NO_FILE.to_owned());
        }
        secrets.extend(url.query().map(str::to_owned));
        let authorization = authorization(&url, secrets)?;
        url.set_fragment(None);
        let cleared = url.set_username("").and_then(|()| url.set_password(None));
        let uri = url.as_str().parse().ok().filter(|_| cleared.is_ok());
        Ok(Self { uri: uri.ok_or(NO_FILE)?, authorization })
    }

    /// The address without what may be secret: tells one file from another, not versions of it.
    pub fn origin(&self) -> String {
        self.uri.to_string()
    }

    pub fn is_plain(&self) -> bool {
        self.uri.scheme_str() == Some("http")
    }

    /// Makes a client.
    pub fn build(&self, options: &ClientOptions) -> object_store::Result<Web> {
        let client = Connector::default().connect(options)?;
        Ok(Web { client, page: self.clone() })
    }
}

/// The header that a user and a password in an address stand for. Percent signs are resolved, since
/// what an address could not hold is written so.
fn authorization(url: &Url, secrets: &mut Vec<String>) -> Result<Option<HeaderValue>, String> {
    if url.username().is_empty() && url.password().is_none() {
        return Ok(None);
    }
    let user = resolved(url.username());
    if user.contains(&b':') {
        return Err("a user's name cannot have a colon".to_owned());
    }
    let password = url.password().unwrap_or_default();
    let plain = resolved(password);
    secrets.push(password.to_owned());
    secrets.push(String::from_utf8_lossy(&plain).into_owned());
    let text = base64(&[user.as_slice(), b":", plain.as_slice()].concat());
    secrets.push(text.clone());
    let value = HeaderValue::try_from(format!("Basic {text}"));
    let mut value = value.map_err(|_| "user and password cannot be sent")?;
    value.set_sensitive(true);
    Ok(Some(value))
}

/// The bytes that percent signs stand for; one that stands for none is itself.
fn resolved(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        let digit = |at: usize| char::from(*after.get(at)?).to_digit(16);
        let number = digit(0).zip(digit(1)).filter(|_| *byte == b'%');
        if let Some((high, low)) = number {
            bytes.push((high * 16 + low) as u8);
            rest = &after[2..];
        } else {
            bytes.push(*byte);
            rest = after;
        }
    }
    bytes
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number =
            chunk.iter().fold(0u32, |n, &b| n << 8 | u32::from(b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let at = (number >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[at as usize]) } else { '=' });
        }
    }
    text
}

/// A client for one file.
#[derive(Debug)]
pub struct Web {
    client: HttpClient,
    page: Page,
}

impl Web {
    /// Asks for `range` or for all of it, if it has the tag.
    ///
    /// # Errors
    /// What the server answers; `EOPNOTSUPP` for an answer to a range that cannot be used.
    pub async fn get(
        &self,
        range: Option<Range<u64>>,
        tag: Option<&str>,
        secrets: &[String],
    ) -> Result<Answer, Fault> {
        let mut request = http::Request::get(&self.page.uri);
        request = request.header(ACCEPT_ENCODING, "identity");
        if let Some(Range { start, end }) = range {
            request = request.header(RANGE, format!("bytes={start}-{}", end.saturating_sub(1)));
        }
        if let Some(tag) = tag {
            request = request.header(IF_MATCH, tag);
        }
        if let Some(value) = &self.page.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(HttpRequestBody::empty());
        let request = request.map_err(|_| Fault::last(libc::EINVAL, "it cannot be asked for"))?;
        let answer = self.client.execute(request).await;
        let answer = answer.map_err(|error| Fault::of_http(&error, secrets))?;
        let (parts, body) = answer.into_parts();
        let secrets = secrets.to_vec();
        let body = body.bytes_stream();
        let body = body.map(move |chunk| chunk.map_err(|error| Fault::of_http(&error, &secrets)));
        understood(parts.status, &parts.headers, range.is_some(), body.boxed())
    }
}

/// What an answer is of the file.
fn understood(
    status: StatusCode,
    headers: &HeaderMap,
    has_range: bool,
    body: Body,
) -> Result<Answer, Fault> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let encoding = text(CONTENT_ENCODING).unwrap_or("identity").trim();
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(Fault::last(libc::EPROTO, ENCODED));
    }
    let len = text(CONTENT_LENGTH).and_then(|len| len.trim().parse::<u64>().ok());
    match status {
        StatusCode::PARTIAL_CONTENT if has_range => {
            let told = text(CONTENT_RANGE).and_then(content_range);
            let (range, len) = told.ok_or_else(Fault::no_ranges)?;
            let version = Version::of_headers(headers, len);
            Ok(Answer { version, range, has_len: true, body })
        }
        StatusCode::OK => {
            let version = Version::of_headers(headers, len.unwrap_or(0));
            Ok(Answer { version, range: 0..len.unwrap_or(0), has_len: len.is_some(), body })
        }
        _ => {
            let refusal = Refusal { status: status.as_u16(), code: None, retry_after: None };
            Err(Fault::last(libc::EPROTO, refusal.to_string()))
        }
    }
}

const ENCODED: &str = "the server sends it encoded, although it was asked not to";

/// Range and length out of `bytes 0-9/10`.
fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, len) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, len): (u64, u64, u64) =
        (first.trim().parse().ok()?, last.trim().parse().ok()?, len.trim().parse().ok()?);
    (first <= last && last < len).then(|| (first..last + 1, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(address: &str) -> Option<(String, Option<String>)> {
        let page = Page::new(address, &mut Vec::new()).ok()?;
        let header = page.authorization.map(|value| value.to_str().unwrap().to_owned());
        Some((page.uri.to_string(), header))
    }

    #[test]
    fn an_address_is_sent_as_it_is_without_what_is_for_us() {
        let uri = |address| told(address).unwrap().0;
        for same in ["http://host/a%2Fb//c/../d", "https://host:8443/a?X-Signature=a%2Fb"] {
            let sent = same.replace("c/../", "");
            assert_eq!(uri(same), sent);
        }
        assert_eq!(uri("http://me:pass@host/a#part"), "http://host/a");
        assert_eq!(uri("http://host/a b/\u{e9}"), "http://host/a%20b/%C3%A9");
        assert_eq!(uri("http://b\u{fc}cher.example/a"), "http://xn--bcher-kva.example/a");
        assert_eq!(uri("http://[::1]:9/a"), "http://[::1]:9/a");
        for none in ["http://", "http://host", "http://host/", "http:///"] {
            assert!(told(none).is_none(), "{none}");
        }
    }

    #[test]
    fn user_and_password_are_resolved() {
        let header = |user: &str| told(&format!("http://{user}@host/a")).unwrap().1.unwrap();
        let basic = |text: &str| format!("Basic {}", base64(text.as_bytes()));
        assert_eq!(header("user:p%40ss"), basic("user:p@ss"));
        assert_eq!(header("us%2Fer:a:b%25"), basic("us/er:a:b%"));
        assert_eq!(header("token"), basic("token:"));
        assert_eq!(header("user:100%"), basic("user:100%"));
        assert_eq!(header("user:%C3%A9"), basic("user:\u{e9}"));
        assert!(told("http://a%3Ab:c@host/a").is_none());
        let mut secrets = Vec::new();
        Page::new("http://user:p%40ss@host/a?sig=1", &mut secrets).unwrap();
        assert_eq!(secrets[..3], ["sig=1", "p%40ss", "p@ss"]);
    }

    #[test]
    fn a_range_is_believed_if_it_can_be() {
        assert_eq!(content_range("bytes 0-9/10"), Some((0..10, 10)));
        let max = format!("bytes 0-{0}/{0}", u64::MAX);
        for text in ["", "bytes 0-9/*", "bytes 0-10/10", "bytes 5-4/10", "bytes */10", &max] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }
}
