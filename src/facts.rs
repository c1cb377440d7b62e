//! What can be found out about a load before it begins, for [`choice`](crate::choice).

use crate::{
    choice::Facts,
    limits,
    plan::{Plan, SEGMENT_LEN},
    processors::processors,
    residency::Residency,
    storage::Source,
};
use std::{env, ops::Range};

/// Pages of a file that are asked for to learn how much of it is cached.
const SAMPLES: u64 = 64;

/// Whether the page cache has the beginning of `file`; nobody may have read it since it was opened.
///
/// A load past the page cache leaves nothing there but the header, which it read by the cache. So a
/// header that is cached without its tensors tells that somebody loaded the file not long ago, in
/// this process or another, and perhaps at this moment.
pub fn is_begun(file: &dyn Source) -> bool {
    let Some(file) = file.local() else { return false };
    let beginning = 0..file.len().min(1);
    Residency::of(file).and_then(|held| held.share(&[beginning], 1)) == Some(1.0)
}

/// Looks at a file of which `plan` is to be loaded, and of which somebody read before `again`.
pub fn facts(file: &dyn Source, plan: &Plan, again: bool) -> Facts {
    // What is copied lies between what is mapped, and is as cached or not; what lies between its runs
    // comes with them as a rule.
    let copies = plan.copies.iter().filter(|copy| copy.from.len > 0).map(|copy| copy.from.span());
    let ranges: Vec<Range<u64>> =
        plan.ranges.iter().cloned().chain(copies).filter(|range| !range.is_empty()).collect();
    let held = file.local().and_then(Residency::of);
    let cached = held.and_then(|held| held.share(&ranges, SAMPLES));
    let wanted = plan.byte_len();
    // What is cached is mapped whatever the limits are, and less than a buffer fits below any.
    let matters = cached != Some(1.0) && wanted > SEGMENT_LEN;
    Facts {
        file_system: file.file_system(),
        wanted,
        cached,
        partial: is_partial(file, &ranges, wanted),
        again: again || has_siblings(),
        available: if matters { limits::available() } else { None },
        processors: processors(),
    }
}

/// Whether much of what follows the first byte wanted is not.
fn is_partial(file: &dyn Source, ranges: &[Range<u64>], wanted: u64) -> bool {
    let start = ranges.iter().map(|range| range.start).min().unwrap_or(0);
    wanted < file.len().saturating_sub(start) / 10 * 9
}

/// Whether other processes of the same job run on this machine, which load at the same moment: torchrun
/// and its like say so.
fn has_siblings() -> bool {
    let count = env::var("LOCAL_WORLD_SIZE").ok().and_then(|count| count.parse::<u64>().ok());
    count.is_some_and(|count| count > 1)
}
