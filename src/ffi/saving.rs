//! What C++ asks of a save beside the tensors: the time of the call, files that others write the
//! bytes of, and what the caller is to be told of a save that succeeded.

use super::failure::border;
use crate::{
    address::Place,
    error::{Error, Result},
    storage::{self, order::Ticket, sink::LocalSink, Creation, Sink},
    watch::Watch,
};
use std::{
    cell::RefCell,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

thread_local! {
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The time of a call, by which later saves to the same target are told from earlier ones.
pub(crate) struct SaveTicket(pub(super) Ticket);

pub(super) fn new_save_ticket() -> Result<Box<SaveTicket>> {
    border("save", b"a ticket", |_| Ok(Box::new(SaveTicket(Ticket::new()))))
}

/// Keeps what a save has noted for whoever asks on this thread; what an earlier one noted goes.
pub(super) fn keep_notes(watch: &Watch<'_>) {
    NOTES.set(watch.take_notes());
}

/// What the last save on this thread noted, which is forgotten by this.
pub(super) fn take_notes() -> Vec<String> {
    NOTES.take()
}

/// A file whose bytes are written by others, through its descriptor.
pub(crate) struct FileSink {
    name: PathBuf,
    ticket: Ticket,
    sink: Mutex<Option<Box<LocalSink>>>,
}

/// Begins a file of this machine.
pub(super) fn create_file(file: &[u8], overwrite: bool) -> Result<Box<FileSink>> {
    border("save", file, |path| {
        let ticket = Ticket::new();
        let Place::Local(local) = storage::place("save", path)? else {
            return Err(Error::argument("save", path, "not a path of this machine"));
        };
        let creation = Creation { len: 0, durable: true, overwrite };
        let sink = Mutex::new(Some(Box::new(LocalSink::create(&local, creation)?)));
        Ok(Box::new(FileSink { name: path.to_owned(), ticket, sink }))
    })
}

impl FileSink {
    /// The descriptor to write to; -1 once the file is committed or aborted.
    pub(crate) fn descriptor(&self) -> i32 {
        let sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        sink.as_ref().map_or(-1, |sink| sink.descriptor())
    }

    /// Drops what was written.
    pub(crate) fn abort(&self) {
        drop(self.take());
    }

    fn take(&self) -> Option<Box<LocalSink>> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Puts the file in its place.
pub(super) fn commit_file(file: &FileSink, watch: &Watch<'_>) -> Result<()> {
    border("save", file.name.as_os_str().as_bytes(), |path: &Path| {
        let Some(sink) = file.take() else {
            return Err(Error::argument("save", path, "the file is committed or aborted already"));
        };
        let sink: Box<dyn Sink> = sink;
        storage::commit(sink, path, &file.ticket, watch)?;
        keep_notes(watch);
        Ok(())
    })
}
