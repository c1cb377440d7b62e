//! What the server is told to do, and what it counts.

use crate::body::Body;
use hyper::{header, HeaderMap, HeaderMap as Headers};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// How to answer.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// What each request takes before anything happens.
    pub delay_ms: u64,
    /// Bytes a second for each connection; 0 is no bound.
    pub rate: u64,
    pub faults: Vec<Fault>,
    /// Which share of the requests gets one.
    pub chance: f64,
    /// How many are given at most.
    pub count: Option<u64>,
    /// The methods that get one; all if there is none.
    pub methods: Vec<String>,
    /// Seconds to be told with a status.
    pub retry_after: Option<u64>,
    /// Whether to answer as a plain web server, without ETag and signature.
    pub anonymous: bool,
    /// Whether such answers have an ETag after all: a store without the work of checking signatures.
    pub tagged: bool,
}

impl Behaviour {
    /// Whether all faults have been given already.
    pub fn spend(&mut self) -> bool {
        match &mut self.count {
            Some(0) => true,
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    Status(u16),
    /// The connection ends before there is an answer.
    Reset,
    /// What was asked for is done, and the connection ends without an answer.
    Lose,
    /// There is never an answer.
    Hang,
    /// The connection ends in the middle of the body.
    Cut,
    /// The body stops, and the connection stays.
    Stall,
    /// The body is shorter, or longer, than the range that the answer names.
    Short,
    Long,
    IgnoreRange,
    /// Another length of the object than it has; another range.
    WrongLength,
    WrongRange,
}

/// Spoils an answer that has a body.
pub fn spoil(fault: Fault, headers: &mut Headers, body: &mut Body) {
    match fault {
        Fault::Cut => body.cut_at(body.len() / 2, false),
        Fault::Stall => body.cut_at(body.len() / 2, true),
        Fault::Short => {
            body.truncate(body.len() / 2);
            headers.insert(header::CONTENT_LENGTH, body.len().into());
        }
        Fault::Long => {
            body.extend(1000);
            headers.insert(header::CONTENT_LENGTH, body.len().into());
        }
        Fault::WrongLength => change(headers, |first, last, len| (first, last, len + 1)),
        Fault::WrongRange => change(headers, |first, last, len| (first + 1, last + 1, len + 1)),
        _ => {}
    }
}

fn change(headers: &mut HeaderMap, to: impl Fn(u64, u64, u64) -> (u64, u64, u64)) {
    let told = headers.get(header::CONTENT_RANGE).and_then(|range| {
        let (range, len) = range.to_str().ok()?.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        let (first, last, len) = to(first.parse().ok()?, last.parse().ok()?, len.parse().ok()?);
        format!("bytes {first}-{last}/{len}").parse().ok()
    });
    if let Some(told) = told {
        headers.insert(header::CONTENT_RANGE, told);
    }
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Stats {
    pub requests: AtomicU64,
    pub gets: AtomicU64,
    pub bytes: AtomicU64,
    pub connections: AtomicU64,
    pub open: AtomicU64,
}

impl Stats {
    pub fn to_json(&self) -> String {
        let Self { requests, gets, bytes, connections, open } = self;
        let counters = [
            ("requests", requests),
            ("gets", gets),
            ("bytes", bytes),
            ("connections", connections),
            ("open", open),
        ];
        let pairs = counters.map(|(name, n)| format!("\"{name}\": {}", n.load(Ordering::Relaxed)));
        format!("{{{}}}", pairs.join(", "))
    }
}
