//! The calls that a checkpoint's pickle may want made, and what comes of each.
//!
//! They are known by name, and this is the whole list. A name that is not on it is refused before
//! anything else is looked at, so what a hostile pickle would do never comes into it. Source: the
//! functions of these names in `torch/_utils.py` and `torch/jit/_pickle.py` of torch 2.13.

use super::{
    dtype::TorchDtype,
    pytorch::{children, Meaning, Storage, Tensor},
    steps::Steps,
    value::{Call, Pickle, Ref, Value},
    Malformed, Refusal,
};
use std::collections::HashMap;

mod plain;
mod storages;
mod tensors;

fn malformed<T>(reason: impl std::fmt::Display) -> Result<T, Refusal> {
    Err(Malformed::new(reason).into())
}

fn unknown<T>(name: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unknown(name.into()))
}

/// The names that a checkpoint may import, besides storages, dtypes and TorchScript's classes.
const KNOWN: [(&str, &str); 27] = [
    ("collections", "Counter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.storage", "UntypedStorage"),
    ("_codecs", "encode"),
    ("__builtin__", "set"),
    ("builtins", "set"),
    ("__builtin__", "frozenset"),
    ("builtins", "frozenset"),
    ("__builtin__", "complex"),
    ("builtins", "complex"),
    ("__builtin__", "bytearray"),
    ("builtins", "bytearray"),
    ("torch.jit._pickle", "build_intlist"),
    ("torch.jit._pickle", "build_doublelist"),
    ("torch.jit._pickle", "build_boollist"),
    ("torch.jit._pickle", "build_tensorlist"),
    ("torch.jit._pickle", "restore_type_tag"),
    ("torch", "UntypedStorage"),
    ("__builtin__", "bytes"),
    ("builtins", "bytes"),
];

/// Elements and bytes that calls may copy of their arguments, for each value of the pickle and for
/// any pickle at all. A tensor makes a dozen values and copies its shape and strides.
const COPIES_A_VALUE: usize = 16;
const FREE_COPIES: usize = 1 << 20;

/// Classes that TorchScript compiled: their instances are their attributes.
const SCRIPTED: &str = "__torch__";

fn is_known(module: &str, name: &str) -> bool {
    KNOWN.contains(&(module, name))
        || (module == "torch" && TorchDtype::from_name(name).is_some())
        || (module == "torch" && TorchDtype::from_storage_class(name).is_some())
        || is_scripted(module)
}

fn is_scripted(module: &str) -> bool {
    module == SCRIPTED || module.starts_with("__torch__.")
}

/// Every storage that a pickle names.
pub(super) fn storages(pickle: &Pickle, steps: &Steps<'_>) -> Result<Vec<Storage>, Refusal> {
    let mut reader = Reader::ordered(pickle, false, steps)?;
    Ok(std::mem::take(&mut reader.read.storages))
}

/// Whether a pickle has a meaning.
pub(super) fn check(pickle: &Pickle, skip_unknown: bool, steps: &Steps<'_>) -> Result<(), Refusal> {
    Reader::new(pickle, skip_unknown, steps).read().map(drop)
}

/// What comes of a pickle.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    pub meanings: HashMap<usize, Meaning>,
    pub reached: Vec<bool>,
}

#[allow(clippy::struct_excessive_bools)] // each is a question of its own
pub(super) struct Reader<'a> {
    pickle: &'a Pickle,
    steps: &'a Steps<'a>,
    skip_unknown: bool,
    read: Read,
    /// Which storage a key names, by the string's place, since one string may name it many times,
    /// and by the string.
    places: HashMap<Ref, usize>,
    keys: HashMap<&'a [u8], usize>,
    /// Storages without a byte that have another dtype than the first of their name.
    empty: HashMap<(usize, TorchDtype), usize>,
    /// Whether storages are taken down in the order in which the pickle names them.
    is_ordered: bool,
    /// Whether only the lengths of storages count, so that quantized ones are known.
    is_listing: bool,
    /// Whether a storage has two dtypes, and the order is not known that says which is meant.
    is_ambiguous: bool,
    /// Elements that may still be copied: a call can be given the same arguments over and over.
    left: usize,
}

impl<'a> Reader<'a> {
    pub fn new(pickle: &'a Pickle, skip_unknown: bool, steps: &'a Steps<'a>) -> Self {
        let left = FREE_COPIES
            + COPIES_A_VALUE * pickle.slot_count()
            + COPIES_A_VALUE * pickle.pool_len().min(pickle.byte_len())
            + pickle.byte_len();
        let mut reader = Self {
            pickle,
            steps,
            skip_unknown,
            read: Read::default(),
            places: HashMap::new(),
            keys: HashMap::new(),
            empty: HashMap::new(),
            is_ordered: false,
            is_listing: false,
            is_ambiguous: false,
            left,
        };
        reader.skip_unknown |= reader.is_scripted_module(pickle.root);
        reader
    }

    /// A reader that has taken down every storage first, in the order of the pickle.
    fn ordered(
        pickle: &'a Pickle,
        skip_unknown: bool,
        steps: &'a Steps<'a>,
    ) -> Result<Self, Refusal> {
        let mut reader = Self::new(pickle, skip_unknown, steps);
        reader.is_ordered = true;
        reader.storages()?;
        Ok(reader)
    }

    /// Gives everything that can be reached from the root its meaning.
    pub fn read(&mut self) -> Result<Read, Refusal> {
        let read = self.reached();
        if !self.is_ambiguous {
            return read;
        }
        // Rare enough for a second pass, which others are spared.
        *self = Self::ordered(self.pickle, self.skip_unknown, self.steps)?;
        self.reached()
    }

    fn reached(&mut self) -> Result<Read, Refusal> {
        if !self.skip_unknown {
            refuse_unknown_names(self.pickle)?;
        }
        let root = self.pickle.root;
        let is_module = self.is_scripted_module(root);
        let mut reached = vec![false; self.pickle.slot_count()];
        let mut waiting = Vec::new();
        let mut reach = |value: Ref, waiting: &mut Vec<Ref>| {
            if let Some(index) = value.index() {
                if !std::mem::replace(&mut reached[index], true) {
                    waiting.push(value);
                }
            }
        };
        reach(root, &mut waiting);
        while let Some(value) = waiting.pop() {
            let meaning = self.meaning(value)?;
            if !is_module && !self.skip_unknown && matches!(meaning, Some(Meaning::Module(_))) {
                return unknown("a scripted module among plain values");
            }
            let mut held = 1;
            children(self.pickle, value, meaning.as_ref(), |child| {
                held += 1;
                reach(child, &mut waiting);
            });
            self.steps.take(held)?;
            if let (Some(index), Some(meaning)) = (value.index(), meaning) {
                self.read.meanings.insert(index, meaning);
            }
        }
        let mut read = std::mem::take(&mut self.read);
        read.reached = reached;
        Ok(read)
    }

    /// What a call, a name or a persistent id stands for.
    fn meaning(&mut self, value: Ref) -> Result<Option<Meaning>, Refusal> {
        let meaning = match self.pickle.value(value) {
            Value::Global(module, name) => named(module, name),
            Value::Persistent(_) => unknown("a storage as a value"),
            Value::Call(call) => self.call(&call),
            _ => return Ok(None),
        };
        match meaning {
            Err(Refusal::Unknown(_)) if self.skip_unknown => {
                Ok(Some(Meaning::Unknown(self.name_of(value))))
            }
            Ok(Meaning::Module(_))
                if self.skip_unknown && !self.is_scripted_module(self.pickle.root) =>
            {
                Ok(Some(Meaning::Unknown(self.name_of(value))))
            }
            other => other.map(Some),
        }
    }

    /// How a stand-in is called for what has no meaning here.
    fn name_of(&self, value: Ref) -> String {
        let class = match self.pickle.value(value) {
            Value::Call(call) => match (self.class(call.callable), self.tuple(call.args)) {
                // It makes an instance of its first argument.
                (Some(("copyreg" | "copy_reg", "_reconstructor")), Ok([class, ..])) => {
                    self.class(*class)
                }
                (class, _) => class,
            },
            Value::Persistent(id) => match self.tuple(id) {
                Ok([_, class, ..]) => self.class(*class),
                _ => None,
            },
            _ => self.class(value),
        };
        match class {
            // What Python 2 called it, and the protocols up to 2 still do.
            Some(("__builtin__", name)) => format!("builtins.{name}"),
            Some((module, name)) => format!("{module}.{name}"),
            None => "an object".to_owned(),
        }
    }

    /// The imported name that a value is. The old format has the classes of modules as persistent
    /// ids, with their source.
    fn class(&self, value: Ref) -> Option<(&'a str, &'a str)> {
        match self.pickle.value(value) {
            Value::Global(module, name) => Some((module, name)),
            Value::Persistent(id) => match (self.pickle.value(id), self.tuple(id)) {
                (Value::Tuple(_), Ok(&[tag, class, ..])) if self.is_text(tag, "module") => {
                    match self.pickle.value(class) {
                        Value::Global(module, name) => Some((module, name)),
                        _ => None,
                    }
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn is_scripted_module(&self, value: Ref) -> bool {
        match self.pickle.value(value) {
            Value::Call(call) => {
                call.new && self.class(call.callable).is_some_and(|(module, _)| is_scripted(module))
            }
            _ => false,
        }
    }

    fn call(&mut self, call: &Call<'a>) -> Result<Meaning, Refusal> {
        let Value::Global(module, name) = self.pickle.value(call.callable) else {
            return match self.class(call.callable) {
                Some((module, name)) => unknown(format!("{module}.{name}")),
                None if self.skip_unknown => unknown("what a call returns"),
                None => malformed("a call of what is no imported name"),
            };
        };
        let args = self.tuple(call.args)?;
        if is_scripted(module) {
            return match call.state {
                Some(state) if call.new && args.is_empty() => Ok(Meaning::Module(state)),
                _ => unknown(format!("{module}.{name} without plain attributes")),
            };
        }
        if self.skip_unknown && (module, name) == ("torch._tensor", "_rebuild_from_type_v2") {
            return self.subclass(args);
        }
        if !is_known(module, name) {
            return unknown(format!("{module}.{name}"));
        }
        let is_dict = module == "collections";
        let is_touched = !call.items.is_empty() || call.state.is_some();
        let is_made_plainly = !call.new || name == "Parameter";
        if !is_made_plainly || !call.appended.is_empty() || (is_touched && !is_dict) {
            return unknown(format!("{module}.{name} with a state"));
        }
        match name {
            "OrderedDict" if args.is_empty() => {
                match call.state.map(|state| self.pickle.value(state)) {
                    None | Some(Value::Dict(_)) => Ok(Meaning::OrderedDict),
                    Some(_) => unknown("an OrderedDict with other attributes than a dict"),
                }
            }
            "Counter" if args.is_empty() && call.state.is_none() => Ok(Meaning::Counter),
            "_rebuild_tensor" if args.len() == 4 => self.tensor(args, None, None),
            "_rebuild_tensor_v2" if matches!(args.len(), 6 | 7) => {
                self.tensor(args, None, args.get(6))
            }
            "_rebuild_tensor_v3" if matches!(args.len(), 7 | 8) => {
                self.tensor(args, Some(args[6]), args.get(7))
            }
            "_rebuild_parameter" if args.len() == 3 => self.parameter(args[0], self.bool(args[1])?),
            "Parameter" if matches!(args.len(), 1 | 2) => {
                let requires_grad = args.get(1).map_or(Ok(true), |&arg| self.bool(arg))?;
                self.parameter(args[0], requires_grad)
            }
            "OrderedDict" | "Counter" | "Parameter" | "_rebuild_tensor" | "_rebuild_tensor_v2"
            | "_rebuild_tensor_v3" | "_rebuild_parameter" => {
                unknown(format!("{module}.{name} with {} arguments", args.len()))
            }
            _ => self.plain(module, name, args),
        }
    }

    fn is_text(&self, value: Ref, text: &str) -> bool {
        matches!(self.pickle.value(value), Value::Str(bytes) if bytes == text.as_bytes())
    }

    fn charge(&mut self, copies: usize) -> Result<(), Refusal> {
        let too_much = || Malformed::new("calls are given the same arguments too often");
        self.left = self.left.checked_sub(copies).ok_or_else(too_much)?;
        self.steps.take(copies)?;
        Ok(())
    }

    fn tuple(&self, value: Ref) -> Result<&'a [Ref], Refusal> {
        match self.pickle.value(value) {
            Value::Tuple(items) => Ok(items),
            _ => unknown("a call with what is no tuple where it takes one"),
        }
    }

    fn int(&self, value: Ref) -> Result<i64, Refusal> {
        match self.pickle.value(value) {
            Value::Int(number) => Ok(number),
            _ => unknown("a call with what is no integer where it takes one"),
        }
    }

    fn ints(&self, values: &[Ref]) -> Result<Vec<i64>, Refusal> {
        values.iter().map(|&value| self.int(value)).collect()
    }

    fn bool(&self, value: Ref) -> Result<bool, Refusal> {
        match self.pickle.value(value) {
            Value::Bool(value) => Ok(value),
            _ => unknown("a call with what is no bool where it takes one"),
        }
    }
}

/// Refuses a pickle that imports what has no meaning here, used or not.
pub(super) fn refuse_unknown_names(pickle: &Pickle) -> Result<(), Refusal> {
    match pickle.globals().find(|(module, name)| !is_known(module, name)) {
        Some((module, name)) => unknown(format!("{module}.{name}")),
        None => Ok(()),
    }
}

/// What an imported name is as a value.
fn named(module: &str, name: &str) -> Result<Meaning, Refusal> {
    match TorchDtype::from_name(name) {
        Some(dtype) if module == "torch" => Ok(Meaning::Dtype(dtype)),
        _ => unknown(format!("{module}.{name} as a value")),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
