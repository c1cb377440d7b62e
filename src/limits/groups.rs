//! Which control groups a process is in, and where their files are. Pure: the texts of
//! `/proc/self/cgroup` and `/proc/self/mountinfo` in, directories out.
//!
//! ```text
//! /proc/self/cgroup       4:memory:/pod/app        the group, as its hierarchy names it
//! /proc/self/mountinfo    ... /pod /sys/fs/cgroup/memory ... - cgroup cgroup rw,memory
//! directory               /sys/fs/cgroup/memory/app, whose ancestors up to the mount limit it too
//! ```
//!
//! A hierarchy may be mounted anywhere, more than once, and from any of its groups on: a container sees
//! its own part of it alone. Both texts may hold any bytes but a line's end.

use std::{
    ffi::OsString,
    os::unix::ffi::OsStringExt,
    path::{Component, Path, PathBuf},
};

/// How a hierarchy names its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// A control group, and the ancestors of it that can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    pub version: Version,
    directory: PathBuf,
    mount: PathBuf,
}

impl Group {
    /// Its own directory first, then those of the groups around it.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directory.ancestors().take_while(|directory| directory.starts_with(&self.mount))
    }
}

/// The groups that limit `controller`, such as `memory`: one for each place where a hierarchy that may
/// do so is mounted.
#[must_use]
pub fn groups(controller: &str, cgroup: &[u8], mountinfo: &[u8]) -> Vec<Group> {
    let memberships: Vec<(Version, &[u8])> =
        lines(cgroup).filter_map(|line| membership(line, controller)).collect();
    lines(mountinfo)
        .filter_map(|line| mount(line, controller))
        .filter_map(|Mount { version, root, point }| {
            let (_, path) = memberships.iter().find(|(member, _)| *member == version)?;
            Some(Group { version, directory: directory(&root, &point, path), mount: point })
        })
        .collect()
}

/// A mount of a hierarchy: the group that it begins with, and where.
struct Mount {
    version: Version,
    root: PathBuf,
    point: PathBuf,
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty())
}

/// `NUMBER:CONTROLLERS:PATH`; version 2 has the number 0 and no controllers.
fn membership<'a>(line: &'a [u8], controller: &str) -> Option<(Version, &'a [u8])> {
    let mut fields = line.splitn(3, |&byte| byte == b':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    if number == b"0" && controllers.is_empty() {
        return Some((Version::V2, path));
    }
    names(controllers, controller).then_some((Version::V1, path))
}

/// `ID PARENT DEVICE ROOT POINT OPTIONS [TAG...] - TYPE SOURCE OPTIONS`.
fn mount(line: &[u8], controller: &str) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let (root, point) = (fields.get(3)?, fields.get(4)?);
    // Tags stand before the dash, and there may be none.
    let dash = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    let version = match *fields.get(dash + 1)? {
        b"cgroup2" => Version::V2,
        b"cgroup" if names(fields.get(dash + 3)?, controller) => Version::V1,
        _ => return None,
    };
    Some(Mount { version, root: unescaped(root), point: unescaped(point) })
}

/// Whether `name` is in a list that has commas between its names.
fn names(list: &[u8], name: &str) -> bool {
    list.split(|&byte| byte == b',').any(|one| one == name.as_bytes())
}

/// Where the group `path` of a hierarchy is found that is mounted at `point` from `root` on.
fn directory(root: &Path, point: &Path, path: &[u8]) -> PathBuf {
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    let below = path.strip_prefix(root).ok();
    // A group outside what is mounted is seen as `/../name`: only the group that the mount begins with
    // is known then.
    let is_plain =
        |below: &&Path| below.components().all(|part| matches!(part, Component::Normal(_)));
    match below.filter(is_plain) {
        Some(below) if !below.as_os_str().is_empty() => point.join(below),
        _ => point.to_owned(),
    }
}

/// A path of mountinfo, which has space, tab, line's end and backslash as `\040` and the like.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [byte, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *byte == b'\\');
        let code = digits.and_then(|digits| {
            digits.iter().try_fold(0u16, |code, digit| match digit {
                b'0'..=b'7' => Some(code * 8 + u16::from(digit - b'0')),
                _ => None,
            })
        });
        let code = code.and_then(|code| u8::try_from(code).ok());
        rest = if code.is_some() { &after[3..] } else { after };
        bytes.push(code.unwrap_or(*byte));
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(controller: &str, cgroup: &str, mountinfo: &str) -> Vec<(Version, Vec<String>)> {
        groups(controller, cgroup.as_bytes(), mountinfo.as_bytes())
            .iter()
            .map(|group| {
                let names = group.directories().map(|path| path.display().to_string());
                (group.version, names.collect())
            })
            .collect()
    }

    #[test]
    fn a_group_of_version_2_has_all_its_ancestors() {
        let mounts =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let cgroup = "0::/user.slice/user-0.slice/session-1.scope\n";
        let base = "/sys/fs/cgroup";
        let expected = vec![
            format!("{base}/user.slice/user-0.slice/session-1.scope"),
            format!("{base}/user.slice/user-0.slice"),
            format!("{base}/user.slice"),
            base.to_owned(),
        ];
        assert_eq!(found("memory", cgroup, mounts), [(Version::V2, expected)]);
    }

    #[test]
    fn version_1_is_found_by_its_controller_wherever_it_is_mounted() {
        let mounts = "\
            22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            35 31 0:32 / /mnt/a\\040b\\134c rw shared:1 master:2 - cgroup cgroup rw,memory\n\
            36 31 0:33 / /mnt/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            40 31 0:37 / /mnt/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let cgroup = "9:name=systemd:/\n4:memory:/with:colon\n3:cpu,cpuacct:/\n";
        let memory = ["/mnt/a b\\c/with:colon", "/mnt/a b\\c"].map(String::from).to_vec();
        assert_eq!(found("memory", cgroup, mounts), [(Version::V1, memory)]);
        let cpu = vec!["/mnt/cpu,cpuacct".to_owned()];
        assert_eq!(found("cpu", cgroup, mounts), [(Version::V1, cpu)]);
    }

    #[test]
    fn a_hybrid_has_groups_of_both() {
        let mounts = "\
            35 31 0:32 / /cg/memory rw - cgroup none rw,memory\n\
            41 31 0:38 / /cg/unified rw - cgroup2 none rw\n";
        let both = found("memory", "4:memory:/a\n0::/b\n", mounts);
        let expected = [
            (Version::V1, vec!["/cg/memory/a".to_owned(), "/cg/memory".to_owned()]),
            (Version::V2, vec!["/cg/unified/b".to_owned(), "/cg/unified".to_owned()]),
        ];
        assert_eq!(both, expected);
    }

    #[test]
    fn a_container_sees_its_part_of_a_hierarchy() {
        // Without a namespace of its own, the group is named as the host names it.
        let mounts = "9 8 0:9 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let at = |path: &str| {
            let group = found("memory", &format!("7:memory:{path}\n"), mounts).remove(0);
            group.1[0].clone()
        };
        assert_eq!(at("/docker/1f"), "/sys/fs/cgroup/memory");
        assert_eq!(at("/docker/1f/worker"), "/sys/fs/cgroup/memory/worker");
        assert_eq!(at("/docker/1fff/worker"), "/sys/fs/cgroup/memory");
        // A group that the namespace does not reach.
        assert_eq!(at("/../other"), "/sys/fs/cgroup/memory");
        assert_eq!(at("/docker/1f/../../other"), "/sys/fs/cgroup/memory");
    }

    #[test]
    fn what_is_malformed_says_nothing() {
        let mounts = "a\n1 2 3 4\n30 23 0:26 / /x rw - \n30 23 0:26 / /x rw shared:1\n\n";
        assert_eq!(found("memory", "0::/\n:\n5\n", mounts), []);
        assert_eq!(unescaped(b"a\\0"), Path::new("a\\0"));
        assert_eq!(unescaped(b"a\\777b\\"), Path::new("a\\777b\\"));
        let names = groups("memory", b"0::/\xff\xfe\n", b"1 2 0:3 / /\xfd rw - cgroup2 c rw\n");
        assert_eq!(names[0].directories().count(), 2);
    }
}
