//! The directory tree, its attributes and open files, for the kernel. Knows nothing of time: reads
//! are another module's.

use crate::{reads::Reads, Options};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, Request,
};
use nix::sys::statvfs::statvfs;
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering::Relaxed},
        Arc, Mutex, MutexGuard,
    },
    time::{Duration, SystemTime},
};

/// How long the kernel may believe an answer: libfuse's default.
const BELIEVED: Duration = Duration::from_secs(1);

/// A file in the root that the source has not: the counts so far.
const STATS_NAME: &str = ".slowfs-stats";
const STATS: INodeNo = INodeNo(u64::MAX);

#[derive(Debug)]
pub struct Mirror {
    source: PathBuf,
    reads: Arc<Reads>,
    max_read: u32,
    max_background: u16,
    direct_io: bool,
    async_dio: bool,
    stats_file: Option<PathBuf>,
    inodes: Mutex<Inodes>,
    handles: Mutex<HashMap<u64, Arc<Handle>>>,
    next_handle: AtomicU64,
}

/// A number for each path that the kernel has asked for. They are never taken back: a mount does
/// not live long.
#[derive(Debug)]
struct Inodes {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, INodeNo>,
}

/// What a handle of the kernel's stands for.
#[derive(Debug)]
enum Handle {
    File(Arc<File>),
    /// The entries as they were when the directory was opened.
    Directory(Vec<(INodeNo, FileType, OsString)>),
    /// The counts as they were when their file was opened.
    Stats(String),
}

impl Inodes {
    fn new(root: PathBuf) -> Self {
        let numbers = HashMap::from([(root.clone(), INodeNo::ROOT)]);
        Self { paths: vec![root], numbers }
    }

    fn number(&mut self, path: PathBuf) -> INodeNo {
        let next = INodeNo(self.paths.len() as u64 + INodeNo::ROOT.0);
        *self.numbers.entry(path).or_insert_with_key(|path| {
            self.paths.push(path.clone());
            next
        })
    }

    fn path(&self, number: INodeNo) -> Result<PathBuf, Errno> {
        let index = number.0.checked_sub(INodeNo::ROOT.0).and_then(|at| usize::try_from(at).ok());
        index.and_then(|index| self.paths.get(index)).cloned().ok_or(Errno::ESTALE)
    }
}

impl Mirror {
    pub fn new(source: PathBuf, reads: Arc<Reads>, options: &Options) -> Self {
        Self {
            inodes: Mutex::new(Inodes::new(source.clone())),
            source,
            reads,
            max_read: options.max_read,
            max_background: options.max_background,
            direct_io: options.direct_io,
            async_dio: !options.no_async_dio,
            stats_file: options.stats.clone(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(0),
        }
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().expect("nothing panics that holds the inodes")
    }

    fn handles(&self) -> MutexGuard<'_, HashMap<u64, Arc<Handle>>> {
        self.handles.lock().expect("nothing panics that holds the handles")
    }

    fn add(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Relaxed);
        self.handles().insert(number, Arc::new(handle));
        FileHandle(number)
    }

    fn handle(&self, handle: FileHandle) -> Result<Arc<Handle>, Errno> {
        self.handles().get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// How long the kernel may believe attributes: a file that may shrink is asked for each time.
    fn attributes_believed(&self) -> Duration {
        if self.reads.may_truncate() {
            Duration::ZERO
        } else {
            BELIEVED
        }
    }

    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        if parent == INodeNo::ROOT && name == STATS_NAME {
            return self.attributes(STATS);
        }
        let path = self.inodes().path(parent)?.join(name);
        let (metadata, kind) = mirrored(&path)?;
        let number = self.inodes().number(path);
        Ok(self.attributes_from(number, kind, &metadata))
    }

    fn attributes(&self, number: INodeNo) -> Result<FileAttr, Errno> {
        if number == STATS {
            let (metadata, _) = mirrored(&self.source)?;
            let root = self.attributes_from(number, FileType::RegularFile, &metadata);
            // Like the files of /proc: nobody knows its length before it is opened.
            return Ok(FileAttr { size: 0, blocks: 0, perm: 0o444, nlink: 1, ..root });
        }
        let path = self.inodes().path(number)?;
        let (metadata, kind) = mirrored(&path)?;
        Ok(self.attributes_from(number, kind, &metadata))
    }

    fn attributes_from(&self, ino: INodeNo, kind: FileType, metadata: &Metadata) -> FileAttr {
        let size = match kind {
            FileType::RegularFile => self.reads.visible_len(metadata.len()),
            _ => metadata.len(),
        };
        let changed = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: changed,
            mtime: changed,
            ctime: changed,
            crtime: changed,
            kind,
            perm: (metadata.mode() & 0o7777) as u16,
            nlink: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX),
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: 0,
            blksize: u32::try_from(metadata.blksize()).unwrap_or(4096),
            flags: 0,
        }
    }

    fn open_file(&self, number: INodeNo) -> Result<(FileHandle, FopenFlags), Errno> {
        if number == STATS {
            if let Some(file) = &self.stats_file {
                self.reads.stats.write(file)?;
            }
            let handle = self.add(Handle::Stats(self.reads.stats.json()));
            return Ok((handle, FopenFlags::FOPEN_DIRECT_IO));
        }
        let path = self.inodes().path(number)?;
        let handle = self.add(Handle::File(Arc::new(File::open(path)?)));
        // Without FOPEN_KEEP_CACHE, each open drops what the page cache has of the file.
        let flags = if self.direct_io { FopenFlags::FOPEN_DIRECT_IO } else { FopenFlags::empty() };
        Ok((handle, flags))
    }

    fn open_directory(&self, number: INodeNo) -> Result<FileHandle, Errno> {
        let path = self.inodes().path(number)?;
        let here = (number, FileType::Directory, OsString::from("."));
        let parent = if number == INodeNo::ROOT {
            number
        } else {
            self.inodes().number(path.parent().unwrap_or(&path).to_owned())
        };
        let mut entries = vec![here, (parent, FileType::Directory, OsString::from(".."))];
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if let Ok((_, kind)) = mirrored(&entry.path()) {
                entries.push((self.inodes().number(entry.path()), kind, entry.file_name()));
            }
        }
        Ok(self.add(Handle::Directory(entries)))
    }
}

/// The metadata of a file or directory, through links. Nothing else is mirrored: opening a pipe
/// would hold everything up.
fn mirrored(path: &Path) -> io::Result<(Metadata, FileType)> {
    let metadata = fs::metadata(path)?;
    match FileType::from_std(metadata.file_type()) {
        Some(kind @ (FileType::RegularFile | FileType::Directory)) => Ok((metadata, kind)),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

impl Filesystem for Mirror {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Nothing is written, but fuser takes from this how many pages a request may have. Neither
        // is out of range: the command line refused that.
        let _ = config.set_max_write(self.max_read);
        let _ = config.set_max_background(self.max_background);
        // What libfuse asks for, and fuser does not.
        let mut wanted = InitFlags::FUSE_AUTO_INVAL_DATA | InitFlags::FUSE_PARALLEL_DIROPS;
        wanted.set(InitFlags::FUSE_ASYNC_DIO, self.async_dio);
        let _ = config.add_capabilities(wanted & config.capabilities());
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(found) => {
                let believed = self.attributes_believed();
                reply.entry_with_ttls(&believed, &BELIEVED, &found, Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(ino) {
            Ok(attributes) => reply.attr(&self.attributes_believed(), &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino) {
            Ok((handle, flags)) => reply.opened(handle, flags),
            Err(error) => reply.error(error),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.handle(handle).as_deref() {
            Ok(Handle::File(file)) => self.reads.submit(Arc::clone(file), offset, size, reply),
            Ok(Handle::Stats(json)) => {
                let rest = usize::try_from(offset).ok().and_then(|at| json.as_bytes().get(at..));
                let rest = rest.unwrap_or_default();
                reply.data(&rest[..rest.len().min(size as usize)]);
            }
            Ok(Handle::Directory(_)) => reply.error(Errno::EISDIR),
            Err(error) => reply.error(*error),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.handles().remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_directory(ino) {
            Ok(handle) => reply.opened(handle, FopenFlags::empty()),
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        match self.handle(handle).as_deref() {
            Ok(Handle::Directory(entries)) => {
                // The kernel comes back with the offset of the last entry that it took.
                for (next, (number, kind, name)) in (1..).zip(entries).skip(offset as usize) {
                    if reply.add(*number, next, *kind, name) {
                        break;
                    }
                }
                reply.ok();
            }
            Ok(_) => reply.error(Errno::ENOTDIR),
            Err(error) => reply.error(*error),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.handles().remove(&handle.0);
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match statvfs(&self.source) {
            Ok(of) => reply.statfs(
                of.blocks(),
                0,
                0,
                of.files(),
                0,
                of.block_size() as u32,
                of.name_max() as u32,
                of.fragment_size() as u32,
            ),
            Err(error) => reply.error(Errno::from_i32(error as i32)),
        }
    }
}
