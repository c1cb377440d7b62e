//! The calls that a checkpoint's pickle may want made, and what comes of each.
//!
//! They are known by name, and this is the whole list. A name that is not on it is refused before
//! anything else is looked at, so what a hostile pickle would do never comes into it. Source: the
//! functions of these names in `torch/_utils.py` and `torch/jit/_pickle.py` of torch 2.13.

use super::{
    dtype::{TorchDtype, BYTE},
    pickle::{Call, Id, Pickle, Value},
    pytorch::{Checkpoint, Node, Refusal, Storage, Tensor},
    shown, Malformed,
};
use std::collections::HashMap;

fn malformed<T>(reason: impl std::fmt::Display) -> Result<T, Refusal> {
    Err(Malformed::new(reason).into())
}

fn unknown<T>(name: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unknown(name.into()))
}

/// The names that a checkpoint may import, besides storages, dtypes and TorchScript's classes.
const KNOWN: [(&str, &str); 24] = [
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

/// Every storage that a pickle names, used or not, as far as their classes are known.
///
/// Even a file that is then refused for an unknown name must not lie about its storages: its
/// next reader may be torch.
pub(super) fn storages(pickle: &Pickle) -> Result<Vec<Storage>, Malformed> {
    let names = refuse_unknown_names(&pickle.values);
    let mut reader = Reader::new(pickle);
    for value in &pickle.values {
        if let Value::Persistent(id) = value {
            match reader.persistent(*id) {
                // What is no storage at all is no lie about one; the unknown name says more.
                Err(Refusal::Malformed(malformed)) if names.is_ok() => return Err(malformed),
                _ => {}
            }
        }
    }
    Ok(reader.checkpoint.storages)
}

/// Refuses a pickle that imports what has no meaning here, used or not.
pub(super) fn refuse_unknown_names(values: &[Value]) -> Result<(), Refusal> {
    for value in values {
        if let Value::Global(global) = value {
            let (module, name) = &**global;
            if !is_known(module, name) {
                return unknown(format!("{module}.{name}"));
            }
        }
    }
    Ok(())
}

pub(super) struct Reader<'a> {
    values: &'a [Value],
    pub checkpoint: Checkpoint,
    storages: HashMap<&'a str, usize>,
    /// Elements that may still be copied: a call can be given the same arguments over and over.
    left: usize,
}

impl<'a> Reader<'a> {
    pub fn new(pickle: &'a Pickle) -> Self {
        let checkpoint = Checkpoint { root: pickle.root, ..Checkpoint::default() };
        let left = FREE_COPIES + COPIES_A_VALUE * pickle.values.len() + pickle.len;
        Self { values: &pickle.values, checkpoint, storages: HashMap::new(), left }
    }

    /// What a value is, without what it holds.
    pub fn node(&mut self, id: Id) -> Result<Node, Refusal> {
        Ok(match &self.values[id] {
            Value::None => Node::None,
            Value::Bool(value) => Node::Bool(*value),
            Value::Int(value) => Node::Int(*value),
            Value::BigInt(bytes) => Node::BigInt(bytes.clone()),
            Value::Float(value) => Node::Float(*value),
            Value::Str(text) => Node::Str(text.clone()),
            Value::Bytes(bytes) => Node::Bytes(bytes.clone()),
            Value::ByteArray(bytes) => Node::ByteArray(bytes.clone()),
            Value::List(items) => Node::List(items.clone()),
            Value::Tuple(items) => Node::Tuple(items.clone()),
            Value::Dict(items) => Node::Dict(items.clone()),
            Value::Set(items) => Node::Set(items.clone()),
            Value::FrozenSet(items) => Node::FrozenSet(items.clone()),
            Value::Global(global) => match TorchDtype::from_name(&global.1) {
                Some(dtype) if global.0 == "torch" => Node::Dtype(dtype),
                _ => return unknown(format!("{}.{} as a value", global.0, global.1)),
            },
            Value::Persistent(_) => return unknown("a storage as a value"),
            Value::Call(call) => self.call(call)?,
        })
    }

    fn call(&mut self, call: &'a Call) -> Result<Node, Refusal> {
        let (module, name) = match &self.values[call.callable] {
            Value::Global(global) => (global.0.as_str(), global.1.as_str()),
            _ => return malformed("a call of what is no imported name"),
        };
        let args = self.tuple(call.args)?;
        if is_scripted(module) {
            return match call.state {
                Some(state) if call.new && args.is_empty() => Ok(Node::Module(state)),
                _ => unknown(format!("{module}.{name} without plain attributes")),
            };
        }
        let ordered = (module, name) == ("collections", "OrderedDict");
        let touched = !call.items.is_empty() || call.state.is_some();
        if call.new || !call.appended.is_empty() || (touched && !ordered) {
            return malformed(format!("{module}.{name} is given a state"));
        }
        match name {
            "OrderedDict" if args.is_empty() => {
                Ok(Node::OrderedDict(call.items.clone(), call.state))
            }
            "_rebuild_tensor_v2" if matches!(args.len(), 6 | 7) => {
                self.tensor(args, None, args.get(6))
            }
            "_rebuild_tensor_v3" if matches!(args.len(), 7 | 8) => {
                self.tensor(args, Some(args[6]), args.get(7))
            }
            "_rebuild_parameter" if args.len() == 3 => self.parameter(args[0], self.bool(args[1])?),
            "OrderedDict" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3" | "_rebuild_parameter" => {
                malformed(format!("{name} is given {} arguments", args.len()))
            }
            _ => self.plain(module, name, args),
        }
    }

    /// The calls that make values without a storage.
    fn plain(&mut self, module: &str, name: &str, args: &'a [Id]) -> Result<Node, Refusal> {
        let values: Vec<&Value> = args.iter().map(|&id| &self.values[id]).collect();
        for value in &values {
            self.charge(match value {
                Value::Tuple(items) | Value::List(items) => items.len(),
                Value::Str(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
                _ => 1,
            })?;
        }
        Ok(match (name, &values[..]) {
            ("Size", [Value::Tuple(sizes)]) => Node::Size(self.ints(sizes)?),
            ("device", [Value::Str(kind)]) => Node::Device(kind.clone(), None),
            ("device", [Value::Str(kind), Value::Int(index)]) => {
                Node::Device(kind.clone(), Some(*index))
            }
            ("encode", [Value::Str(text), Value::Str(encoding)]) if encoding == "latin1" => {
                let bytes = text.chars().map(|c| u8::try_from(u32::from(c))).collect();
                match bytes {
                    Ok(bytes) => Node::Bytes(bytes),
                    Err(_) => return malformed("bytes hold a character over 255"),
                }
            }
            ("set", [Value::List(items)]) => Node::Set(items.clone()),
            ("frozenset", [Value::List(items)]) => Node::FrozenSet(items.clone()),
            ("complex", [Value::Float(real), Value::Float(imaginary)]) => {
                Node::Complex(*real, *imaginary)
            }
            ("bytes", []) => Node::Bytes(vec![]),
            ("bytearray", []) => Node::ByteArray(vec![]),
            ("bytearray", [Value::Bytes(bytes)]) => Node::ByteArray(bytes.clone()),
            ("bytearray", [Value::Call(_)]) => match self.encoded(args[0])? {
                Some(bytes) => Node::ByteArray(bytes),
                None => return malformed("a bytearray of what is no bytes"),
            },
            (
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist",
                [Value::List(_)],
            )
            | ("restore_type_tag", [_, Value::Str(_)]) => Node::Same(args[0]),
            _ => {
                return malformed(format!(
                    "{module}.{name} is given arguments that it does not take"
                ))
            }
        })
    }

    /// The bytes of a call of `_codecs.encode`.
    fn encoded(&mut self, id: Id) -> Result<Option<Vec<u8>>, Refusal> {
        let Value::Call(call) = &self.values[id] else { return Ok(None) };
        let Value::Global(global) = &self.values[call.callable] else { return Ok(None) };
        if global.1 != "encode" {
            return Ok(None);
        }
        match self.plain(&global.0, &global.1, self.tuple(call.args)?)? {
            Node::Bytes(bytes) => Ok(Some(bytes)),
            _ => Ok(None),
        }
    }

    fn tensor(
        &mut self,
        args: &'a [Id],
        dtype: Option<Id>,
        metadata: Option<&Id>,
    ) -> Result<Node, Refusal> {
        if let Some(Value::Dict(flags)) = metadata.map(|&id| &self.values[id]) {
            if !flags.is_empty() {
                return unknown("a tensor that is conjugated or negated");
            }
        }
        let (shape, strides) = (self.tuple(args[2])?, self.tuple(args[3])?);
        self.charge(shape.len() + strides.len())?;
        let storage = self.storage(args[0])?;
        let dtype = match dtype.map(|id| &self.values[id]) {
            None => self.checkpoint.storages[storage].dtype,
            Some(Value::Global(global)) if global.0 == "torch" => {
                match TorchDtype::from_name(&global.1) {
                    Some(dtype) => dtype,
                    None => return malformed(format!("{} is no dtype", global.1)),
                }
            }
            Some(_) => return malformed("a tensor's dtype is no dtype"),
        };
        let tensor = Tensor {
            storage,
            dtype,
            offset: self.int(args[1])?,
            shape: self.ints(shape)?,
            strides: self.ints(strides)?,
            requires_grad: self.bool(args[4])?,
        };
        let byte_len = self.checkpoint.storages[storage].byte_len;
        tensor.check(byte_len).map_err(Malformed::new)?;
        self.checkpoint.tensors.push(tensor);
        Ok(Node::Tensor(self.checkpoint.tensors.len() - 1))
    }

    /// A parameter is a tensor of its own over the storage of another.
    fn parameter(&mut self, data: Id, requires_grad: bool) -> Result<Node, Refusal> {
        let no_tensor = || Refusal::from(Malformed::new("a parameter of what is no tensor"));
        let Value::Call(call) = &self.values[data] else { return Err(no_tensor()) };
        // Looked at before the call is: parameters of parameters could nest without end.
        let made = match &self.values[call.callable] {
            Value::Global(global) if global.1.starts_with("_rebuild_tensor_v") => {
                self.call(call)?
            }
            _ => return Err(no_tensor()),
        };
        let Node::Tensor(tensor) = made else { return Err(no_tensor()) };
        // The call was looked at for this parameter alone; where the pickle uses its result
        // elsewhere, it is looked at again.
        let parameter = &mut self.checkpoint.tensors[tensor];
        parameter.requires_grad = requires_grad;
        let byte_len = self.checkpoint.storages[parameter.storage].byte_len;
        parameter.check(byte_len).map_err(Malformed::new)?;
        Ok(Node::Parameter { data, requires_grad, tensor })
    }

    fn storage(&mut self, id: Id) -> Result<usize, Refusal> {
        match &self.values[id] {
            Value::Persistent(id) => self.persistent(*id),
            _ => malformed("a tensor lies in what is no storage"),
        }
    }

    /// Takes down a storage by its persistent id.
    fn persistent(&mut self, id: Id) -> Result<usize, Refusal> {
        let no_storage = || Refusal::from(Malformed::new("a tensor lies in what is no storage"));
        let parts: Vec<&Value> = self.tuple(id)?.iter().map(|&id| &self.values[id]).collect();
        let (class, key, location, elements) = match parts[..] {
            [Value::Str(tag), Value::Global(class), Value::Str(key), Value::Str(location), Value::Int(n)]
            | [Value::Str(tag), Value::Global(class), Value::Str(key), Value::Str(location), Value::Int(n), Value::None]
                if tag == "storage" =>
            {
                (class, key, location, *n)
            }
            [_, _, _, _, _, _] => return unknown("a view of a storage"),
            _ => return Err(no_storage()),
        };
        let dtype = match class.1.as_str() {
            "UntypedStorage" => BYTE,
            name => match TorchDtype::from_storage_class(name) {
                Some(dtype) => dtype,
                None if is_known(&class.0, name) => return Err(no_storage()),
                None => return unknown(format!("{}.{name}", class.0)),
            },
        };
        let byte_len = u64::try_from(elements)
            .ok()
            .and_then(|elements| elements.checked_mul(dtype.item_size()))
            .ok_or_else(|| {
                Malformed::new(format!("storage {} of {elements} elements", shown(key)))
            })?;
        if let Some(&index) = self.storages.get(key.as_str()) {
            let known = &self.checkpoint.storages[index];
            if (known.byte_len, known.dtype) != (byte_len, dtype) {
                return malformed(format!("storage {} is described in two ways", shown(key)));
            }
            return Ok(index);
        }
        let index = self.checkpoint.storages.len();
        let location = location.clone();
        self.checkpoint.storages.push(Storage { key: key.clone(), dtype, byte_len, location });
        self.storages.insert(key, index);
        Ok(index)
    }

    fn charge(&mut self, copies: usize) -> Result<(), Refusal> {
        let too_much = || Malformed::new("calls are given the same arguments too often");
        self.left = self.left.checked_sub(copies).ok_or_else(too_much)?;
        Ok(())
    }

    fn tuple(&self, id: Id) -> Result<&'a [Id], Refusal> {
        match &self.values[id] {
            Value::Tuple(items) => Ok(items),
            _ => malformed("a call has what is no tuple where it takes one"),
        }
    }

    fn int(&self, id: Id) -> Result<i64, Refusal> {
        match self.values[id] {
            Value::Int(number) => Ok(number),
            _ => malformed("a call has what is no integer where it takes one"),
        }
    }

    fn ints(&self, ids: &[Id]) -> Result<Vec<i64>, Refusal> {
        ids.iter().map(|&id| self.int(id)).collect()
    }

    fn bool(&self, id: Id) -> Result<bool, Refusal> {
        match self.values[id] {
            Value::Bool(value) => Ok(value),
            _ => malformed("a call has what is no bool where it takes one"),
        }
    }
}
