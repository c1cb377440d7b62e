//! How bytes get to devices: threads read the file into a ring of segments, each segment is copied
//! on as soon as it is full, and is filled again when its copies are done.
//!
//! ```text
//! readers   |-read 0-|-read 2-|-read 4-|           a segment each
//!           |-read 1-|-read 3-|-read 5-|
//! device             |-0-|-1-|-2-|-3-|-4-|-5-|     one stream for each device
//! ```
//!
//! What the ring holds is all the host memory a load needs, whatever the size of the file.

use crate::{
    buffers::Ring,
    error::DeviceFailed,
    memory::read_block,
    placement::Parcel,
    route::{stages, Picked, Stage},
    targets::{Refused, Targets, Wanted},
    ways::{direct::direct, Job, Way, PAGE},
};
use std::{fs::File, io};

/// How often each reader fills a segment, at least, if there is enough to read.
const ROUNDS: u64 = 16;

/// The shortest read worth a request, in bytes: the largest that most FUSE mounts are sent.
const MIN_STAGE: u64 = 1 << 20;

/// Why a load to devices came to nothing.
#[derive(Debug)]
pub enum Failed {
    /// A device has no memory for this parcel.
    OutOfMemory(usize, String),
    /// A device refused this parcel.
    Target(usize, anyhow::Error),
    /// A device failed.
    Device(anyhow::Error),
    /// The file could not be read, or the caller stopped it.
    Source(io::Error),
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        match error.downcast::<DeviceFailed>() {
            Ok(DeviceFailed(error)) => Self::Device(error),
            Err(error) => Self::Source(error),
        }
    }
}

/// Gives every parcel its memory.
///
/// # Errors
/// A device that is not there, or has too little memory.
pub fn allocate(parcels: &[Parcel], targets: &dyn Targets) -> Result<(), Failed> {
    for (index, parcel) in parcels.iter().enumerate() {
        let &Parcel { device, byte_len, from_type, to_type, .. } = parcel;
        targets
            .add(&Wanted { device, byte_len, from_type, to_type })
            .map_err(|error| Failed::Target(index, error))?;
    }
    for index in 0..parcels.len() {
        targets.allocate(index).map_err(|refused| match refused {
            Refused::OutOfMemory(reason) => Failed::OutOfMemory(index, reason),
            Refused::Other(error) => Failed::Target(index, error),
        })?;
    }
    Ok(())
}

/// Brings the bytes of `parcels` to their storages. When it returns, all have arrived, or nothing
/// is under way.
///
/// # Errors
/// What the file's storage or a device says.
pub fn run(
    job: &Job<'_>,
    way: Way,
    parcels: &[Parcel],
    targets: &dyn Targets,
) -> Result<(), Failed> {
    let ran = targets.begin().map_err(Failed::Device).and_then(|()| {
        let mut stages = stages(parcels, stage_len(job, parcels));
        if job.file.is_sequential() {
            stages.sort_by_key(|stage| stage.from.start);
        }
        carry(job, way, stages, targets)?;
        targets.finish().map_err(Failed::Device)
    });
    if ran.is_err() {
        targets.abandon();
    }
    ran
}

fn carry(job: &Job<'_>, way: Way, stages: Vec<Stage>, targets: &dyn Targets) -> Result<(), Failed> {
    let file = if matches!(way, Way::Direct | Way::Uring) { direct(job) } else { None };
    let kind = targets.pinned_kind().map_err(Failed::Device)?;
    let allocate =
        |len| targets.host_memory(len).map_err(|error| io::Error::from(DeviceFailed(error)));
    let ring = Ring::new(job.buffers, kind, ring_len(job, kind, stages.len()), &allocate);
    job.for_each(stages, |stage| {
        let mut segment = ring.lend(job.watch)?;
        let at = fill(job, file.as_ref(), &stage, &mut segment)?;
        let pending = targets
            .copy(&segment[at..], &stage.parts)
            .map_err(|error| io::Error::from(DeviceFailed(error)))?;
        segment.leave(pending);
        job.watch.add(stage.byte_len());
        Ok(())
    })
    .map_err(|error: io::Error| error.into())
}

/// How much passes through a segment at a time. While the first segments fill, which they do all at
/// once, nothing is copied: that may take a small part of the whole.
fn stage_len(job: &Job<'_>, parcels: &[Parcel]) -> u64 {
    if job.file.local().is_none() {
        // A store is asked as seldom as can be.
        return job.segment_len;
    }
    let total: u64 = parcels.iter().map(|parcel| parcel.byte_len).sum();
    let len = total / (ROUNDS * job.num_thread as u64) / MIN_STAGE * MIN_STAGE;
    len.clamp(MIN_STAGE, job.segment_len.max(MIN_STAGE))
}

/// How many segments: one being read and one being copied for each reader, and one to spare; no more
/// than are read where each copy is waited for.
fn ring_len(job: &Job<'_>, kind: Option<i8>, stages: usize) -> u64 {
    let readers = job.num_thread as u64;
    let wanted = if kind.is_some() { 2 * readers + 1 } else { readers };
    job.buffers.room_for(kind, wanted.min(stages as u64))
}

/// Reads a stage into a segment; returns where in it the parts begin.
fn fill(
    job: &Job<'_>,
    file: Option<&File>,
    stage: &Stage,
    segment: &mut [u8],
) -> io::Result<usize> {
    // Where the segment starts at a page, so does what is read into it.
    let before = (stage.from.start % PAGE) as usize;
    let len = (stage.from.end - stage.from.start) as usize;
    let whole = (before + len).next_multiple_of(PAGE as usize).min(segment.len());
    read_block(job, file, stage.from.start, &mut segment[before..whole], len)?;
    let Some(picked) = &stage.picked else { return Ok(before) };
    pick(picked, segment, before);
    Ok(0)
}

/// Moves the runs of a block, which begins at `before`, to the beginning of the segment, where
/// every element can be used. No run moves to where one is that has not been moved.
fn pick(picked: &Picked, segment: &mut [u8], before: usize) {
    let Picked { runs, block, swapped } = picked;
    let wanted = (block.to.end - block.to.start) as usize;
    let mut done = 0;
    while done < wanted {
        let (offset, follow) = runs.find(block.to.start + done as u64);
        let from = before + (offset - block.from.start) as usize;
        let len = (follow as usize).min(wanted - done);
        segment.copy_within(from..from + len, done);
        done += len;
    }
    if *swapped > 1 {
        segment[..wanted].chunks_exact_mut(*swapped as usize).for_each(<[u8]>::reverse);
    }
}
