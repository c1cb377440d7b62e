//! A checkpoint's values for those who want them: as JSON for Python, which builds them again,
//! and as flat names for everyone who wants tensors only.

use super::{
    pickle::Id,
    pytorch::{Checkpoint, Node},
    Malformed,
};
use serde_json::{json, Value};
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

/// Nodes entered on the way, for each node there is.
const ENTRIES_A_NODE: usize = 16;

/// The deepest nesting whose names are joined.
const MAX_DEPTH: usize = 1000;

impl Checkpoint {
    /// The nodes as a JSON array of `[id, kind, ...]`, the root, and the locations of the tensors:
    /// `{"root": id, "nodes": [...], "locations": [["cuda:0", 3], ["cpu", 1]]}`, where the first
    /// three tensors were saved from `cuda:0` and the fourth from the CPU.
    ///
    /// Kinds are single letters, told in `python/veturboio/_checkpoint.py`. Integers over 64 bits
    /// and bytes are hexadecimal, floats that JSON lacks are their names.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut nodes: Vec<(&Id, &Node)> = self.nodes.iter().collect();
        nodes.sort_by_key(|(&id, _)| id);
        let nodes: Vec<Value> = nodes.into_iter().map(|(&id, node)| encoded(id, node)).collect();
        json!({"root": self.root, "nodes": nodes, "locations": self.locations()}).to_string()
    }

    /// The device that each tensor was saved from, and how many tensors in a row have it.
    fn locations(&self) -> Vec<(&str, usize)> {
        let mut runs: Vec<(&str, usize)> = Vec::new();
        for tensor in &self.tensors {
            let location = self.storages[tensor.storage].location.as_str();
            match runs.last_mut() {
                Some((last, count)) if *last == location => *count += 1,
                _ => runs.push((location, 1)),
            }
        }
        runs
    }

    /// Every tensor by its name: the keys and positions that lead to it, joined by dots.
    ///
    /// What is no tensor is left out.
    ///
    /// # Errors
    /// A checkpoint that is one bare tensor, two tensors of one name, or containers that hold
    /// themselves or one another without end.
    pub fn names(&self) -> Result<Vec<(String, usize)>, Malformed> {
        let keys = self.nodes.values().map(|node| match node {
            Node::Str(text) => text.len(),
            _ => 0,
        });
        let mut names = Names {
            checkpoint: self,
            found: vec![],
            open: HashSet::new(),
            entries: FREE_NAMES + ENTRIES_A_NODE * self.nodes.len(),
            tensors: FREE_NAMES + NAMES_A_TENSOR * self.tensors.len(),
            bytes: FREE_BYTES + BYTES_A_TENSOR * self.tensors.len() + 8 * keys.sum::<usize>(),
        };
        names.enter(self.root, None)?;
        let mut seen = HashSet::with_capacity(names.found.len());
        match names.found.iter().find(|(name, _)| !seen.insert(name.as_str())) {
            Some((name, _)) => Err(Malformed::tensor(
                name,
                "two tensors have this name once their keys are joined",
            )),
            None => Ok(names.found),
        }
    }
}

struct Names<'a> {
    checkpoint: &'a Checkpoint,
    found: Vec<(String, usize)>,
    /// The containers on the way to the present one.
    open: HashSet<Id>,
    /// What is left of the bounds above.
    entries: usize,
    tensors: usize,
    bytes: usize,
}

impl Names<'_> {
    fn enter(&mut self, id: Id, name: Option<&str>) -> Result<(), Malformed> {
        let too_much = || Malformed::new("values are nested too much to be named");
        self.entries = self.entries.checked_sub(1).ok_or_else(too_much)?;
        // Counted for containers too: their names are made on the way.
        self.bytes = self.bytes.checked_sub(name.map_or(0, str::len)).ok_or_else(too_much)?;
        if self.open.len() > MAX_DEPTH {
            return Err(too_much());
        }
        let checkpoint = self.checkpoint;
        let Some(node) = checkpoint.nodes.get(&id) else { return Ok(()) };
        match node {
            Node::Tensor(tensor) | Node::Parameter { tensor, .. } => {
                self.tensors = self.tensors.checked_sub(1).ok_or_else(too_much)?;
                let nameless = || Malformed::new("file holds one tensor without a name");
                self.found.push((name.ok_or_else(nameless)?.to_owned(), *tensor));
                Ok(())
            }
            Node::Module(inner) | Node::Same(inner) => {
                self.within(id, |names| names.enter(*inner, name))
            }
            Node::Dict(items) | Node::OrderedDict(items, _) => self.within(id, |names| {
                for &(key, value) in items {
                    if let Some(key) = names.key(key)? {
                        names.enter(value, Some(&joined(name, &key)))?;
                    }
                }
                Ok(())
            }),
            Node::List(items) | Node::Tuple(items) => self.within(id, |names| {
                for (at, &item) in items.iter().enumerate() {
                    names.enter(item, Some(&joined(name, &at.to_string())))?;
                }
                Ok(())
            }),
            _ => Ok(()),
        }
    }

    fn within(
        &mut self,
        id: Id,
        enter: impl FnOnce(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        if !self.open.insert(id) {
            return Err(Malformed::new("a container holds itself"));
        }
        enter(self)?;
        self.open.remove(&id);
        Ok(())
    }

    /// The part of a name that a key makes, if it can make one.
    fn key(&mut self, id: Id) -> Result<Option<String>, Malformed> {
        match self.checkpoint.nodes.get(&id) {
            Some(Node::Str(text)) => {
                let too_much = || Malformed::new("values are nested too much to be named");
                self.bytes = self.bytes.checked_sub(text.len()).ok_or_else(too_much)?;
                Ok(Some(text.clone()))
            }
            Some(Node::Int(number)) => Ok(Some(number.to_string())),
            _ => Ok(None),
        }
    }
}

fn joined(name: Option<&str>, key: &str) -> String {
    match name {
        Some(name) => format!("{name}.{key}"),
        None => key.to_owned(),
    }
}

fn encoded(id: Id, node: &Node) -> Value {
    match node {
        Node::None => json!([id, "N"]),
        Node::Bool(value) => json!([id, "b", value]),
        Node::Int(value) => json!([id, "i", value]),
        Node::BigInt(bytes) => json!([id, "I", hex(bytes)]),
        Node::Float(value) => json!([id, "f", float(*value)]),
        Node::Complex(real, imaginary) => json!([id, "c", float(*real), float(*imaginary)]),
        Node::Str(text) => json!([id, "s", text]),
        Node::Bytes(bytes) => json!([id, "B", hex(bytes)]),
        Node::ByteArray(bytes) => json!([id, "A", hex(bytes)]),
        Node::List(items) => json!([id, "l", items]),
        Node::Tuple(items) => json!([id, "t", items]),
        Node::Dict(items) => json!([id, "d", items]),
        Node::OrderedDict(items, attributes) => json!([id, "o", items, attributes]),
        Node::Set(items) => json!([id, "S", items]),
        Node::FrozenSet(items) => json!([id, "F", items]),
        Node::Size(sizes) => json!([id, "z", sizes]),
        Node::Dtype(dtype) => json!([id, "D", dtype.name()]),
        Node::Device(kind, index) => json!([id, "V", kind, index]),
        Node::Tensor(tensor) => json!([id, "T", tensor]),
        Node::Parameter { data, requires_grad, .. } => json!([id, "P", data, requires_grad]),
        Node::Module(other) | Node::Same(other) => json!([id, "=", other]),
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from_digit(half.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// JSON has no words for what is no number.
fn float(value: f64) -> Value {
    if value.is_finite() {
        value.into()
    } else {
        value.to_string().to_lowercase().into()
    }
}
