//! What a file is that is no checkpoint, told by its first bytes.
//!
//! Asked only of files that have been refused already, so that no checkpoint is ever mistaken for
//! something else. The answer completes a sentence that begins with the file's name, and says what
//! may be done about it.

use super::{cut, safetensors::LENGTH_BYTES, shown, Malformed};
use std::ops::Range;

/// Bytes that are skipped at the beginning of texts.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";

/// Text that a message quotes, in characters.
const MAX_QUOTED: usize = 60;

/// A file of which fewer bytes are text is not said to be one: many short binary files are.
const MIN_TEXT: usize = 9;

/// One letter of so many may be no UTF-8 in a text.
const FOREIGN: usize = 10;

/// How much of the beginning of a text is looked at for its kind, in bytes.
const SEARCHED: usize = 4 << 10;

/// What to say of a file of `len` bytes that begins with `prefix` and was refused as `malformed`.
///
/// One that has a header of safetensors is meant to be such a file, and its own fault is what to say.
#[must_use]
pub fn refusal(prefix: &[u8], len: u64, malformed: Malformed) -> Malformed {
    match identify(prefix, len).filter(|_| !has_header(prefix)) {
        Some(words) if len < LENGTH_BYTES => {
            Malformed::new(format!("{}: it {words}", malformed.reason))
        }
        Some(words) => Malformed::new(format!("file {words}")),
        None => malformed,
    }
}

/// Whether a file begins as safetensors files do: a length below 4 GiB, and JSON.
fn has_header(prefix: &[u8]) -> bool {
    let opens =
        prefix.get(8..).and_then(|json| json.iter().find(|byte| !byte.is_ascii_whitespace()));
    opens == Some(&b'{') && prefix[4..8] == [0; 4]
}

/// Says what a file of `len` bytes that begins with `prefix` is, where that can be told.
#[must_use]
pub fn identify(prefix: &[u8], len: u64) -> Option<String> {
    if len == 0 {
        return Some("is empty: what was to write or to download it did not".to_owned());
    }
    if prefix.len() > LENGTH_BYTES as usize && prefix.iter().all(|&byte| byte == 0) {
        let reason = "space was reserved for it, and what was to fill it did not finish";
        return Some(format!(
            "has nothing but zeros in its first {} bytes: {reason}",
            prefix.len()
        ));
    }
    pointer(prefix)
        .or_else(|| packed(prefix))
        .or_else(|| checkpoint(prefix))
        .or_else(|| other(prefix))
        .map(str::to_owned)
        .or_else(|| text(prefix))
}

/// Says what a zip archive is that is no checkpoint of PyTorch, by the names in it.
#[must_use]
pub fn identify_zip(names: &[&str]) -> Option<&'static str> {
    let has = |wanted: &str| names.contains(&wanted);
    let ends = |end: &str| names.iter().filter(|name| name.ends_with(end)).count();
    let is_checkpoint = |end: &&str| ends(end) > 0;
    if names.is_empty() {
        Some("it is empty")
    } else if ends(".npy") == names.len() {
        Some("it is one of numpy (.npz), whose arrays `numpy.load` reads")
    } else if has("model.weights.h5") || (has("config.json") && ends(".h5") > 0) {
        Some("it is a model of Keras, which `keras.saving.load_model` reads")
    } else if names.iter().any(|name| name.contains("/.data/") || name.starts_with(".data/")) {
        Some("it is one of torch.package, which `torch.package.PackageImporter` reads")
    } else if has("[Content_Types].xml") {
        Some("it is a document of an office program")
    } else if [".safetensors", ".pt", ".pth", ".bin", ".ckpt"].iter().any(is_checkpoint) {
        Some("it holds checkpoints as files: unpack it first")
    } else {
        None
    }
}

/// What stands in a repository where a large file is meant.
fn pointer(prefix: &[u8]) -> Option<&'static str> {
    let begins = |text: &str| prefix.starts_with(text.as_bytes());
    let lfs = ["https://git-lfs.github.com/", "http://git-media.io/", "https://hawser.github.com/"];
    if lfs.iter().any(|address| begins(&format!("version {address}"))) {
        return Some("is a git-lfs pointer, not the file itself: run `git lfs pull`");
    }
    if begins("/annex/objects/") {
        return Some("is a git-annex pointer, not the file itself: run `git annex get`");
    }
    if begins("# xet version ") {
        return Some("is a git-xet pointer, not the file itself: run `git xet checkout`");
    }
    if begins("outs:\n- md5:") || begins("md5: ") {
        return Some("is a DVC pointer, not the file itself: run `dvc pull`");
    }
    None
}

/// Containers that have to be unpacked.
fn packed(prefix: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 14] = [
        (
            b"\x1f\x8b",
            "is compressed with gzip: unpack it first (`gunzip`, or `tar -x` for a .tar.gz)",
        ),
        (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first (`unzstd`)"),
        (b"\xfd7zXZ\0", "is compressed with xz: unpack it first (`unxz`)"),
        (b"BZh", "is compressed with bzip2: unpack it first (`bunzip2`)"),
        (b"\x04\x22\x4d\x18", "is compressed with lz4: unpack it first (`unlz4`)"),
        (b"LZIP", "is compressed with lzip: unpack it first (`lzip -d`)"),
        (b"\x1f\x9d", "is compressed with compress: unpack it first (`uncompress`)"),
        (b"\xff\x06\0\0sNaPpY", "is compressed with snappy: unpack it first"),
        (b"7z\xbc\xaf\x27\x1c", "is a 7z archive: unpack it first (`7z x`)"),
        (b"Rar!\x1a\x07", "is a rar archive: unpack it first"),
        (b"PK\x05\x06", "is an empty zip archive"),
        (
            b"PK\x07\x08",
            "is a part of a zip archive that was split: join the parts and unpack them",
        ),
        (b"!<arch>\n", "is an ar archive"),
        (b"Salted__", "is encrypted by openssl: decrypt it first"),
    ];
    let found = KINDS.iter().find(|(magic, _)| prefix.starts_with(magic));
    if let Some((_, words)) = found {
        return Some(words);
    }
    if is_tar(prefix) {
        return Some("is a tar archive: unpack it first (`tar -x`)");
    }
    // Two bytes: how, and how well, with a sum that 31 divides.
    match prefix {
        [0x78, level, ..] if (0x7800 + u16::from(*level)).is_multiple_of(31) => {
            Some("is compressed with zlib (as joblib does it): unpack it first")
        }
        _ => None,
    }
}

/// By its own word since POSIX, and by the sum of its first header before.
fn is_tar(prefix: &[u8]) -> bool {
    const SUM: Range<usize> = 148..156;
    let Some(header) = prefix.get(..512) else { return false };
    if header[257..].starts_with(b"ustar") {
        return true;
    }
    let digits = header[SUM].iter().copied().skip_while(|&byte| byte == b' ');
    let said = digits
        .take_while(|byte| (b'0'..=b'7').contains(byte))
        .fold(None, |sum, digit| Some(sum.unwrap_or(0) * 8 + u32::from(digit - b'0')));
    let counted =
        |(at, &byte): (usize, &u8)| u32::from(if SUM.contains(&at) { b' ' } else { byte });
    said == Some(header.iter().enumerate().map(counted).sum())
}

/// Checkpoints and tensors of other libraries.
fn checkpoint(prefix: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 18] = [
        (
            b"Byte3ncryptM0del",
            "is encrypted, and use_cipher is not implemented yet: decrypt it first",
        ),
        (b"GGUF", "is a GGUF file, which llama.cpp reads"),
        (b"lmgg", LLAMA),
        (b"fmgg", LLAMA),
        (b"tjgg", LLAMA),
        (b"algg", LLAMA),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file (such as Keras writes), which h5py reads"),
        (b"\x93NUMPY", "is an array of numpy (.npy), which `numpy.load` reads"),
        (b"PAR1", "is a Parquet file, a table and no checkpoint"),
        (b"ARROW1", "is an Arrow file, a table and no checkpoint"),
        (b"FEA1", "is a Feather file, a table and no checkpoint"),
        (b"Obj\x01", "is an Avro file, records and no checkpoint"),
        (b"ORC", "is an ORC file, a table and no checkpoint"),
        (b"CDF\x01", "is a NetCDF file"),
        (b"SQLite format 3\0", "is a database of SQLite"),
        (b"ptrt", "is an engine of TensorRT"),
        (b"\x12\x01\0\0\0\0\0\0", "is a file of MXNet, which `mxnet.nd.load` reads"),
        (b"MATLAB ", "is a file of MATLAB, which `scipy.io.loadmat` reads"),
    ];
    let found = KINDS.iter().find(|(magic, _)| prefix.starts_with(magic));
    if let Some((_, words)) = found {
        return Some(words);
    }
    match prefix {
        [0x80, 2..=5, ..] => Some(PICKLE),
        _ if is_text_pickle(prefix) => Some(PICKLE),
        [_, _, _, _, b'T', b'F', b'L', b'3', ..] => Some("is a model of TensorFlow Lite"),
        // A map whose first key is a short string.
        [0x81..=0x8f, length @ 0xa1..=0xbf, rest @ ..]
        | [0xde, _, _, length @ 0xa1..=0xbf, rest @ ..] => {
            let key = rest.get(..usize::from(length - 0xa0))?;
            key.iter().all(u8::is_ascii_graphic).then_some(
                "looks like MessagePack (as flax writes it), which `flax.serialization` reads",
            )
        }
        // Version of the format, then the name of what wrote it.
        [0x08, 1..=32, 0x12, length, rest @ ..] if *length < 0x80 => {
            let producer = rest.get(..usize::from(*length))?;
            let is_name = producer.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ');
            is_name.then_some("looks like a model of ONNX, which onnx reads")
        }
        _ => None,
    }
}

const LLAMA: &str = "is an old GGML file, which old versions of llama.cpp read";

const PICKLE: &str =
    "is a plain pickle, which `torch.save` did not write: where you trust it, unpickle it \
    and save its tensors with save_file";

/// A pickle of protocol 0 begins with an empty container and its number, or with a name to import, in
/// two lines.
fn is_text_pickle(prefix: &[u8]) -> bool {
    let mut lines = prefix.split(|&byte| byte == b'\n');
    let (Some(first), Some(second)) = (lines.next(), lines.next()) else { return false };
    let is_name = |name: &[u8]| {
        let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.');
        !name.is_empty() && name.iter().all(is_part)
    };
    match first {
        [b'(', b'd' | b'l' | b't', b'p', number @ ..] => {
            !number.is_empty() && number.iter().all(u8::is_ascii_digit)
        }
        [b'c', module @ ..] => {
            let known = [&b"copy_reg"[..], b"numpy", b"collections", b"__builtin__", b"torch"];
            known.iter().any(|known| module.starts_with(known))
                && is_name(module)
                && is_name(second)
        }
        _ => false,
    }
}

/// Files of other sorts that end up where a checkpoint is meant.
fn other(prefix: &[u8]) -> Option<&'static str> {
    const KINDS: [(&[u8], &str); 16] = [
        (b"\0\x05\x16\x07", "is what macOS keeps beside a file (AppleDouble), not the file itself"),
        (b"L\0\0\0\x01\x14\x02\0", "is a shortcut of Windows, not the file itself"),
        (b"!<symlink>", "is a symbolic link of Cygwin, not the file itself"),
        (b"%PDF-", "is a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "is a PNG image"),
        (b"\xff\xd8\xff", "is a JPEG image"),
        (b"GIF8", "is a GIF image"),
        (b"RIFF", "is a RIFF file (an image, a sound or a film)"),
        (b"\x7fELF", "is a program or a library (ELF)"),
        (b"MZ", "is a program of Windows"),
        (b"\xcf\xfa\xed\xfe", "is a program of macOS"),
        (b"#!", "is a script"),
        (b"\xff\xfe", "is text in UTF-16"),
        (b"\xfe\xff", "is text in UTF-16"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is a document of an old office program"),
        (b"\0asm", "is a WebAssembly module"),
    ];
    KINDS.iter().find(|(magic, _)| prefix.starts_with(magic)).map(|(_, words)| *words)
}

/// What a text is, and how it begins.
fn text(prefix: &[u8]) -> Option<String> {
    let bytes = prefix.strip_prefix(UTF8_MARK).unwrap_or(prefix);
    let head = String::from_utf8_lossy(&bytes[..bytes.len().min(SEARCHED)]);
    let head = head.trim_start();
    // Not all texts are UTF-8, but most of what they have is.
    let foreign = head.chars().filter(|&letter| letter == char::REPLACEMENT_CHARACTER).count();
    if head.is_empty()
        || foreign > 1 + head.len() / FOREIGN
        || bytes.iter().any(|&byte| is_no_text(byte))
    {
        return None;
    }
    let lower = head.to_ascii_lowercase();
    let begins = |words: &[&str]| words.iter().any(|word| lower.starts_with(word));
    if begins(&["<!doctype html", "<html", "<head", "<body", "<script", "<title", "<center"])
        || (begins(&["<!--", "<?xml"]) && lower.contains("<html"))
    {
        let why = "perhaps what a server says of an error or asks for a login";
        return Some(format!("is an HTML page, {why}: download the file again"));
    }
    if begins(&["<?xml", "<error", "<listbucketresult"]) {
        return Some(code(head).map_or_else(
            || "is an XML document".to_owned(),
            |code| format!("is what a store says of an error, {code}: download the file again"),
        ));
    }
    if let Some(words) = json(head, bytes) {
        return Some(words.to_owned());
    }
    let line = head.lines().next().unwrap_or_default().trim_end();
    let words = || format!("is text, which begins {}", shown(&cut(line, MAX_QUOTED)));
    (prefix.len() >= MIN_TEXT).then(words)
}

/// Control characters that texts do not have; some color what they say.
fn is_no_text(byte: u8) -> bool {
    byte.is_ascii_control() && !byte.is_ascii_whitespace() && !matches!(byte, 0x08 | 0x0b | 0x1b)
}

/// What a text is that begins with `head`, if it is JSON.
fn json(head: &str, bytes: &[u8]) -> Option<&'static str> {
    if !head.starts_with(['{', '[']) {
        return None;
    }
    // What else braces and brackets begin goes on with words.
    let next = head[1..].trim_start().chars().next();
    let opens = |next: char| matches!(next, '"' | '{' | '[' | '}' | ']' | '-' | '0'..='9');
    if !next.is_none_or(opens) {
        return None;
    }
    let has = |word: &str| bytes.windows(word.len()).any(|part| part == word.as_bytes());
    Some(if has("\"weight_map\"") {
        "is the index of a checkpoint in several files: load those that its weight_map names"
    } else if has("\"error\"") || has("\"message\"") {
        "is JSON, perhaps what a server says of an error: download the file again"
    } else if has("\"model_type\"") || has("\"architectures\"") {
        "is the configuration of a model (JSON), not its weights"
    } else {
        "is JSON text"
    })
}

/// What stands between `<Code>` and its end, if it is a word.
fn code(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    let is_word = !code.is_empty() && code.len() <= 64;
    (is_word && code.bytes().all(|byte| byte.is_ascii_alphanumeric())).then_some(code)
}

#[cfg(test)]
#[path = "identify_tests.rs"]
mod tests;
