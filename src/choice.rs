//! Which way a load takes, and why. Pure: what is known of the file in, a way and a sentence out.
//!
//! `docs/performance.md` has the measurements behind each rule.

use crate::{
    plan::SEGMENT_LEN,
    storage::{FileSystem, Storage},
    ways::Way,
};

/// What is read past the page cache as a whole is at least this long, in bytes: below, the load
/// takes a few tens of milliseconds either way, and the next one finds it cached.
pub const LARGE: u64 = 64 << 20;

/// A file of which the page cache holds this share counts as cached: the rest is read faster than
/// all of it could be.
const CACHED: f64 = 0.5;

/// The same where the rest is far away, and would come by small requests; and what counts as
/// being all of it.
const WHOLLY_CACHED: f64 = 0.99;

/// Reads past the page cache that a local disk has in flight at least: one thread waits for the
/// disk while another looks after the memory.
const DISK_DEPTH: usize = 4;

/// Pieces that each reader of a slow storage takes one after the other, so that all end together.
const PIECES_EACH: u64 = 4;

/// The longest range that a store is asked for, in bytes.
const MAX_RANGE: u64 = 64 << 20;

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
    /// Whether the page cache had the beginning of the file: somebody has read it not long ago.
    pub again: bool,
    /// Bytes of memory that the process may still take, where that can be known.
    pub available: Option<u64>,
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
    /// Whether the page cache holds all that is wanted, or nearly.
    pub is_cached: bool,
    pub reason: String,
}

/// Chooses a way.
#[must_use]
pub fn choose(wish: Wish, facts: &Facts) -> Choice {
    let Facts { file_system: FileSystem { name, storage }, wanted, processors, .. } = *facts;
    let holds = |enough: f64| {
        storage == Storage::Memory || facts.cached.is_some_and(|share| share >= enough)
    };
    let choice = |way: Way, num_thread: usize, reason: String| {
        let num_thread = num_thread.clamp(1, wish.num_thread.max(1));
        let segment_len = match storage {
            // In small requests, whatever their length: it would take seconds to stop.
            Storage::Remote if matches!(way, Way::Map | Way::Read) => MIN_REQUEST,
            Storage::Remote => shared(wanted, num_thread),
            Storage::Object => ranged(wanted, num_thread),
            _ => SEGMENT_LEN,
        };
        Choice { way, num_thread, segment_len, is_cached: holds(WHOLLY_CACHED), reason }
    };
    let is_cached = holds(if storage == Storage::Remote { WHOLLY_CACHED } else { CACHED });
    let is_short = |needed: u64| facts.available.is_some_and(|available| needed > available);
    let held = match facts.cached {
        _ if storage == Storage::Memory => format!("{name} has it in memory"),
        Some(share) => format!("the page cache holds {:.0}% of it", share * 100.0),
        None => "nobody tells what the page cache holds of it".to_owned(),
    };
    let (way, reason) = match (wish.way, storage) {
        (Some(way), Storage::Object) if way != Way::Read => {
            (Way::Read, format!("{} was asked for, and {name} knows ranges only", way.name()))
        }
        (None, Storage::Object) => (Way::Read, format!("each request to {name} takes its time")),
        (Some(way), _) => (way, format!("{} was asked for", way.name())),
        _ if is_cached => (Way::Map, held),
        // With what the buffers of the readers take beside it.
        (None, Storage::Remote) if is_short(wanted.saturating_add(wanted / 8)) => {
            (Way::Map, format!("{held}, and it is more than there is memory"))
        }
        (None, Storage::Remote) => {
            (Way::Direct, format!("{held}, and each request to {name} takes its time"))
        }
        _ if facts.partial && is_short(wanted.saturating_mul(2)) => {
            (Way::Map, format!("{held}, and memory is short: the cache can be taken back"))
        }
        _ if facts.partial => {
            (Way::Direct, format!("{held}, and reading ahead would bring in what is not wanted"))
        }
        _ if facts.cached.is_none() => (Way::Map, held),
        _ if wanted < LARGE => (Way::Map, format!("{held}, and it is small")),
        _ if facts.again => {
            (Way::Map, format!("{held}, and it was read before: the cache shall keep it now"))
        }
        _ if is_short(wanted.saturating_mul(2)) => {
            (Way::Map, format!("{held}, and memory is short: the cache can be taken back"))
        }
        _ => (Way::Direct, format!("{held}, and {name} is faster past it")),
    };
    // A map and the page cache are work for processors, whatever lies behind them; what is asked
    // past the cache is waited for.
    let depth = match (way, storage) {
        (Way::Map | Way::Read, Storage::Disk | Storage::Memory) => processors,
        (Way::Map | Way::Read, Storage::Remote) if is_cached => processors,
        (_, Storage::Remote | Storage::Object) => usize::MAX,
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

/// Cuts so that every connection to a store has one range, since each costs a delay: none shorter
/// than the cost of a request allows, and none so long that one slow connection keeps all waiting.
fn ranged(wanted: u64, num_thread: usize) -> u64 {
    let share = wanted / num_thread as u64 + 1;
    share.next_multiple_of(MIN_REQUEST).clamp(SEGMENT_LEN, MAX_RANGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXT4: u32 = 0xEF53;
    const FUSE: u32 = 0x6573_5546;
    const TMPFS: u32 = 0x0102_1994;
    const S3: FileSystem = FileSystem { name: "s3", storage: Storage::Object };

    fn facts(magic: u32, cached: Option<f64>) -> Facts {
        Facts {
            file_system: FileSystem::from_magic(magic),
            wanted: 2 << 30,
            cached,
            partial: false,
            again: false,
            available: Some(20 << 30),
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
    fn what_lies_on_a_disk_is_read_past_the_cache_if_it_is_large_and_read_once() {
        let cold = facts(EXT4, Some(0.0));
        assert_eq!(chosen(cold), (Way::Direct, 4));
        assert_eq!(chosen(Facts { processors: 16, ..cold }), (Way::Direct, 16));
        assert_eq!(chosen(Facts { wanted: LARGE - 1, ..cold }), (Way::Map, 2));
        assert_eq!(chosen(Facts { again: true, ..cold }), (Way::Map, 2));
        assert_eq!(chosen(Facts { available: Some(3 << 30), ..cold }), (Way::Map, 2));
        assert_eq!(chosen(Facts { cached: None, ..cold }), (Way::Map, 2));
    }

    #[test]
    fn a_part_of_what_is_not_cached_is_read_past_the_cache() {
        let part = Facts { partial: true, wanted: 1000, again: true, ..facts(EXT4, Some(0.4)) };
        assert_eq!(chosen(part), (Way::Direct, 4));
        assert_eq!(chosen(Facts { cached: None, ..part }), (Way::Direct, 4));
        let short = Facts { available: Some(1999), ..part };
        assert_eq!(chosen(short), (Way::Map, 2), "or the process may be killed for it");
        assert_eq!(chosen(Facts { cached: None, ..short }), (Way::Map, 2));
    }

    #[test]
    fn what_has_far_to_travel_has_many_requests_in_flight() {
        assert_eq!(chosen(facts(FUSE, Some(0.1))), (Way::Direct, 32));
        assert_eq!(chosen(facts(FUSE, None)), (Way::Direct, 32));
        assert_eq!(chosen(facts(0x6969, Some(0.0))), (Way::Direct, 32));
        assert_eq!(chosen(facts(0x6969, Some(0.9))), (Way::Direct, 32));
        let short = Facts { available: Some(1 << 30), ..facts(FUSE, Some(0.0)) };
        assert_eq!(chosen(Facts { available: Some(short.wanted), ..short }).0, Way::Map);
        assert_eq!(chosen(short).0, Way::Map);
    }

    #[test]
    fn an_object_is_read_by_range_whatever_was_asked_for() {
        let object = Facts { file_system: S3, ..facts(FUSE, None) };
        let asked = |way| choose(Wish { way, num_thread: 16 }, &object);
        for way in Way::ALL.map(Some).into_iter().chain([None]) {
            let choice = asked(way);
            assert_eq!((choice.way, choice.num_thread), (Way::Read, 16));
            assert_eq!(choice.segment_len, MAX_RANGE);
        }
        assert!(asked(None).reason.contains("each request to s3 takes its time"));
    }

    #[test]
    fn a_small_file_on_slow_storage_is_cut_so_that_all_readers_have_some() {
        let cut = |wanted| {
            let facts = Facts { wanted, available: None, ..facts(FUSE, Some(0.0)) };
            choose(Wish { way: None, num_thread: 32 }, &facts).segment_len
        };
        assert_eq!((cut(1000), cut(256 << 20), cut(1 << 40)), (1 << 20, 2 << 20, SEGMENT_LEN));
    }

    #[test]
    fn a_store_is_asked_for_one_long_range_by_each_connection() {
        let cut = |wanted| {
            let facts = Facts { file_system: S3, wanted, ..facts(EXT4, None) };
            choose(Wish { way: None, num_thread: 32 }, &facts).segment_len
        };
        assert_eq!((cut(1000), cut(100 << 20)), (SEGMENT_LEN, SEGMENT_LEN));
        assert_eq!((cut(1 << 30), cut(1 << 40)), (33 << 20, MAX_RANGE));
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
