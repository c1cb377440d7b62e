//! Which part of a checkpoint is wanted: some names, or slices of some tensors. Pure.

use crate::{
    format::{shown, Malformed},
    plan::{Place, Plan, Tensor},
    slice::{resolve, slice, Cut},
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What is wanted of a checkpoint; all of it by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// The names wanted; `None` for every one.
    pub names: Option<Vec<String>>,
    /// The slices wanted of some of them.
    pub slices: BTreeMap<String, Vec<Cut>>,
}

impl Selection {
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.names.is_none() && self.slices.is_empty()
    }
}

/// Plans a load of a part of what `plan` and `names` describe.
///
/// A tensor that is cut has a storage of its own. What is not cut shares storages as the file has
/// it.
///
/// # Errors
/// A name that is not there or stands twice, and a dimension that a tensor does not have.
pub fn select(
    plan: &Plan,
    names: Vec<(String, usize)>,
    selection: &Selection,
) -> Result<(Plan, Vec<(String, usize)>), Malformed> {
    let wanted = wanted(names, selection)?;
    let mut uses: HashMap<usize, usize> = HashMap::new();
    for (_, source) in &wanted {
        *uses.entry(plan.tensors[*source].storage).or_default() += 1;
    }
    let made = Plan { inflated_from: plan.inflated_from, ..Plan::default() };
    let mut part = Part { plan, made, storages: HashMap::new(), uses };
    let mut whole: HashMap<usize, usize> = HashMap::new();
    let mut selected = Vec::with_capacity(wanted.len());
    for (name, source) in wanted {
        let tensor = match selection.slices.get(&name) {
            Some(cuts) => part
                .cut(&plan.tensors[source], cuts)
                .map_err(|reason| Malformed::tensor(&name, reason))?,
            None => *whole.entry(source).or_insert_with(|| part.whole(&plan.tensors[source])),
        };
        selected.push((name, tensor));
    }
    part.made.put_ranges_in_order();
    Ok((part.made, selected))
}

/// The names wanted, in the order in which they were asked for.
fn wanted(
    names: Vec<(String, usize)>,
    selection: &Selection,
) -> Result<Vec<(String, usize)>, Malformed> {
    let missing = |name: &str| {
        Malformed::new(format!("the file has no tensor {}, which is asked for", shown(name)))
    };
    let wanted = match &selection.names {
        None => names,
        Some(asked) => {
            let there: HashMap<String, usize> = names.into_iter().collect();
            let mut seen = HashSet::new();
            let mut wanted = Vec::with_capacity(asked.len());
            for name in asked {
                let source = *there.get(name).ok_or_else(|| missing(name))?;
                if seen.insert(name) {
                    wanted.push((name.clone(), source));
                }
            }
            wanted
        }
    };
    let there: HashSet<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    match selection.slices.keys().find(|name| !there.contains(name.as_str())) {
        Some(name) if selection.names.is_some() => {
            Err(Malformed::new(format!("slices has {}, which is not among names", shown(name))))
        }
        Some(name) => Err(missing(name)),
        None => Ok(wanted),
    }
}

/// A plan in the making.
struct Part<'a> {
    plan: &'a Plan,
    made: Plan,
    /// Which storage of the part a storage of the whole has become.
    storages: HashMap<usize, usize>,
    /// How many of the tensors that are wanted lie in a storage of the whole.
    uses: HashMap<usize, usize>,
}

impl Part<'_> {
    fn whole(&mut self, tensor: &Tensor) -> usize {
        let storage = self.storage(tensor.storage, tensor.item_size);
        self.push(Tensor { storage, ..tensor.clone() })
    }

    fn cut(&mut self, tensor: &Tensor, cuts: &[Cut]) -> Result<usize, String> {
        let item = tensor.item_size;
        if !tensor.is_row_major() {
            // Its bytes do not lie together anyway: a view of the whole, to be copied.
            let mut view = Tensor { settle: true, ..tensor.clone() };
            let strides = tensor.strides.as_deref().unwrap_or_default();
            let (mut shape, mut kept) = (Vec::new(), Vec::new());
            for (axis, &stride) in resolve(&tensor.shape, cuts)?.iter().zip(strides) {
                // Of no element is asked where it lies.
                view.offset = view.offset.wrapping_add(axis.start.wrapping_mul(stride));
                if !axis.is_dropped {
                    shape.push(axis.count);
                    kept.push(stride.wrapping_mul(axis.step));
                }
            }
            (view.shape, view.strides) = (shape, Some(kept));
            view.storage = self.storage(tensor.storage, item);
            return Ok(self.push(view));
        }
        let (from, swapped) = self.plan.source(self.plan.storages[tensor.storage]);
        // The tensor lies in its storage, which lies in the file: a checked file says so.
        let start = from.start.wrapping_add((tensor.offset as u64).wrapping_mul(item));
        let (runs, shape) = slice(start, item, &tensor.shape, cuts)?;
        // Where others lie in the same bytes they stay apart only if they are copied.
        let is_alone = self.uses.get(&tensor.storage) == Some(&1);
        let storage = self.made.place(runs, if is_alone { item } else { u64::MAX }, swapped);
        let strides = None;
        Ok(self.push(Tensor { storage, offset: 0, shape, strides, ..tensor.clone() }))
    }

    fn push(&mut self, tensor: Tensor) -> usize {
        self.made.tensors.push(tensor);
        self.made.tensors.len() - 1
    }

    /// The storage as a whole, once.
    fn storage(&mut self, index: usize, align: u64) -> usize {
        if let Some(&storage) = self.storages.get(&index) {
            return storage;
        }
        let storage = self.plan.storages[index];
        let (from, swapped) = self.plan.source(storage);
        // What was copied before must be copied again, whatever this tensor's own alignment is.
        let align = if matches!(storage.place, Place::Copied(_)) { u64::MAX } else { align };
        let made = self.made.place(from, align, swapped);
        self.storages.insert(index, made);
        made
    }
}
