//! Torch's devices, as the core asks them.

#![allow(unsafe_code)]

use super::bridge::{Allocation, Copies, HostBytes, PartSpec, TargetSpec, Targets};
use crate::{
    error::OutOfMemory,
    placement::Device,
    route::Part,
    targets::{self, HostMemory, Pending, Refused, Wanted},
};
use anyhow::{anyhow, Result};
use cxx::UniquePtr;
use std::ops::{Deref, DerefMut};

// SAFETY: every function of Targets locks what it changes, and torch's allocators, streams and
// copies may be used from any thread.
unsafe impl Sync for Targets {}
// SAFETY: an event may be waited for, and be destroyed, on any thread.
unsafe impl Send for Copies {}
// SAFETY: it is memory that belongs to its owner alone.
unsafe impl Send for HostBytes {}

impl targets::Targets for Targets {
    fn add(&self, wanted: &Wanted) -> Result<()> {
        let &Wanted { device: Device { kind, index }, byte_len, from_type, to_type } = wanted;
        Ok(Targets::add(self, &TargetSpec { kind, index, byte_len, from_type, to_type })?)
    }

    fn adopt(&self, tensor: usize) -> Result<bool> {
        Ok(Targets::adopt(self, tensor)?)
    }

    fn allocate(&self, index: usize) -> Result<(), Refused> {
        let refused = |error: cxx::Exception| Refused::Other(error.into());
        let Allocation { out_of_memory, reason } =
            Targets::allocate(self, index).map_err(refused)?;
        if out_of_memory {
            return Err(Refused::OutOfMemory(reason));
        }
        Ok(())
    }

    fn pinned_kind(&self) -> Result<Option<i8>> {
        let kind = Targets::pinned_kind(self)?;
        Ok((kind >= 0).then_some(kind))
    }

    fn host_memory(&self, len: u64) -> Result<Box<dyn HostMemory>> {
        let len = usize::try_from(len)?;
        Host::boxed(Targets::host_memory(self, len)?, len)
    }

    fn begin(&self) -> Result<()> {
        Ok(Targets::begin(self)?)
    }

    fn copy(&self, segment: &[u8], parts: &[Part]) -> Result<Option<Box<dyn Pending>>> {
        let parts: Vec<PartSpec> = parts
            .iter()
            .map(|&Part { parcel, at, to, len }| PartSpec { target: parcel, at, to, len })
            .collect();
        let copies = Targets::copy(self, segment, &parts).map_err(|error| {
            if self.is_out_of_memory() {
                anyhow::Error::new(OutOfMemory(error.what().to_owned()))
            } else {
                error.into()
            }
        })?;
        let pending = |copies| Box::new(UnderWay(copies)) as Box<dyn Pending>;
        Ok((!copies.is_null()).then(|| pending(copies)))
    }

    fn finish(&self) -> Result<()> {
        Ok(Targets::finish(self)?)
    }

    fn abandon(&self) {
        Targets::abandon(self);
    }
}

/// Page-locked memory.
pub(super) struct Host {
    bytes: UniquePtr<HostBytes>,
    len: usize,
}

impl Host {
    pub(super) fn boxed(bytes: UniquePtr<HostBytes>, len: usize) -> Result<Box<dyn HostMemory>> {
        if bytes.is_null() || bytes.data().is_null() {
            return Err(anyhow!("the device has no host memory to give"));
        }
        Ok(Box::new(Self { bytes, len }))
    }
}

impl HostMemory for Host {}

impl Deref for Host {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `boxed` was given this many bytes at an address that is not null, and only this
        // owner knows it. The system has zeroed them, or an earlier owner has written them.
        unsafe { std::slice::from_raw_parts(self.bytes.data(), self.len) }
    }
}

impl DerefMut for Host {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.bytes.data(), self.len) }
    }
}

struct UnderWay(UniquePtr<Copies>);

impl Pending for UnderWay {
    fn wait(&self) -> Result<()> {
        Ok(self.0.wait()?)
    }
}
