//! What sort of storage a file lies on.

#![allow(unsafe_code)]

use std::{fs::File, mem::MaybeUninit, os::fd::AsRawFd};

/// What sort of storage a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// The page cache is all there is.
    Memory,
    /// A disk of this machine.
    Disk,
    /// Every request travels, and takes its time: network file systems and FUSE.
    Remote,
    /// A store of objects: no file system at all, and each request travels far.
    Object,
}

/// A file system, as `statfs(2)` names it by a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    pub name: &'static str,
    pub storage: Storage,
}

/// Numbers from `linux/magic.h` and the file systems' own sources.
const FILE_SYSTEMS: [(u32, &str, Storage); 22] = [
    (0xEF53, "ext4", Storage::Disk),
    (0x5846_5342, "xfs", Storage::Disk),
    (0x9123_683E, "btrfs", Storage::Disk),
    (0xF2F5_2010, "f2fs", Storage::Disk),
    (0x2FC1_2FC1, "zfs", Storage::Disk),
    (0xCA45_1A4E, "bcachefs", Storage::Disk),
    (0x794C_7630, "overlayfs", Storage::Disk),
    (0x7371_7368, "squashfs", Storage::Disk),
    (0xE0F5_E1E2, "erofs", Storage::Disk),
    (0x0102_1994, "tmpfs", Storage::Memory),
    (0x8584_58F6, "ramfs", Storage::Memory),
    (0x6573_5546, "FUSE", Storage::Remote),
    (0x6969, "NFS", Storage::Remote),
    (0x0BD0_0BD0, "Lustre", Storage::Remote),
    (0xFF53_4D42, "CIFS", Storage::Remote),
    (0xFE53_4D42, "SMB", Storage::Remote),
    (0x00C3_6400, "Ceph", Storage::Remote),
    (0x4750_4653, "GPFS", Storage::Remote),
    (0x0102_1997, "9p", Storage::Remote),
    (0x1983_0326, "BeeGFS", Storage::Remote),
    (0x0116_1970, "GFS2", Storage::Remote),
    (0x7461_636F, "OCFS2", Storage::Remote),
];

/// File systems whose files are the kernel's own settings, which are no place for bytes.
const OF_THE_KERNEL: [u32; 18] = [
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0xcafe_4a11, // bpf
    0x6265_6570, // configfs
    0xde5e_81e4, // efivarfs
    0xf97c_ff8c, // selinuxfs
    0x4341_5d53, // smackfs
    0x6165_676c, // pstore
    0x4249_4e4d, // binfmt_misc
    0x6e73_6673, // nsfs
    0x6573_5543, // fusectl
    0x0765_5821, // resctrl
    0xabba_1974, // xenfs
];

impl FileSystem {
    /// The file system of an open file.
    #[must_use]
    pub fn of(file: &File) -> Self {
        Self::from_magic(magic_of(file))
    }

    /// Whether an open file is one of the kernel's settings rather than bytes that are kept.
    #[must_use]
    pub fn is_of_the_kernel(file: &File) -> bool {
        OF_THE_KERNEL.contains(&magic_of(file))
    }

    /// What `statfs(2)` calls `f_type`. One that is not known is taken for a disk's.
    #[must_use]
    pub fn from_magic(magic: u32) -> Self {
        FILE_SYSTEMS.iter().find(|&&(known, ..)| known == magic).map_or(
            Self { name: "an unknown file system", storage: Storage::Disk },
            |&(_, name, storage)| Self { name, storage },
        )
    }
}

fn magic_of(file: &File) -> u32 {
    let mut told = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open for the call, which fills `told` if it returns 0.
    unsafe {
        match libc::fstatfs(file.as_raw_fd(), told.as_mut_ptr()) {
            0 => told.assume_init().f_type as u32,
            _ => 0,
        }
    }
}
