//! The suite that every way passes: the same bytes, the same errors, whatever the file.

#![allow(clippy::single_range_in_vec_init)] // ranges are what is asked for

use super::{Job, Piece, Way, PAGE};
use crate::{
    buffers::Buffers, plan::SEGMENT_LEN, storage::local::LocalFile, threads::Ready, watch::Watch,
};
use std::{
    fs::OpenOptions,
    io::{self, Write},
    ops::Range,
};
use tempfile::TempDir;

fn content(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

struct Bed {
    _dir: TempDir,
    file: LocalFile,
    bytes: Vec<u8>,
}

fn bed_in(dir: TempDir, len: usize) -> Bed {
    let path = dir.path().join("file");
    let bytes = content(len);
    std::fs::write(&path, &bytes).unwrap();
    Bed { file: LocalFile::open(&path).unwrap(), bytes, _dir: dir }
}

fn bed(len: usize) -> Bed {
    bed_in(tempfile::tempdir().unwrap(), len)
}

/// With one thread as if nobody knew what is cached, with more as if all were.
fn with_job<T>(file: &LocalFile, num_thread: usize, work: impl FnOnce(&Job<'_>) -> T) -> T {
    let (buffers, watch) = (Buffers::default(), Watch::default());
    let (watch, is_cached) = (&watch, num_thread > 1);
    work(&Job {
        file,
        ready: Ready::default(),
        num_thread,
        segment_len: SEGMENT,
        is_cached,
        buffers: &buffers,
        watch,
    })
}

fn check_ranges(bed: &Bed, way: Way, ranges: &[Range<u64>]) {
    for num_thread in [1, 3] {
        let memory = with_job(&bed.file, num_thread, |job| way.bring(job, ranges)).unwrap();
        for range in ranges {
            let (start, end) = (range.start as usize, range.end as usize);
            let memory = memory.as_ref().unwrap();
            assert!(memory[start..end] == bed.bytes[start..end], "{way:?} {range:?}");
        }
    }
}

const SEGMENT: u64 = SEGMENT_LEN;

#[test]
fn every_way_brings_the_same_bytes_of_odd_ranges_and_sizes() {
    for len in [1, 9, 4095, 4096, 4097, 100_001, 2 * SEGMENT as usize + 12_345] {
        let bed = bed(len);
        let len = len as u64;
        for way in Way::ALL {
            check_ranges(&bed, way, &[0..len]);
            check_ranges(&bed, way, &[len / 3..len - len / 4]);
            if len > 3 * SEGMENT / 2 {
                check_ranges(&bed, way, &[7..8, 200_001..200_002, SEGMENT - 1..SEGMENT + 1]);
            }
        }
    }
}

#[test]
fn every_way_works_where_the_page_cache_cannot_be_passed() {
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else { return };
    let bed = bed_in(dir, 300_007);
    for way in Way::ALL {
        check_ranges(&bed, way, &[11..300_007]);
    }
}

#[test]
fn every_way_fills_memory_at_odd_addresses() {
    let len = SEGMENT as usize + 77_777;
    let bed = bed(len);
    // Address and offset fit in their pages, differ in them, and the same for short pieces.
    let cases = [(0, 0), (5, 5), (5, 6), (4095, 1), (64, 4096 + 64), (3, len - 90_000)];
    for way in Way::ALL {
        for (shift, offset) in cases {
            for wanted in [1, 100, 70_000, len - offset - 3] {
                let wanted = wanted.min(len - offset);
                let mut memory = vec![0xEE; len + 3 * PAGE as usize];
                let aligned = memory.as_ptr().align_offset(PAGE as usize);
                let start = aligned + shift;
                let target = &mut memory[start..start + wanted];
                let pieces = Piece::cut(offset as u64, target, SEGMENT).collect();
                with_job(&bed.file, 2, |job| way.read(job, pieces)).unwrap();
                assert!(
                    memory[start..start + wanted] == bed.bytes[offset..offset + wanted],
                    "{way:?} {shift} {offset} {wanted}"
                );
                assert!(memory[..start].iter().all(|&byte| byte == 0xEE), "{way:?}");
                assert!(memory[start + wanted..].iter().all(|&byte| byte == 0xEE), "{way:?}");
            }
        }
    }
}

#[test]
fn a_file_that_became_shorter_is_an_error_of_every_way() {
    for way in Way::ALL {
        let bed = bed(5 * PAGE as usize + 100);
        let path = crate::storage::Source::name(&bed.file).to_owned();
        for shorter in [2 * PAGE + 50, PAGE, 0] {
            OpenOptions::new().write(true).open(&path).unwrap().set_len(shorter).unwrap();
            let range = 0..bed.bytes.len() as u64;
            let error = with_job(&bed.file, 2, |job| way.bring(job, &[range])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{way:?} {shorter}");
        }
    }
}

#[test]
fn bytes_that_were_just_written_are_seen_by_every_way() {
    for way in Way::ALL {
        let mut bed = bed(3 * PAGE as usize);
        let path = crate::storage::Source::name(&bed.file).to_owned();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        let more = vec![7; 50_000];
        file.write_all(&more).unwrap();
        bed.bytes.extend(more);
        bed.file = LocalFile::open(&path).unwrap();
        check_ranges(&bed, way, &[0..bed.bytes.len() as u64]);
    }
}

#[test]
fn the_caller_can_stop_every_way() {
    let bed = bed(4 * SEGMENT as usize);
    for way in Way::ALL {
        let buffers = Buffers::default();
        let watch = Watch::new(None, Some(|| true));
        watch.look();
        let job = Job {
            file: &bed.file,
            ready: Ready::default(),
            num_thread: 2,
            segment_len: SEGMENT,
            is_cached: true,
            buffers: &buffers,
            watch: &watch,
        };
        let error = way.bring(&job, &[0..4 * SEGMENT]).unwrap_err();
        assert_eq!(error.to_string(), "interrupted", "{way:?}");
    }
}

#[test]
fn every_way_says_how_much_it_has_moved() {
    use std::sync::atomic::{AtomicI64, Ordering};
    let bed = bed(SEGMENT as usize + 9);
    for way in Way::ALL {
        let counters = [AtomicI64::new(0), AtomicI64::new(0)];
        let watch = Watch::new(Some([&counters[0], &counters[1]]), None);
        let buffers = Buffers::default();
        let job = Job {
            file: &bed.file,
            ready: Ready::default(),
            num_thread: 2,
            segment_len: SEGMENT,
            is_cached: true,
            buffers: &buffers,
            watch: &watch,
        };
        let len = SEGMENT + 9;
        watch.begin(len);
        way.bring(&job, &[0..len]).unwrap();
        assert_eq!(counters[0].load(Ordering::Relaxed), len as i64, "{way:?}");
    }
}

#[test]
fn a_way_has_the_name_it_is_asked_for_by() {
    for way in Way::ALL {
        assert_eq!(Way::from_name(way.name()), Some(way));
    }
    assert_eq!(Way::from_name("fast"), None);
}
