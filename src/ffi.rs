//! The border: the only bridge between the core and `csrc/`.
//!
//! Three rules hold here. No panic crosses: cxx would abort the process, so every entry runs in
//! [`border`], which turns a panic into an error. No error loses its kind: what C++ and Python
//! cannot read from the text they ask of [`take_failure`], on the same thread. And whatever
//! torch must do goes through the C++ functions named below.

#![allow(unsafe_code)]

use crate::{buffers, error::Result, memory};
use failure::{border, failure_kind, take_failure};
use helper::{agree, new_buffers};
use loading::{address, byte_len, explain, fill, fill_bytes, load, metadata, refuse_load};
use saving::{
    commit_file, create_file, new_save_ticket, save, send, take_notes, FileSink, SaveTicket,
};

mod convert;
mod devices;
mod failure;
mod helper;
mod interrupts;
mod loading;
mod saving;

pub(crate) use bridge::Tensor;

#[cxx::bridge(namespace = "veturboio::core")]
pub(crate) mod bridge {
    struct LoadRequest {
        num_thread: i64,
        header_only: bool,
        structured: bool,
        skip_unknown: bool,
        use_direct_io: bool,
        /// A way by name; empty leaves the choice to the core.
        way: String,
        /// Whether `names` says which tensors are wanted.
        some: bool,
        names: Vec<String>,
        slices: Vec<SliceSpec>,
        /// Where tensors are wanted, if that is said: the rule without a name is for what no other
        /// names.
        placed: bool,
        devices: Vec<DeviceRule>,
        /// Whether tensors of floating point are to have `dtype`, a `c10::ScalarType`.
        converted: bool,
        dtype: i8,
        storage: StorageOptions,
        /// What a file called its version when it was asked for names; empty for any.
        version: String,
        /// Whether names in the metadata of a safetensors file that stand for a stored tensor come back.
        restore_aliases: bool,
    }

    /// The device of a name, or of all names that begin with it and a dot.
    struct DeviceRule {
        name: String,
        kind: i8,
        index: i8,
    }

    /// A storage to be filled on a device; `byte_len` counts what the file has.
    struct TargetSpec {
        kind: i8,
        index: i8,
        byte_len: u64,
        from_type: i8,
        to_type: i8,
    }

    /// What became of a storage's memory; no reason if it is there.
    struct Allocation {
        out_of_memory: bool,
        reason: String,
    }

    /// Bytes at offset `at` of a segment that go to offset `to` of a target, which counts as the file
    /// does.
    struct PartSpec {
        target: usize,
        at: u64,
        to: u64,
        len: u64,
    }

    /// What the caller says of a store.
    struct StorageOptions {
        pairs: Vec<Pair>,
        /// Where downloaded objects are kept, as the bytes of a path; empty for nowhere.
        cache_dir: Vec<u8>,
    }

    /// What is wanted of a tensor: dimension, start and stop of each cut. A stop of -2^63 takes the one
    /// element at start, and one of -2^63 + 1 has the step of the cut before in place of start.
    struct SliceSpec {
        name: String,
        cuts: Vec<i64>,
    }

    /// Bytes of a load: `offset` counts in the map, or in the copies if `copied`; or those of a target,
    /// if that is not -1.
    struct StorageSpec {
        target: i64,
        copied: bool,
        offset: u64,
        byte_len: u64,
    }

    /// A tensor to be made; no strides mean row-major order.
    struct TensorSpec {
        storage: usize,
        scalar_type: i8,
        offset: i64,
        shape: Vec<i64>,
        strides: Vec<i64>,
        requires_grad: bool,
        /// Whether it is to be copied into row-major order.
        settle: bool,
    }

    /// A name, and which tensor it stands for.
    struct Name {
        name: String,
        tensor: usize,
    }

    /// A metadata entry.
    struct Pair {
        first: String,
        second: String,
    }

    struct Loaded {
        storages: Vec<StorageSpec>,
        tensors: Vec<TensorSpec>,
        names: Vec<Name>,
        /// What is known of the values of a PyTorch file beside them, as JSON; empty for a safetensors
        /// file.
        structure: String,
        /// Tells whether another load finds the same file; empty unless the header alone was read.
        version: String,
        /// A pickle that builds the values of a PyTorch file, and can do nothing else.
        values: Vec<u8>,
        region: Box<Region>,
    }

    /// What was not read into its tensors: their positions, and the tensors of the file for them, in
    /// the same order.
    struct Filled {
        left: Vec<usize>,
        loaded: Loaded,
    }

    /// A tensor to be saved, as torch has it.
    struct TensorView {
        name: String,
        scalar_type: i8,
        shape: Vec<i64>,
        strides: Vec<i64>,
        /// Bit 0: conjugated, bit 1: negated.
        flips: u8,
        /// One number a device.
        device: i64,
        /// First and last-plus-one address of the elements.
        begin: u64,
        end: u64,
        byte_len: u64,
        /// Bytes of one element.
        item_size: u64,
        /// Whether the elements lie in row-major order without gaps.
        contiguous: bool,
        /// Why the tensor cannot be saved; empty if it can.
        refusal: String,
    }

    struct SaveRequest {
        metadata: Vec<Pair>,
        force_contiguous: bool,
        force_save_shared_tensor: bool,
        force_clone_shared_tensor: bool,
        num_thread: i64,
        durable: bool,
        overwrite: bool,
        storage: StorageOptions,
    }

    /// A failure of a thread: `kind` is empty if there was none.
    struct Failure {
        kind: String,
        /// `errno` is a macro in C.
        errno_: i32,
        has_tensor: bool,
        tensor: String,
        reason: String,
    }

    extern "Rust" {
        type Region;

        fn address(region: &Region, storage: &StorageSpec) -> Result<*mut u8>;
        /// # Safety
        /// `progress` is null or points to two aligned integers that outlive the call.
        unsafe fn load(
            file: &[u8],
            request: &LoadRequest,
            targets: &Targets,
            buffers: &Buffers,
            progress: *mut i64,
        ) -> Result<Loaded>;
        /// Fills tensors in place; returns what is left to be copied, from the same version of the file.
        /// # Safety
        /// As [`load`].
        unsafe fn fill(
            file: &[u8],
            request: &LoadRequest,
            tensors: &StateDict,
            targets: &Targets,
            buffers: &Buffers,
            progress: *mut i64,
        ) -> Result<Filled>;
        /// Reads a well-formed file, as it is, into memory of its length.
        fn fill_bytes(
            file: &[u8],
            request: &LoadRequest,
            bytes: &mut [u8],
            targets: &Targets,
            buffers: &Buffers,
        ) -> Result<()>;
        /// Says in a sentence which way a load would take, and why.
        fn explain(file: &[u8], request: &LoadRequest, targets: &Targets) -> Result<String>;
        /// Fails, as a load that `reason` refuses.
        fn refuse_load(file: &[u8], reason: &str) -> Result<()>;
        /// The length of what a file or an address names.
        fn byte_len(file: &[u8], storage: &StorageOptions) -> Result<i64>;
        fn metadata(file: &[u8], storage: &StorageOptions) -> Result<Vec<Pair>>;
        /// # Safety
        /// `progress` is null or points to two aligned integers that outlive the call.
        unsafe fn save(
            tensors: &StateDict,
            file: &[u8],
            request: &SaveRequest,
            ticket: &SaveTicket,
            buffers: &Buffers,
            progress: *mut i64,
        ) -> Result<()>;

        /// Sends a file of this machine to where `file` says.
        fn send(
            from: &[u8],
            file: &[u8],
            overwrite: bool,
            storage: &StorageOptions,
            ticket: &SaveTicket,
        ) -> Result<()>;

        /// The time of a call.
        type SaveTicket;
        fn new_save_ticket() -> Result<Box<SaveTicket>>;
        /// What the last save on this thread has to tell beside its success. Asking forgets.
        fn take_notes() -> Vec<String>;

        /// A file of this machine whose bytes are written through a descriptor.
        type FileSink;
        fn create_file(file: &[u8], overwrite: bool) -> Result<Box<FileSink>>;
        fn descriptor(self: &FileSink) -> i32;
        fn abort(self: &FileSink);
        fn commit_file(file: &FileSink) -> Result<()>;

        /// The memory of an IOHelper.
        type Buffers;
        fn new_buffers(capacity: i64) -> Result<Box<Buffers>>;
        fn held(self: &Buffers) -> u64;
        fn capacity(self: &Buffers) -> u64;
        fn close(self: &Buffers);
        fn decide_pinned(self: &Buffers, pinned: bool);
        /// Refuses a load that wants another kind of memory than the one before.
        fn agree(buffers: &Buffers, file: &[u8], use_pinmem: bool) -> Result<()>;

        fn failure_kind() -> String;
        fn take_failure(text: &str) -> Failure;
        fn provoke_panic(text: &str) -> Result<()>;
    }

    unsafe extern "C++" {
        include!("veturboio/csrc/error.h");
        include!("veturboio/csrc/lanes.h");
        include!("veturboio/csrc/state_dict.h");
        include!("veturboio/csrc/targets.h");
        include!("veturboio/csrc/tensor.h");

        #[namespace = "at"]
        type Tensor;

        /// Makes the tensors of a load; together they own the region.
        fn make_tensors(
            specs: &Vec<TensorSpec>,
            storages: &Vec<StorageSpec>,
            region: Box<Region>,
            targets: &Targets,
        ) -> Result<UniquePtr<CxxVector<Tensor>>>;
        fn scalar_type_name(scalar_type: i8) -> String;

        /// Storages on devices. Every function may be called from any thread.
        type Targets;

        fn new_targets(use_pinmem: bool, one_allocation: bool) -> UniquePtr<Targets>;
        fn add(self: &Targets, spec: &TargetSpec) -> Result<()>;
        fn adopt(self: &Targets, tensor: usize) -> Result<bool>;
        fn allocate(self: &Targets, index: usize) -> Result<Allocation>;
        /// The kind of device whose host memory is to be used; -1 for ordinary memory.
        fn pinned_kind(self: &Targets) -> Result<i8>;
        fn host_memory(self: &Targets, len: usize) -> Result<UniquePtr<HostBytes>>;
        fn begin(self: &Targets) -> Result<()>;
        /// Null if the segment is not needed any more.
        fn copy(self: &Targets, segment: &[u8], parts: &[PartSpec]) -> Result<UniquePtr<Copies>>;
        /// Whether a copy failed because a device has no memory for it.
        fn is_out_of_memory(self: &Targets) -> bool;
        fn finish(self: &Targets) -> Result<()>;
        fn abandon(self: &Targets);

        /// Host memory that a device reaches.
        type HostBytes;
        fn data(self: &HostBytes) -> *mut u8;

        /// Copies that are under way.
        type Copies;
        fn wait(self: &Copies) -> Result<()>;

        /// Named tensors to be saved.
        type StateDict;

        fn new_state_dict() -> UniquePtr<StateDict>;
        /// # Safety
        /// `tensor` points to a live `at::Tensor`.
        unsafe fn push(self: Pin<&mut StateDict>, name: &str, tensor: *const Tensor);
        fn size(self: &StateDict) -> usize;
        fn describe(self: &StateDict, index: usize) -> Result<TensorView>;
        /// The address of a contiguous CPU tensor's bytes; null for any other tensor.
        fn data(self: &StateDict, index: usize) -> Result<*const u8>;
        fn byte_len(self: &StateDict, index: usize) -> Result<usize>;
        /// The same to be written to, which counts as a change of the tensor.
        fn writable(self: &StateDict, index: usize) -> Result<*mut u8>;
        fn begin(self: &StateDict) -> Result<()>;
        fn pinned_kind(self: &StateDict) -> Result<i8>;
        fn host_memory(self: &StateDict, kind: i8, len: usize) -> Result<UniquePtr<HostBytes>>;
        /// Copies a tensor's bytes, in row-major order, from byte `begin` on.
        fn gather(self: &StateDict, index: usize, begin: u64, bytes: &mut [u8]) -> Result<()>;
    }
}

type Region = memory::Region;
type Buffers = buffers::Buffers;

/// Panics inside the border, so that a test can see what becomes of a panic.
fn provoke_panic(text: &str) -> Result<()> {
    border("provoke", b"panic", |_| panic!("{text}"))
}
