//! What is counted of the reads. Knows nothing of files.

use std::{
    fs, io,
    path::Path,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Counts since the mount, of the requests that the kernel sent, whatever made it send them.
#[derive(Debug, Default)]
pub struct Stats {
    reads: AtomicU64,
    bytes: AtomicU64,
    in_flight: AtomicU64,
    max_in_flight: AtomicU64,
    largest_read: AtomicU64,
}

impl Stats {
    /// Counts a read of `len` bytes as under way, and returns how many began before it.
    pub fn begin(&self, len: u32) -> u64 {
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.max_in_flight.fetch_max(in_flight, Relaxed);
        self.largest_read.fetch_max(len.into(), Relaxed);
        self.reads.fetch_add(1, Relaxed)
    }

    /// Counts a read as done, before its reply: whoever has the reply finds it counted, and reads
    /// of one after the other never overlap.
    pub fn end(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Relaxed);
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// How many reads have begun.
    pub fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    pub fn json(&self) -> String {
        let [reads, bytes, max_in_flight, largest_read] =
            [&self.reads, &self.bytes, &self.max_in_flight, &self.largest_read]
                .map(|count| count.load(Relaxed));
        format!(
            "{{\"reads\": {reads}, \"bytes\": {bytes}, \"max_in_flight\": {max_in_flight}, \
             \"largest_read\": {largest_read}}}\n"
        )
    }

    /// Writes the counts to `file`, whole or not at all.
    pub fn write(&self, file: &Path) -> io::Result<()> {
        let mut unfinished = file.as_os_str().to_owned();
        unfinished.push(".unfinished");
        fs::write(&unfinished, self.json())?;
        fs::rename(&unfinished, file)
    }
}
