//! Reads a pickle as data. Nothing is imported, nothing is called.
//!
//! A pickle is a program for a stack machine. This machine knows the instructions that build plain
//! values, and where the program would import a name or call one it only writes down that it
//! would. What such a call means, and whether it is allowed, [`super::pytorch`] decides by name.
//! Source: CPython's `pickletools`, protocols 2 to 5.
//!
//! A value that the program uses twice is one value, a list may hold itself, and no depth of nesting
//! needs depth of stack. Time and memory are a small multiple of the pickle's length: an instruction
//! makes at most one value, and what is copied is counted ([`super::value`] tells how values lie).

use super::{
    steps::{Steps, Stop},
    value::{width, Items, Kind, Pickle, Ref, Slot, EMPTY_TUPLE, MAX_PICKLE, NOTHING},
    Malformed, Refusal,
};
use std::collections::{HashMap, HashSet};

/// Bytes of the largest integer; nothing in a checkpoint counts further.
const MAX_INT: usize = 1024;

/// Bytes of the longest name that may be imported: torch, if it is asked, takes quadratic time.
const MAX_NAME: usize = 512;

/// What even the smallest pickle may copy: items of a call's argument, and bytes of names.
const FREE_COPIES: usize = 1 << 20;

/// Why a pickle was not read.
#[derive(Debug)]
pub enum Unread {
    /// More bytes are needed.
    Cut(Malformed),
    Malformed(Malformed),
    Stopped,
}

impl From<Unread> for Refusal {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Cut(malformed) | Unread::Malformed(malformed) => Self::Malformed(malformed),
            Unread::Stopped => Self::Stopped,
        }
    }
}

/// Reads the pickle at the start of `bytes`; returns it and its length.
///
/// # Errors
/// A program that is cut short, that takes from an empty stack, that uses an instruction no
/// checkpoint needs, or that copies too much.
pub fn read(bytes: &[u8], steps: &Steps<'_>) -> Result<(Machined, usize), Unread> {
    if bytes.len() as u64 > MAX_PICKLE {
        let reason = format!("pickle of {} bytes is over {MAX_PICKLE}", bytes.len());
        return Err(Unread::Malformed(Malformed::new(reason)));
    }
    let mut machine = Machine::new(bytes);
    loop {
        let at = machine.at;
        let done = steps.take(1).map_err(Fault::from).and_then(|()| machine.step(steps));
        let said = |reason: &str| {
            Malformed::new(format!("pickle is not valid at its byte {at}: {reason}"))
        };
        match done {
            Ok(None) => {}
            Ok(Some(root)) => {
                let len = machine.at;
                return Ok((machine.finish(root), len));
            }
            Err(Fault::Cut) => return Err(Unread::Cut(said("it is cut short"))),
            Err(Fault::Reason(reason)) => return Err(Unread::Malformed(said(&reason))),
            Err(Fault::Stopped) => return Err(Unread::Stopped),
        }
    }
}

/// What a pickle built, without its bytes.
#[derive(Debug)]
pub struct Machined {
    slots: Vec<Slot>,
    pool: Vec<Ref>,
    globals: Vec<(String, String)>,
    shared: Vec<u32>,
    root: Ref,
}

impl Machined {
    /// Joins it with the bytes that it was read from.
    #[must_use]
    pub fn of(self, bytes: Vec<u8>) -> Pickle {
        let Self { slots, pool, globals, shared, root } = self;
        Pickle { bytes, slots, pool, globals, shared, root }
    }
}

#[derive(Debug)]
enum Fault {
    Cut,
    Reason(String),
    Stopped,
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        Self::Reason(reason)
    }
}

impl From<&str> for Fault {
    fn from(reason: &str) -> Self {
        Self::Reason(reason.to_owned())
    }
}

impl From<Stop> for Fault {
    fn from(_: Stop) -> Self {
        Self::Stopped
    }
}

type Step<T> = Result<T, Fault>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    slots: Vec<Slot>,
    pool: Vec<Ref>,
    globals: Vec<(String, String)>,
    /// The number of each imported name, as `module\nname`.
    numbers: HashMap<Vec<u8>, u32>,
    shared: HashSet<u32>,
    stack: Vec<Ref>,
    /// Heights of the stack where the program set a mark.
    marks: Vec<u32>,
    /// What is remembered under 0, 1, 2, …, as every writer counts, and under other numbers.
    memo: Vec<Ref>,
    sparse: HashMap<u32, Ref>,
    /// Items and bytes that may still be copied: one list, or one string, can be used over and over.
    copies_left: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            at: 0,
            slots: vec![Slot { at: 0, kind: Kind::Tuple, shared: false }],
            // The count of the empty tuple; and no container's items lie at 0.
            pool: vec![Ref(0)],
            globals: vec![],
            numbers: HashMap::new(),
            shared: HashSet::new(),
            stack: vec![],
            marks: vec![],
            memo: vec![],
            sparse: HashMap::new(),
            copies_left: FREE_COPIES + 4 * bytes.len(),
        }
    }

    fn finish(self, root: Ref) -> Machined {
        let Self { slots, pool, globals, shared, .. } = self;
        let mut shared: Vec<u32> = shared.into_iter().collect();
        shared.sort_unstable();
        Machined { slots, pool, globals, shared, root }
    }

    /// Does one instruction; returns the result if it was the last.
    fn step(&mut self, steps: &Steps<'_>) -> Step<Option<Ref>> {
        let instruction = self.u8()?;
        match instruction {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.u8()?),    // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len() as u32),
            b'0' => self.discard()?,
            b'1' => {
                let mark = self.pop_mark()?;
                self.stack.truncate(mark);
            }
            b'2' => {
                let top = self.top()?;
                self.share(top);
                self.stack.push(top);
            }
            b'h' | b'j' | b'q' | b'r' | 0x94 => self.remember(instruction)?,
            b'c' | 0x93 => self.global(instruction)?,
            b'R' | 0x81 => self.call(instruction == 0x81, steps)?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push_slot(Kind::Persistent, id.0);
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(instruction, steps)?,
            b']' | b'l' | b')' | b't' | 0x85..=0x87 | b'}' | b'd' | 0x8f | 0x91 => {
                self.container(instruction, steps)?;
            }
            _ => self.scalar(instruction, steps)?,
        }
        Ok(None)
    }

    /// A number or a string, which stays where it is.
    fn scalar(&mut self, instruction: u8, steps: &Steps<'_>) -> Step<()> {
        let at = self.at - 1;
        match instruction {
            b'N' | 0x88 | 0x89 => {}
            b'K' => drop(self.take(1)?),
            b'M' => drop(self.take(2)?),
            b'J' => drop(self.take(4)?),
            b'G' => drop(self.take(8)?),
            0x8a | 0x8b => {
                let bytes = self.counted(instruction)?;
                if bytes.len() > MAX_INT {
                    return Err(format!("an integer has {} bytes", bytes.len()).into());
                }
            }
            b'X' | 0x8c | 0x8d | b'T' | b'U' => {
                let bytes = self.counted(instruction)?;
                steps.take(bytes.len() >> 4)?;
                if !is_text(bytes) {
                    return Err("a string is not UTF-8".into());
                }
            }
            b'B' | b'C' | 0x8e | 0x96 => drop(self.counted(instruction)?),
            other => {
                let reason = format!("instruction 0x{other:02x} is none that a checkpoint needs");
                return Err(reason.into());
            }
        }
        self.stack.push(Ref::at(at));
        Ok(())
    }

    /// Bytes that follow their count, whose width the instruction says.
    fn counted(&mut self, instruction: u8) -> Step<&'a [u8]> {
        let (bytes, end) = counted(self.bytes, self.at, instruction).ok_or(Fault::Cut)?;
        self.at = end;
        Ok(bytes)
    }

    fn container(&mut self, instruction: u8, steps: &Steps<'_>) -> Step<()> {
        let kind = match instruction {
            b')' => {
                self.stack.push(EMPTY_TUPLE);
                return Ok(());
            }
            b']' | b'l' => Kind::List,
            b'}' | b'd' => Kind::Dict,
            0x8f => Kind::Set,
            0x91 => Kind::FrozenSet,
            _ => Kind::Tuple,
        };
        let from = match instruction {
            b']' | b'}' | 0x8f => self.stack.len(),
            0x85..=0x87 => self.below(usize::from(instruction - 0x84))?,
            _ => self.pop_mark()?,
        };
        steps.take(self.stack.len() - from)?;
        let at = match kind {
            Kind::Tuple | Kind::FrozenSet => self.put_counted(from)?,
            _ => {
                if kind == Kind::Dict {
                    self.check_pairs(from)?;
                }
                self.extend(0, from)?
            }
        };
        self.stack.truncate(from);
        self.push_slot(kind, at);
        Ok(())
    }

    /// Puts into a container, or into what a call would have returned.
    fn fill(&mut self, instruction: u8, steps: &Steps<'_>) -> Step<()> {
        let from = match instruction {
            b'a' => self.below(1)?,
            b's' => self.below(2)?,
            _ => self.pop_mark()?,
        };
        steps.take(self.stack.len() - from)?;
        let floor = self.floor();
        let target = self.stack.get(floor..from).and_then(<[Ref]>::last).copied();
        let target = target.ok_or("the stack is empty")?;
        let no_container = || Fault::from("items are put into what holds none of their kind");
        let index = target.index().ok_or_else(no_container)?;
        if matches!(instruction, b's' | b'u') {
            self.check_pairs(from)?;
        }
        let Slot { at, kind, .. } = self.slots[index];
        match (instruction, kind) {
            (b'a' | b'e', Kind::List) | (b's' | b'u', Kind::Dict) | (0x90, Kind::Set) => {
                self.slots[index].at = self.extend(at, from)?;
            }
            (b'a' | b'e' | b's' | b'u', Kind::Call) => {
                let field = at as usize + if matches!(instruction, b'a' | b'e') { 5 } else { 4 };
                self.pool[field] = Ref(self.extend(self.pool[field].0, from)?);
            }
            _ => return Err(no_container()),
        }
        self.stack.truncate(from);
        Ok(())
    }

    fn check_pairs(&self, from: usize) -> Step<()> {
        if (self.stack.len() - from).is_multiple_of(2) {
            return Ok(());
        }
        Err("a key has no value".into())
    }

    /// Appends what stands on the stack from `from` on to the items at `at`; returns where they are.
    fn extend(&mut self, at: u32, from: usize) -> Step<u32> {
        let count = self.stack.len() - from;
        if count == 0 {
            return Ok(at);
        }
        let at = if at == 0 { self.end()? } else { at };
        if at as usize == self.pool.len() {
            self.pool.push(Ref(at + 1));
        } else {
            let last = self.pool[at as usize].0 as usize;
            let end = self.end()?;
            self.pool[last] = Ref(end);
            self.pool[at as usize] = Ref(end);
        }
        self.pool.extend([Ref(0), Ref(count as u32)]);
        self.pool.extend_from_slice(&self.stack[from..]);
        Ok(at)
    }

    fn put_counted(&mut self, from: usize) -> Step<u32> {
        let at = self.end()?;
        self.pool.push(Ref((self.stack.len() - from) as u32));
        self.pool.extend_from_slice(&self.stack[from..]);
        Ok(at)
    }

    fn end(&self) -> Step<u32> {
        u32::try_from(self.pool.len() + 1)
            .map(|end| end - 1)
            .map_err(|_| "it builds over 2^32 values".into())
    }

    fn global(&mut self, instruction: u8) -> Step<()> {
        let joined: Vec<u8> = if instruction == b'c' {
            let start = self.at;
            self.line()?;
            self.line()?;
            self.bytes[start..self.at - 1].to_vec()
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            let (module, name) = (self.string(module)?, self.string(name)?);
            self.charge(check_name(module.len() + name.len())?, "it imports too many names")?;
            [module, b"\n", name].concat()
        };
        let number = if let Some(&number) = self.numbers.get(&joined) {
            number
        } else {
            let text = str::from_utf8(&joined).map_err(|_| "a name is not UTF-8")?;
            let (module, name) = text.split_once('\n').unwrap_or_default();
            check_name(module.len() + name.len())?;
            self.globals.push((module.to_owned(), name.to_owned()));
            let number = self.globals.len() as u32 - 1;
            self.numbers.insert(joined, number);
            number
        };
        self.push_slot(Kind::Global, number);
        Ok(())
    }

    /// The bytes of a string that is the name of something.
    fn string(&self, value: Ref) -> Step<&'a [u8]> {
        let at = value.0 as usize;
        let instruction = if value.index().is_none() { self.bytes[at] } else { 0 };
        if !matches!(instruction, b'X' | 0x8c | 0x8d | b'T' | b'U') {
            return Err("an imported name is not a string".into());
        }
        let (bytes, _) = counted(self.bytes, at + 1, instruction).ok_or(Fault::Cut)?;
        Ok(bytes)
    }

    fn call(&mut self, new: bool, steps: &Steps<'_>) -> Step<()> {
        let args = self.pop()?;
        let callable = self.pop()?;
        let is_tuple = args.index().is_some_and(|index| self.slots[index].kind == Kind::Tuple);
        if !is_tuple {
            return Err("the arguments of a call are not a tuple".into());
        }
        if !new && self.collect(callable, args, steps)? {
            return Ok(());
        }
        self.push_call(callable, args, new, 0)
    }

    fn push_call(&mut self, callable: Ref, args: Ref, new: bool, items: u32) -> Step<()> {
        let at = self.end()?;
        let fields = [callable, args, Ref(new.into()), NOTHING, Ref(items), Ref(0)];
        self.pool.extend(fields);
        self.push_slot(Kind::Call, at);
        Ok(())
    }

    /// Makes a container of what a known class is called with: `set([1, 2])`, and the OrderedDict of
    /// pairs that Python 2 wrote. What the argument holds at this moment counts, so it is copied.
    fn collect(&mut self, callable: Ref, args: Ref, steps: &Steps<'_>) -> Step<bool> {
        let Some(Slot { at, kind: Kind::Global, .. }) = callable.index().map(|at| self.slots[at])
        else {
            return Ok(false);
        };
        let (module, name) = &self.globals[at as usize];
        let class = match (module.as_str(), name.as_str()) {
            ("builtins" | "__builtin__", "set") => Collected::Set,
            ("builtins" | "__builtin__", "frozenset") => Collected::FrozenSet,
            ("collections", "OrderedDict") => Collected::Pairs,
            ("collections", "Counter") => Collected::Counts,
            _ => return Ok(false),
        };
        let Some(argument) = self.only(args) else { return Ok(false) };
        let Some(items) = self.collected(argument, class)? else { return Ok(false) };
        steps.take(items.len())?;
        let from = self.stack.len();
        self.stack.extend(items);
        let at = match class {
            Collected::FrozenSet => self.put_counted(from)?,
            _ => self.extend(0, from)?,
        };
        self.stack.truncate(from);
        match class {
            Collected::FrozenSet => self.push_slot(Kind::FrozenSet, at),
            Collected::Set => self.push_slot(Kind::Set, at),
            _ => self.push_call(callable, EMPTY_TUPLE, false, at)?,
        }
        Ok(true)
    }

    /// The one thing that a tuple holds.
    fn only(&self, args: Ref) -> Option<Ref> {
        let mut held = self.held(args)?.0;
        held.next().filter(|_| held.next().is_none())
    }

    /// What a container of `class` takes from `argument`, if it takes that.
    fn collected(&mut self, argument: Ref, class: Collected) -> Step<Option<Vec<Ref>>> {
        let Some((items, kind)) = self.held(argument) else { return Ok(None) };
        let is_paired = match (class, kind) {
            (Collected::Set | Collected::FrozenSet, Kind::List | Kind::Tuple | Kind::Set)
            | (Collected::Pairs | Collected::Counts, Kind::Dict) => false,
            (Collected::Pairs, Kind::List | Kind::Tuple) => true,
            _ => return Ok(None),
        };
        let (mut collected, mut left) = (Vec::new(), self.copies_left);
        for item in items {
            left = left.checked_sub(1).ok_or("calls are given the same arguments too often")?;
            if !is_paired {
                collected.push(item);
                continue;
            }
            let Some((mut pair, Kind::List | Kind::Tuple)) = self.held(item) else {
                return Ok(None);
            };
            match (pair.next(), pair.next(), pair.next()) {
                (Some(key), Some(value), None) => collected.extend([key, value]),
                _ => return Ok(None),
            }
        }
        self.copies_left = left;
        Ok(Some(collected))
    }

    /// What a container holds at this moment.
    fn held(&self, value: Ref) -> Option<(Items<'_>, Kind)> {
        let Slot { at, kind, .. } = self.slots[value.index()?];
        match kind {
            Kind::Tuple | Kind::FrozenSet => Some((Items::counted(&self.pool, at), kind)),
            Kind::List | Kind::Dict | Kind::Set => Some((Items::chained(&self.pool, at), kind)),
            _ => None,
        }
    }

    fn charge(&mut self, copies: usize, reason: &str) -> Step<()> {
        self.copies_left = self.copies_left.checked_sub(copies).ok_or(reason)?;
        Ok(())
    }

    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let refused = || Fault::from("a state is given to what has none");
        let index = self.top()?.index().ok_or_else(refused)?;
        let Slot { at, kind, .. } = self.slots[index];
        let field = at as usize + 3;
        if kind != Kind::Call || self.pool[field] != NOTHING {
            return Err(refused());
        }
        self.pool[field] = state;
        Ok(())
    }

    fn remember(&mut self, instruction: u8) -> Step<()> {
        let key = match instruction {
            b'h' | b'q' => self.u8()?.into(),
            0x94 => (self.memo.len() + self.sparse.len()) as u32,
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(instruction, b'h' | b'j') {
            let dense = self.memo.get(key as usize);
            let found = dense.or_else(|| self.sparse.get(&key)).copied();
            let found = found.ok_or_else(|| format!("nothing is remembered as {key}"))?;
            self.share(found);
            self.stack.push(found);
            return Ok(());
        }
        let top = self.top()?;
        let next = self.memo.len();
        match self.memo.get_mut(key as usize) {
            Some(remembered) => *remembered = top,
            None if key as usize == next => {
                self.sparse.remove(&key);
                self.memo.push(top);
            }
            None => drop(self.sparse.insert(key, top)),
        }
        Ok(())
    }

    /// Takes down that a value is used once more.
    fn share(&mut self, value: Ref) {
        match value.index() {
            Some(index) => self.slots[index].shared = true,
            // What is as short as a reference to it need not be one object.
            None if matches!(self.bytes[value.0 as usize], b'N' | b'K' | 0x88 | 0x89) => {}
            None => drop(self.shared.insert(value.0)),
        }
    }

    fn push_slot(&mut self, kind: Kind, at: u32) {
        self.slots.push(Slot { at, kind, shared: false });
        self.stack.push(Ref::slot(self.slots.len() - 1));
    }

    /// The height below which the stack belongs to what stands before the last mark.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    fn top(&self) -> Step<Ref> {
        let above = self.stack.get(self.floor()..).and_then(<[Ref]>::last);
        above.copied().ok_or_else(|| "the stack is empty".into())
    }

    fn pop(&mut self) -> Step<Ref> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Where the last `count` values of the stack begin.
    fn below(&self, count: usize) -> Step<usize> {
        let from = self.stack.len().checked_sub(count).filter(|&from| from >= self.floor());
        from.ok_or_else(|| "the stack is empty".into())
    }

    /// Takes a mark away; returns where on the stack it was.
    fn pop_mark(&mut self) -> Step<usize> {
        Ok(self.marks.pop().ok_or("no mark is set")? as usize)
    }

    /// Discards a value, or a mark that has nothing above it.
    fn discard(&mut self) -> Step<()> {
        if self.marks.last().map(|&mark| mark as usize) == Some(self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.bytes.get(self.at..end)).ok_or(Fault::Cut)?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Fault::Cut)
    }

    fn u8(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn line(&mut self) -> Step<()> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n').ok_or(Fault::Cut)?;
        self.at += len + 1;
        Ok(())
    }
}

/// What a known class makes of its argument.
#[derive(Debug, Clone, Copy)]
enum Collected {
    Set,
    FrozenSet,
    /// An OrderedDict, of a dict or of pairs.
    Pairs,
    /// A Counter, of a dict.
    Counts,
}

/// The bytes behind their count, which stands at `at`, and where they end.
fn counted(bytes: &[u8], at: usize, instruction: u8) -> Option<(&[u8], usize)> {
    let width = width(instruction);
    let mut count = [0; 8];
    count[..width].copy_from_slice(bytes.get(at..at + width)?);
    let end = (at + width).checked_add(usize::try_from(u64::from_le_bytes(count)).ok()?)?;
    Some((bytes.get(at + width..end)?, end))
}

/// Refuses a name of too many bytes.
fn check_name(len: usize) -> Step<usize> {
    if len > MAX_NAME {
        return Err(format!("this pickle uses a name of {len} bytes").into());
    }
    Ok(len)
}

/// Whether bytes are UTF-8 that may hold single surrogates: Python writes and reads such.
fn is_text(mut bytes: &[u8]) -> bool {
    loop {
        let Err(error) = str::from_utf8(bytes) else { return true };
        match bytes.get(error.valid_up_to()..) {
            Some([0xed, 0xa0..=0xbf, 0x80..=0xbf, rest @ ..]) => bytes = rest,
            _ => return false,
        }
    }
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
