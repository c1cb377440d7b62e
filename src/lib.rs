//! A checkpoint is a header that says which bytes mean which tensor. This crate moves those
//! bytes from where they lie to where the model wants them, once, and hands out ordinary torch
//! tensors.
//!
//! ```
//! # fn main() -> Result<(), veturboio::Error> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path().join("model.safetensors");
//! use tch::{Device, Kind, Tensor};
//!
//! let weight = Tensor::randn([16, 4], (Kind::Float, Device::Cpu));
//! veturboio::save([("weight", &weight)], &path)?;
//! let state_dict = veturboio::load(&path)?;
//! assert_eq!(state_dict["weight"], weight);
//! # Ok(())
//! # }
//! ```
//!
//! # The modules, from the ground up
//!
//! A module imports only modules above it in this list.
//!
//! | module | what it knows |
//! |---|---|
//! | `address` | what a name names: a file, or an object of a store. Pure |
//! | `process` | state of a process that a forked child does not share |
//! | `watch` | what a caller sees of a running load or save, and how he stops it |
//! | [`format`] | what bytes mean: safetensors headers, PyTorch archives. No file, no torch |
//! | `error` | what can go wrong, and the words for it |
//! | `limits` | what system, control groups and the process's own limits leave to be taken |
//! | `processors` | how many processors this process may use |
//! | `threads` | threads that live as long as one load or save |
//! | `storage` | where bytes lie: files to read, files that become whole or not at all |
//! | `scattered` | how small ranges all over a file are read |
//! | `slice` | which bytes a slice of a tensor is. Pure |
//! | `plan`, `select` | which bytes become which tensor, and how the work is cut. Pure |
//! | `share` | which tensors lie in the same memory. Pure |
//! | `placement`, `route` | which tensor goes to which device, and how its bytes are cut. Pure |
//! | `targets` | what must be known of a device to fill its memory |
//! | `tensors` | what must be known of the caller's tensors to move their bytes |
//! | `buffers` | host memory that is lent, and used again |
//! | `ways` | how bytes come into memory: mapped, read, read past the page cache |
//! | `residency` | what the page cache holds of a file |
//! | `choice`, `facts` | which way a load takes, and what has to be known for that |
//! | `memory` | where bytes land: the region under the tensors of a load |
//! | `pipeline` | how bytes get to devices |
//! | `writer` | how the bytes of a file that is laid out are written |
//! | `transfer` | how a finished file is sent to where an address says |
//! | `load`, `fill`, `save` | the three operations |
//! | `ffi` | the border to `csrc/`, where torch's tensors are made and read |
//! | `state_dict` | the Rust API over `tch` |
//!
//! The C++ border registers `torch.ops.veturboio`; the same shared object serves Python,
//! TorchScript and C++. `docs/architecture.md` tells the whole.

#[cfg(not(target_pointer_width = "64"))]
compile_error!("veturboio needs 64-bit addresses: files are mapped whole");

mod address;
mod buffers;
mod choice;
mod error;
mod facts;
mod ffi;
mod fill;
pub mod format;
mod limits;
mod load;
mod memory;
mod pipeline;
mod placement;
mod plan;
mod process;
mod processors;
mod residency;
mod route;
mod save;
mod scattered;
mod select;
mod share;
mod slice;
mod state_dict;
mod storage;
mod targets;
mod tensors;
mod threads;
mod transfer;
mod watch;
mod ways;
mod writer;

pub use error::{Error, Kind, Result};
pub use load::read_header;
pub use save::SaveOptions;
pub use state_dict::LoadOptions;
pub use ways::Way;

use std::{borrow::Borrow, collections::HashMap, path::Path};

/// Loads every tensor of a safetensors or PyTorch file into CPU memory; those of a PyTorch file get
/// the names that lead to them, joined by dots.
///
/// The tensors lie in a private map of the file: nothing is copied, writing to one does not
/// touch the file, and the memory goes with the last of them. Names that the file records as
/// aliases of a tensor come back sharing its storage. The pickle of a PyTorch file is never run.
///
/// # Errors
/// [`Kind::Io`] where the system refuses the file, [`Kind::Format`] where the file is not what
/// it must be.
pub fn load(file: impl AsRef<Path>) -> Result<HashMap<String, tch::Tensor>> {
    LoadOptions::new().load(file)
}

/// Saves named tensors as a safetensors file.
///
/// The bytes go to a temporary sibling that takes the file's place once it is whole and on the
/// disk, with the mode, owner and attributes of the file that it replaces: whatever fails, the old
/// file stays as it was. Only a file that can be written but not replaced, such as a mount point, is
/// written in place once all bytes are on this machine. Of several saves of a process to one
/// file the last one called remains.
///
/// # Errors
/// [`Kind::InvalidArgument`] for a tensor that the format cannot hold or tensors that share
/// memory, [`Kind::Io`] where the system refuses.
pub fn save<N, T>(tensors: impl IntoIterator<Item = (N, T)>, file: impl AsRef<Path>) -> Result<()>
where
    N: AsRef<str>,
    T: Borrow<tch::Tensor>,
{
    SaveOptions::new().save(tensors, file)
}

/// Does nothing. A C++ program refers to it so that the linker keeps this library, whose
/// operators register themselves when it is loaded.
#[allow(unsafe_code)] // the symbol's name is ours alone
#[no_mangle]
pub extern "C" fn veturboio_link() {}
