//! A PyTorch file: which container it is, and where its storages' bytes lie.
//!
//! Since torch 1.6 a checkpoint is a zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the
//! bytes of a storage, `NAME/byteorder` says `little` or `big`. A TorchScript archive is laid out
//! the same. Before that it was five pickles one after the other (a magic number, the version of
//! the protocol, facts of the writing machine (which do not matter), the checkpoint, the keys of its storages), then for
//! each key its count of elements and their bytes. Source: `torch/serialization.py` of torch 2.13.

use super::{
    one,
    pickle::{self, Pickle, Value},
    pytorch::{Checkpoint, Refusal, Storage},
    rebuild, shown,
    zip::{self, Entry},
    Malformed, Read, Unreadable,
};
use std::{collections::HashMap, ops::Range};

/// The longest pickle read, in bytes: it has to be in memory as a whole, and a million tensors
/// take less than 200 MB.
const MAX_PICKLE: u64 = 256 << 20;

/// The longest version or byte order, in bytes.
const MAX_WORD: u64 = 1 << 10;

/// How much of a file of the old format is read at first; its pickles end where they end.
const FIRST_READ: u64 = 1 << 20;

/// The number that opens a file of the old format, as a pickle of any protocol has it.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// Bytes within which it stands: behind the protocol, and a frame from protocol 4 on.
const LEGACY_PREFIX: u64 = 32;

/// The version of the protocol that every file of the old format has.
const LEGACY_VERSION: i64 = 1001;

/// The last version of the zip format that torch 2.13 reads (`caffe2/serialize/versions.h`).
const MAX_VERSION: u64 = 10;

/// A PyTorch file, understood.
#[derive(Debug)]
pub struct Archive {
    pub checkpoint: Checkpoint,
    /// Where each of the checkpoint's storages lies in the file.
    pub storages: Vec<Range<u64>>,
    /// Whether the bytes of an element stand in the order this machine does not use.
    pub swapped: bool,
}

/// Whether a file that begins with `prefix` is meant to be a PyTorch file.
///
/// A safetensors header may by chance have the length that spells a zip's magic, so a file whose
/// ninth byte opens a JSON object is none.
#[must_use]
pub fn is_pytorch(prefix: &[u8]) -> bool {
    let header = prefix.get(8..).unwrap_or_default();
    let first = header.iter().find(|byte| !byte.is_ascii_whitespace());
    first != Some(&b'{') && (zip::is_zip(prefix) || is_legacy(prefix))
}

/// Whether an archive says that it has a version of which torch 2.13 reads any: a number, from 1 to
/// 10, and perhaps a line's end.
fn is_known(version: &[u8]) -> bool {
    let number = str::from_utf8(version).ok().and_then(|text| text.trim().parse::<u64>().ok());
    number.is_some_and(|number| (1..=MAX_VERSION).contains(&number))
}

fn is_legacy(prefix: &[u8]) -> bool {
    match prefix {
        [0x80, 2 | 3, rest @ ..] | [0x80, 4 | 5, 0x95, _, _, _, _, _, _, _, _, rest @ ..] => {
            rest.starts_with(LEGACY_MAGIC)
        }
        _ => false,
    }
}

impl Archive {
    /// Reads a PyTorch file of `len` bytes, whose bytes `read` returns by ranges.
    ///
    /// # Errors
    /// A file that is not what its format says, or whose pickle imports an unknown name.
    pub fn read<E>(len: u64, read: &impl Read<E>) -> Result<Self, Unreadable<E>> {
        if is_legacy(&one(read, 0..len.min(LEGACY_PREFIX))?) {
            Self::read_legacy(len, read)
        } else {
            Self::read_zip(len, read)
        }
    }

    fn read_zip<E>(len: u64, read: &impl Read<E>) -> Result<Self, Unreadable<E>> {
        let mut entries: HashMap<String, Entry> = HashMap::new();
        let mut root = None;
        for entry in zip::entries(len, read)? {
            if let Some(directory) = entry.name.strip_suffix("/data.pkl") {
                if !directory.contains('/') {
                    let other = root.replace(directory.to_owned());
                    if let Some(other) = other.filter(|other| other != directory) {
                        let (one, two) = (shown(&other), shown(directory));
                        let reason = format!("zip archive holds two checkpoints, {one} and {two}");
                        return Err(Malformed::new(reason).into());
                    }
                }
            }
            if let Some(twin) = entries.insert(entry.name.clone(), entry) {
                let reason = format!("zip entry {} stands twice", shown(&twin.name));
                return Err(Malformed::new(reason).into());
            }
        }
        let root = root.ok_or_else(|| Malformed::new("zip archive is no checkpoint of PyTorch"))?;
        let [version, order, bytes] = whole(read, &entries, &root)?;
        let version = version.unwrap_or_default();
        if !is_known(&version) {
            let version = shown(&String::from_utf8_lossy(&version));
            return Err(
                Malformed::new(format!("version {version} of the format is unknown")).into()
            );
        }
        let swapped = match order.as_deref() {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(Malformed::new("byte order is neither little nor big").into()),
        };
        let pickle = pickle::read(&bytes.unwrap_or_default())?;
        let mut found = HashMap::new();
        for Storage { key, byte_len, .. } in rebuild::storages(&pickle)? {
            let entry = entries.get(&format!("{root}/data/{key}")).ok_or_else(|| {
                Malformed::new(format!("storage {} is not among the entries", shown(&key)))
            })?;
            let data = entry.stored()?;
            if data.end - data.start != byte_len {
                let (key, has) = (shown(&key), data.end - data.start);
                let reason = format!("storage {key} has {has} bytes, not {byte_len}");
                return Err(Malformed::new(reason).into());
            }
            found.insert(key, data);
        }
        for entry in entries.values().filter(|entry| entry.name.contains("/data/")) {
            entry.stored()?;
        }
        Ok(Self::of(&pickle, &found, swapped)?)
    }

    /// Gives a pickle its meaning, once all the storages it names are known to be there.
    fn of(
        pickle: &Pickle,
        found: &HashMap<String, Range<u64>>,
        swapped: bool,
    ) -> Result<Self, Refusal> {
        let checkpoint = Checkpoint::new(pickle)?;
        let missing =
            |key: &str| Malformed::new(format!("storage {} is not in the file", shown(key)));
        let storages = checkpoint
            .storages
            .iter()
            .map(|storage| found.get(&storage.key).cloned().ok_or_else(|| missing(&storage.key)))
            .collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, storages, swapped })
    }

    fn read_legacy<E>(len: u64, read: &impl Read<E>) -> Result<Self, Unreadable<E>> {
        let most = len.min(MAX_PICKLE);
        let mut ahead = FIRST_READ.min(most);
        let (pickles, end) = loop {
            let bytes = one(read, 0..ahead)?;
            match legacy_pickles(&bytes) {
                Ok(read) => break read,
                Err(refused) if ahead == most => return Err(refused.into()),
                // It may be that more of the file is needed.
                Err(_) => ahead = most.min(ahead * 4),
            }
        };
        let [magic, version, facts, checkpoint, keys] = &pickles;
        for pickle in [magic, version, facts, keys] {
            if let Err(Refusal::Unknown(name)) = rebuild::refuse_unknown_names(&pickle.values) {
                let reason = format!("{} stands where only numbers and names do", shown(&name));
                return Err(Malformed::new(reason).into());
            }
        }
        if version.values[version.root] != Value::Int(LEGACY_VERSION) {
            return Err(Malformed::new("version of the old format is unknown").into());
        }
        check_facts(facts)?;
        let described: HashMap<String, Storage> = rebuild::storages(checkpoint)?
            .into_iter()
            .map(|storage| (storage.key.clone(), storage))
            .collect();
        let mut found = HashMap::new();
        let (mut at, mut counts, mut counted) = (end, Vec::new(), Vec::new());
        for key in strings(keys)? {
            let Some(storage) = described.get(key) else {
                // Of an unknown class, perhaps: then that is what to say.
                Checkpoint::new(checkpoint)?;
                let reason = format!("storage {} is stored but never described", shown(key));
                return Err(Malformed::new(reason).into());
            };
            // Eight bytes of count stand before each storage.
            let start = at.checked_add(8);
            let stop = start.and_then(|start| start.checked_add(storage.byte_len));
            let (Some(start), Some(stop)) = (start, stop.filter(|&stop| stop <= len)) else {
                return Err(Malformed::new(format!("storage {} is cut short", shown(key))).into());
            };
            if found.insert(key.to_owned(), start..stop).is_some() {
                return Err(Malformed::new(format!("storage {} stands twice", shown(key))).into());
            }
            counts.push(at..start);
            counted.push(storage);
            at = stop;
        }
        let counts = read(&counts).map_err(Unreadable::Source)?;
        for (Storage { key, dtype, byte_len, .. }, count) in counted.into_iter().zip(counts) {
            let count = u64::from_le_bytes(count.try_into().unwrap_or_default());
            if count != byte_len / dtype.item_size() {
                let key = shown(key);
                let reason = format!("storage {key} is stored in another length than described");
                return Err(Malformed::new(reason).into());
            }
        }
        if let Some(key) = described.keys().find(|&key| !found.contains_key(key)) {
            let reason = format!("storage {} is described but not stored", shown(key));
            return Err(Malformed::new(reason).into());
        }
        Ok(Self::of(checkpoint, &found, false)?)
    }
}

/// Reads the entries that have to be in memory as wholes: version, byte order and pickle.
fn whole<E>(
    read: &impl Read<E>,
    entries: &HashMap<String, Entry>,
    root: &str,
) -> Result<[Option<Vec<u8>>; 3], Unreadable<E>> {
    let names = ["version", "byteorder", "data.pkl"];
    let places = names.map(|name| entries.get(&format!("{root}/{name}")));
    let mut ranges = Vec::new();
    for (entry, most) in places.into_iter().zip([MAX_WORD, MAX_WORD, MAX_PICKLE]) {
        let Some(entry) = entry else { continue };
        let range = entry.stored()?;
        let len = range.end - range.start;
        if len > most {
            let reason = format!("{} of {len} bytes is over {most}", shown(&entry.name));
            return Err(Malformed::new(reason).into());
        }
        ranges.push(range);
    }
    let mut bytes = read(&ranges).map_err(Unreadable::Source)?.into_iter();
    Ok(places.map(|place| place.and_then(|_| bytes.next())))
}

/// The five pickles that open a file of the old format, and the byte behind them.
fn legacy_pickles(bytes: &[u8]) -> Result<([Pickle; 5], u64), Malformed> {
    let mut at = 0;
    let mut next = || {
        let pickle = pickle::read(&bytes[at..])?;
        at += pickle.len;
        Ok::<_, Malformed>(pickle)
    };
    let pickles = [next()?, next()?, next()?, next()?, next()?];
    Ok((pickles, at as u64))
}

fn strings(list: &Pickle) -> Result<Vec<&str>, Malformed> {
    let wrong = || Malformed::new("the keys of the storages are no list of strings");
    let Value::List(items) = &list.values[list.root] else { return Err(wrong()) };
    let text = |&id: &usize| match &list.values[id] {
        Value::Str(text) => Ok(text.as_str()),
        _ => Err(wrong()),
    };
    items.iter().map(text).collect()
}

/// Whether the facts of the writing machine are some. They do not matter: whatever machine it
/// was, the old format has its storages in little-endian order.
fn check_facts(facts: &Pickle) -> Result<(), Malformed> {
    let told = match &facts.values[facts.root] {
        Value::Dict(items) => items.iter().any(|&(key, value)| {
            matches!(&facts.values[key], Value::Str(name) if name == "little_endian")
                && matches!(facts.values[value], Value::Bool(_))
        }),
        _ => false,
    };
    if told {
        return Ok(());
    }
    Err(Malformed::new("byte order of the writing machine is not told"))
}

impl<E> From<Refusal> for Unreadable<E> {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(malformed) => Self::Malformed(malformed),
            Refusal::Unknown(name) => Self::Unknown(name),
        }
    }
}
