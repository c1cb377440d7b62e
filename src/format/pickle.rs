//! Reads a pickle as data. Nothing is imported, nothing is called.
//!
//! A pickle is a program for a stack machine. This machine knows the instructions that build plain
//! values, and where the program would import a name or call one it only writes down that it
//! would: a [`Value::Global`], a [`Value::Call`]. What such a call means, and whether it is
//! allowed, [`super::pytorch`] decides by name. Source: CPython's `pickletools`, protocols 2 to 5.
//!
//! Values live in one arena and refer to one another by index, so a value that the program uses
//! twice is one value, a list may hold itself, and no depth of nesting needs depth of stack.

use super::Malformed;
use std::collections::HashMap;

/// Which value of the arena.
pub type Id = usize;

/// What a pickle builds.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer over 64 bits, as two's complement bytes, least significant first.
    BigInt(Vec<u8>),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    ByteArray(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Set(Vec<Id>),
    FrozenSet(Vec<Id>),
    /// An imported name.
    Global(Box<(String, String)>),
    /// What would be the result of calling `callable`.
    Call(Box<Call>),
    /// What the writer left to the reader: a storage.
    Persistent(Id),
}

/// A call that was not made, and what the program did to its result.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Call {
    pub callable: Id,
    pub args: Id,
    /// Whether the program makes an instance without calling its constructor.
    pub new: bool,
    pub items: Vec<(Id, Id)>,
    pub appended: Vec<Id>,
    pub state: Option<Id>,
}

/// A pickle that was read.
#[derive(Debug)]
pub struct Pickle {
    pub values: Vec<Value>,
    pub root: Id,
    /// Bytes up to and with its last instruction.
    pub len: usize,
}

/// Values one pickle may build: a dozen for each of over half a million tensors. A byte of pickle
/// can make a value of tens of bytes, so the length of the pickle alone is no bound on memory;
/// with this one, what a pickle can make of itself is about 400 MB.
const MAX_VALUES: usize = 8 << 20;

/// Bytes of the largest integer; nothing in a checkpoint counts further.
const MAX_INT: usize = 1024;

/// Reads the pickle at the start of `bytes`.
///
/// # Errors
/// A program that is cut short, that takes from an empty stack, that uses an instruction no
/// checkpoint needs, or that builds too much.
pub fn read(bytes: &[u8]) -> Result<Pickle, Malformed> {
    let mut machine = Machine::new(bytes);
    loop {
        let at = machine.at;
        let step = machine.step().map_err(|reason| {
            Malformed::new(format!("pickle is not valid at its byte {at}: {reason}"))
        })?;
        if let Some(root) = step {
            return Ok(Pickle { values: machine.values, root, len: machine.at });
        }
    }
}

type Step<T> = Result<T, String>;

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack where the program set a mark.
    marks: Vec<usize>,
    /// What is remembered under 0, 1, 2, …, as every writer counts, and under other numbers.
    memo: Vec<Id>,
    sparse: HashMap<u64, Id>,
    /// Bytes of names that may still be copied: one string can be imported over and over.
    names_left: usize,
}

/// Bytes of the longest name that may be imported: torch, if it is asked, takes quadratic time.
const MAX_NAME: usize = 512;

/// The values that every arena begins with, so that a byte that pushes one costs no value.
const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const EMPTY_TUPLE: Id = 3;

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let values =
            vec![Value::None, Value::Bool(false), Value::Bool(true), Value::Tuple(Vec::new())];
        Self {
            bytes,
            at: 0,
            values,
            stack: vec![],
            marks: vec![],
            memo: vec![],
            sparse: HashMap::new(),
            names_left: (1 << 20) + 4 * bytes.len(),
        }
    }

    /// Does one instruction; returns the result if it was the last.
    fn step(&mut self) -> Step<Option<Id>> {
        let instruction = self.u8()?;
        match instruction {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.u8()?),    // PROTO
            0x95 => drop(self.take(8)?), // FRAME
            b'(' => self.mark()?,
            b'0' => self.discard()?,
            b'1' => drop(self.pop_mark()?),
            b'2' => self.push_id(self.top()?)?,
            b'h' | b'j' | b'q' | b'r' | 0x94 => self.remember(instruction)?,
            b'c' | 0x93 => self.global(instruction)?,
            b'R' | 0x81 => self.call(instruction == 0x81)?,
            b'b' => self.build()?,
            b'Q' => {
                let id = self.pop()?;
                self.push(Value::Persistent(id))?;
            }
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(instruction)?,
            b']' | b'l' | b')' | b't' | 0x85..=0x87 | b'}' | b'd' | 0x8f | 0x91 => {
                self.container(instruction)?;
            }
            _ => self.scalar(instruction)?,
        }
        Ok(None)
    }

    fn scalar(&mut self, instruction: u8) -> Step<()> {
        let value = match instruction {
            b'N' => return self.push_id(NONE),
            0x88 => return self.push_id(TRUE),
            0x89 => return self.push_id(FALSE),
            b'J' => Value::Int(i32::from_le_bytes(self.array()?).into()),
            b'K' => Value::Int(self.u8()?.into()),
            b'M' => Value::Int(u16::from_le_bytes(self.array()?).into()),
            0x8a => {
                let len = self.u8()?.into();
                integer(self.take(len)?)?
            }
            0x8b => {
                let len = u32::from_le_bytes(self.array()?) as usize;
                integer(self.take(len)?)?
            }
            b'G' => Value::Float(f64::from_be_bytes(self.array()?)),
            b'X' | 0x8c | 0x8d | b'T' | b'U' => Value::Str(self.text(instruction)?),
            b'B' | b'C' | 0x8e => Value::Bytes(self.counted(instruction)?.to_vec()),
            0x96 => Value::ByteArray(self.counted(instruction)?.to_vec()),
            other => {
                return Err(format!("instruction 0x{other:02x} is none that a checkpoint needs"))
            }
        };
        self.push(value)
    }

    fn text(&mut self, instruction: u8) -> Step<String> {
        let bytes = self.counted(instruction)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".to_owned())
    }

    /// Bytes that follow their count, whose width the instruction says.
    fn counted(&mut self, instruction: u8) -> Step<&'a [u8]> {
        let len = match instruction {
            0x8c | b'U' | b'C' => self.u8()?.into(),
            0x8d | 0x8e | 0x96 => u64::from_le_bytes(self.array()?),
            _ => u32::from_le_bytes(self.array()?).into(),
        };
        self.take(usize::try_from(len).map_err(|_| "a length overflows".to_owned())?)
    }

    fn container(&mut self, instruction: u8) -> Step<()> {
        let value = match instruction {
            b')' => return self.push_id(EMPTY_TUPLE),
            b']' => Value::List(vec![]),
            b'}' => Value::Dict(vec![]),
            0x8f => Value::Set(vec![]),
            b'l' => Value::List(self.pop_mark()?),
            b't' => Value::Tuple(self.pop_mark()?),
            0x91 => Value::FrozenSet(self.pop_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_mark()?)?),
            _ => {
                let len = usize::from(instruction - 0x84);
                let mut items = (0..len).map(|_| self.pop()).collect::<Step<Vec<_>>>()?;
                items.reverse();
                Value::Tuple(items)
            }
        };
        self.push(value)
    }

    /// Puts into a container, or into what a call would have returned.
    fn fill(&mut self, instruction: u8) -> Step<()> {
        let items = match instruction {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let top = self.top()?;
        match (instruction, &mut self.values[top]) {
            (b'a' | b'e', Value::List(list)) => list.extend(items),
            (b'a' | b'e', Value::Call(call)) => call.appended.extend(items),
            (b's' | b'u', Value::Dict(dict)) => dict.extend(pairs(&items)?),
            (b's' | b'u', Value::Call(call)) => call.items.extend(pairs(&items)?),
            (0x90, Value::Set(set)) => set.extend(items),
            _ => return Err("items are put into what holds none of their kind".to_owned()),
        }
        Ok(())
    }

    fn global(&mut self, instruction: u8) -> Step<()> {
        let (module, name) = if instruction == b'c' {
            (self.line()?, self.line()?)
        } else {
            let name = self.pop()?;
            let module = self.pop()?;
            match (&self.values[module], &self.values[name]) {
                (Value::Str(module), Value::Str(name)) => {
                    self.names_left = charged(self.names_left, module.len() + name.len())?;
                    (module.clone(), name.clone())
                }
                _ => return Err("an imported name is not a string".to_owned()),
            }
        };
        charged(self.names_left, module.len() + name.len())?;
        self.push(Value::Global(Box::new((module, name))))
    }

    fn call(&mut self, new: bool) -> Step<()> {
        let args = self.pop()?;
        let callable = self.pop()?;
        if !matches!(self.values[args], Value::Tuple(_)) {
            return Err("the arguments of a call are not a tuple".to_owned());
        }
        self.push(Value::Call(Box::new(Call { callable, args, new, ..Call::default() })))
    }

    fn build(&mut self) -> Step<()> {
        let state = self.pop()?;
        let top = self.top()?;
        match &mut self.values[top] {
            Value::Call(call) if call.state.is_none() => call.state = Some(state),
            _ => return Err("a state is given to what has none".to_owned()),
        }
        Ok(())
    }

    fn remember(&mut self, instruction: u8) -> Step<()> {
        let key = match instruction {
            b'h' | b'q' => self.u8()?.into(),
            0x94 => (self.memo.len() + self.sparse.len()) as u64,
            _ => u32::from_le_bytes(self.array()?).into(),
        };
        if matches!(instruction, b'h' | b'j') {
            let dense = self.memo.get(key as usize);
            let id = dense.or_else(|| self.sparse.get(&key)).copied();
            return self.push_id(id.ok_or_else(|| format!("nothing is remembered as {key}"))?);
        }
        let top = self.top()?;
        let next = self.memo.len();
        match self.memo.get_mut(key as usize) {
            Some(remembered) => *remembered = top,
            None if key == next as u64 => {
                self.sparse.remove(&key);
                self.memo.push(top);
            }
            None => drop(self.sparse.insert(key, top)),
        }
        if self.memo.len() + self.sparse.len() > MAX_VALUES {
            return Err(format!("it remembers over {MAX_VALUES} values"));
        }
        Ok(())
    }

    fn push(&mut self, value: Value) -> Step<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("it builds over {MAX_VALUES} values"));
        }
        self.values.push(value);
        self.push_id(self.values.len() - 1)
    }

    fn push_id(&mut self, id: Id) -> Step<()> {
        if self.stack.len() >= MAX_VALUES {
            return Err(format!("it stacks over {MAX_VALUES} values"));
        }
        self.stack.push(id);
        Ok(())
    }

    fn mark(&mut self) -> Step<()> {
        if self.marks.len() >= MAX_VALUES {
            return Err(format!("it sets over {MAX_VALUES} marks"));
        }
        self.marks.push(self.stack.len());
        Ok(())
    }

    /// The height below which the stack belongs to what stands before the last mark.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Step<Id> {
        let above = self.stack.get(self.floor()..).and_then(<[Id]>::last);
        above.copied().ok_or_else(|| "the stack is empty".to_owned())
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| "no mark is set".to_owned())?;
        Ok(self.stack.split_off(mark))
    }

    /// Discards a value, or a mark that has nothing above it.
    fn discard(&mut self) -> Step<()> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn take(&mut self, len: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(len);
        let bytes = end.and_then(|end| self.bytes.get(self.at..end));
        let bytes = bytes.ok_or_else(|| "it is cut short".to_owned())?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| "it is cut short".to_owned())
    }

    fn u8(&mut self) -> Step<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let len = rest.iter().position(|&byte| byte == b'\n');
        let line = self.take(len.ok_or_else(|| "it is cut short".to_owned())?)?;
        self.at += 1;
        String::from_utf8(line.to_vec()).map_err(|_| "a name is not UTF-8".to_owned())
    }
}

/// What is left of a budget for names once one of `len` bytes is taken from it.
fn charged(left: usize, len: usize) -> Step<usize> {
    if len > MAX_NAME {
        return Err(format!("this pickle uses a name of {len} bytes"));
    }
    left.checked_sub(len).ok_or_else(|| "it imports too many names".to_owned())
}

fn pairs(items: &[Id]) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return Err("a key has no value".to_owned());
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

/// A signed integer of any width.
fn integer(bytes: &[u8]) -> Step<Value> {
    if bytes.len() > MAX_INT {
        return Err(format!("an integer has {} bytes", bytes.len()));
    }
    if bytes.len() > 8 {
        return Ok(Value::BigInt(bytes.to_vec()));
    }
    let negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let mut wide = [if negative { 0xff } else { 0 }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Ok(Value::Int(i64::from_le_bytes(wide)))
}

#[cfg(test)]
#[path = "pickle_tests.rs"]
mod tests;
