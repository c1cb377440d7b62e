//! How long a read takes, and what comes of it. Knows open files, and neither paths nor inodes.

use crate::stats::Stats;
use fuser::{Errno, ReplyData};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{mpsc, Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// As many reads are delayed side by side; more wait for one of these to be done.
const THREADS: usize = 256;

#[derive(Debug, Clone, clap::Args)]
pub struct Slowness {
    /// How long each read waits before its first byte
    #[arg(long, value_name = "N", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=3_600_000))]
    delay_ms: u64,
    /// The speed of each read's bytes after the delay, whatever else is read
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    bytes_per_second: Option<u64>,
    /// The speed of all reads together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    total_bytes_per_second: Option<u64>,
    /// Has each read fail that covers this byte of a file
    #[arg(long, value_name = "OFFSET")]
    fail_at: Option<u64>,
    /// The error number it fails with (5 is EIO)
    // The kernel refuses the rest, which mean something to itself only.
    #[arg(long, value_name = "N", default_value_t = 5, requires = "fail_at",
          value_parser = clap::value_parser!(i32).range(1..512))]
    errno: i32,
    /// Cuts all files off, for stat as for the reads that follow, once so many reads have begun
    #[arg(long, value_name = "N_READS", requires = "truncate_to")]
    truncate_after: Option<u64>,
    /// The length at which they are cut off
    #[arg(long, value_name = "LEN", requires = "truncate_after")]
    truncate_to: Option<u64>,
}

impl Slowness {
    /// The most that a file can have after `reads` reads.
    fn longest_after(&self, reads: u64) -> u64 {
        match (self.truncate_after, self.truncate_to) {
            (Some(after), Some(len)) if reads >= after => len,
            _ => u64::MAX,
        }
    }

    fn fails(&self, offset: u64, len: u32) -> bool {
        self.fail_at.is_some_and(|at| (offset..offset.saturating_add(len.into())).contains(&at))
    }
}

/// All reads of one mount.
#[derive(Debug)]
pub struct Reads {
    slowness: Slowness,
    pub stats: Stats,
    /// When all bytes asked for so far have passed the bottleneck that all reads share.
    all_passed: Mutex<Instant>,
    queue: mpsc::Sender<Read>,
}

#[derive(Debug)]
struct Read {
    file: Arc<File>,
    offset: u64,
    len: u32,
    /// The most that the file has for it.
    longest: u64,
    due: Instant,
    reply: ReplyData,
}

impl Reads {
    pub fn new(slowness: Slowness) -> io::Result<Arc<Self>> {
        let (queue, queued) = mpsc::channel::<Read>();
        let reads = Arc::new(Self {
            slowness,
            stats: Stats::default(),
            all_passed: Mutex::new(Instant::now()),
            queue,
        });
        let queued = Arc::new(Mutex::new(queued));
        for _ in 0..THREADS {
            let (reads, queued) = (Arc::clone(&reads), Arc::clone(&queued));
            thread::Builder::new().stack_size(64 << 10).spawn(move || loop {
                let next = queued.lock().expect("nothing panics that holds the queue").recv();
                let Ok(read) = next else { return };
                thread::sleep(read.due.saturating_duration_since(Instant::now()));
                reads.serve(read);
            })?;
        }
        Ok(reads)
    }

    /// Replies in due time, from another thread.
    pub fn submit(&self, file: Arc<File>, offset: u64, len: u32, reply: ReplyData) {
        let longest = self.slowness.longest_after(self.stats.begin(len));
        let due = self.due(Instant::now(), len);
        // Fails only without threads, and a reply that is dropped is an EIO.
        let _ = self.queue.send(Read { file, offset, len, longest, due, reply });
    }

    /// The length that a file of `len` bytes has now.
    pub fn visible_len(&self, len: u64) -> u64 {
        len.min(self.slowness.longest_after(self.stats.reads()))
    }

    /// Whether the length of a file may change while it is mounted.
    pub fn may_truncate(&self) -> bool {
        self.slowness.truncate_after.is_some()
    }

    fn due(&self, now: Instant, len: u32) -> Instant {
        let first_byte = now + Duration::from_millis(self.slowness.delay_ms);
        let alone = first_byte + transfer(len, self.slowness.bytes_per_second);
        if self.slowness.total_bytes_per_second.is_none() {
            return alone;
        }
        let mut all_passed = self.all_passed.lock().expect("nothing panics that holds the time");
        *all_passed =
            first_byte.max(*all_passed) + transfer(len, self.slowness.total_bytes_per_second);
        alone.max(*all_passed)
    }

    fn serve(&self, read: Read) {
        let result = self.bytes_of(&read);
        self.stats.end(result.as_ref().map_or(0, Vec::len));
        match result {
            Ok(bytes) => read.reply.data(&bytes),
            Err(error) => read.reply.error(error),
        }
    }

    fn bytes_of(&self, read: &Read) -> Result<Vec<u8>, Errno> {
        if self.slowness.fails(read.offset, read.len) {
            return Err(Errno::from_i32(self.slowness.errno));
        }
        let len = read.longest.saturating_sub(read.offset).min(read.len.into());
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| Errno::EINVAL)?];
        let mut filled = 0;
        while filled < bytes.len() {
            match read.file.read_at(&mut bytes[filled..], read.offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

/// How long `len` bytes take at that speed.
fn transfer(len: u32, bytes_per_second: Option<u64>) -> Duration {
    // No overflow: 2^32 · 10^9 is below 2^62.
    bytes_per_second.map_or(Duration::ZERO, |speed| {
        Duration::from_nanos(u64::from(len) * 1_000_000_000 / speed)
    })
}
