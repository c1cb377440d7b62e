//! The instructions that make containers and put items into them.

use super::{Fault, Machine, Step};
use crate::format::{
    steps::Steps,
    value::{Items, Kind, Ref, Slot, EMPTY_TUPLE},
};

impl Machine<'_> {
    pub(super) fn container(&mut self, instruction: u8, steps: &Steps<'_>) -> Step<()> {
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
    pub(super) fn fill(&mut self, instruction: u8, steps: &Steps<'_>) -> Step<()> {
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
    pub(super) fn extend(&mut self, at: u32, from: usize) -> Step<u32> {
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

    pub(super) fn put_counted(&mut self, from: usize) -> Step<u32> {
        let at = self.end()?;
        self.pool.push(Ref((self.stack.len() - from) as u32));
        self.pool.extend_from_slice(&self.stack[from..]);
        Ok(at)
    }

    pub(super) fn end(&self) -> Step<u32> {
        u32::try_from(self.pool.len() + 1)
            .map(|end| end - 1)
            .map_err(|_| "it builds over 2^32 values".into())
    }

    /// What a container holds at this moment.
    pub(super) fn held(&self, value: Ref) -> Option<(Items<'_>, Kind)> {
        let Slot { at, kind, .. } = self.slots[value.index()?];
        match kind {
            Kind::Tuple | Kind::FrozenSet => Some((Items::counted(&self.pool, at), kind)),
            Kind::List | Kind::Dict | Kind::Set => Some((Items::chained(&self.pool, at), kind)),
            _ => None,
        }
    }
}
