//! What stands between a store's client and the wire: answers that refuse become errors that keep
//! what matters of them, and nothing that could be secret.

use super::{
    client::client,
    redirect::{self, MAX_REDIRECTS},
};
use async_trait::async_trait;
use http::{
    header::{IF_NONE_MATCH, RETRY_AFTER},
    HeaderValue, Method, StatusCode, Uri,
};
use object_store::{
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    },
    ClientOptions,
};
use std::{fmt, time::Duration};

/// How much of a refusal is read to find its code, in bytes.
const MAX_REFUSAL: usize = 16 << 10;

/// The answer of a store that did not do what was asked.
#[derive(Debug, Clone)]
pub struct Refusal {
    pub status: u16,
    /// What the store calls it, such as `SlowDown`.
    pub code: Option<String>,
    pub retry_after: Option<Duration>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server answered {}", self.status)?;
        let reason = StatusCode::from_u16(self.status).ok().and_then(|s| s.canonical_reason());
        if let Some(reason) = reason {
            write!(f, " {reason}")?;
        }
        match &self.code {
            Some(code) => write!(f, " ({code})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// What a server asks for that is not done.
#[derive(Debug, Clone)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Refused {}

/// What is added to requests that the store's client makes.
#[derive(Debug, Clone, Default)]
pub struct Additions {
    /// An upload becomes an object only where there is none of its name.
    pub only_new: bool,
}

/// Makes clients that are watched.
#[derive(Debug, Clone, Default)]
pub struct Connector(pub Additions);

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = client(options)?;
        Ok(HttpClient::new(Service { inner, additions: self.0.clone() }))
    }
}

struct Service {
    inner: HttpClient,
    additions: Additions,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if self.additions.only_new && is_completion(request.method(), request.uri()) {
            // No part of the signature, which covers the headers that the store made.
            request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            request.headers_mut().insert("x-goog-if-generation-match", HeaderValue::from(0));
        }
        for _ in 0..=MAX_REDIRECTS {
            let response = self.inner.execute(request.clone()).await?;
            let status = response.status();
            if status.is_success() || status.is_informational() {
                return Ok(response);
            }
            match redirect::next(&request, status, response.headers()) {
                Ok(Some(next)) => request = next,
                Ok(None) => {
                    return Err(HttpError::new(HttpErrorKind::Unknown, refusal(response).await));
                }
                Err(refused) => return Err(HttpError::new(HttpErrorKind::Unknown, refused)),
            }
        }
        Err(HttpError::new(HttpErrorKind::Unknown, Refused("the server redirects in a circle")))
    }
}

/// Whether a request makes an object of the parts of an upload.
fn is_completion(method: &Method, uri: &Uri) -> bool {
    let query = uri.query().unwrap_or("");
    let has = |name: &str| query.split('&').any(|pair| pair.starts_with(name));
    (method == Method::POST && has("uploadId=")) || (method == Method::PUT && has("comp=blocklist"))
}

async fn refusal(response: HttpResponse) -> Refusal {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| {
        // The other form, a date, is used by no store that is known to us.
        value.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
    });
    let header = ["x-ms-error-code", "x-tos-error-code"];
    let header = header.into_iter().find_map(|name| response.headers().get(name));
    let header = header.and_then(|value| value.to_str().ok()).and_then(plain);
    let code = match header {
        Some(code) => Some(code),
        None => code_of(response).await,
    };
    Refusal { status, code, retry_after }
}

/// The code in the body of a refusal. The rest of it may quote keys and signatures.
async fn code_of(response: HttpResponse) -> Option<String> {
    use futures_util::StreamExt;
    let mut body = Vec::new();
    let mut chunks = response.into_body().bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk);
        if body.len() > MAX_REFUSAL {
            break;
        }
    }
    let text = String::from_utf8_lossy(&body);
    let (_, rest) = text.split_once("<Code>")?;
    plain(rest.split_once("</Code>")?.0)
}

/// A code if it is a word.
fn plain(code: &str) -> Option<String> {
    let is_word = code.len() <= 64 && code.chars().all(|c| c.is_ascii_alphanumeric());
    (is_word && !code.is_empty()).then(|| code.to_owned())
}
