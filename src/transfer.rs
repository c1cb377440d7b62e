//! A file that is finished, sent to where an address says.

use crate::{
    error::{Error, Result},
    plan,
    storage::{self, local::LocalFile, order::Ticket, Creation, Source},
    threads,
    watch::Watch,
    writer::{part_of, Ended},
};
use std::{ops::Range, path::Path};

/// Puts a copy of the file `from`, which lies on this machine, at `to`: whole or not at all.
///
/// # Errors
/// As a save; a file that cannot be read is named as it is.
pub fn send(
    from: &Path,
    to: &Path,
    num_thread: usize,
    overwrite: bool,
    options: &storage::Options,
    ticket: &Ticket,
    watch: &Watch<'_>,
) -> Result<()> {
    let file = LocalFile::open(from)?;
    let creation = Creation { len: file.len(), durable: true, overwrite };
    watch.begin(creation.len);
    let sink = storage::create(to, creation, options, watch)?;
    if storage::is_overtaken(&*sink, ticket) {
        return storage::overtaken(&*sink, to);
    }
    let part_len = sink.part_len().unwrap_or(plan::SEGMENT_LEN);
    let parts = plan::segments(0..creation.len, part_len).collect();
    threads::for_each(sink.writers(num_thread), parts, watch, |part: Range<u64>| {
        let len = part.end - part.start;
        let mut bytes = part_of(len, to).map_err(Ended::Failed)?;
        bytes.resize(len as usize, 0);
        file.read_exact_at(&mut bytes, part.start, watch)
            .map_err(|error| Ended::Failed(Error::io("read", from, error)))?;
        sink.write_part(bytes, part.start, watch).map_err(Ended::Failed)?;
        watch.add(len);
        Ok(())
    })
    .map_err(|ended: Ended| ended.told(to))?;
    storage::commit(sink, to, ticket, watch)
}
