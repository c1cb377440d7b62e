//! What can be found out about a load before it begins, for [`choice`](crate::choice).

use crate::{
    choice::Facts,
    plan::Plan,
    storage::{
        local::{Identity, LocalFile},
        FileSystem,
    },
    threads,
    ways::map,
};
use std::{
    collections::VecDeque,
    fs,
    ops::Range,
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Pages of a file that are asked for to learn how much of it is cached.
const SAMPLES: u64 = 256;

/// Files that this process remembers to have read past the page cache.
const REMEMBERED: usize = 64;

static READ_PAST_THE_CACHE: Mutex<VecDeque<Identity>> = Mutex::new(VecDeque::new());

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
        available: available(),
        again: remembered().contains(&file.identity()),
        processors: threads::processors(),
    }
}

/// Remembers that a file was read past the page cache.
pub fn remember(identity: Identity) {
    let mut remembered = remembered();
    remembered.retain(|known| *known != identity);
    if remembered.len() == REMEMBERED {
        remembered.pop_front();
    }
    remembered.push_back(identity);
}

fn remembered() -> std::sync::MutexGuard<'static, VecDeque<Identity>> {
    READ_PAST_THE_CACHE.lock().unwrap_or_else(PoisonError::into_inner)
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
        Some(number("memory.max")?.saturating_sub(number("memory.current")?))
    });
    system.into_iter().chain(group).min()
}
