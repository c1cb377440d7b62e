//! What can be found out about a load before it begins, for [`choice`](crate::choice).

use crate::{
    choice::Facts, plan::Plan, processors::processors, residency::Residency, storage::Source,
};
use std::{env, fs, ops::Range, path::Path};

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
    // What is copied lies between what is mapped, and is as cached or not.
    let copies = plan.copies.iter().map(|copy| {
        let (start, len) = copy.from.find(0);
        start..start + len
    });
    let ranges: Vec<Range<u64>> =
        plan.ranges.iter().cloned().chain(copies).filter(|range| !range.is_empty()).collect();
    let held = file.local().and_then(Residency::of);
    let cached = held.and_then(|held| held.share(&ranges, SAMPLES));
    Facts {
        file_system: file.file_system(),
        wanted: plan.byte_len(),
        cached,
        partial: is_partial(file, &ranges, plan.byte_len()),
        again: again || has_siblings(),
        available: if cached == Some(1.0) { None } else { available() },
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

/// Bytes of memory that this process may take without others losing theirs: what the system
/// has, and what its control group (version 2) leaves.
fn available() -> Option<u64> {
    let system = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
    });
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| {
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?.to_owned();
        let number = |name: &str| {
            let file = Path::new("/sys/fs/cgroup").join(&path).join(name);
            fs::read_to_string(file).ok()?.trim().parse::<u64>().ok()
        };
        // Cached files count, and can be taken back.
        let stat = fs::read_to_string(Path::new("/sys/fs/cgroup").join(&path).join("memory.stat"));
        let cached = stat.ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("inactive_file "))?.parse().ok()
        });
        let used = number("memory.current")?.saturating_sub(cached.unwrap_or(0));
        Some(number("memory.max")?.saturating_sub(used))
    });
    system.into_iter().chain(group).min()
}
