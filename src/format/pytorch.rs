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
    hashed,
    rebuild::Reader,
    steps::Steps,
    value::{Pickle, Ref, Value},
    Refusal, Shape,
};
use serde_json::json;
use std::collections::HashMap;

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

/// What a call, a name or a persistent id of the pickle stands for. Numbers, strings and plain
/// containers are what the pickle says they are.
#[derive(Debug, Clone, PartialEq)]
pub enum Meaning {
    /// Which of [`Checkpoint::tensors`].
    Tensor(usize),
    /// A parameter over one of them.
    Parameter {
        tensor: usize,
        requires_grad: bool,
    },
    /// An OrderedDict: the call has its items, and its state are its attributes (`_metadata` of a
    /// module's state_dict).
    OrderedDict,
    /// A Counter: the call has its items.
    Counter,
    Complex(f64, f64),
    Bytes(Vec<u8>),
    ByteArray(Vec<u8>),
    Size(Vec<i64>),
    Dtype(TorchDtype),
    Device(String, Option<i64>),
    /// A module of a TorchScript archive: the dict of its attributes.
    Module(Ref),
    /// The same object as another value.
    Same(Ref),
    /// What has no meaning here, by the name of its class or function.
    Unknown(String),
}

/// What a checkpoint holds.
#[derive(Debug)]
pub struct Checkpoint {
    pub storages: Vec<Storage>,
    pub tensors: Vec<Tensor>,
    pub(super) pickle: Pickle,
    /// By slot, of those that can be reached from the root.
    pub(super) meanings: HashMap<usize, Meaning>,
    /// Which slots can be reached from the root.
    pub(super) reached: Vec<bool>,
}

impl Checkpoint {
    /// Gives a pickle its meaning. With `skip_unknown` what has none becomes [`Meaning::Unknown`]; in
    /// a TorchScript archive it always does, since its names are of types and nothing more.
    ///
    /// # Errors
    /// [`Refusal::Unknown`] for an imported name without a meaning here, [`Refusal::Malformed`]
    /// for a known call with impossible arguments.
    pub fn new(pickle: Pickle, skip_unknown: bool, steps: &Steps<'_>) -> Result<Self, Refusal> {
        let mut reader = Reader::new(&pickle, skip_unknown, steps);
        let read = reader.read()?;
        let checkpoint = Self {
            storages: read.storages,
            tensors: read.tensors,
            meanings: read.meanings,
            reached: read.reached,
            pickle,
        };
        hashed::check(&checkpoint, steps)?;
        Ok(checkpoint)
    }

    /// Whether it is the module of a TorchScript archive, whose values are its tensors by name.
    #[must_use]
    pub fn is_module(&self) -> bool {
        matches!(self.meaning(self.pickle.root), Some(Meaning::Module(_)))
    }

    /// The device that each tensor was saved from, and how many tensors in a row have it, as JSON:
    /// `{"locations": [["cuda:0", 3], ["cpu", 1]]}`.
    #[must_use]
    pub fn locations(&self) -> String {
        let location = |tensor: &Tensor| self.storages[tensor.storage].location.as_str();
        let runs = runs(self.tensors.iter().map(location));
        json!({ "locations": runs }).to_string()
    }

    /// What a call, a name or a persistent id stands for.
    #[must_use]
    pub(super) fn meaning(&self, value: Ref) -> Option<&Meaning> {
        self.meanings.get(&value.index()?)
    }
}

/// Words in their order, each with how many times it follows itself.
fn runs<'a>(words: impl Iterator<Item = &'a str>) -> Vec<(&'a str, usize)> {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for word in words {
        match runs.last_mut() {
            Some((last, count)) if *last == word => *count += 1,
            _ => runs.push((word, 1)),
        }
    }
    runs
}

/// Calls `visit` for every value that a slot of this meaning holds.
pub(super) fn children(
    pickle: &Pickle,
    value: Ref,
    meaning: Option<&Meaning>,
    mut visit: impl FnMut(Ref),
) {
    match (pickle.value(value), meaning) {
        (_, Some(Meaning::Module(inner) | Meaning::Same(inner))) => visit(*inner),
        (Value::List(items) | Value::Dict(items) | Value::Set(items), _) => items.for_each(visit),
        (Value::Tuple(items) | Value::FrozenSet(items), _) => items.iter().copied().for_each(visit),
        (Value::Call(call), Some(Meaning::OrderedDict | Meaning::Counter)) => {
            call.items.for_each(&mut visit);
            call.state.into_iter().for_each(visit);
        }
        (Value::Call(call), Some(Meaning::Unknown(_))) => {
            visit(call.args);
            call.items.for_each(&mut visit);
            call.appended.for_each(&mut visit);
            call.state.into_iter().for_each(visit);
        }
        _ => {}
    }
}

impl Tensor {
    /// Whether every element lies in a storage of `byte_len` bytes.
    pub(super) fn check(&self, byte_len: u64) -> Result<(), String> {
        let Self { offset, shape, strides, .. } = self;
        let told = || {
            let (shape, strides) = (Shape(shape), Shape(strides));
            format!("a tensor of shape {shape}, strides {strides}, offset {offset}")
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_tensor_is_described_in_a_few_words() {
        let dtype = TorchDtype::from_name("float32").unwrap();
        let (shape, strides) = (vec![1; 1_000_000], vec![-1; 1_000_000]);
        let tensor = Tensor { storage: 0, dtype, offset: 0, shape, strides, requires_grad: false };
        let reason = tensor.check(4).unwrap_err();
        assert!(reason.contains("(1000000 dimensions)"), "{}", &reason[..200]);
        assert!(reason.len() < 300);
    }

    #[test]
    fn locations_are_told_in_the_order_of_the_tensors() {
        let told = runs(["cuda:0", "cuda:0", "cpu", "cuda:0"].into_iter());
        assert_eq!(told, [("cuda:0", 2), ("cpu", 1), ("cuda:0", 1)]);
        assert_eq!(runs([].into_iter()), []);
    }
}
