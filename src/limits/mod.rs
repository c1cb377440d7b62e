//! What the process may still take of the machine: memory, by the tightest of all limits that apply, and
//! processors, by the quota of its control groups.
//!
//! Only the parts of the system that are read are known here; what follows from them, a load decides
//! in [`choice`](crate::choice).

mod groups;

use groups::{groups, Group, Version};
use std::{fs, path::Path};

/// Reads a file of the system; `None` where it is not there.
type Look<'a> = &'a dyn Fn(&Path) -> Option<Vec<u8>>;

/// Bytes of memory that this process may take without others losing theirs and without being killed:
/// what the system has, what each of its control groups leaves, and the limits of the process itself.
/// `None` where nothing is known.
#[must_use]
pub fn available() -> Option<u64> {
    available_by(&|path| fs::read(path).ok())
}

/// How many processors the quotas of the control groups amount to, rounded up; `None` where there is
/// none.
#[must_use]
pub fn quota() -> Option<usize> {
    quota_by(&|path| fs::read(path).ok())
}

fn available_by(look: Look<'_>) -> Option<u64> {
    let groups = groups_of("memory", look);
    let directories = groups.iter().flat_map(|group| {
        group.directories().filter_map(move |directory| match group.version {
            Version::V1 => left_v1(directory, look),
            Version::V2 => left_v2(directory, look),
        })
    });
    [system(look), process(look)].into_iter().flatten().chain(directories).min()
}

fn groups_of(controller: &str, look: Look<'_>) -> Vec<Group> {
    let [cgroup, mounts] =
        ["/proc/self/cgroup", "/proc/self/mountinfo"].map(|path| look(Path::new(path)));
    groups(controller, &cgroup.unwrap_or_default(), &mounts.unwrap_or_default())
}

/// What the system itself has.
fn system(look: Look<'_>) -> Option<u64> {
    let text = look(Path::new("/proc/meminfo"))?;
    entry(&text, "MemAvailable:")?.checked_mul(1024)
}

/// What a group of version 2 leaves, or one around it: over `memory.high` the processes in it are held
/// back, over `memory.max` they are killed.
fn left_v2(directory: &Path, look: Look<'_>) -> Option<u64> {
    let number = |name: &str| number(&look(&directory.join(name))?);
    let limit = ["memory.max", "memory.high"].into_iter().filter_map(number).min()?;
    let stat = look(&directory.join("memory.stat")).unwrap_or_default();
    let used = number("memory.current")?.saturating_sub(reclaimable(&stat, ""));
    Some(limit.saturating_sub(used))
}

/// The same of version 1. A limit of a group that cannot be seen, because the mount begins below it,
/// shows in `memory.stat`, though not how much of it is used by others.
fn left_v1(directory: &Path, look: Look<'_>) -> Option<u64> {
    let number = |name: String| number(&look(&directory.join(name))?);
    let stat = look(&directory.join("memory.stat")).unwrap_or_default();
    let reclaimable = reclaimable(&stat, "total_");
    // Memory alone, and memory with swap: a group may have either limit.
    let left =
        [("memory", "hierarchical_memory_limit"), ("memory.memsw", "hierarchical_memsw_limit")];
    left.into_iter()
        .filter_map(|(prefix, inherited)| {
            let limits = [number(format!("{prefix}.limit_in_bytes")), entry(&stat, inherited)];
            let limit = limits.into_iter().flatten().min()?;
            let used = number(format!("{prefix}.usage_in_bytes"))?.saturating_sub(reclaimable);
            Some(limit.saturating_sub(used))
        })
        .min()
}

/// Bytes of a group that it can get back: of its cached files those that nobody has used lately, and half
/// of the others, which are wanted again soon.
fn reclaimable(stat: &[u8], prefix: &str) -> u64 {
    let of = |name: &str| entry(stat, &format!("{prefix}{name}")).unwrap_or(0);
    of("inactive_file").saturating_add(of("active_file") / 2)
}

/// What the limits of the process leave: `RLIMIT_AS` of its addresses, and `RLIMIT_DATA` of its private
/// memory.
fn process(look: Look<'_>) -> Option<u64> {
    let limits = look(Path::new("/proc/self/limits"))?;
    let of = |name: &str| {
        let line =
            limits.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(name.as_bytes()));
        number(line?.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())?)
    };
    let (addresses, data) = (of("Max address space"), of("Max data size"));
    if addresses.is_none() && data.is_none() {
        return None;
    }
    let status = look(Path::new("/proc/self/status"))?;
    let used = |name: &str| entry(&status, name)?.checked_mul(1024);
    let left = [(addresses, used("VmSize:")), (data, used("VmData:"))];
    left.into_iter().filter_map(|(limit, used)| Some(limit?.saturating_sub(used?))).min()
}

fn quota_by(look: Look<'_>) -> Option<usize> {
    let groups = groups_of("cpu", look);
    let directories =
        groups.iter().flat_map(|group| group.directories().map(move |path| (group.version, path)));
    let quota = |(version, path): (Version, &Path)| {
        let of = |name: &str| look(&path.join(name));
        let (quota, period) = match version {
            Version::V1 => (number(&of("cpu.cfs_quota_us")?)?, number(&of("cpu.cfs_period_us")?)?),
            Version::V2 => {
                let text = of("cpu.max")?;
                let mut words = text.split(u8::is_ascii_whitespace);
                (number(words.next()?)?, number(words.next()?)?)
            }
        };
        (period > 0).then(|| quota.div_ceil(period).max(1))
    };
    directories.filter_map(quota).min().and_then(|count| usize::try_from(count).ok())
}

/// A number by itself; words such as `max` and `unlimited` are none, and neither is -1.
fn number(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The number that follows `name` in a line of its own.
fn entry(text: &[u8], name: &str) -> Option<u64> {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| {
        let rest = line.strip_prefix(name.as_bytes())?;
        rest.first()?.is_ascii_whitespace().then_some(rest)
    })?;
    number(line.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{collections::HashMap, path::PathBuf};

    const V2: &str = "30 23 0:26 / /cg rw - cgroup2 cgroup2 rw\n";
    const V1: &str = "35 31 0:32 / /cg rw - cgroup cgroup rw,memory,cpu\n";

    /// The answer of a system that has these files.
    fn with<T>(files: &[(&str, &str)], ask: impl Fn(Look<'_>) -> T) -> T {
        let files: HashMap<PathBuf, &str> =
            files.iter().map(|(path, text)| (PathBuf::from(path), *text)).collect();
        ask(&|path| files.get(path).map(|text| text.as_bytes().to_vec()))
    }

    fn left(files: &[(&str, &str)]) -> Option<u64> {
        with(files, available_by)
    }

    #[test]
    fn without_limits_the_system_decides() {
        let meminfo = ("/proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    2000 kB\n");
        assert_eq!(left(&[meminfo]), Some(2_048_000));
        assert_eq!(left(&[]), None);
        let group = [
            meminfo,
            ("/proc/self/cgroup", "0::/a\n"),
            ("/proc/self/mountinfo", V2),
            ("/cg/a/memory.max", "max\n"),
            ("/cg/a/memory.high", "max\n"),
            ("/cg/a/memory.current", "77\n"),
        ];
        assert_eq!(left(&group), Some(2_048_000));
    }

    #[test]
    fn the_tightest_group_counts_and_cached_files_can_be_taken_back() {
        let mut files = vec![
            ("/proc/meminfo", "MemAvailable: 9000000 kB\n"),
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/proc/self/mountinfo", V2),
            ("/cg/a/b/memory.max", "5000\n"),
            ("/cg/a/b/memory.current", "1000\n"),
            ("/cg/a/b/memory.stat", "anon 100\ninactive_file 400\nactive_file 200\n"),
        ];
        assert_eq!(left(&files), Some(5000 - (1000 - 400 - 100)));
        files.extend([("/cg/a/memory.max", "3000\n"), ("/cg/a/memory.current", "2900\n")]);
        assert_eq!(left(&files), Some(100), "an ancestor");
        files.extend([("/cg/a/b/memory.high", "550\n")]);
        assert_eq!(left(&files), Some(50), "where processes are held back");
    }

    #[test]
    fn version_1_has_limits_of_memory_of_swap_and_of_what_cannot_be_seen() {
        let mut files = vec![
            ("/proc/self/cgroup", "4:memory,cpu:/a\n"),
            ("/proc/self/mountinfo", V1),
            ("/cg/a/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/cg/a/memory.usage_in_bytes", "1000\n"),
            (
                "/cg/a/memory.stat",
                "inactive_file 7\ntotal_inactive_file 300\ntotal_active_file 100\n",
            ),
        ];
        assert_eq!(left(&files), Some(9_223_372_036_854_771_712 - 650));
        files[2].1 = "4000\n";
        assert_eq!(left(&files), Some(3350));
        files.extend([
            ("/cg/a/memory.memsw.limit_in_bytes", "4000\n"),
            ("/cg/a/memory.memsw.usage_in_bytes", "2000\n"),
        ]);
        assert_eq!(left(&files), Some(2350));
        files[4].1 = "hierarchical_memory_limit 1500\n";
        assert_eq!(left(&files), Some(500));
        files.extend([("/cg/memory.limit_in_bytes", "90"), ("/cg/memory.usage_in_bytes", "80")]);
        assert_eq!(left(&files), Some(10));
    }

    #[test]
    fn limits_of_the_process_count() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
            Max data size             unlimited            unlimited            bytes\n\
            Max address space         81920                unlimited            bytes\n";
        let status = ("/proc/self/status", "Name:\tx\nVmSize:\t   40 kB\nVmData:\t  12 kB\n");
        assert_eq!(left(&[("/proc/self/limits", limits), status]), Some(40_960));
        let data = limits.replace("size             unlimited ", "size             16384     ");
        assert_eq!(left(&[("/proc/self/limits", &data), status]), Some(4096));
        let none = limits.replace("81920    ", "unlimited");
        assert_eq!(left(&[("/proc/self/limits", &none), status]), None);
    }

    #[test]
    fn quotas_of_all_groups_count() {
        let mut files = vec![
            ("/proc/self/cgroup", "0::/a/b\n"),
            ("/proc/self/mountinfo", V2),
            ("/cg/a/b/cpu.max", "max 100000\n"),
        ];
        assert_eq!(with(&files, quota_by), None);
        files.push(("/cg/a/cpu.max", "250000 100000\n"));
        assert_eq!(with(&files, quota_by), Some(3));
        let v1 = [
            ("/proc/self/cgroup", "4:cpu,memory:/\n"),
            ("/proc/self/mountinfo", V1),
            ("/cg/cpu.cfs_quota_us", "1000\n"),
            ("/cg/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(with(&v1, quota_by), Some(1));
        let none = [v1[0], v1[1], ("/cg/cpu.cfs_quota_us", "-1\n"), v1[3]];
        assert_eq!(with(&none, quota_by), None);
    }

    #[test]
    fn this_machine_answers() {
        assert!(available().is_some_and(|bytes| bytes > 0));
    }
}
