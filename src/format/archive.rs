//! A PyTorch file: which container it is, and where its storages' bytes lie.
//!
//! Since torch 1.6 a checkpoint is a zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the
//! bytes of a storage, `NAME/byteorder` says `little` or `big`. A TorchScript archive is laid out
//! the same. Before that it was five pickles one after the other (a magic number, the version of
//! the protocol, facts of the writing machine, the checkpoint, the keys of its storages), then for
//! each key its count of elements and their bytes. Source: `torch/serialization.py` of torch 2.13.

use super::{
    pickle::{self, Pickle, Value},
    pytorch::{Checkpoint, Refusal, Storage},
    zip::{self, Entry},
    Malformed, Unreadable,
};
use std::{collections::HashMap, ops::Range};

/// The longest pickle read, in bytes: it has to be in memory as a whole, and a million tensors
/// take less than 200 MB.
const MAX_PICKLE: u64 = 256 << 20;

/// How much of a file of the old format is read at first; its pickles end where they end.
const FIRST_READ: u64 = 1 << 20;

/// What opens a file of the old format: protocol 2, and the magic number as a long.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

/// The version of the protocol that every file of the old format has.
const LEGACY_VERSION: i64 = 1001;

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
    first != Some(&b'{') && (zip::is_zip(prefix) || prefix.starts_with(LEGACY_MAGIC))
}

impl Archive {
    /// Reads a PyTorch file of `len` bytes, whose bytes `read` returns by range.
    ///
    /// # Errors
    /// A file that is not what its format says, or whose pickle imports an unknown name.
    pub fn read<E>(
        len: u64,
        read: impl Fn(Range<u64>) -> Result<Vec<u8>, E>,
    ) -> Result<Self, Unreadable<E>> {
        let magic = read(0..len.min(LEGACY_MAGIC.len() as u64)).map_err(Unreadable::Source)?;
        if magic == LEGACY_MAGIC {
            Self::read_legacy(len, read)
        } else {
            Self::read_zip(len, read)
        }
    }

    fn read_zip<E>(
        len: u64,
        read: impl Fn(Range<u64>) -> Result<Vec<u8>, E>,
    ) -> Result<Self, Unreadable<E>> {
        let mut entries: HashMap<String, Entry> = HashMap::new();
        let mut root = None;
        for entry in zip::entries(len, &read)? {
            if let Some(directory) = entry.name.strip_suffix("/data.pkl") {
                if !directory.contains('/') {
                    root = Some(directory.to_owned());
                }
            }
            if let Some(twin) = entries.insert(entry.name.clone(), entry) {
                let reason = format!("zip entry {:?} stands twice", twin.name);
                return Err(Malformed::new(reason).into());
            }
        }
        let root = root.ok_or_else(|| Malformed::new("zip archive is no checkpoint of PyTorch"))?;
        let whole = |name: &str| {
            let entry = entries.get(&format!("{root}/{name}"));
            entry.map(|entry| bounded(&read, entry)).transpose()
        };
        let swapped = match whole("byteorder")?.as_deref() {
            None | Some(b"little") => false,
            Some(b"big") => true,
            Some(_) => return Err(Malformed::new("byte order is neither little nor big").into()),
        };
        let bytes = whole("data.pkl")?.unwrap_or_default();
        let checkpoint = Checkpoint::new(&pickle::read(&bytes)?)?;
        let mut storages = Vec::with_capacity(checkpoint.storages.len());
        for storage in &checkpoint.storages {
            let key = &storage.key;
            let entry = entries.get(&format!("{root}/data/{key}")).ok_or_else(|| {
                Malformed::new(format!("storage {key:?} is not among the entries"))
            })?;
            let data = entry.stored()?;
            let (found, wanted) = (data.end - data.start, storage.byte_len);
            if found != wanted {
                let reason = format!("storage {key:?} has {found} bytes, not {wanted}");
                return Err(Malformed::new(reason).into());
            }
            storages.push(data);
        }
        Ok(Self { checkpoint, storages, swapped })
    }

    fn read_legacy<E>(
        len: u64,
        read: impl Fn(Range<u64>) -> Result<Vec<u8>, E>,
    ) -> Result<Self, Unreadable<E>> {
        let most = len.min(MAX_PICKLE);
        let mut ahead = FIRST_READ.min(most);
        let (pickles, end) = loop {
            let bytes = read(0..ahead).map_err(Unreadable::Source)?;
            match legacy_pickles(&bytes) {
                Ok(read) => break read,
                Err(refused) if ahead == most => return Err(refused.into()),
                // It may be that more of the file is needed.
                Err(_) => ahead = most.min(ahead * 4),
            }
        };
        let [_, version, facts, checkpoint, keys] = &pickles;
        if version.values[version.root] != Value::Int(LEGACY_VERSION) {
            return Err(Malformed::new("version of the old format is unknown").into());
        }
        let checkpoint = Checkpoint::new(checkpoint)?;
        let described: HashMap<&str, &Storage> =
            checkpoint.storages.iter().map(|storage| (storage.key.as_str(), storage)).collect();
        let mut found: HashMap<&str, Range<u64>> = HashMap::new();
        let mut at = end;
        for key in strings(keys)? {
            let Storage { dtype, byte_len, .. } = described.get(key).ok_or_else(|| {
                Malformed::new(format!("storage {key:?} is stored but never described"))
            })?;
            // Eight bytes of count stand before each storage.
            let start = at.checked_add(8);
            let stop = start.and_then(|start| start.checked_add(*byte_len));
            let (Some(start), Some(stop)) = (start, stop.filter(|&stop| stop <= len)) else {
                return Err(Malformed::new(format!("storage {key:?} is cut short")).into());
            };
            let count = read(at..start).map_err(Unreadable::Source)?;
            if u64::from_le_bytes(count.try_into().unwrap_or_default())
                != byte_len / dtype.item_size()
            {
                let reason = format!("storage {key:?} is stored in another length than described");
                return Err(Malformed::new(reason).into());
            }
            found.insert(key, start..stop);
            at = stop;
        }
        let storages = checkpoint.storages.iter().map(|storage| {
            found.get(storage.key.as_str()).cloned().ok_or_else(|| {
                Malformed::new(format!("storage {:?} is described but not stored", storage.key))
            })
        });
        let storages = storages.collect::<Result<_, Malformed>>()?;
        Ok(Self { checkpoint, storages, swapped: is_big_endian(facts)? })
    }
}

/// Reads an entry that has to be in memory as a whole.
fn bounded<E>(
    read: impl Fn(Range<u64>) -> Result<Vec<u8>, E>,
    entry: &Entry,
) -> Result<Vec<u8>, Unreadable<E>> {
    let range = entry.stored()?;
    let len = range.end - range.start;
    if len > MAX_PICKLE {
        return Err(Malformed::new(format!("pickle of {len} bytes is over {MAX_PICKLE}")).into());
    }
    read(range).map_err(Unreadable::Source)
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

/// What the old format says of the machine that wrote it.
fn is_big_endian(facts: &Pickle) -> Result<bool, Malformed> {
    let Value::Dict(items) = &facts.values[facts.root] else {
        return Err(Malformed::new("the facts of the writing machine are no dict"));
    };
    let order = items.iter().find_map(|&(key, value)| match &facts.values[key] {
        Value::Str(name) if name == "little_endian" => Some(&facts.values[value]),
        _ => None,
    });
    match order {
        Some(Value::Bool(little)) => Ok(!little),
        _ => Err(Malformed::new("byte order of the writing machine is not told")),
    }
}

impl<E> From<Refusal> for Unreadable<E> {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Malformed(malformed) => Self::Malformed(malformed),
            Refusal::Unknown(name) => Self::Unknown(name),
        }
    }
}
