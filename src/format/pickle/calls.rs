//! The instructions that would import a name or call one, and here only write it down.

use super::{counted, Fault, Machine, Step};
use crate::format::{
    steps::Steps,
    value::{Kind, Ref, Slot, EMPTY_TUPLE, NOTHING},
};

/// Bytes of the longest name that may be imported: torch, if it is asked, takes quadratic time.
const MAX_NAME: usize = 512;

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

impl<'a> Machine<'a> {
    pub(super) fn global(&mut self, instruction: u8) -> Step<()> {
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

    pub(super) fn call(&mut self, new: bool, steps: &Steps<'_>) -> Step<()> {
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

    /// NEWOBJ_EX: arguments by position and by name, which become a tuple of these two.
    pub(super) fn new_with_names(&mut self) -> Step<()> {
        let from = self.below(3)?;
        let callable = self.stack[from];
        let at = self.put_counted(from + 1)?;
        self.stack.truncate(from);
        self.push_slot(Kind::Tuple, at);
        let args = self.pop()?;
        self.push_call(callable, args, true, 0)
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

    pub(super) fn build(&mut self) -> Step<()> {
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
}

/// Refuses a name of too many bytes.
fn check_name(len: usize) -> Step<usize> {
    if len > MAX_NAME {
        return Err(format!("this pickle uses a name of {len} bytes").into());
    }
    Ok(len)
}
