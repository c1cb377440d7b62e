//! What can be found out about a load before it begins, for [`choice`](crate::choice).

use crate::{
    choice::Facts,
    plan::Plan,
    storage::{local::LocalFile, FileSystem, Source},
    threads,
    ways::map,
};
use std::ops::Range;

/// Pages of a file that are asked for to learn how much of it is cached.
const SAMPLES: u64 = 256;

/// Looks at a file of which `plan` is to be loaded.
pub fn facts(file: &LocalFile, plan: &Plan) -> Facts {
    // What is copied lies between what is mapped, and is as cached or not.
    let copies = plan.copies.iter().map(|copy| {
        let (start, len) = copy.from.find(0);
        start..start + len
    });
    let ranges: Vec<Range<u64>> =
        plan.ranges.iter().cloned().chain(copies).filter(|range| !range.is_empty()).collect();
    Facts {
        file_system: FileSystem::of(file.file()),
        wanted: plan.byte_len(),
        cached: map::Residency::of(file).and_then(|held| map::cached(&held, &ranges, SAMPLES)),
        partial: is_partial(file, &ranges, plan.byte_len()),
        processors: threads::processors(),
    }
}

/// Whether much of what follows the first byte wanted is not.
fn is_partial(file: &LocalFile, ranges: &[Range<u64>], wanted: u64) -> bool {
    let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
    wanted < file.len().saturating_sub(start) / 10 * 9
}
