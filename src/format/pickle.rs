//! Reads a pickle as data. Nothing is imported, nothing is called.
//!
//! A pickle is a program for a stack machine. This machine knows the instructions that build plain
//! values, and where the program would import a name or call one it only writes down that it
//! would. What such a call means, and whether it is allowed, [`super::rebuild`] decides by name.
//! Source: CPython's `pickletools`, protocols 2 to 5.
//!
//! A value that the program uses twice is one value, a list may hold itself, and no depth of nesting
//! needs depth of stack. Time and memory are a small multiple of the pickle's length: an instruction
//! makes at most one value, and what is copied is counted ([`super::value`] tells how values lie).

use super::{
    steps::{Steps, Stop},
    value::{width, Kind, Pickle, Ref, Slot, MAX_PICKLE},
    Malformed, Refusal,
};
use std::collections::{HashMap, HashSet};

mod calls;
mod containers;
mod stack;

/// Bytes of the largest integer; nothing in a checkpoint counts further.
const MAX_INT: usize = 1024;

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
            0x92 => self.new_with_names()?,
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

    fn charge(&mut self, copies: usize, reason: &str) -> Step<()> {
        self.copies_left = self.copies_left.checked_sub(copies).ok_or(reason)?;
        Ok(())
    }

    fn push_slot(&mut self, kind: Kind, at: u32) {
        self.slots.push(Slot { at, kind, shared: false });
        self.stack.push(Ref::slot(self.slots.len() - 1));
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

/// The bytes behind their count, which stands at `at`, and where they end.
fn counted(bytes: &[u8], at: usize, instruction: u8) -> Option<(&[u8], usize)> {
    let width = width(instruction);
    let mut count = [0; 8];
    count[..width].copy_from_slice(bytes.get(at..at + width)?);
    let end = (at + width).checked_add(usize::try_from(u64::from_le_bytes(count)).ok()?)?;
    Some((bytes.get(at + width..end)?, end))
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
