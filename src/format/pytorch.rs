//! What a PyTorch checkpoint means: which storages it names, and which tensors lie in them.
//!
//! torch.save writes a pickle in which every storage is a persistent id, `("storage", type, key,
//! location, elements)`, and every tensor a call of `torch._utils._rebuild_tensor_v2` or `_v3`
//! with a storage, an offset, a shape and strides. [`super::pickle`] reads the program without
//! running it, [`super::rebuild`] gives the few calls that make tensors and plain values their
//! meaning, and here stands what comes of it.
//!
//! The storages' bytes lie elsewhere, in entries of a zip archive or behind the pickles of the
//! old format; [`Checkpoint::storages`] says what they must be.

use super::{
    dtype::TorchDtype,
    pickle::{Id, Pickle},
    rebuild::{self, Reader},
    Malformed,
};
use std::collections::{HashMap, HashSet};

/// A storage that tensors refer to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its name among the entries of the archive.
    pub key: String,
    pub dtype: TorchDtype,
    pub byte_len: u64,
    /// The device that it was saved from, in torch's words: `cpu`, `cuda:0`.
    pub location: String,
}

/// A tensor within a storage; offset and strides count elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    pub storage: usize,
    pub dtype: TorchDtype,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub strides: Vec<i64>,
    pub requires_grad: bool,
}

/// A value as torch.load would give it; identity is kept, so two ids that are equal are one
/// object.
#[derive(Debug, Clone, PartialEq)]
pub enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// Two's complement, least significant byte first.
    BigInt(Vec<u8>),
    Float(f64),
    Complex(f64, f64),
    Str(String),
    Bytes(Vec<u8>),
    ByteArray(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// An OrderedDict, and the dict of its attributes (`_metadata` of a module's state_dict).
    OrderedDict(Vec<(Id, Id)>, Option<Id>),
    Set(Vec<Id>),
    FrozenSet(Vec<Id>),
    Size(Vec<i64>),
    Dtype(TorchDtype),
    Device(String, Option<i64>),
    /// Which of [`Checkpoint::tensors`].
    Tensor(usize),
    /// A parameter over a tensor's node, and the tensor that it is, gradient and all.
    Parameter {
        data: Id,
        requires_grad: bool,
        tensor: usize,
    },
    /// A module of a TorchScript archive: the dict of its attributes.
    Module(Id),
    /// The same object as another node.
    Same(Id),
}

/// What a checkpoint holds.
#[derive(Debug, Default)]
pub struct Checkpoint {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    /// The nodes that can be reached from the root.
    pub nodes: HashMap<Id, Node>,
    pub root: Id,
}

/// Why a pickle is no checkpoint of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Malformed(Malformed),
    /// It is well formed and uses a name that this reader gives no meaning.
    Unknown(String),
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Checkpoint {
    /// Gives a pickle its meaning.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] for an imported name without a meaning here, [`Refusal::Malformed`]
    /// for a known call with impossible arguments.
    pub fn new(pickle: &Pickle) -> Result<Self, Refusal> {
        rebuild::refuse_unknown_names(&pickle.values)?;
        let mut reader = Reader::new(pickle);
        let mut seen = HashSet::from([pickle.root]);
        let mut waiting = vec![pickle.root];
        while let Some(id) = waiting.pop() {
            let node = reader.node(id)?;
            node.children(|child| {
                if seen.insert(child) {
                    waiting.push(child);
                }
            });
            reader.checkpoint.nodes.insert(id, node);
        }
        for node in reader.checkpoint.nodes.values() {
            for id in node.hashed() {
                let mut size = MAX_HASHED;
                reader.checkpoint.check_hashable(id, &mut size, 0)?;
            }
        }
        let modules = |node: &Node| matches!(node, Node::Module(_));
        if !reader.checkpoint.is_module() && reader.checkpoint.nodes.values().any(modules) {
            return Err(Refusal::Unknown("a scripted module among plain values".to_owned()));
        }
        Ok(reader.checkpoint)
    }

    /// Whether a value may be a key or an element of a set: it will be hashed, and what it holds
    /// with it, once for each time that it is held.
    fn check_hashable(&self, id: Id, size: &mut usize, depth: usize) -> Result<(), Malformed> {
        let refused = || Malformed::new("a key or an element of a set is too large or no such");
        *size = size.checked_sub(1).ok_or_else(refused)?;
        match self.nodes.get(&id) {
            Some(Node::Tuple(items) | Node::FrozenSet(items)) if depth < MAX_HASHED_DEPTH => {
                items.iter().try_for_each(|&item| self.check_hashable(item, size, depth + 1))
            }
            Some(
                Node::Tuple(_)
                | Node::FrozenSet(_)
                | Node::List(_)
                | Node::Dict(_)
                | Node::OrderedDict(..)
                | Node::Set(_)
                | Node::ByteArray(_)
                | Node::Module(_)
                | Node::Same(_),
            )
            | None => Err(refused()),
            Some(_) => Ok(()),
        }
    }

    /// Whether it is the module of a TorchScript archive, whose values are its tensors by name.
    #[must_use]
    pub fn is_module(&self) -> bool {
        matches!(self.nodes.get(&self.root), Some(Node::Module(_)))
    }
}

/// Values that one key may consist of, and how deep they may nest.
const MAX_HASHED: usize = 1000;
const MAX_HASHED_DEPTH: usize = 100;

impl Node {
    /// The nodes that Python hashes when it builds this one.
    fn hashed(&self) -> Vec<Id> {
        match self {
            Self::Set(items) | Self::FrozenSet(items) => items.clone(),
            Self::Dict(items) | Self::OrderedDict(items, _) => {
                items.iter().map(|&(key, _)| key).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Calls `visit` for every node that this one holds.
    pub fn children(&self, mut visit: impl FnMut(Id)) {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Set(items) | Self::FrozenSet(items) => {
                items.iter().copied().for_each(visit);
            }
            Self::Dict(items) | Self::OrderedDict(items, _) => {
                for &(key, value) in items {
                    visit(key);
                    visit(value);
                }
                if let Self::OrderedDict(_, Some(attributes)) = self {
                    visit(*attributes);
                }
            }
            Self::Parameter { data: id, .. } | Self::Module(id) | Self::Same(id) => visit(*id),
            _ => {}
        }
    }
}

impl Tensor {
    /// Whether every element lies in a storage of `byte_len` bytes.
    pub(super) fn check(&self, byte_len: u64) -> Result<(), String> {
        let Self { offset, shape, strides, .. } = self;
        let told = || format!("a tensor of shape {shape:?}, strides {strides:?}, offset {offset}");
        if shape.len() != strides.len() {
            return Err(format!("{} has not one stride a dimension", told()));
        }
        if *offset < 0 || shape.iter().chain(strides).any(|&number| number < 0) {
            return Err(format!("{} counts below zero", told()));
        }
        if self.requires_grad && !self.dtype.is_differentiable() {
            return Err(format!("{} of {} has no gradient", told(), self.dtype.name()));
        }
        let overflow = || format!("{} overflows", told());
        shape
            .iter()
            .try_fold(1i64, |product, &size| product.checked_mul(size.max(1)))
            .ok_or_else(overflow)?;
        if shape.contains(&0) {
            return Ok(());
        }
        let last = shape.iter().zip(strides).try_fold(*offset, |last, (&size, &stride)| {
            (size - 1).checked_mul(stride).and_then(|step| last.checked_add(step))
        });
        let elements = byte_len / self.dtype.item_size();
        match last {
            Some(last) if (last as u64) < elements => Ok(()),
            Some(_) => Err(format!("{} reaches past its storage of {byte_len} bytes", told())),
            None => Err(overflow()),
        }
    }
}
