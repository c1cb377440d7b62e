//! The tensors of a checkpoint by flat names, for everyone who wants tensors only.

use super::{
    pytorch::{children, Checkpoint, Meaning},
    steps::Steps,
    value::{Ref, Value},
    Malformed, Refusal,
};
use std::collections::HashSet;

/// Names each tensor may have on average, and bytes each name may take beside the keys' own.
///
/// A pickle can hold one list a thousand times over, and lists of such lists: their names would
/// multiply without end. Tied weights have a few names, and few words lead to one.
const NAMES_A_TENSOR: usize = 16;
const BYTES_A_TENSOR: usize = 256;

/// What even the smallest file may have of each.
const FREE_NAMES: usize = 1 << 10;
const FREE_BYTES: usize = 1 << 20;

/// Values looked at on the way, for each that a container holds.
const LOOKS_A_VALUE: usize = 4;

/// The deepest nesting whose names are joined.
const MAX_DEPTH: usize = 1000;

/// The dicts in which a pickled `torch.nn.Module` keeps its tensors and modules. They are no part of a
/// name: such a module has the names that its state_dict has.
const OF_MODULES: [&str; 3] = ["_parameters", "_buffers", "_modules"];

impl Checkpoint {
    /// Every tensor by its name: the keys and positions that lead to it, joined by dots.
    ///
    /// What is no tensor is left out.
    ///
    /// # Errors
    /// A checkpoint that is one bare tensor, two tensors of one name, or containers that hold
    /// themselves or one another without end.
    pub fn names(&self, steps: &Steps<'_>) -> Result<Vec<(String, usize)>, Refusal> {
        let leading = leading(self, steps)?;
        let mut names = Names {
            checkpoint: self,
            steps,
            leading,
            found: vec![],
            open: HashSet::new(),
            name: String::new(),
            looks: FREE_NAMES + LOOKS_A_VALUE * (self.pickle.pool_len() + self.pickle.slot_count()),
            tensors: FREE_NAMES + NAMES_A_TENSOR * self.tensors.len(),
            bytes: FREE_BYTES + BYTES_A_TENSOR * self.tensors.len() + 8 * self.pickle.byte_len(),
        };
        names.enter(self.pickle.root, false)?;
        let mut seen = HashSet::with_capacity(names.found.len());
        match names.found.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            Some((name, _)) => {
                let reason = "two tensors have this name once their keys are joined";
                Err(Malformed::tensor(name, reason).into())
            }
            None => Ok(names.found),
        }
    }
}

/// Which slots hold a tensor, or what holds one: found from the tensors upwards, so that a value
/// is looked at once however often it is held.
fn leading(checkpoint: &Checkpoint, steps: &Steps<'_>) -> Result<Vec<bool>, Refusal> {
    let pickle = &checkpoint.pickle;
    let slots = || (0..pickle.slot_count()).filter(|&index| checkpoint.reached[index]);
    let held = |index: usize, visit: &mut dyn FnMut(usize)| {
        let value = Ref::slot(index);
        let meaning = checkpoint.meaning(value);
        children(pickle, value, meaning, |child| child.index().into_iter().for_each(&mut *visit));
    };
    // The holders of each slot, in one list: where each begins, and then who they are.
    let mut starts = vec![0u32; pickle.slot_count() + 1];
    for index in slots() {
        let mut count = 1;
        held(index, &mut |child| {
            count += 1;
            starts[child + 1] += 1;
        });
        steps.take(count)?;
    }
    for index in 1..starts.len() {
        starts[index] += starts[index - 1];
    }
    let mut holders = vec![0u32; starts.last().map_or(0, |&end| end as usize)];
    let mut next = starts.clone();
    for index in slots() {
        held(index, &mut |child| {
            holders[next[child] as usize] = index as u32;
            next[child] += 1;
        });
    }
    let mut leading = vec![false; pickle.slot_count()];
    let is_tensor =
        |meaning: &Meaning| matches!(meaning, Meaning::Tensor(_) | Meaning::Parameter { .. });
    let mut waiting: Vec<usize> =
        slots().filter(|index| checkpoint.meanings.get(index).is_some_and(is_tensor)).collect();
    while let Some(index) = waiting.pop() {
        if std::mem::replace(&mut leading[index], true) {
            continue;
        }
        let range = starts[index] as usize..starts[index + 1] as usize;
        steps.take(1 + range.len())?;
        waiting.extend(holders[range].iter().map(|&holder| holder as usize));
    }
    Ok(leading)
}

struct Names<'a> {
    checkpoint: &'a Checkpoint,
    steps: &'a Steps<'a>,
    /// Which slots lead to a tensor.
    leading: Vec<bool>,
    found: Vec<(String, usize)>,
    /// The containers on the way to the present one.
    open: HashSet<Ref>,
    /// The keys and positions on the way, joined.
    name: String,
    /// What is left of the bounds above.
    looks: usize,
    tensors: usize,
    bytes: usize,
}

fn too_much() -> Malformed {
    Malformed::new("values are nested too much to be named")
}

impl Names<'_> {
    fn look(&mut self) -> Result<(), Refusal> {
        self.looks = self.looks.checked_sub(1).ok_or_else(too_much)?;
        Ok(self.steps.take(1)?)
    }

    /// Names the tensors in `value`, which has a name itself if it is `named`.
    fn enter(&mut self, value: Ref, named: bool) -> Result<(), Refusal> {
        self.look()?;
        if !value.index().is_some_and(|index| self.leading[index]) {
            return Ok(());
        }
        self.bytes = self.bytes.checked_sub(self.name.len()).ok_or_else(too_much)?;
        let checkpoint = self.checkpoint;
        let meaning = checkpoint.meaning(value);
        if let Some(Meaning::Tensor(tensor) | Meaning::Parameter { tensor, .. }) = meaning {
            self.tensors = self.tensors.checked_sub(1).ok_or_else(too_much)?;
            if !named {
                return Err(Malformed::new("file holds one tensor without a name").into());
            }
            self.found.push((self.name.clone(), *tensor));
            return Ok(());
        }
        if self.open.len() > MAX_DEPTH {
            return Err(too_much().into());
        }
        if !self.open.insert(value) {
            return Err(Malformed::new("a container holds itself").into());
        }
        match (checkpoint.pickle.value(value), meaning) {
            (_, Some(Meaning::Module(inner) | Meaning::Same(inner))) => {
                self.enter(*inner, named)?;
            }
            (Value::Dict(items), _) => self.of_pairs(items, named, false)?,
            (Value::List(items), _) => self.of_items(items, named)?,
            (Value::Tuple(items), _) => self.of_items(items.iter().copied(), named)?,
            (Value::Call(call), Some(Meaning::OrderedDict | Meaning::Counter)) => {
                self.of_pairs(call.items, named, false)?;
            }
            (Value::Call(call), Some(Meaning::Unknown(_))) => {
                self.of_pairs(call.items, named, false)?;
                self.of_items(call.appended, named)?;
                match call.state.map(|state| checkpoint.pickle.value(state)) {
                    Some(Value::Dict(state)) => self.of_pairs(state, named, true)?,
                    // The dict of an object, and its slots.
                    Some(Value::Tuple(states)) => {
                        for &state in states {
                            match checkpoint.pickle.value(state) {
                                Value::Dict(state) => self.of_pairs(state, named, true)?,
                                _ => self.enter(state, named)?,
                            }
                        }
                    }
                    Some(_) => call.state.map_or(Ok(()), |state| self.enter(state, named))?,
                    None => {}
                }
                if let Value::Tuple(args) = checkpoint.pickle.value(call.args) {
                    self.of_items(args.iter().copied(), named)?;
                }
            }
            _ => {}
        }
        self.open.remove(&value);
        Ok(())
    }

    fn of_items(&mut self, items: impl Iterator<Item = Ref>, named: bool) -> Result<(), Refusal> {
        for (at, item) in items.enumerate() {
            if item.index().is_some_and(|index| self.leading[index]) {
                self.within(&at.to_string(), named, |names| names.enter(item, true))?;
            } else {
                self.look()?;
            }
        }
        Ok(())
    }

    fn of_pairs(
        &mut self,
        mut items: impl Iterator<Item = Ref>,
        named: bool,
        is_state: bool,
    ) -> Result<(), Refusal> {
        while let (Some(key), Some(value)) = (items.next(), items.next()) {
            if !value.index().is_some_and(|index| self.leading[index]) {
                self.look()?;
                continue;
            }
            match self.checkpoint.pickle.value(key) {
                Value::Int(number) => {
                    self.within(&number.to_string(), named, |names| names.enter(value, true))?;
                }
                Value::Str(text) => {
                    self.bytes = self.bytes.checked_sub(text.len()).ok_or_else(too_much)?;
                    self.steps.take(text.len() >> 4)?;
                    let text = String::from_utf8_lossy(text);
                    if is_state && OF_MODULES.contains(&&*text) {
                        self.enter(value, named)?;
                    } else {
                        self.within(&text, named, |names| names.enter(value, true))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn within(
        &mut self,
        key: &str,
        named: bool,
        enter: impl FnOnce(&mut Self) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let len = self.name.len();
        if named {
            self.name.push('.');
        }
        self.name.push_str(key);
        enter(self)?;
        self.name.truncate(len);
        Ok(())
    }
}
