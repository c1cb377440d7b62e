//! The first request of an object, and how the rest of it is read.
//!
//! A server that answers with the range it was asked for, and tells a version that further answers can
//! be held to, is read by ranges. Anything else is read out of one answer: in its place where the
//! length is told, and by way of a file without a name where it is not.

use super::{
    answer::{Answer, Body},
    cache::Remote,
    fault::{Fault, Patience},
    line::{Line, Lines},
    object::Object,
    store::Recipe,
    stream::{Flow, Stream},
    version::Version,
};
use crate::{
    error::{said, words_of, Error, Result},
    storage::local::LocalFile,
    watch::Watch,
};
use futures_util::StreamExt;
use std::{fs::File, io, io::Write, path::Path};

/// The longest object that is believed in: what torch and the system can address.
const MAX_LEN: u64 = 1 << 60;

/// An object that is open, in one of the ways that it can be read.
#[derive(Debug)]
pub enum Opened {
    Remote(Box<dyn Remote>),
    /// A copy, of an object of unknown length.
    File(LocalFile),
}

/// What the first answer leads to.
enum Begun {
    Ranges(Version, Vec<u8>),
    Flow(Version, Vec<u8>, Option<Flow>),
    File(File, Version),
}

/// Opens an object with a request for its first bytes.
///
/// # Errors
/// What the store answers, once trying again has not helped.
pub fn open(
    path: &Path,
    kind: &'static str,
    recipe: Recipe,
    first: u64,
    watch: &Watch<'_>,
) -> Result<Opened> {
    let lines = Lines::new(recipe);
    let failed = |error| Error::io("open", path, error);
    let line = lines.take().map_err(failed)?;
    let begun = line.wait(watch, begin(&lines.recipe, &line, first)).map_err(failed)?;
    let name = path.to_owned();
    Ok(match begun {
        Begun::Ranges(version, head) => {
            lines.give(line);
            Opened::Remote(Box::new(Object::new(name, kind, lines, (version, head))))
        }
        Begun::Flow(version, head, flow) => {
            let flow = flow.map(|flow| (flow, line));
            Opened::Remote(Box::new(Stream::new(name, lines, (version, head), flow)))
        }
        Begun::File(file, version) => {
            let file = LocalFile::of(file, path, version.told()).map_err(failed)?;
            Opened::File(file)
        }
    })
}

async fn begin(recipe: &Recipe, line: &Line, first: u64) -> io::Result<Begun> {
    let mut patience = Patience::new(recipe.budget);
    let mut has_ranges = true;
    loop {
        let begun = match line.store.get(recipe, has_ranges.then_some(0..first), None).await {
            Ok(answer) => read(answer, first, has_ranges).await,
            Err(fault) => Err(fault),
        };
        match begun {
            Ok(begun) => return Ok(begun),
            // There is no first byte, or the server knows no ranges.
            Err(fault)
                if has_ranges && matches!(fault.errno(), Some(libc::ERANGE | libc::EOPNOTSUPP)) =>
            {
                has_ranges = false;
            }
            Err(fault) => patience.wait(fault).await?,
        }
    }
}

async fn read(answer: Answer, first: u64, has_ranges: bool) -> Result<Begun, Fault> {
    let Answer { version, range, has_len, body } = answer;
    if !has_len {
        return Ok(Begun::File(spool(body).await?, version));
    }
    if version.len > MAX_LEN {
        let words = format!("the server says the object has {} bytes", version.len);
        return Err(Fault::Final(said(libc::EFBIG, words)));
    }
    if range.start != 0 || range.end > version.len || (range.end > first && range.end < version.len)
    {
        return Err(Fault::passing("the server sent another range than was asked for"));
    }
    let is_whole = range.end == version.len;
    let mut flow = Flow::new(body);
    let head = head(&mut flow, range.end.min(first)).await?;
    if is_whole && version.len <= first {
        end(&mut flow).await?;
        return Ok(Begun::Ranges(version, head));
    }
    if is_whole {
        return Ok(Begun::Flow(version, head, Some(flow)));
    }
    end(&mut flow).await?;
    if !version.is_held && has_ranges {
        return Ok(Begun::Flow(version, head, None));
    }
    Ok(Begun::Ranges(version, head))
}

/// The first `len` bytes.
async fn head(flow: &mut Flow, len: u64) -> Result<Vec<u8>, Fault> {
    let mut head = Vec::with_capacity(len as usize);
    while flow.at < len {
        let Some(chunk) = flow.body.next().await else {
            return Err(Fault::passing("the server sent fewer bytes than it said"));
        };
        let mut chunk = chunk?;
        let taken = chunk.split_to(chunk.len().min((len - flow.at) as usize));
        head.extend_from_slice(&taken);
        flow.rest = chunk;
        flow.pass(taken);
    }
    Ok(head)
}

/// Sees to it that nothing follows.
async fn end(flow: &mut Flow) -> Result<(), Fault> {
    let mut rest = std::mem::take(&mut flow.rest);
    while rest.is_empty() {
        let Some(chunk) = flow.body.next().await else { return Ok(()) };
        rest = chunk?;
    }
    Err(Fault::last(libc::EPROTO, "the server sent more bytes than it said"))
}

/// An answer of unknown length goes to a file first, which no directory names: where tensors go is
/// known once the length is.
async fn spool(mut body: Body) -> Result<File, Fault> {
    let kept = |error: io::Error| {
        let number = error.raw_os_error().unwrap_or(libc::EIO);
        let cause = words_of(number);
        let words = format!("the server tells no length, and a temporary file (TMPDIR): {cause}");
        Fault::Final(said(number, words))
    };
    let mut file = tempfile::tempfile().map_err(kept)?;
    while let Some(chunk) = body.next().await {
        file.write_all(&chunk?).map_err(kept)?;
    }
    Ok(file)
}
