//! The old format: five pickles one after the other, then the bytes of the storages.

use super::{Archive, Places};
use crate::format::{
    one,
    pickle::{self, Machined, Unread},
    pytorch::Storage,
    rebuild, shown,
    steps::Steps,
    value::{Pickle, Value, MAX_PICKLE},
    zip::Found,
    Malformed, Read, Refusal, Unreadable,
};
use std::{collections::HashMap, ops::Range};

/// How much of a file of the old format is read at first; its pickles end where they end.
const FIRST_READ: u64 = 1 << 20;

/// The number that opens a file of the old format, as a pickle of any protocol has it.
const LEGACY_MAGIC: &[u8] = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19";

/// The version of the protocol that every file of the old format has.
const LEGACY_VERSION: i64 = 1001;

/// Bytes within which it stands: behind the protocol, and a frame from protocol 4 on.
pub(super) const LEGACY_PREFIX: u64 = 32;

pub(super) fn is_legacy(prefix: &[u8]) -> bool {
    match prefix {
        [0x80, 2 | 3, rest @ ..] | [0x80, 4 | 5, 0x95, _, _, _, _, _, _, _, _, rest @ ..] => {
            rest.starts_with(LEGACY_MAGIC)
        }
        _ => false,
    }
}

impl Archive {
    pub(super) fn read_legacy<E>(
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
