//! An S3 server over a folder, by `s3s-fs`, that can be told to be slow and to fail.
//!
//! `cloudserver FOLDER` prints the port it listens on, and ends with its standard input. What it is
//! to do is told at `/.control/behave` as JSON ([`Behaviour`]), what it did is asked for at
//! `/.control/stats`. Each connection has its own speed, as connections to large stores have.

mod body;
mod faults;

use body::{Body, Pace};
use bytes::Bytes;
use faults::{Behaviour, Fault, Stats};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming, header, service::service_fn, HeaderMap, Method, Request, Response, StatusCode,
};
use hyper_util::rt::TokioIo;
use s3s::{auth::SimpleAuth, service::S3Service, service::S3ServiceBuilder};
use std::{
    env, io,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        Arc, Mutex,
    },
    time::Duration,
};
use tokio::{io::AsyncReadExt, net::TcpListener};

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct Server {
    root: PathBuf,
    s3: S3Service,
    behaviour: Mutex<Behaviour>,
    stats: Stats,
    chance: AtomicU64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let root = PathBuf::from(env::args_os().nth(1).ok_or("say which folder to serve")?);
    let files = s3s_fs::FileSystem::new(&root).map_err(|error| format!("{error:?}"))?;
    let mut builder = S3ServiceBuilder::new(files);
    builder.set_auth(SimpleAuth::from_single("key", "secret-of-the-tests"));
    let server = Arc::new(Server {
        root,
        s3: builder.build(),
        behaviour: Mutex::default(),
        stats: Stats::default(),
        chance: AtomicU64::new(1),
    });
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    tokio::spawn(async {
        let mut rest = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut rest).await;
        std::process::exit(0);
    });
    loop {
        let (socket, _) = listener.accept().await?;
        // Or each answer waits for an acknowledgement.
        socket.set_nodelay(true)?;
        let server = Arc::clone(&server);
        tokio::spawn(async move {
            server.stats.connections.fetch_add(1, Ordering::Relaxed);
            server.stats.open.fetch_add(1, Ordering::Relaxed);
            let pace = Arc::new(Mutex::new(Pace::default()));
            let answer = service_fn(|request| server.answer(request, Arc::clone(&pace)));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(socket), answer)
                .await;
            server.stats.open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

impl Server {
    async fn answer(
        &self,
        mut request: Request<Incoming>,
        pace: Arc<Mutex<Pace>>,
    ) -> Result<Response<Body>, Failure> {
        if let Some(control) = request.uri().path().strip_prefix("/.control/") {
            let control = control.to_owned();
            let told = request.into_body().collect().await?.to_bytes();
            return self.control(&control, &told);
        }
        let behaviour = self.behaviour.lock().unwrap().clone();
        let counted = &self.stats;
        counted.requests.fetch_add(1, Ordering::Relaxed);
        if request.method() == Method::GET {
            counted.gets.fetch_add(1, Ordering::Relaxed);
        }
        tokio::time::sleep(Duration::from_millis(behaviour.delay_ms)).await;
        let fault = self.fault(&behaviour, request.method());
        match fault {
            Some(Fault::Status(status)) => {
                let _ = request.into_body().collect().await;
                let mut answer = Response::new(Body::of(SLOW_DOWN.into()));
                *answer.status_mut() = StatusCode::from_u16(status)?;
                if let Some(seconds) = behaviour.retry_after {
                    answer.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                }
                return Ok(answer);
            }
            Some(Fault::Reset) => return Err("told to".into()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::IgnoreRange) => drop(request.headers_mut().remove(header::RANGE)),
            _ => {}
        }
        let file = self.file(&request);
        let method = request.method().clone();
        let anonymous = behaviour.anonymous && method == Method::GET;
        let answer = if anonymous {
            plain(file.as_deref(), request.headers(), behaviour.tagged)?
        } else {
            // Once an upload is being completed, it is completed, though the client may not wait for
            // the answer.
            let s3 = self.s3.clone();
            let request = request.map(s3s::Body::from);
            let work = async move { s3.call(request).await };
            let answer =
                if method == Method::POST { tokio::spawn(work).await? } else { work.await };
            answer.map_err(|error| format!("{error:?}"))?
        };
        if fault == Some(Fault::Lose) {
            return Err("told to".into());
        }
        let (mut parts, content) = answer.into_parts();
        let range = length(&parts.headers).filter(|_| method == Method::GET);
        let mut body = match (range, file, parts.status.is_success()) {
            (Some(len), Some(file), true) => {
                Body::of(mapped(&file, &parts.headers, len).map_err(Failure::from)?)
            }
            _ => Body::of(content.collect().await.map_err(|e| format!("{e:?}"))?.to_bytes()),
        };
        if range.is_some() {
            fault.inspect(|fault| faults::spoil(*fault, &mut parts.headers, &mut body));
        }
        counted.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        body.paced(pace, behaviour.rate);
        Ok(Response::from_parts(parts, body))
    }

    fn control(&self, what: &str, told: &[u8]) -> Result<Response<Body>, Failure> {
        if what == "stats" {
            return Ok(Response::new(Body::of(self.stats.to_json().into())));
        }
        let behaviour: Behaviour = serde_json::from_slice(told)?;
        *self.behaviour.lock().unwrap() = behaviour;
        Ok(Response::new(Body::of(Bytes::new())))
    }

    /// The fault that is due, if one is.
    fn fault(&self, behaviour: &Behaviour, method: &Method) -> Option<Fault> {
        let wanted = &behaviour.methods;
        if !wanted.is_empty() && !wanted.iter().any(|name| name == method.as_str()) {
            return None;
        }
        // Multiplicative, as good as these tests need.
        let step = |n: u64| {
            n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
        };
        let order = Ordering::Relaxed;
        let drawn =
            step(self.chance.fetch_update(order, order, |n| Some(step(n))).unwrap_or(0)) >> 33;
        let share = (drawn % 10_000) as f64 / 10_000.0;
        if behaviour.faults.is_empty() || share >= behaviour.chance {
            return None;
        }
        if self.behaviour.lock().unwrap().spend() {
            return None;
        }
        behaviour.faults.get((drawn / 10_000) as usize % behaviour.faults.len()).copied()
    }

    fn file(&self, request: &Request<Incoming>) -> Option<PathBuf> {
        let path = request.uri().path().trim_start_matches('/');
        (request.uri().query().is_none_or(|query| !query.contains("upload")))
            .then(|| self.root.join(path))
            .filter(|path| path.is_file())
    }
}

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>told to</Message></Error>";

/// A web server's answer, without signatures.
fn plain(
    file: Option<&Path>,
    headers: &HeaderMap,
    tagged: bool,
) -> io::Result<Response<s3s::Body>> {
    let mut answer = Response::new(s3s::Body::empty());
    let Some(file) = file else {
        *answer.status_mut() = StatusCode::NOT_FOUND;
        return Ok(answer);
    };
    let len = file.metadata()?.len();
    let range = headers.get(header::RANGE).and_then(|range| {
        let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
        let last = if last.is_empty() { len } else { last.parse::<u64>().ok()? };
        Some((first.parse::<u64>().ok()?, last.min(len.saturating_sub(1))))
    });
    let headers = answer.headers_mut();
    if tagged {
        headers.insert(header::ETAG, header::HeaderValue::from_static("\"one\""));
        let then = header::HeaderValue::from_static("Mon, 01 Jan 2024 00:00:00 GMT");
        headers.insert(header::LAST_MODIFIED, then);
    }
    match range {
        Some((first, last)) if first <= last => {
            headers.insert(header::CONTENT_LENGTH, (last - first + 1).into());
            let told = format!("bytes {first}-{last}/{len}").parse().map_err(io::Error::other)?;
            headers.insert(header::CONTENT_RANGE, told);
            *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        }
        _ => drop(headers.insert(header::CONTENT_LENGTH, len.into())),
    }
    Ok(answer)
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The bytes of a file that the answer is to have, without copying them.
fn mapped(file: &Path, headers: &HeaderMap, len: u64) -> io::Result<Bytes> {
    let start = headers.get(header::CONTENT_RANGE).and_then(|range| {
        range.to_str().ok()?.strip_prefix("bytes ")?.split_once('-')?.0.parse::<usize>().ok()
    });
    let file = std::fs::File::open(file)?;
    // SAFETY: the tests replace files, and cut none short.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let start = start.unwrap_or(0);
    let end = (start + len as usize).min(map.len());
    Ok(Bytes::from_owner(map).slice(start.min(end)..end))
}
