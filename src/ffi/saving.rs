//! What C++ asks of a save: the save itself, the time of the call, files that others write the bytes
//! of, and what the caller is to be told of a save that succeeded.

#![allow(unsafe_code)]

use super::{
    bridge::{SaveRequest, StateDict, StorageOptions},
    convert::{options, threads},
    failure::border,
    interrupts::{asked, watch},
    Buffers,
};
use crate::{
    address::Place,
    error::{Error, Result},
    load::DEFAULT_NUM_THREAD,
    save::SaveOptions,
    storage::{self, order::Ticket, sink::LocalSink, Creation, Sink},
    transfer,
    watch::Watch,
};
use std::{
    cell::RefCell,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

thread_local! {
    static NOTES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// The time of a call, by which later saves to the same target are told from earlier ones.
pub(crate) struct SaveTicket(Ticket);

pub(super) fn new_save_ticket() -> Result<Box<SaveTicket>> {
    border("save", b"a ticket", |_| Ok(Box::new(SaveTicket(Ticket::new()))))
}

/// # Safety
/// `progress` is null or points to two aligned integers that outlive the call.
pub(super) unsafe fn save(
    tensors: &StateDict,
    file: &[u8],
    request: &SaveRequest,
    ticket: &SaveTicket,
    buffers: &Buffers,
    progress: *mut i64,
) -> Result<()> {
    // SAFETY: as this function's caller vouches.
    let watch = unsafe { watch(progress) };
    border("save", file, |path| {
        let saving = SaveOptions::new()
            .metadata(request.metadata.iter().map(|pair| (&*pair.first, &*pair.second)))
            .force_contiguous(request.force_contiguous)
            .force_save_shared_tensor(request.force_save_shared_tensor)
            .force_clone_shared_tensor(request.force_clone_shared_tensor)
            .num_thread(threads(request.num_thread))
            .durable(request.durable)
            .overwrite(request.overwrite)
            .storage(options(&request.storage));
        saving.write(tensors, path, buffers, &ticket.0, &watch)?;
        keep_notes(&watch);
        Ok(())
    })
}

/// Sends a file of this machine to where `file` says.
pub(super) fn send(
    from: &[u8],
    file: &[u8],
    overwrite: bool,
    storage: &StorageOptions,
    ticket: &SaveTicket,
) -> Result<()> {
    let (options, watch) = (options(storage), Watch::new(None, asked()));
    border("save", file, |path| {
        let from = Path::new(OsStr::from_bytes(from));
        let ticket = &ticket.0;
        transfer::send(from, path, DEFAULT_NUM_THREAD, overwrite, &options, ticket, &watch)?;
        keep_notes(&watch);
        Ok(())
    })
}

/// Keeps what a save has noted for whoever asks on this thread; what an earlier one noted goes.
fn keep_notes(watch: &Watch<'_>) {
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
pub(super) fn commit_file(file: &FileSink) -> Result<()> {
    let watch = Watch::new(None, asked());
    border("save", file.name.as_os_str().as_bytes(), |path: &Path| {
        let Some(sink) = file.take() else {
            return Err(Error::argument("save", path, "the file is committed or aborted already"));
        };
        let sink: Box<dyn Sink> = sink;
        storage::commit(sink, path, &file.ticket, &watch)?;
        keep_notes(&watch);
        Ok(())
    })
}
