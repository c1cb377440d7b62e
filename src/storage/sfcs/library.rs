//! The vendor's client library, found at run time: it is no part of this build, and cannot be.
//!
//! What is known of it is its C interface, which is like that of HDFS. One connection serves the
//! process; a forked child makes its own.

#![allow(unsafe_code)]

use super::settings::Settings;
use crate::{
    address::printable,
    error::{said, words_of},
};
use std::{
    env,
    ffi::{c_char, c_int, c_short, c_void, CStr, CString, OsString},
    io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
};

/// Where the library lies unless `LIBCFS_PATH` says otherwise.
const DEFAULT_PATH: &str = "/usr/lib/libcloudfs.so";

type Fs = *mut c_void;
type File = *mut c_void;

/// The beginning of what the library tells of a path; the rest is not looked at.
#[repr(C)]
struct FileInfo {
    kind: c_int,
    name: *const c_char,
    modified: libc::time_t,
    size: i64,
}

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    pub is_directory: bool,
    pub len: i64,
    pub modified: i64,
}

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl Functions {
            /// # Safety
            /// `library` is a handle of dlopen to a library whose functions have these types.
            unsafe fn of(library: *mut c_void) -> Result<Self, &'static str> {
                // SAFETY: the names end with a NUL; the types are the caller's part.
                unsafe {
                    Ok(Self { $($field: {
                        let found = libc::dlsym(library, concat!($name, "\0").as_ptr().cast());
                        if found.is_null() {
                            return Err($name);
                        }
                        std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> $result>(found)
                    },)* })
                }
            }
        }
    };
}

functions! {
    new_builder = "cfsNewBuilder": fn() -> *mut c_void;
    set_name_node = "cfsBuilderSetNameNode": fn(*mut c_void, *const c_char) -> ();
    set_user_name = "cfsBuilderSetUserName": fn(*mut c_void, *const c_char) -> ();
    connect = "cfsBuilderConnect": fn(*mut c_void, *const c_void) -> Fs;
    free_builder = "cfsFreeBuilder": fn(*mut c_void) -> ();
    last_error = "cfsGetLastError": fn() -> *const c_char;
    open_file = "cfsOpenFile": fn(Fs, *const c_char, c_int, c_int, c_short, i64) -> File;
    open_file_acc = "cfsOpenFileAcc": fn(Fs, *const c_char, c_int, libc::mode_t, c_int, c_int) -> File;
    close_file = "cfsCloseFile": fn(Fs, File) -> c_int;
    pread = "cfsPread": fn(Fs, File, i64, *mut c_void, i32) -> i32;
    write = "cfsWrite": fn(Fs, File, *const c_void, u64) -> i64;
    hsync = "cfsHSync": fn(Fs, File) -> c_int;
    delete = "cfsDelete": fn(Fs, *const c_char, c_int) -> c_int;
    rename = "cfsRename": fn(Fs, *const c_char, *const c_char) -> c_int;
    get_path_info = "cfsGetPathInfo": fn(Fs, *const c_char) -> *mut FileInfo;
    free_file_info = "cfsFreeFileInfo": fn(*mut FileInfo, c_int) -> ();
}

/// A connection to SFCS, for as long as the process lives: closing it would end what others read.
pub struct Connection {
    functions: Functions,
    fs: Fs,
    process: u32,
    secrets: Vec<String>,
}

// SAFETY: the library's file system handle is made to be shared by threads, as that of HDFS is; file
// handles are not, and each is used by one thread at a time (`Handle`).
unsafe impl Send for Connection {}
// SAFETY: as above.
unsafe impl Sync for Connection {}

static CONNECTION: Mutex<Option<Arc<Connection>>> = Mutex::new(None);

/// The connection of this process, which is made the first time.
pub fn connection() -> io::Result<Arc<Connection>> {
    let mut held = CONNECTION.lock().unwrap_or_else(PoisonError::into_inner);
    match &*held {
        Some(connection) if connection.process == process::id() => Ok(Arc::clone(connection)),
        _ => {
            let connection = Arc::new(Connection::new()?);
            Ok(Arc::clone(held.insert(connection)))
        }
    }
}

impl Connection {
    fn new() -> io::Result<Self> {
        let settings = Settings::of_environment()?;
        let path = env::var_os("LIBCFS_PATH").filter(|path| !path.is_empty());
        let path = path.unwrap_or_else(|| OsString::from(DEFAULT_PATH));
        let functions = load(Path::new(&path))?;
        // SAFETY: all handles come from the library and are used as its interface says.
        let fs = settings.given(|| unsafe {
            let builder = (functions.new_builder)();
            if builder.is_null() {
                return std::ptr::null_mut();
            }
            (functions.set_name_node)(builder, c"default".as_ptr());
            if let Some(user) = env::var("USER").ok().and_then(|user| CString::new(user).ok()) {
                (functions.set_user_name)(builder, user.as_ptr());
            }
            let fs = (functions.connect)(builder, std::ptr::null());
            (functions.free_builder)(builder);
            fs
        })?;
        let secrets = ["SFCS_SECRET_KEY", "SFCS_ACCESS_KEY"].map(|name| env::var(name).ok());
        let secrets = secrets.into_iter().flatten().filter(|secret| secret.len() > 3).collect();
        let connection = Self { functions, fs, process: process::id(), secrets };
        if connection.fs.is_null() {
            let words = connection.words("no reason was given");
            return Err(said(libc::ECONNREFUSED, format!("SFCS refused the connection: {words}")));
        }
        Ok(connection)
    }

    /// # Errors
    /// What the library says of a path that it does not know.
    pub fn info(&self, path: &CStr) -> io::Result<Info> {
        forget_errno();
        // SAFETY: `path` ends with a NUL; what is returned is looked at before it is freed.
        unsafe {
            let info = (self.functions.get_path_info)(self.fs, path.as_ptr());
            if info.is_null() {
                return Err(self.failure(libc::ENOENT));
            }
            let &FileInfo { kind, size, modified, .. } = &*info;
            let told = Info { is_directory: kind == c_int::from(b'D'), len: size, modified };
            (self.functions.free_file_info)(info, 1);
            Ok(told)
        }
    }

    pub fn delete(&self, path: &CStr) -> io::Result<()> {
        forget_errno();
        // SAFETY: `path` ends with a NUL.
        self.check(unsafe { (self.functions.delete)(self.fs, path.as_ptr(), 0) })
    }

    pub fn rename(&self, from: &CStr, to: &CStr) -> io::Result<()> {
        forget_errno();
        // SAFETY: both end with a NUL.
        self.check(unsafe { (self.functions.rename)(self.fs, from.as_ptr(), to.as_ptr()) })
    }

    fn check(&self, answer: c_int) -> io::Result<()> {
        if answer == 0 {
            return Ok(());
        }
        Err(self.failure(libc::EIO))
    }

    /// The last failure; `errno` where the system has no number for it.
    fn failure(&self, errno: i32) -> io::Error {
        let system = io::Error::last_os_error();
        let number = system.raw_os_error().filter(|&number| number != 0).unwrap_or(errno);
        said(number, format!("SFCS: {}", self.words(&words_of(number))))
    }

    /// The library's own words, without what is secret.
    fn words(&self, otherwise: &str) -> String {
        // SAFETY: the library returns a text that ends with a NUL, or null.
        let text = unsafe {
            let text = (self.functions.last_error)();
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        };
        let text = text.filter(|text| !text.is_empty()).unwrap_or_else(|| otherwise.to_owned());
        self.secrets.iter().fold(text, |text, secret| text.replace(secret.as_str(), "***"))
    }
}

/// A file that is open, for one thread at a time.
pub struct Handle {
    connection: Arc<Connection>,
    file: File,
}

// SAFETY: the library does not say that a file belongs to the thread that opened it; HDFS's do not.
unsafe impl Send for Handle {}

impl Handle {
    pub fn open(connection: &Arc<Connection>, path: &CStr) -> io::Result<Self> {
        forget_errno();
        let open = connection.functions.open_file;
        // SAFETY: `path` ends with a NUL.
        let file = unsafe { open(connection.fs, path.as_ptr(), libc::O_RDONLY, 0, 0, 0) };
        Self::of(connection, file)
    }

    pub fn create(connection: &Arc<Connection>, path: &CStr) -> io::Result<Self> {
        Self::made(connection, path, 0)
    }

    /// The same where nothing has that name, if the library knows the flags.
    pub fn create_new(connection: &Arc<Connection>, path: &CStr) -> io::Result<Self> {
        Self::made(connection, path, libc::O_CREAT | libc::O_EXCL)
    }

    fn made(connection: &Arc<Connection>, path: &CStr, more: c_int) -> io::Result<Self> {
        forget_errno();
        let flags = libc::O_WRONLY | libc::O_ASYNC | more;
        let open = connection.functions.open_file_acc;
        // SAFETY: as above.
        let file = unsafe { open(connection.fs, path.as_ptr(), flags, 0o644, 0, 0) };
        Self::of(connection, file)
    }

    fn of(connection: &Arc<Connection>, file: File) -> io::Result<Self> {
        if file.is_null() {
            return Err(connection.failure(libc::EIO));
        }
        Ok(Self { connection: Arc::clone(connection), file })
    }

    /// Reads some bytes, at least one unless the file ends there.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: i64) -> io::Result<usize> {
        forget_errno();
        let Connection { functions, fs, .. } = &*self.connection;
        let len = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
        // SAFETY: the buffer has at least `len` bytes and outlives the call.
        let read =
            unsafe { (functions.pread)(*fs, self.file, offset, buffer.as_mut_ptr().cast(), len) };
        match read {
            ..0 => Err(self.connection.failure(libc::EIO)),
            read if read > len => Err(said(libc::EPROTO, "SFCS: more bytes than were asked for")),
            read => Ok(read as usize),
        }
    }

    /// Writes all of `bytes` where the last write ended.
    pub fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Connection { functions, fs, .. } = &*self.connection;
        while !bytes.is_empty() {
            forget_errno();
            let (start, len) = (bytes.as_ptr().cast(), bytes.len() as u64);
            // SAFETY: the bytes outlive the call.
            let written = unsafe { (functions.write)(*fs, self.file, start, len) };
            match usize::try_from(written) {
                Ok(written @ 1..) if written <= bytes.len() => bytes = &bytes[written..],
                _ => return Err(self.connection.failure(libc::EIO)),
            }
        }
        Ok(())
    }

    pub fn sync(&mut self) -> io::Result<()> {
        forget_errno();
        let Connection { functions, fs, .. } = &*self.connection;
        // SAFETY: the file is open.
        self.connection.check(unsafe { (functions.hsync)(*fs, self.file) })
    }

    /// # Errors
    /// What the library says: of a file that was written, not all may have arrived.
    pub fn close(mut self) -> io::Result<()> {
        self.shut()
    }

    fn shut(&mut self) -> io::Result<()> {
        let file = std::mem::replace(&mut self.file, std::ptr::null_mut());
        if file.is_null() {
            return Ok(());
        }
        forget_errno();
        let Connection { functions, fs, .. } = &*self.connection;
        // SAFETY: the file is open, and nobody uses it any more.
        self.connection.check(unsafe { (functions.close_file)(*fs, file) })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // A child must not close what its parent reads.
        if self.connection.process == process::id() {
            let _ = self.shut();
        }
    }
}

fn load(path: &Path) -> io::Result<Functions> {
    let refused = |words: String| {
        let path = PathBuf::from(path);
        let words = format!(
            "the SFCS client library {} cannot be loaded: {words} (LIBCFS_PATH names another)",
            printable(&path)
        );
        said(libc::ENOENT, words)
    };
    let name =
        CString::new(path.as_os_str().as_bytes()).map_err(|error| refused(error.to_string()))?;
    // SAFETY: whoever names the library vouches for what it does when it is loaded; the name ends
    // with a NUL, and so does what dlerror returns.
    unsafe {
        let library = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if library.is_null() {
            let text = libc::dlerror();
            let text = (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy());
            return Err(refused(text.as_deref().unwrap_or("no reason was given").to_owned()));
        }
        Functions::of(library).map_err(|name| refused(format!("it has no {name}")))
    }
}

/// So that a number found there later is of the call in between.
fn forget_errno() {
    // SAFETY: the address is that of this thread's errno.
    unsafe { *libc::__errno_location() = 0 };
}
