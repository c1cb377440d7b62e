//! A PyTorch file: which container it is, and where its storages' bytes lie.
//!
//! Since torch 1.6 a checkpoint is a zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the
//! bytes of a storage, `NAME/byteorder` says `little` or `big`. A TorchScript archive is laid out
//! the same. Before that it was five pickles one after the other (a magic number, the version of
//! the protocol, facts of the writing machine (which do not matter), the checkpoint, the keys of its
//! storages), then for each key its count of elements and their bytes. Source:
//! `torch/serialization.py` of torch 2.13.

use super::{
    identify::identify_zip,
    inflate::Deflated,
    one, pickle,
    pytorch::{Checkpoint, Storage},
    rebuild, shown,
    steps::Steps,
    value::{Pickle, MAX_PICKLE},
    zip::{self, Entry, Found},
    Malformed, Read, Refusal, Unreadable,
};
use legacy::{is_legacy, LEGACY_PREFIX};
use std::{collections::HashMap, ops::Range};

mod legacy;

/// The longest deflated pickle read, in bytes: it has to be in memory as a whole, and a few deflated
/// bytes can grow a thousandfold.
const FREE_INFLATED: u64 = 64 << 20;
const INFLATED_A_BYTE: u64 = 64;

/// What is inflated is given offsets that begin at multiples of this.
const INFLATED_ALIGN: u64 = 64;

/// The longest version or byte order, in bytes.
const MAX_WORD: u64 = 1 << 10;

/// The last version of the zip format that torch 2.13 reads (`caffe2/serialize/versions.h`).
const MAX_VERSION: u64 = 10;

/// A PyTorch file, understood.
#[derive(Debug)]
pub struct Archive {
    pub checkpoint: Checkpoint,
    /// Where each of the checkpoint's storages lies in the file; those that are deflated have offsets
    /// behind its end.
    pub storages: Vec<Range<u64>>,
    /// The deflated ones, by their offsets.
    pub deflated: Vec<(u64, Deflated)>,
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

/// Where storages were found, by their keys, and those that are deflated.
#[derive(Default)]
struct Places {
    found: HashMap<String, Range<u64>>,
    deflated: Vec<(u64, Deflated)>,
    /// Where the next deflated storage is put.
    next: u64,
}

impl Places {
    fn behind(len: u64) -> Self {
        Self { next: len, ..Self::default() }
    }

    fn insert(&mut self, key: &str, found: Found) -> Result<(), Malformed> {
        let range = match found {
            Found::Stored(range) => range,
            Found::Deflated(deflated) => {
                let overflow = || Malformed::new("deflated storages have over 2^64 bytes");
                let start = self.next.checked_next_multiple_of(INFLATED_ALIGN);
                let start = start.ok_or_else(overflow)?;
                self.next = start.checked_add(deflated.len).ok_or_else(overflow)?;
                self.deflated.push((start, deflated));
                start..self.next
            }
        };
        self.found.insert(key.to_owned(), range);
        Ok(())
    }
}

impl Archive {
    /// Reads a PyTorch file of `len` bytes, whose bytes `read` returns by ranges. With `skip_unknown`
    /// what has an unknown name is left out.
    ///
    /// # Errors
    /// A file that is not what its format says, or whose pickle imports an unknown name.
    pub fn read<E>(
        len: u64,
        read: &impl Read<E>,
        skip_unknown: bool,
        steps: &Steps<'_>,
    ) -> Result<Self, Unreadable<E>> {
        if is_legacy(&one(read, 0..len.min(LEGACY_PREFIX))?) {
            Self::read_legacy(len, read, skip_unknown, steps)
        } else {
            Self::read_zip(len, read, skip_unknown, steps)
        }
    }

    fn read_zip<E>(
        len: u64,
        read: &impl Read<E>,
        skip_unknown: bool,
        steps: &Steps<'_>,
    ) -> Result<Self, Unreadable<E>> {
        let (root, entries) = checkpoint_of(zip::entries(len, read)?)?;
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
        let bytes = bytes.unwrap_or_default();
        let (machined, _) = pickle::read(&bytes, steps).map_err(Refusal::from)?;
        let pickle = machined.of(bytes);
        let mut places = Places::behind(len);
        for Storage { key, byte_len, .. } in rebuild::storages(&pickle, steps)? {
            if places.found.contains_key(&key) {
                continue;
            }
            let entry = entries.get(&format!("{root}/data/{key}")).ok_or_else(|| {
                Malformed::new(format!("storage {} is not among the entries", shown(&key)))
            })?;
            let found = entry.find()?;
            if found.byte_len() != byte_len {
                let (key, has) = (shown(&key), found.byte_len());
                let reason = format!("storage {key} has {has} bytes, not {byte_len}");
                return Err(Malformed::new(reason).into());
            }
            places.insert(&key, found)?;
        }
        for entry in entries.values().filter(|entry| entry.name.contains("/data/")) {
            entry.find()?;
        }
        Ok(Self::of(pickle, places, swapped, skip_unknown, steps)?)
    }

    /// Gives a pickle its meaning, once all the storages it names are known to be there.
    fn of(
        pickle: Pickle,
        places: Places,
        swapped: bool,
        skip_unknown: bool,
        steps: &Steps<'_>,
    ) -> Result<Self, Refusal> {
        let Places { found, deflated, .. } = places;
        let checkpoint = Checkpoint::new(pickle, skip_unknown, steps)?;
        let storages = checkpoint
            .storages
            .iter()
            .map(|storage| match found.get(&storage.key) {
                Some(bytes) if bytes.end - bytes.start == storage.byte_len => Ok(bytes.clone()),
                // What nothing reaches described it first, which an unknown name excuses.
                Some(_) => Err(("is described in two ways", storage)),
                None => Err(("is not in the file", storage)),
            })
            .collect::<Result<_, _>>()
            .map_err(|(reason, Storage { key, .. })| {
                Malformed::new(format!("storage {} {reason}", shown(key)))
            })?;
        Ok(Self { checkpoint, storages, deflated, swapped })
    }
}

/// The directory of the checkpoint in an archive, and the entries by name.
fn checkpoint_of(listed: Vec<Entry>) -> Result<(String, HashMap<String, Entry>), Malformed> {
    let mut entries: HashMap<String, Entry> = HashMap::with_capacity(listed.len());
    let mut root: Option<String> = None;
    for entry in listed {
        let directory = entry.name.strip_suffix("/data.pkl");
        if let Some(directory) = directory.filter(|directory| !directory.contains('/')) {
            let other = root.replace(directory.to_owned());
            if let Some(other) = other.filter(|other| other != directory) {
                let (one, two) = (shown(&other), shown(directory));
                let reason = format!("zip archive holds two checkpoints, {one} and {two}");
                return Err(Malformed::new(reason));
            }
        }
        if let Some(twin) = entries.insert(entry.name.clone(), entry) {
            let reason = format!("zip entry {} stands twice", shown(&twin.name));
            return Err(Malformed::new(reason));
        }
    }
    let root = root.ok_or_else(|| no_checkpoint(&entries))?;
    Ok((root, entries))
}

fn no_checkpoint(entries: &HashMap<String, Entry>) -> Malformed {
    let names: Vec<&str> = entries.keys().map(String::as_str).collect();
    let what = identify_zip(&names).map(|words| format!(": {words}")).unwrap_or_default();
    Malformed::new(format!("zip archive is no checkpoint of PyTorch{what}"))
}

/// Reads the entries that have to be in memory as wholes: version, byte order and pickle.
fn whole<E>(
    read: &impl Read<E>,
    entries: &HashMap<String, Entry>,
    root: &str,
) -> Result<[Option<Vec<u8>>; 3], Unreadable<E>> {
    let names = ["version", "byteorder", "data.pkl"];
    let mut places = names.map(|name| entries.get(&format!("{root}/{name}")));
    // Where packages have it, and where torch looks first.
    places[0] = entries.get(&format!("{root}/.data/version")).or(places[0]);
    let (mut ranges, mut found) = (Vec::new(), Vec::new());
    for (entry, most) in places.into_iter().zip([MAX_WORD, MAX_WORD, MAX_PICKLE]) {
        let Some(entry) = entry else { continue };
        let place = entry.find()?;
        let (range, most) = match &place {
            Found::Stored(range) => (range.clone(), most),
            Found::Deflated(Deflated { from, .. }) => {
                let grown = (from.end - from.start).saturating_mul(INFLATED_A_BYTE);
                (from.clone(), most.min(grown.saturating_add(FREE_INFLATED)))
            }
        };
        let len = place.byte_len().max(range.end - range.start);
        if len > most {
            let reason = format!("{} of {len} bytes is over {most}", shown(&entry.name));
            return Err(Malformed::new(reason).into());
        }
        ranges.push(range);
        found.push(place);
    }
    let mut bytes = Vec::with_capacity(found.len());
    for (raw, place) in read(&ranges).map_err(Unreadable::Source)?.into_iter().zip(found) {
        bytes.push(match place {
            Found::Stored(_) => raw,
            Found::Deflated(deflated) => inflated(&raw, &deflated)?,
        });
    }
    let mut bytes = bytes.into_iter();
    Ok(places.map(|place| place.and_then(|_| bytes.next())))
}

/// What deflated bytes grow to, which is not much.
fn inflated(raw: &[u8], deflated: &Deflated) -> Result<Vec<u8>, Malformed> {
    let mut bytes = vec![0; deflated.len as usize];
    let read = |target: &mut [u8], at: u64| {
        let start = (at - deflated.from.start) as usize;
        target.copy_from_slice(&raw[start..start + target.len()]);
        Ok::<_, Malformed>(())
    };
    match deflated.inflate(&mut bytes, read) {
        Ok(()) => Ok(bytes),
        Err(Unreadable::Malformed(malformed) | Unreadable::Source(malformed)) => Err(malformed),
        Err(_) => Err(Malformed::new("a deflated entry is not read")),
    }
}
