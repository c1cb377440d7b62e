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
    Unreadable,
};
use libfuzzer_sys::fuzz_target;
use std::ops::Range;

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
    let read = |ranges: &[Range<u64>]| {
        let bytes = ranges.iter().map(|range| {
            let bytes = file.get(range.start as usize..range.end as usize);
            bytes.expect("only what the file has is asked for").to_vec()
        });
        Ok::<_, ()>(bytes.collect())
    };
    let archive = match Archive::read(file.len() as u64, &read) {
        Ok(archive) => archive,
        Err(Unreadable::Malformed(_) | Unreadable::Unknown(_)) => return,
        Err(Unreadable::Source(())) => unreachable!("the source never fails"),
    };
    let checkpoint = &archive.checkpoint;
    assert_eq!(checkpoint.storages.len(), archive.storages.len());
    for (storage, range) in checkpoint.storages.iter().zip(&archive.storages) {
        assert_eq!(range.end - range.start, storage.byte_len);
        assert!(range.end <= file.len() as u64);
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
    let _ = checkpoint.names();
    serde_json::from_str::<serde_json::Value>(&checkpoint.to_json()).expect("it is JSON");
}
