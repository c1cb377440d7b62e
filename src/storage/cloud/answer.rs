//! One answer to a request for bytes of an object.

use super::{
    fault::{Fault, CHANGED},
    store::{Recipe, Store},
    version::Version,
};
use bytes::Bytes;
use futures_util::{stream::BoxStream, StreamExt};
use object_store::{GetOptions, GetRange};
use std::ops::Range;

/// Bytes as they come.
pub type Body = BoxStream<'static, Result<Bytes, Fault>>;

pub struct Answer {
    pub version: Version,
    /// What the body is of the object: all of it where the server ignores ranges.
    pub range: Range<u64>,
    /// Whether the length is told; otherwise the object ends where the body does.
    pub has_len: bool,
    pub body: Body,
}

impl Store {
    /// Asks for `range`, or for all, of the version that has the tag.
    ///
    /// # Errors
    /// What the server answers; `EOPNOTSUPP` where it may be that it ignores ranges.
    pub async fn get(
        &self,
        recipe: &Recipe,
        range: Option<Range<u64>>,
        tag: Option<&str>,
    ) -> Result<Answer, Fault> {
        let objects = match self {
            Self::Web(web) => return web.get(range, tag, &recipe.secrets).await,
            _ => self.objects()?,
        };
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            if_match: tag.map(str::to_owned),
            ..Default::default()
        };
        let answer = objects.get_opts(&recipe.path, options).await;
        let answer = answer.map_err(|error| Fault::of(&error, &recipe.secrets))?;
        let (version, range) = (Version::of(&answer.meta), answer.range.clone());
        let secrets = recipe.secrets.clone();
        let body = answer.into_stream();
        let body = body.map(move |chunk| chunk.map_err(|error| Fault::of(&error, &secrets)));
        Ok(Answer { version, range, has_len: true, body: body.boxed() })
    }

    /// The same of a version that is known already, which the answer is held against.
    ///
    /// # Errors
    /// `ESTALE` where there is another.
    pub async fn get_version(
        &self,
        recipe: &Recipe,
        range: Option<Range<u64>>,
        version: &Version,
    ) -> Result<Answer, Fault> {
        let has_range = range.is_some();
        let answer = self.get(recipe, range, version.strong_tag()).await;
        let answer = answer.map_err(|fault| match fault.errno() {
            Some(libc::EEXIST | libc::ENOENT) => Fault::last(libc::ESTALE, CHANGED),
            Some(libc::ERANGE) if has_range => Fault::last(libc::ESTALE, CHANGED),
            _ => fault,
        })?;
        if answer.version != *version || !answer.has_len {
            return Err(Fault::last(libc::ESTALE, CHANGED));
        }
        Ok(answer)
    }
}
