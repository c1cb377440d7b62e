//! What C++ asks of the memory of an `IOHelper`.

use super::failure::border;
use crate::{
    buffers::Buffers,
    error::{Error, Result},
};

pub(super) fn new_buffers(capacity: i64) -> Result<Box<Buffers>> {
    border("make", b"IOHelper", |path| {
        let capacity = u64::try_from(capacity)
            .map_err(|_| Error::argument("make", path, "nbytes must not be negative"))?;
        Ok(Box::new(Buffers::new(capacity)))
    })
}

/// Refuses a load that wants another kind of memory than the one before.
pub(super) fn agree(buffers: &Buffers, file: &[u8], use_pinmem: bool) -> Result<()> {
    border("load", file, |path| {
        if buffers.may_be_pinned(use_pinmem) {
            return Ok(());
        }
        // The published library's words and its spelling: programs look for them.
        let reason = "use_pinmem attribute of an exising IOHelper should not be changed";
        Err(Error::argument("load", path, reason))
    })
}
