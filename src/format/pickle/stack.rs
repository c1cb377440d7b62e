//! The stack with its marks, and the memo.

use super::{Machine, Step};
use crate::format::value::Ref;

impl Machine<'_> {
    pub(super) fn remember(&mut self, instruction: u8) -> Step<()> {
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
    pub(super) fn share(&mut self, value: Ref) {
        match value.index() {
            Some(index) => self.slots[index].shared = true,
            // What is as short as a reference to it need not be one object.
            None if matches!(self.bytes[value.0 as usize], b'N' | b'K' | 0x88 | 0x89) => {}
            None => drop(self.shared.insert(value.0)),
        }
    }

    /// The height below which the stack belongs to what stands before the last mark.
    pub(super) fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark as usize)
    }

    pub(super) fn top(&self) -> Step<Ref> {
        let above = self.stack.get(self.floor()..).and_then(<[Ref]>::last);
        above.copied().ok_or_else(|| "the stack is empty".into())
    }

    pub(super) fn pop(&mut self) -> Step<Ref> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    /// Where the last `count` values of the stack begin.
    pub(super) fn below(&self, count: usize) -> Step<usize> {
        let from = self.stack.len().checked_sub(count).filter(|&from| from >= self.floor());
        from.ok_or_else(|| "the stack is empty".into())
    }

    /// Takes a mark away; returns where on the stack it was.
    pub(super) fn pop_mark(&mut self) -> Step<usize> {
        Ok(self.marks.pop().ok_or("no mark is set")? as usize)
    }

    /// Discards a value, or a mark that has nothing above it.
    pub(super) fn discard(&mut self) -> Step<()> {
        if self.marks.last().map(|&mark| mark as usize) == Some(self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }
}
