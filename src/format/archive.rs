//! A PyTorch file: which container it is, and where its storages' bytes lie.
//!
//! Since torch 1.6 a checkpoint is a zip archive: `NAME/data.pkl` is the pickle, `NAME/data/KEY` the
//! bytes of a storage, `NAME/byteorder` says `little` or `big`. A TorchScript archive is laid out
//! the same. Before that it was five pickles one after the other (a magic number, the version of
//! the protocol, facts of the writing machine (which do not matter), the checkpoint, the keys of its storages), then for
//! each key its count of elements and their bytes. Source: `torch/serialization.py` of torch 2.13.

use super::{
    identify::identify_zip,
    inflate::Deflated,
    one,
    pickle::{self, Machined, Unread},
    pytorch::{Checkpoint, Storage},
    rebuild, shown,
    steps::Steps,
    value::{Pickle, Value, MAX_PICKLE},
    zip::{self, Entry, Found},
    Malformed, Read, Refusal, Unreadable,
};
use std::{collections::HashMap, ops::Range};

/// The longest deflated pickle read, in bytes: it has to be in memory as a whole, and a few deflated
/// bytes can grow a thousandfold.
const FREE_INFLATED: u64 = 64 << 20;
const INFLATED_A_BYTE: u64 = 64;

/// What is inflated is given offsets that begin at multiples of this.
const INFLATED_ALIGN: u64 = 64;

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

fn is_legacy(prefix: &[u8]) -> bool {
    match prefix {
        [0x80, 2 | 3, rest @ ..] | [0x80, 4 | 5, 0x95, _, _, _, _, _, _, _, _, rest @ ..] => {
            rest.starts_with(LEGACY_MAGIC)
        }
        _ => false,
    }
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
        let missing =
            |key: &str| Malformed::new(format!("storage {} is not in the file", shown(key)));
        let storages = checkpoint
            .storages
            .iter()
            .map(|storage| found.get(&storage.key).cloned().ok_or_else(|| missing(&storage.key)))
            .collect::<Result<_, _>>()?;
        Ok(Self { checkpoint, storages, deflated, swapped })
    }

    fn read_legacy<E>(
        len: u64,
        read: &impl Read<E>,
        skip_unknown: bool,
        steps: &Steps<'_>,
    ) -> Result<Self, Unreadable<E>> {
        let most = len.min(MAX_PICKLE);
        let mut ahead = FIRST_READ.min(most);
        let ([magic, version, facts, checkpoint, keys], end) = loop {
            let bytes = one(read, 0..ahead)?;
            match legacy_pickles(&bytes, steps) {
                Ok(read) => break read,
                Err(Unread::Cut(_)) if ahead < most => ahead = most.min(ahead * 4),
                Err(refused) => return Err(Refusal::from(refused).into()),
            }
        };
        for pickle in [&magic, &version, &facts, &keys] {
            if let Err(Refusal::Unknown(name)) = rebuild::refuse_unknown_names(pickle) {
                let reason = format!("{} stands where only numbers and names do", shown(&name));
                return Err(Malformed::new(reason).into());
            }
        }
        if !matches!(version.value(version.root), Value::Int(LEGACY_VERSION)) {
            return Err(Malformed::new("version of the old format is unknown").into());
        }
        check_facts(&facts)?;
        let stored = Stored { len, end, keys: &keys };
        let places = stored.find(&checkpoint, read, skip_unknown, steps)?;
        Ok(Self::of(checkpoint, places, false, skip_unknown, steps)?)
    }
}

/// The storages of a file of the old format: which, and where they begin.
struct Stored<'a> {
    len: u64,
    end: u64,
    keys: &'a Pickle,
}

impl Stored<'_> {
    fn find<E>(
        &self,
        checkpoint: &Pickle,
        read: &impl Read<E>,
        skip_unknown: bool,
        steps: &Steps<'_>,
    ) -> Result<Places, Unreadable<E>> {
        let mut described: HashMap<String, Storage> = HashMap::new();
        for storage in rebuild::storages(checkpoint, steps)? {
            described.entry(storage.key.clone()).or_insert(storage);
        }
        let mut places = Places::behind(self.len);
        let (mut at, mut counts, mut counted) = (self.end, Vec::new(), Vec::new());
        for key in strings(self.keys, steps)? {
            let key = key?;
            let Some(storage) = described.get(key) else {
                // Of an unknown class, perhaps: then that is what to say.
                rebuild::refuse_unknown_names(checkpoint)?;
                rebuild::check(checkpoint, skip_unknown, steps)?;
                let reason = format!("storage {} is stored but never described", shown(key));
                return Err(Malformed::new(reason).into());
            };
            // Eight bytes of count stand before each storage.
            let start = at.checked_add(8);
            let stop = start.and_then(|start| start.checked_add(storage.byte_len));
            let (Some(start), Some(stop)) = (start, stop.filter(|&stop| stop <= self.len)) else {
                return Err(Malformed::new(format!("storage {} is cut short", shown(key))).into());
            };
            if places.found.contains_key(key) {
                return Err(Malformed::new(format!("storage {} stands twice", shown(key))).into());
            }
            places.insert(key, Found::Stored(start..stop))?;
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
        if let Some(key) = described.keys().find(|&key| !places.found.contains_key(key)) {
            let reason = format!("storage {} is described but not stored", shown(key));
            return Err(Malformed::new(reason).into());
        }
        Ok(places)
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
    let places = names.map(|name| entries.get(&format!("{root}/{name}")));
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

/// The five pickles that open a file of the old format, and the byte behind them.
fn legacy_pickles(bytes: &[u8], steps: &Steps<'_>) -> Result<([Pickle; 5], u64), Unread> {
    let mut at = 0;
    let mut next = || {
        let (machined, len) = pickle::read(&bytes[at..], steps)?;
        let start = at;
        at += len;
        Ok::<(Machined, Range<usize>), Unread>((machined, start..at))
    };
    let machined = [next()?, next()?, next()?, next()?, next()?];
    Ok((machined.map(|(machined, range)| machined.of(bytes[range].to_vec())), at as u64))
}

/// The strings of a list.
fn strings<'a>(
    list: &'a Pickle,
    steps: &'a Steps<'_>,
) -> Result<impl Iterator<Item = Result<&'a str, Refusal>>, Malformed> {
    let wrong = || Malformed::new("the keys of the storages are no list of strings");
    let Value::List(items) = list.value(list.root) else { return Err(wrong()) };
    Ok(items.map(move |item| match list.value(item) {
        Value::Str(text) => {
            steps.take(1 + text.len())?;
            Ok(str::from_utf8(text).map_err(|_| wrong())?)
        }
        _ => Err(wrong().into()),
    }))
}

/// Whether the facts of the writing machine are some. They do not matter: whatever machine it
/// was, the old format has its storages in little-endian order.
fn check_facts(facts: &Pickle) -> Result<(), Malformed> {
    let told = match facts.value(facts.root) {
        Value::Dict(mut items) => loop {
            let (Some(key), Some(value)) = (items.next(), items.next()) else { break false };
            if matches!(facts.value(key), Value::Str(b"little_endian"))
                && matches!(facts.value(value), Value::Bool(_))
            {
                break true;
            }
        },
        _ => false,
    };
    if told {
        return Ok(());
    }
    Err(Malformed::new("byte order of the writing machine is not told"))
}
