//! A checkpoint's values for Python: as a pickle that can do nothing but build them.
//!
//! Python's own unpickler is the fastest there is, and runs whatever a pickle wants. What is written
//! here imports nothing and calls nothing: it has the instructions for plain values and containers,
//! and a persistent id for whatever else there is, which `python/veturboio/_checkpoint.py` answers.
//! A number is the tensor at that position; a tuple begins with a letter:
//!
//! ```text
//! P tensor, requires_grad   a parameter                o        an OrderedDict, filled afterwards
//! c real, imaginary         a complex number           k        a Counter, filled afterwards
//! z size, ...               a torch.Size               D name   a torch.dtype
//! V kind[, index]           a torch.device             U name   a stand-in for what is unknown; its
//!                                                               state follows
//! ```
//!
//! What the file uses twice is one object again, by the memo. A container that holds itself does so
//! by way of a list, a dict or the like that the file used twice; where a tuple is open around such
//! a one, that is made empty, and filled when everything else is there.

use super::{
    pytorch::{Checkpoint, Meaning},
    steps::Steps,
    value::{Items, Ref, Value},
    Refusal,
};
use std::collections::{HashMap, HashSet};

mod instructions;

/// Items that are put into a container at a time, as Python's pickler does.
const BATCH: usize = 1000;

/// A number or string of fewer bytes is written again instead of being remembered.
const SHORT: usize = 4;

const PROTO_4: &[u8] = b"\x80\x04";
const NOT_REMEMBERED: u32 = u32::MAX;

/// In place of an instruction that takes items: they are left on the stack.
const AS_IT_IS: u8 = 0;

impl Checkpoint {
    /// The values as a pickle of protocol 4, without frames.
    ///
    /// # Errors
    /// Only if the caller stops it.
    pub fn to_pickle(&self, steps: &Steps<'_>) -> Result<Vec<u8>, Refusal> {
        let mut writer = Writer {
            checkpoint: self,
            steps,
            out: Vec::with_capacity(self.pickle.byte_len() + 16),
            slots: vec![NOT_REMEMBERED; self.pickle.slot_count()],
            scalars: HashMap::new(),
            remembered: 0,
            open: Vec::new(),
            fixed: 0,
            deferred: Vec::new(),
            states: Vec::new(),
            twins: HashSet::new(),
        };
        writer.out.extend_from_slice(PROTO_4);
        writer.write(self.pickle.root)?;
        writer.finish()?;
        writer.out.push(b'.');
        Ok(writer.out)
    }
}

/// A container that is being written.
struct Open<'a> {
    items: Items<'a>,
    /// The instruction that takes the items, once all are there or a batch of them is; and how many.
    take: u8,
    batch: usize,
    /// Items since the last mark.
    since: usize,
    /// What follows when it is done.
    then: Then<'a>,
}

enum Then<'a> {
    /// It takes its items all at once, and is remembered under its slot.
    Remember(Ref),
    /// Its state is to be set: what else that is.
    State(Vec<Part<'a>>),
    Nothing,
    Pop,
}

/// A part of a stand-in's state.
enum Part<'a> {
    /// One value, or none.
    Value(&'a [Ref]),
    Items(Items<'a>),
}

struct Writer<'a> {
    checkpoint: &'a Checkpoint,
    steps: &'a Steps<'a>,
    out: Vec<u8>,
    /// The numbers under which slots are remembered, and other values by their places.
    slots: Vec<u32>,
    scalars: HashMap<Ref, u32>,
    remembered: u32,
    open: Vec<Open<'a>>,
    /// How many of the open ones are tuples and the like, which cannot be filled later.
    fixed: usize,
    /// What was made empty, and is to be filled.
    deferred: Vec<Ref>,
    /// OrderedDicts that have attributes.
    states: Vec<(Ref, Ref)>,
    /// What is the same object as another value, which may be used more often.
    twins: HashSet<Ref>,
}

impl<'a> Writer<'a> {
    /// Writes a value with all that it holds.
    fn write(&mut self, value: Ref) -> Result<(), Refusal> {
        self.begin(value);
        self.run()
    }

    /// Writes what the open containers hold.
    fn run(&mut self) -> Result<(), Refusal> {
        while let Some(open) = self.open.last_mut() {
            let Some(item) = open.items.next() else {
                self.close();
                continue;
            };
            if open.since == open.batch {
                open.since = 0;
                self.out.push(open.take);
            }
            if open.since == 0 && open.take != AS_IT_IS {
                self.out.push(b'(');
            }
            open.since += usize::from(open.take != AS_IT_IS);
            self.begin(item);
            self.steps.take(1)?;
        }
        Ok(())
    }

    /// Fills what was made empty, and sets what has a state.
    fn finish(&mut self) -> Result<(), Refusal> {
        loop {
            if let Some(value) = self.deferred.pop() {
                self.get(self.slots[value.index().unwrap_or_default()]);
                self.fill(value, true);
                self.run()?;
            } else if let Some((value, state)) = self.states.pop() {
                self.get(self.slots[value.index().unwrap_or_default()]);
                self.write(state)?;
                self.out.extend_from_slice(b"b0");
            } else {
                return Ok(());
            }
        }
    }

    fn close(&mut self) {
        let Some(open) = self.open.pop() else { return };
        if open.since > 0 {
            self.out.push(open.take);
        }
        match open.then {
            Then::Nothing => {}
            Then::Pop => self.out.push(b'0'),
            Then::Remember(value) => {
                self.fixed -= 1;
                if open.since == 0 {
                    self.out.extend_from_slice(&[b'(', open.take]);
                }
                self.remember(value);
            }
            Then::State(parts) => self.write_state(parts),
        }
    }

    /// Writes a value, or opens it if it holds others.
    fn begin(&mut self, value: Ref) {
        let Some(index) = value.index() else { return self.scalar(value) };
        if self.slots[index] != NOT_REMEMBERED {
            return self.get(self.slots[index]);
        }
        let pickle = &self.checkpoint.pickle;
        let instruction: &[u8] = match pickle.value(value) {
            Value::Tuple([]) => return self.out.push(b')'),
            Value::Tuple(items) => return self.fixed(value, Items::plain(items), b't'),
            Value::FrozenSet(items) => return self.fixed(value, Items::plain(items), 0x91),
            Value::List(_) => b"]",
            Value::Dict(_) => b"}",
            Value::Set(_) => b"\x8f",
            _ => return self.meaning(value),
        };
        self.out.extend_from_slice(instruction);
        self.made(value);
    }

    /// Something that can be filled has been made.
    fn made(&mut self, value: Ref) {
        let is_shared = self.is_shared(value);
        self.remember(value);
        if is_shared && self.fixed > 0 {
            self.deferred.push(value);
        } else {
            self.fill(value, false);
        }
    }

    /// Opens what holds others and was made empty.
    fn fill(&mut self, value: Ref, is_last: bool) {
        let pickle = &self.checkpoint.pickle;
        let then = if is_last { Then::Pop } else { Then::Nothing };
        let (items, take, batch) = match pickle.value(value) {
            Value::List(items) => (items, b'e', BATCH),
            Value::Set(items) => (items, 0x90, BATCH),
            Value::Dict(items) => (items, b'u', 2 * BATCH),
            Value::Call(call) => match self.checkpoint.meaning(value) {
                Some(Meaning::Unknown(_)) => {
                    let (args, state) = pickle.arguments_and_state(value);
                    let parts = vec![
                        Part::Items(call.appended),
                        Part::Items(call.items),
                        Part::Value(state),
                        Part::Value(args),
                    ];
                    self.out.push(b'(');
                    self.hold(Items::plain(&[]), AS_IT_IS, then);
                    return self.write_state(parts);
                }
                _ => (call.items, b'u', 2 * BATCH),
            },
            _ => {
                if is_last {
                    self.out.push(b'0');
                }
                return;
            }
        };
        self.open.push(Open { items, take, batch, since: 0, then });
    }

    fn hold(&mut self, items: Items<'a>, take: u8, then: Then<'a>) {
        self.open.push(Open { items, take, batch: BATCH, since: 0, then });
    }

    /// Writes the next part of a stand-in's state; behind the last the state is set.
    fn write_state(&mut self, mut parts: Vec<Part<'a>>) {
        loop {
            match parts.pop() {
                None => return self.out.extend_from_slice(b"tb"),
                Some(Part::Value([])) => self.out.push(b'N'),
                Some(Part::Value(value)) => {
                    return self.hold(Items::plain(value), AS_IT_IS, Then::State(parts));
                }
                Some(Part::Items(items)) => {
                    self.out.push(b']');
                    return self.hold(items, b'e', Then::State(parts));
                }
            }
        }
    }

    /// Opens what must have its items when it is made.
    fn fixed(&mut self, value: Ref, items: Items<'a>, take: u8) {
        self.fixed += 1;
        let then = Then::Remember(value);
        self.open.push(Open { items, take, batch: usize::MAX, since: 0, then });
    }

    fn scalar(&mut self, value: Ref) {
        if let Some(&number) = self.scalars.get(&value) {
            return self.get(number);
        }
        let pickle = &self.checkpoint.pickle;
        let (kind, bytes) = pickle.scalar(value.0 as usize);
        match (kind, bytes[0]) {
            // What Python 2 called a string.
            (Value::Str(text), b'T' | b'U') => self.text(text),
            _ => self.out.extend_from_slice(bytes),
        }
        if bytes.len() > SHORT && self.is_shared(value) {
            self.out.push(0x94);
            self.scalars.insert(value, self.remembered);
            self.remembered += 1;
        }
    }

    /// What a call, a name or a persistent id stands for.
    fn meaning(&mut self, value: Ref) {
        let Some(meaning) = self.checkpoint.meaning(value) else { return self.out.push(b'N') };
        match meaning {
            Meaning::Tensor(tensor) => {
                self.int(*tensor as i64);
                self.out.push(b'Q');
            }
            Meaning::Parameter { tensor, requires_grad } => {
                self.id(b'P', |writer| {
                    writer.int(*tensor as i64);
                    writer.out.push(if *requires_grad { 0x88 } else { 0x89 });
                });
            }
            Meaning::Complex(real, imaginary) => self.id(b'c', |writer| {
                writer.float(*real);
                writer.float(*imaginary);
            }),
            Meaning::Size(sizes) => {
                self.id(b'z', |writer| sizes.iter().for_each(|&size| writer.int(size)));
            }
            Meaning::Dtype(dtype) => self.id(b'D', |writer| writer.text(dtype.name().as_bytes())),
            Meaning::Device(kind, index) => self.id(b'V', |writer| {
                writer.text(kind.as_bytes());
                if let Some(index) = *index {
                    writer.int(index);
                }
            }),
            Meaning::Bytes(bytes) => self.counted(0x8e, bytes),
            Meaning::ByteArray(bytes) => self.counted(0x96, bytes),
            Meaning::OrderedDict | Meaning::Counter => {
                let is_counter = *meaning == Meaning::Counter;
                self.id(if is_counter { b'k' } else { b'o' }, |_| {});
                if let Value::Call(call) = self.checkpoint.pickle.value(value) {
                    if let Some(state) = call.state {
                        self.states.push((value, state));
                    }
                }
                return self.made(value);
            }
            Meaning::Unknown(name) => {
                self.id(b'U', |writer| writer.text(name.as_bytes()));
                return self.made(value);
            }
            // At most two deep: a type tag has no other for its value.
            Meaning::Module(other) | Meaning::Same(other) => {
                self.twins.insert(*other);
                return self.begin(*other);
            }
        }
        self.remember(value);
    }

    /// Remembers what has just been made, if it is used again.
    fn remember(&mut self, value: Ref) {
        let has_state = self.states.last().is_some_and(|&(owner, _)| owner == value);
        if !has_state && !self.is_shared(value) {
            return;
        }
        let Some(index) = value.index() else { return };
        self.out.push(0x94);
        self.slots[index] = self.remembered;
        self.remembered += 1;
    }

    fn is_shared(&self, value: Ref) -> bool {
        self.checkpoint.pickle.is_shared(value) || self.twins.contains(&value)
    }
}
