//! Whether an object is the one that was sent, where the answer that would have said so was lost.
//!
//! The store's tag tells it where it is made of the digests of the parts, as S3 does unless objects
//! are encrypted. Otherwise the object is read back and compared with digests of what was sent: this
//! happens after lost answers only.

use super::{fault::Fault, line::Line, store::Recipe, version::Version};
use crc_fast::{checksum, CrcAlgorithm};
use futures_util::StreamExt;
use md5::{Digest, Md5};
use object_store::{multipart::PartId, ObjectStoreExt};
use std::sync::{Mutex, PoisonError};

const DIGEST: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

/// What stands in the place of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Ours,
    Another,
    Nothing,
}

/// Digests of what was sent, by parts.
#[derive(Debug)]
pub struct Sent {
    len: u64,
    part_len: u64,
    digests: Mutex<Vec<u64>>,
}

impl Sent {
    pub fn new(len: u64, part_len: u64) -> Self {
        let count = len.div_ceil(part_len) as usize;
        Self { len, part_len, digests: Mutex::new(vec![0; count]) }
    }

    /// Remembers a part.
    pub fn add(&self, index: usize, bytes: &[u8]) {
        let digest = checksum(DIGEST, bytes);
        let mut digests = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = digests.get_mut(index) {
            *slot = digest;
        }
    }

    /// Looks at what stands where it was sent; `tag` is the one that a store like S3 gives it.
    ///
    /// # Errors
    /// What the store answers; a final answer says that the object may be there or not.
    pub async fn compare(
        &self,
        line: &Line,
        recipe: &Recipe,
        tag: Option<&str>,
    ) -> Result<Standing, Fault> {
        let meta = match line.store.objects()?.head(&recipe.path).await {
            Ok(meta) => meta,
            Err(error) => match Fault::of(&error, &recipe.secrets) {
                fault if fault.errno() == Some(libc::ENOENT) => return Ok(Standing::Nothing),
                fault => return Err(untold(fault)),
            },
        };
        if meta.size != self.len {
            return Ok(Standing::Another);
        }
        let found = meta.e_tag.as_deref().unwrap_or_default().trim_matches('"');
        if tag.is_some_and(|tag| tag == found) {
            return Ok(Standing::Ours);
        }
        let same = self.read_back(line, recipe, &Version::of(&meta)).await;
        match same {
            Ok(true) => Ok(Standing::Ours),
            Ok(false) => Ok(Standing::Another),
            Err(fault) => Err(untold(fault)),
        }
    }

    /// Whether the object has the bytes that were sent.
    async fn read_back(
        &self,
        line: &Line,
        recipe: &Recipe,
        version: &Version,
    ) -> Result<bool, Fault> {
        let wanted = self.digests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut body = line.store.get_version(recipe, None, version).await?.body;
        let mut digest = crc_fast::Digest::new(DIGEST);
        let (mut at, mut index) = (0, 0);
        while let Some(chunk) = body.next().await {
            let mut chunk = chunk?;
            while !chunk.is_empty() {
                let end = ((index as u64 + 1) * self.part_len).min(self.len);
                let part = chunk.split_to(chunk.len().min(end.saturating_sub(at) as usize));
                if part.is_empty() {
                    return Ok(false);
                }
                digest.update(&part);
                at += part.len() as u64;
                if at == end {
                    if wanted.get(index) != Some(&digest.finalize()) {
                        return Ok(false);
                    }
                    digest.reset();
                    index += 1;
                }
            }
        }
        if at < self.len {
            return Err(Fault::passing("the server sent fewer bytes than it said"));
        }
        Ok(true)
    }
}

/// A final answer to the question what stands there.
fn untold(fault: Fault) -> Fault {
    match fault.errno() {
        Some(number) => Fault::last(number, format!("{UNTOLD}: {}", fault.cause())),
        None => fault,
    }
}

const UNTOLD: &str =
    "the store's answer was lost, and the object may be in place or not, since it cannot be read";

/// The tag that stores like S3 give to an object of one part.
pub fn tag_of_whole(bytes: &[u8]) -> String {
    hex(&Md5::digest(bytes))
}

/// The tag that they give to an object of these parts, whose tags are their digests: the digest of
/// the digests, and how many there are.
pub fn tag_of(parts: &[PartId]) -> Option<String> {
    let mut digest = Md5::new();
    for part in parts {
        let tag = part.content_id.trim_matches('"');
        if tag.len() != 32 {
            return None;
        }
        for at in (0..32).step_by(2) {
            digest.update([u8::from_str_radix(tag.get(at..at + 2)?, 16).ok()?]);
        }
    }
    Some(format!("{}-{}", hex(&digest.finalize()), parts.len()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
