//! What a pickle builds, in little memory.
//!
//! A pickle of a list of a hundred million numbers is an ordinary file, so a value that is a number
//! or a string takes no memory beside the pickle: a [`Ref`] to it is the place of its instruction.
//! Only containers and calls have a [`Slot`], and what they hold lies in one pool of references:
//!
//! ```text
//! tuple, frozenset     | count | item ... |
//! list, dict, set      | last chunk | next | count | item ... |    | next | count | item ... |
//! call                 | callable | arguments | new | state | items | appended |
//! ```

use std::borrow::Cow;

/// The longest pickle, in bytes: a reference has 31 bits for a place in it.
pub const MAX_PICKLE: u64 = (1 << 31) - 1;

/// Tells a slot from a place in the pickle.
const SLOT: u32 = 1 << 31;

/// A value: a slot, or the place of the instruction that pushes a number or a string. Two that are
/// equal are one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ref(pub(super) u32);

/// No value, and no state of a call.
pub(super) const NOTHING: Ref = Ref(u32::MAX);

/// The empty tuple, which every pickle has as its first slot.
pub(super) const EMPTY_TUPLE: Ref = Ref(SLOT);

impl Ref {
    pub(super) fn slot(index: usize) -> Self {
        Self(SLOT | index as u32)
    }

    pub(super) fn at(offset: usize) -> Self {
        Self(offset as u32)
    }

    /// The slot that it is, if it is one.
    #[must_use]
    pub fn index(self) -> Option<usize> {
        (self.0 & SLOT != 0).then_some((self.0 & !SLOT) as usize)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    List,
    Tuple,
    Dict,
    Set,
    FrozenSet,
    Global,
    Call,
    Persistent,
}

/// A container, an imported name or a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// Where the pool has what it holds; a name's number; the id of what is persistent.
    pub at: u32,
    pub kind: Kind,
    /// Whether the program used it more than once.
    pub shared: bool,
}

/// What a reference refers to.
#[derive(Debug, Clone)]
pub enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer over 64 bits, as two's complement bytes, least significant first.
    BigInt(&'a [u8]),
    Float(f64),
    /// UTF-8 that may hold surrogates, as Python writes them.
    Str(&'a [u8]),
    Bytes(&'a [u8]),
    ByteArray(&'a [u8]),
    List(Items<'a>),
    Tuple(&'a [Ref]),
    /// Keys and values in turn.
    Dict(Items<'a>),
    Set(Items<'a>),
    FrozenSet(&'a [Ref]),
    /// An imported name: module and name.
    Global(&'a str, &'a str),
    /// What would be the result of a call.
    Call(Call<'a>),
    /// What the writer left to the reader: a storage.
    Persistent(Ref),
}

/// A call that was not made, and what the program did to its result.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    pub callable: Ref,
    pub args: Ref,
    /// Whether the program makes an instance without calling its constructor.
    pub new: bool,
    pub state: Option<Ref>,
    /// Keys and values in turn.
    pub items: Items<'a>,
    pub appended: Items<'a>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    pub(super) bytes: Vec<u8>,
    pub(super) slots: Vec<Slot>,
    pub(super) pool: Vec<Ref>,
    /// Imported names, `module\nname`, each once.
    pub(super) globals: Vec<(String, String)>,
    /// The places of numbers and strings that the program used more than once, in order.
    pub(super) shared: Vec<u32>,
    pub root: Ref,
}

impl Pickle {
    /// How many containers, names and calls there are.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// The bytes of the pickle.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// References that its containers hold, and some more.
    #[must_use]
    pub fn pool_len(&self) -> usize {
        self.pool.len()
    }

    /// Every imported name.
    pub fn globals(&self) -> impl Iterator<Item = (&str, &str)> {
        self.globals.iter().map(|(module, name)| (module.as_str(), name.as_str()))
    }

    /// Every id of what the writer left to the reader, with the slot that uses it.
    pub fn persistent_ids(&self) -> impl Iterator<Item = Ref> + '_ {
        let ids = self.slots.iter().filter(|slot| slot.kind == Kind::Persistent);
        ids.map(|slot| Ref(slot.at))
    }

    /// Whether the program used a value more than once.
    #[must_use]
    pub fn is_shared(&self, value: Ref) -> bool {
        match value.index() {
            Some(index) => self.slots[index].shared,
            None => self.shared.binary_search(&value.0).is_ok(),
        }
    }

    #[must_use]
    pub fn value(&self, value: Ref) -> Value<'_> {
        let Some(index) = value.index() else { return self.scalar(value.0 as usize).0 };
        let Slot { at, kind, .. } = self.slots[index];
        match kind {
            Kind::List => Value::List(self.items(at)),
            Kind::Dict => Value::Dict(self.items(at)),
            Kind::Set => Value::Set(self.items(at)),
            Kind::Tuple => Value::Tuple(self.counted(at)),
            Kind::FrozenSet => Value::FrozenSet(self.counted(at)),
            Kind::Persistent => Value::Persistent(Ref(at)),
            Kind::Global => {
                let (module, name) = &self.globals[at as usize];
                Value::Global(module, name)
            }
            Kind::Call => {
                let at = at as usize;
                let [callable, args, new, state, items, appended] = self.pool[at..at + 6] else {
                    unreachable!("a call has six references")
                };
                Value::Call(Call {
                    callable,
                    args,
                    new: new.0 != 0,
                    state: (state != NOTHING).then_some(state),
                    items: self.items(items.0),
                    appended: self.items(appended.0),
                })
            }
        }
    }

    /// The arguments of a call and its state, as one value each or none.
    pub(super) fn arguments_and_state(&self, call: Ref) -> (&[Ref], &[Ref]) {
        let at = call.index().map_or(0, |index| self.slots[index].at as usize);
        let has_state = self.pool[at + 3] != NOTHING;
        (&self.pool[at + 1..at + 2], &self.pool[at + 3..at + 3 + usize::from(has_state)])
    }

    /// A string without its surrogates, if it is one.
    #[must_use]
    pub fn text(&self, value: Ref) -> Option<Cow<'_, str>> {
        match (value.index(), self.value(value)) {
            (None, Value::Str(bytes)) => Some(String::from_utf8_lossy(bytes)),
            _ => None,
        }
    }

    /// A number or string, and the bytes of the instruction that pushes it.
    pub(super) fn scalar(&self, at: usize) -> (Value<'_>, &[u8]) {
        let rest = &self.bytes[at + 1..];
        let (value, len) = match self.bytes[at] {
            b'N' => (Value::None, 0),
            0x88 => (Value::Bool(true), 0),
            0x89 => (Value::Bool(false), 0),
            b'J' => (Value::Int(i32::from_le_bytes(first(rest)).into()), 4),
            b'K' => (Value::Int(rest[0].into()), 1),
            b'M' => (Value::Int(u16::from_le_bytes(first(rest)).into()), 2),
            b'G' => (Value::Float(f64::from_be_bytes(first(rest))), 8),
            instruction => {
                let width = width(instruction);
                let mut count = [0; 8];
                count[..width].copy_from_slice(&rest[..width]);
                let end = width + u64::from_le_bytes(count) as usize;
                let bytes = &rest[width..end];
                let value = match instruction {
                    0x8a | 0x8b => integer(bytes),
                    b'X' | 0x8c | 0x8d | b'T' | b'U' => Value::Str(bytes),
                    0x96 => Value::ByteArray(bytes),
                    _ => Value::Bytes(bytes),
                };
                (value, end)
            }
        };
        (value, &self.bytes[at..=at + len])
    }

    fn counted(&self, at: u32) -> &[Ref] {
        Items::counted(&self.pool, at).rest
    }

    fn items(&self, at: u32) -> Items<'_> {
        Items::chained(&self.pool, at)
    }
}

/// Bytes of the count that follows an instruction.
pub(super) fn width(instruction: u8) -> usize {
    match instruction {
        0x8a | 0x8c | b'U' | b'C' => 1,
        0x8d | 0x8e | 0x96 => 8,
        _ => 4,
    }
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut found = [0; N];
    found.copy_from_slice(&bytes[..N]);
    found
}

/// A signed integer of any width.
fn integer(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::BigInt(bytes);
    }
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

/// What a container holds, in order.
#[derive(Debug, Clone)]
pub struct Items<'a> {
    pool: &'a [Ref],
    rest: &'a [Ref],
    /// Where the next chunk is; 0 where there is none.
    next: u32,
}

impl<'a> Items<'a> {
    /// Those of a tuple.
    pub(super) fn counted(pool: &'a [Ref], at: u32) -> Self {
        let at = at as usize;
        Self { pool, rest: &pool[at + 1..=at + pool[at].0 as usize], next: 0 }
    }

    /// These and no others.
    pub(super) fn plain(rest: &'a [Ref]) -> Self {
        Self { pool: &[], rest, next: 0 }
    }

    /// Those of a list.
    pub(super) fn chained(pool: &'a [Ref], at: u32) -> Self {
        Self { pool, rest: &[], next: if at == 0 { 0 } else { at + 1 } }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.next == 0
    }
}

impl Iterator for Items<'_> {
    type Item = Ref;

    #[inline]
    fn next(&mut self) -> Option<Ref> {
        while self.rest.is_empty() {
            let at = self.next as usize;
            if at == 0 {
                return None;
            }
            let [next, count] = self.pool[at..at + 2] else { return None };
            self.next = next.0;
            self.rest = &self.pool[at + 2..at + 2 + count.0 as usize];
        }
        let (&item, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(item)
    }
}
