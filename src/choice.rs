//! Which way a load takes, and why. Pure: what is known of the file in, a way and a sentence out.
//!
//! `docs/performance.md` has the measurements behind each rule.

use crate::{
    plan::SEGMENT_LEN,
    storage::{FileSystem, Storage},
    ways::Way,
};

/// A file of which the page cache holds this share counts as cached: the rest is read faster than
/// all of it could be.
const CACHED: f64 = 0.5;

/// Reads past the page cache that a local disk has in flight at least: one thread waits for the
/// disk while another looks after the memory.
const DISK_DEPTH: usize = 4;

/// Pieces that each reader of a slow storage takes one after the other, so that all end together.
const PIECES_EACH: u64 = 4;

/// What FUSE sends in one request at most, unless the mount or the system says otherwise.
const MIN_REQUEST: u64 = 1 << 20;

/// What the caller said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// A way by name, where he named one.
    pub way: Option<Way>,
    /// Upper bound of reads at once.
    pub num_thread: usize,
}

/// What is known of a load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    pub file_system: FileSystem,
    /// Bytes that are wanted.
    pub wanted: u64,
    /// Which share of them the page cache holds, where that can be known.
    pub cached: Option<f64>,
    /// Whether much of the rest of the file is not.
    pub partial: bool,
    pub processors: usize,
}

/// A way, and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub way: Way,
    /// Reads at once.
    pub num_thread: usize,
    /// Bytes of each.
    pub segment_len: u64,
    pub reason: String,
}

/// Chooses a way.
#[must_use]
pub fn choose(wish: Wish, facts: &Facts) -> Choice {
    let Facts { file_system: FileSystem { name, storage }, wanted, processors, .. } = *facts;
    let choice = |way: Way, num_thread: usize, reason: String| {
        let num_thread = num_thread.clamp(1, wish.num_thread.max(1));
        let segment_len = match storage {
            Storage::Remote if way != Way::Map => shared(wanted, num_thread),
            _ => SEGMENT_LEN,
        };
        Choice { way, num_thread, segment_len, reason }
    };
    let is_cached = storage == Storage::Memory || facts.cached.is_some_and(|share| share >= CACHED);
    let held = match facts.cached {
        _ if storage == Storage::Memory => format!("{name} has it in memory"),
        Some(share) => format!("the page cache holds {:.0}% of it", share * 100.0),
        None => "nobody tells what the page cache holds of it".to_owned(),
    };
    let (way, reason) = match (wish.way, storage) {
        (Some(way), _) => (way, format!("{} was asked for", way.name())),
        _ if is_cached => (Way::Map, held),
        (None, Storage::Remote) => {
            (Way::Direct, format!("{held}, and each request to {name} takes its time"))
        }
        _ if facts.partial => {
            (Way::Direct, format!("{held}, and reading ahead would bring in what is not wanted"))
        }
        _ => (Way::Map, format!("{held}, and {name} fills it at the speed of the disk")),
    };
    // A map and the page cache are work for processors, whatever lies behind them; what is asked
    // past the cache is waited for.
    let depth = match (way, storage) {
        (Way::Map | Way::Read, Storage::Disk | Storage::Memory) => processors,
        (Way::Map | Way::Read, Storage::Remote) if is_cached => processors,
        (_, Storage::Remote) => usize::MAX,
        (Way::Direct | Way::Uring, _) => processors.max(DISK_DEPTH),
    };
    choice(way, depth, reason)
}

/// Cuts so that every reader of a slow storage gets some pieces of what there is, but none less
/// than the largest request of most FUSE mounts.
fn shared(wanted: u64, num_thread: usize) -> u64 {
    let share = wanted / (PIECES_EACH * num_thread as u64);
    share.next_multiple_of(MIN_REQUEST).clamp(MIN_REQUEST, SEGMENT_LEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT4: u32 = 0xEF53;
    const FUSE: u32 = 0x6573_5546;
    const TMPFS: u32 = 0x0102_1994;

    fn facts(magic: u32, cached: Option<f64>) -> Facts {
        Facts {
            file_system: FileSystem::from_magic(magic),
            wanted: 2 << 30,
            cached,
            partial: false,
            processors: 2,
        }
    }

    fn chosen(facts: Facts) -> (Way, usize) {
        let Choice { way, num_thread, .. } = choose(Wish { way: None, num_thread: 32 }, &facts);
        (way, num_thread)
    }

    #[test]
    fn what_is_cached_is_mapped_by_as_many_threads_as_there_are_processors() {
        assert_eq!(chosen(facts(EXT4, Some(1.0))), (Way::Map, 2));
        assert_eq!(chosen(facts(FUSE, Some(1.0))), (Way::Map, 2));
        assert_eq!(chosen(facts(TMPFS, None)), (Way::Map, 2));
        let partial = Facts { partial: true, ..facts(EXT4, Some(1.0)) };
        assert_eq!(chosen(partial), (Way::Map, 2));
    }

    #[test]
    fn what_lies_on_a_disk_is_brought_into_the_page_cache_unless_a_part_is_wanted() {
        for cached in [None, Some(0.0), Some(0.4)] {
            let cold = facts(EXT4, cached);
            assert_eq!(chosen(cold), (Way::Map, 2));
            assert_eq!(chosen(Facts { partial: true, ..cold }), (Way::Direct, 4));
            assert_eq!(chosen(Facts { partial: true, processors: 16, ..cold }), (Way::Direct, 16));
        }
    }

    #[test]
    fn what_has_far_to_travel_has_many_requests_in_flight() {
        assert_eq!(chosen(facts(FUSE, Some(0.1))), (Way::Direct, 32));
        assert_eq!(chosen(facts(FUSE, None)), (Way::Direct, 32));
        assert_eq!(chosen(facts(0x6969, Some(0.0))), (Way::Direct, 32));
    }

    #[test]
    fn a_small_file_on_slow_storage_is_cut_so_that_all_readers_have_some() {
        let cut = |wanted| {
            let facts = Facts { wanted, ..facts(FUSE, Some(0.0)) };
            choose(Wish { way: None, num_thread: 32 }, &facts).segment_len
        };
        assert_eq!((cut(1000), cut(256 << 20), cut(1 << 40)), (1 << 20, 2 << 20, SEGMENT_LEN));
    }

    #[test]
    fn the_caller_has_the_last_word() {
        for way in Way::ALL {
            let choice = choose(Wish { way: Some(way), num_thread: 3 }, &facts(FUSE, Some(0.0)));
            assert_eq!((choice.way, choice.num_thread), (way, 3));
            assert!(choice.reason.contains("asked for"));
        }
        let one = choose(Wish { way: None, num_thread: 1 }, &facts(EXT4, Some(0.0)));
        assert_eq!(one.num_thread, 1);
    }
}
