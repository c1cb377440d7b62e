//! Where a redirected request goes, and what of it other hosts may see.

use super::service::Refused;
use http::{
    header::{
        HeaderName, ACCEPT, ACCEPT_ENCODING, IF_MATCH, IF_UNMODIFIED_SINCE, LOCATION, RANGE,
        USER_AGENT,
    },
    HeaderMap, Method, StatusCode, Uri,
};
use object_store::client::HttpRequest;
use reqwest::Url;

/// Redirects that are followed, at most, before they are taken for a circle.
pub const MAX_REDIRECTS: usize = 10;

/// What another host than the one asked first is told. All else may be secret or part of a
/// signature: Authorization, Cookie, session tokens of stores.
const FOR_ANYONE: [HeaderName; 6] =
    [ACCEPT, ACCEPT_ENCODING, IF_MATCH, IF_UNMODIFIED_SINCE, RANGE, USER_AGENT];

/// The request that an answer redirects to; `None` where the answer is no redirect, or one that is
/// not followed: what writes goes to the host that was named, and to no other.
///
/// # Errors
/// A redirect to where it must not lead.
pub fn next(
    request: &HttpRequest,
    status: StatusCode,
    headers: &HeaderMap,
) -> Result<Option<HttpRequest>, Refused> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let leads = match status {
        StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER => reads,
        StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT => true,
        _ => false,
    };
    let Some(location) = headers.get(LOCATION).filter(|_| leads) else {
        return Ok(None);
    };
    let unclear = Refused("the server redirects to what is no address");
    let from: Url = request.uri().to_string().parse().map_err(|_| unclear.clone())?;
    let location = std::str::from_utf8(location.as_bytes()).map_err(|_| unclear.clone())?;
    let mut to = from.join(location).map_err(|_| unclear.clone())?;
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => return Err(Refused("the server redirects from https to http")),
        _ => return Err(Refused("the server redirects to what is no web server")),
    }
    to.set_fragment(None);
    // Whoever redirects does not say as whom we come.
    let cleared = to.set_username("").and_then(|()| to.set_password(None));
    let uri = to.as_str().parse::<Uri>().ok().filter(|_| cleared.is_ok());
    let is_same = is_same_host(&from, &to);
    if !reads && !is_same {
        return Ok(None);
    }
    let mut next = request.clone();
    *next.uri_mut() = uri.ok_or(unclear)?;
    // Of the host before it.
    next.headers_mut().remove(http::header::HOST);
    if !is_same {
        let kept = FOR_ANYONE.into_iter().filter_map(|name| {
            let value = request.headers().get(&name)?.clone();
            Some((name, value))
        });
        *next.headers_mut() = kept.collect();
    }
    Ok(Some(next))
}

/// Whether both addresses are of one server, or of the same host that goes on encrypted.
fn is_same_host(from: &Url, to: &Url) -> bool {
    let ports = (from.port_or_known_default(), to.port_or_known_default());
    let encrypts = (from.scheme(), to.scheme()) == ("http", "https");
    let same = (from.scheme() == to.scheme() && ports.0 == ports.1)
        || (encrypts && ports == (Some(80), Some(443)));
    same && from.host() == to.host()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::client::HttpRequestBody;

    fn redirected(method: Method, from: &str, status: u16, to: &str) -> Option<HttpRequest> {
        let request = http::Request::builder().method(method).uri(from);
        let request = request.header("authorization", "Basic x").header("range", "bytes=0-9");
        let request = request.header("x-amz-security-token", "secret");
        let request = request.body(HttpRequestBody::empty()).unwrap();
        let headers = HeaderMap::from_iter([(LOCATION, to.parse().unwrap())]);
        next(&request, StatusCode::from_u16(status).unwrap(), &headers).ok()?
    }

    #[test]
    fn another_host_sees_no_secret_and_the_same_one_keeps_all() {
        let at = |from, to| redirected(Method::GET, from, 302, to);
        let names = |request: HttpRequest| {
            let mut names: Vec<_> = request.headers().keys().map(ToString::to_string).collect();
            names.sort();
            names
        };
        let all = ["authorization", "range", "x-amz-security-token"];
        for (from, to) in [
            ("http://a/x?s=1", "/y"),
            ("http://a/x", "http://a:80/y"),
            ("http://a/x", "https://a/y"),
        ] {
            assert_eq!(names(at(from, to).unwrap()), all, "{from} {to}");
        }
        for (from, to) in [
            ("http://a/x", "http://b/y"),
            ("http://a/x", "http://a:81/y"),
            ("http://a:81/x", "https://a/y"),
            ("https://a/x", "//b/y"),
        ] {
            assert_eq!(names(at(from, to).unwrap()), ["range"], "{from} {to}");
        }
        let to = at("http://a/x", "http://me:pass@b/y#z").unwrap();
        assert_eq!(to.uri().to_string(), "http://b/y");
    }

    #[test]
    fn no_redirect_leads_out_of_encryption_or_off_the_web() {
        for to in ["http://a/y", "ftp://a/y", "file:///etc/passwd", "http://"] {
            assert!(redirected(Method::GET, "https://a/x", 302, to).is_none(), "{to}");
        }
        assert!(redirected(Method::GET, "http://a/x", 200, "http://a/y").is_none());
    }

    #[test]
    fn what_writes_stays_with_its_host() {
        assert!(redirected(Method::PUT, "http://a/x", 307, "http://a/y").is_some());
        assert!(redirected(Method::PUT, "http://a/x", 307, "http://b/y").is_none());
        assert!(redirected(Method::POST, "http://a/x", 302, "http://a/y").is_none());
    }
}
