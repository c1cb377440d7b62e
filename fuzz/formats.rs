//! Any bytes are read as a file: no panic, no overflow, no answer that contradicts itself, and of
//! a safetensors header the verdict of the reference implementation.
//!
//! `make fuzz` runs it over a corpus of small real and malformed files.

#![no_main]
#![allow(dead_code)]

#[path = "../src/format/mod.rs"]
mod format;

use format::{
    archive::{is_pytorch, Archive},
    safetensors::{Header, LENGTH_BYTES},
    steps::Steps,
    Unreadable,
};
use libfuzzer_sys::fuzz_target;
use std::ops::Range;

/// Steps that a reader may take for each byte of a file, and for any file at all: twice what it may
/// copy for nothing, with what even the smallest may be named and hashed for.
const STEPS_A_BYTE: u64 = 64;
const FREE_STEPS: u64 = 8 << 20;

fuzz_target!(|file: &[u8]| {
    if is_pytorch(file) {
        read_archive(file);
    } else {
        read_header(file);
    }
});

fn read_header(file: &[u8]) {
    let len = file.len() as u64;
    let ours = Header::json_len(file, len).and_then(|json_len| {
        Header::parse(&file[LENGTH_BYTES as usize..(LENGTH_BYTES + json_len) as usize], len)
    });
    let theirs = safetensors::SafeTensors::read_metadata(file);
    match (ours, theirs) {
        (Ok(ours), Ok((_, theirs))) => {
            assert_eq!(ours.tensors().len(), theirs.tensors().len());
            for tensor in ours.tensors() {
                let info = theirs.info(tensor.name()).expect("the reference has it too");
                assert_eq!(tensor.bytes(), info.data_offsets.0 as u64..info.data_offsets.1 as u64);
                assert!(ours.data_start() + tensor.bytes().end <= len);
            }
        }
        (Err(_), Err(_)) => {}
        (Err(refused), Ok(_)) if refused.reason.contains("stands twice") => {}
        (ours, theirs) => panic!("ours: {ours:?}, theirs: {theirs:?}"),
    }
}

fn read_archive(file: &[u8]) {
    for skip_unknown in [false, true] {
        let steps = Steps::new(&|| false);
        read_archive_of(file, skip_unknown, &steps);
        let inflated = inflated_len(file);
        assert!(steps.done() <= FREE_STEPS + STEPS_A_BYTE * (file.len() as u64 + inflated));
    }
}

/// Bytes that a pickle may have beyond those of the file, if it is deflated.
fn inflated_len(file: &[u8]) -> u64 {
    let is_deflated = file.windows(2).any(|method| method == [8, 0]);
    if is_deflated {
        (64 << 20) + 64 * file.len() as u64
    } else {
        0
    }
}

fn read_archive_of(file: &[u8], skip_unknown: bool, steps: &Steps<'_>) {
    let read = |ranges: &[Range<u64>]| {
        let bytes = ranges.iter().map(|range| {
            let bytes = file.get(range.start as usize..range.end as usize);
            bytes.expect("only what the file has is asked for").to_vec()
        });
        Ok::<_, ()>(bytes.collect())
    };
    let archive = match Archive::read(file.len() as u64, &read, skip_unknown, steps) {
        Ok(archive) => archive,
        Err(Unreadable::Malformed(_) | Unreadable::Unknown(_)) => return,
        Err(Unreadable::Source(()) | Unreadable::Stopped) => unreachable!("neither happens here"),
    };
    let checkpoint = &archive.checkpoint;
    assert_eq!(checkpoint.storages.len(), archive.storages.len());
    for (storage, range) in checkpoint.storages.iter().zip(&archive.storages) {
        assert_eq!(range.end - range.start, storage.byte_len);
        let is_deflated = archive.deflated.iter().any(|&(at, _)| at == range.start);
        assert!(is_deflated || range.end <= file.len() as u64);
    }
    for tensor in &checkpoint.tensors {
        let storage = &checkpoint.storages[tensor.storage];
        if tensor.shape.contains(&0) {
            continue;
        }
        let last: i128 = tensor
            .shape
            .iter()
            .zip(&tensor.strides)
            .map(|(&size, &stride)| i128::from(size - 1) * i128::from(stride))
            .sum();
        let end = (i128::from(tensor.offset) + last + 1) * i128::from(tensor.dtype.item_size());
        assert!(tensor.offset >= 0 && end <= i128::from(storage.byte_len));
    }
    let _ = checkpoint.names(steps);
    serde_json::from_str::<serde_json::Value>(&checkpoint.locations()).expect("it is JSON");
    if checkpoint.is_module() {
        return;
    }
    let pickle = checkpoint.to_pickle(steps).expect("nobody stops it");
    assert!(pickle.len() <= 64 + 32 * file.len() + inflated_len(file) as usize * 32);
    check_instructions(&pickle);
}

/// What is written for Python holds instructions that build, fill and remember values, and no other:
/// none that imports or calls.
fn check_instructions(pickle: &[u8]) {
    let number = |at: usize, width: usize| {
        let bytes = pickle[at..at + width].iter().rev();
        bytes.fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let mut at = 0;
    loop {
        let (instruction, next) = (pickle[at], at + 1);
        at = match instruction {
            b'.' => break,
            b'N' | 0x88 | 0x89 | b']' | b'}' | b')' | 0x8f | 0x91 | b't' | b'(' | b'0' => next,
            b'e' | b'u' | 0x90 | b'Q' | b'b' | 0x94 => next,
            0x80 | b'K' | b'h' => next + 1,
            b'M' => next + 2,
            b'J' | b'j' => next + 4,
            b'G' => next + 8,
            0x8a | 0x8c | b'C' => next + 1 + number(next, 1),
            0x8b | b'X' | b'B' => next + 4 + number(next, 4),
            0x8d | 0x8e | 0x96 => next + 8 + number(next, 8),
            other => panic!("instruction 0x{other:02x} is none that is written"),
        };
    }
    assert_eq!(at + 1, pickle.len());
}
