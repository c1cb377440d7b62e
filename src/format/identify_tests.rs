//! Files of every sort by their first bytes, and headers of safetensors, which none of them is.

use super::*;
use crate::format::safetensors::Header;
use proptest::prelude::*;

/// What is said of a file that begins so.
fn said(bytes: &[u8]) -> String {
    let len = bytes.len() as u64;
    let malformed = Header::json_len(bytes, len)
        .and_then(|json_len| Header::parse(&bytes[8..8 + json_len as usize], len))
        .expect_err("it is refused");
    refusal(bytes, len, malformed).reason
}

fn tar(magic: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 1024];
    header[..7].copy_from_slice(b"a.bin\0\0");
    header[100..107].copy_from_slice(b"0000644");
    header[257..257 + magic.len()].copy_from_slice(magic);
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[test]
fn a_file_is_named_by_its_first_bytes() {
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 548105171\n";
    let cases: [(&[u8], &str); 42] = [
        (lfs, "file is a git-lfs pointer, not the file itself: run `git lfs pull`"),
        (b"/annex/objects/SHA256E-s1--aa.bin\n", "git-annex"),
        (b"outs:\n- md5: a304afb96060aad90176268345e10355\n", "dvc pull"),
        (b"\n <!DOCTYPE html>\n<html><body>Sign in", "is an HTML page"),
        (b"<html>\r\n<head><title>404 Not Found</title>", "is an HTML page"),
        (b"<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code>", "an error, AccessDenied"),
        (b"<?xml version=\"1.0\"?>\n<configuration/>", "is an XML document"),
        (
            b"{\"metadata\": {\"total_size\": 5},\n \"weight_map\": {\"a\": \"b\"}}",
            "weight_map names",
        ),
        (b"\xef\xbb\xbf{\"weight_map\": {}}", "weight_map names"),
        (b"{\"error\": \"Invalid username or password.\"}", "a server says of an error"),
        (b"{\"architectures\": [\"GPT2LMHeadModel\"]}", "configuration of a model"),
        (b"[1, 2, 3, 4, 5]", "is JSON text"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03abc", "compressed with gzip"),
        (b"\x28\xb5\x2f\xfd\x04\0\x01abcde", "compressed with zstd"),
        (b"\xfd7zXZ\0\0\x04\xe6\xd6", "compressed with xz"),
        (b"BZh91AY&SY\0\0", "compressed with bzip2"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7\x01", "compressed with lz4"),
        (b"7z\xbc\xaf\x27\x1c\0\x04\0\0", "is a 7z archive"),
        (b"\x78\x9c\x4b\x4c\x4a\x06\0\x02\x4d\x01", "compressed with zlib"),
        (b"GGUF\x03\0\0\0\x23\x01\0\0\0\0\0\0", "is a GGUF file"),
        (b"tjgg\x03\0\0\0\0\x7d\0\0", "old GGML file"),
        (b"\x89HDF\r\n\x1a\n\0\0\0\0", "is an HDF5 file"),
        (b"\x93NUMPY\x01\0v\0{'descr': '<f4'", "is an array of numpy"),
        (b"\x80\x04\x95\x0f\0\0\0\0\0\0\0}\x94\x8c\x01a", "is a plain pickle"),
        (b"\x80\x02}q\0X\x01\0\0\0aq\x01", "is a plain pickle"),
        (b"(dp0\nS'a'\np1\nI1\ns.", "is a plain pickle"),
        (b"ccollections\nOrderedDict\np0\n", "is a plain pickle"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.9", "a model of ONNX"),
        (b"\x81\xa6params\x82\xa5dense\x82", "looks like MessagePack"),
        (b"Byte3ncryptM0del{\"mode\": \"CTR\"}", "use_cipher is not implemented yet"),
        (b"PAR1\x15\x04\x15\x10\x15\x14", "is a Parquet file"),
        (b"%PDF-1.7\n%\xe2\xe3", "is a PDF document"),
        (b"\x89PNG\r\n\x1a\n\0\0", "is a PNG image"),
        (b"#!/bin/sh\nexit 1\n", "is a script"),
        (b"\xff\xfe{\0\"\0a\0\"\0", "is text in UTF-16"),
        (b"Entry not found", "is text, which begins \"Entry not found\""),
        (b"a\x1b[31m\nsecond line", "is text, which begins \"a\\u{1b}[31m\""),
        (b"{% extends 'base' %} and so on", "is text, which begins"),
        (b"L\xf6schen und R\xfcckg\xe4ngig und anderes\n", "is text, which begins"),
        (b"\0\x05\x16\x07\0\x02\0\0Mac OS X", "AppleDouble"),
        (b"\x12\x01\0\0\0\0\0\0\0\0\0\0", "is a file of MXNet"),
        (&[0; 100], "has nothing but zeros in its first 100 bytes"),
    ];
    for (bytes, words) in cases {
        let said = said(bytes);
        assert!(said.contains(words), "{said}");
        assert!(said.starts_with("file "), "{said}");
    }
    for magic in [&b"ustar\x0000"[..], b"ustar  ", b""] {
        assert!(said(&tar(magic)).contains("is a tar archive"), "{magic:?}");
    }
}

#[test]
fn what_is_too_short_says_so_first() {
    let empty = "file of 0 bytes is too short for a header: it is empty";
    assert!(said(b"").starts_with(empty));
    assert_eq!(said(b"{}"), "file of 2 bytes is too short for a header: it is JSON text");
    assert_eq!(said(b"short"), "file of 5 bytes is too short for a header");
    assert_eq!(said(&[0; 5]), "file of 5 bytes is too short for a header");
}

#[test]
fn a_text_is_one_to_its_last_character() {
    let mut bytes = "löschen und ä".repeat(9).into_bytes();
    bytes.pop();
    assert!(said(&bytes).contains("is text"));
    bytes.extend([0xff; 9]);
    assert!(said(&bytes).contains("is text"), "in another encoding, here and there");
    bytes.extend([0xff; 90]);
    assert!(!said(&bytes).contains("is text"));
    assert!(!said(b"some words and\0zeros").contains("is text"));
    let endless = "x".repeat(1 << 16);
    assert!(said(endless.as_bytes()).len() < 200);
}

#[test]
fn an_archive_is_named_by_its_entries() {
    let told = |names: &[&str]| identify_zip(names).unwrap_or("nothing").to_owned();
    assert!(told(&["a.npy", "b/c.npy"]).contains("numpy.load"));
    assert!(told(&["config.json", "model.weights.h5", "metadata.json"]).contains("Keras"));
    assert!(told(&["model/.data/version", "model/x.py"]).contains("PackageImporter"));
    assert!(told(&["model.safetensors", "README.md"]).contains("unpack it first"));
    assert_eq!(told(&[]), "it is empty");
    assert_eq!(told(&["notes.txt"]), "nothing");
}

proptest! {
    /// Whatever follows a header's length and first brace is a fault of the header.
    #[test]
    fn a_header_of_safetensors_is_never_something_else(
        length in 0u32..100_000_000,
        blanks in 0usize..4,
        rest in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        let mut bytes = u64::from(length).to_le_bytes().to_vec();
        bytes.extend(vec![b' '; blanks]);
        bytes.push(b'{');
        bytes.extend(rest);
        let fault = Malformed::new("the fault");
        prop_assert_eq!(refusal(&bytes, bytes.len() as u64, fault.clone()), fault);
    }

    /// No bytes make it panic, and what is said stays short.
    #[test]
    fn any_bytes_may_be_looked_at(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let said = identify(&bytes, bytes.len() as u64).unwrap_or_default();
        prop_assert!(said.len() < 1000);
        prop_assert!(!said.contains('\n'));
    }
}
