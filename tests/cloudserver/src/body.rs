//! A body that comes as fast as its connection may, and may end where it should not.

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{sleep_until, Instant, Sleep};

/// Bytes of a frame.
const FRAME: usize = 64 << 10;

/// How far ahead of its pace a connection may be: timers are no better than this.
const AHEAD: Duration = Duration::from_millis(2);

/// When a connection may send again.
#[derive(Debug)]
pub struct Pace(Instant);

impl Default for Pace {
    fn default() -> Self {
        Self(Instant::now())
    }
}

#[derive(Debug)]
pub struct Body {
    bytes: Bytes,
    /// Where the body ends with an error, or stops for ever.
    end: Option<(usize, bool)>,
    sent: usize,
    pace: Option<(Arc<Mutex<Pace>>, u64)>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Body {
    pub fn of(bytes: Bytes) -> Self {
        Self { bytes, end: None, sent: 0, pace: None, sleep: None }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn truncate(&mut self, len: usize) {
        self.bytes.truncate(len);
    }

    pub fn extend(&mut self, by: usize) {
        let mut bytes = self.bytes.to_vec();
        bytes.resize(bytes.len() + by, 0x55);
        self.bytes = bytes.into();
    }

    pub fn cut_at(&mut self, at: usize, stalls: bool) {
        self.end = Some((at, stalls));
    }

    pub fn paced(&mut self, pace: Arc<Mutex<Pace>>, rate: u64) {
        self.pace = (rate > 0).then_some((pace, rate));
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if let Some(sleep) = &mut self.sleep {
            std::task::ready!(sleep.as_mut().poll(context));
            self.sleep = None;
        }
        if let Some((at, stalls)) = self.end {
            if self.sent >= at {
                return if stalls {
                    Poll::Pending
                } else {
                    Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())))
                };
            }
        }
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.bytes.len().min(FRAME);
        let frame = self.bytes.split_to(len);
        self.sent += len;
        if let Some((pace, rate)) = &self.pace {
            let takes = Duration::from_secs_f64(len as f64 / *rate as f64);
            let now = Instant::now();
            let next = {
                let mut pace = pace.lock().unwrap();
                pace.0 = pace.0.max(now.checked_sub(AHEAD).unwrap_or(now)) + takes;
                pace.0
            };
            if next > now {
                self.sleep = Some(Box::pin(sleep_until(next)));
            }
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
