//! Names that share a tensor, written into `__metadata__`.
//!
//! A safetensors file holds every tensor once, so tied weights are stored under one name and the
//! others stand in `__metadata__` as `removed name → kept name`, the convention of safetensors'
//! own `save_model`. Metadata is free-form, so an entry may look like an alias and be none. Files
//! that this library writes say which are: the entry [`MARK`] lists them, and nothing else is taken
//! for one. In a file without that entry every entry is an alias whose key is no tensor of the file
//! and not [`FORMAT`], and whose value is a tensor of the file.

use super::{
    json::METADATA_KEY,
    safetensors::{Header, TensorInfo},
    Malformed,
};
use std::collections::{BTreeMap, HashMap, HashSet};

/// The metadata key that lists, as a JSON array, which other keys are aliases.
pub const MARK: &str = "veturboio.aliases";

/// The metadata key that says for which framework a file was written. transformers before version 5
/// refuses a file that has metadata but not this key.
pub const FORMAT: &str = "format";

/// What [`FORMAT`] says unless the user says something else.
const PYTORCH: &str = "pt";

/// A name that stands for another name's tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub name: String,
    pub kept: String,
}

/// Adds `aliases`, and the [`FORMAT`] that metadata must have, to the metadata of a file to be
/// written, whose tensors are `stored`. Metadata without entries stays so.
///
/// # Errors
/// Metadata that already uses [`MARK`], or an alias's name for something else: writing the
/// alias would lose the user's entry, leaving it out would lose the tensor.
pub fn record<'a>(
    metadata: &mut BTreeMap<String, String>,
    aliases: &[Alias],
    stored: impl Iterator<Item = &'a str>,
) -> Result<(), Malformed> {
    if metadata.contains_key(MARK) {
        return Err(Malformed::new(format!("metadata key {MARK:?} is reserved")));
    }
    // Free-form entries that would be taken for aliases are not if there is a mark.
    let is_marked = !aliases.is_empty() || !inferred(metadata, stored).is_empty();
    for Alias { name, kept } in aliases {
        if [MARK, METADATA_KEY, FORMAT].contains(&name.as_str()) {
            return Err(Malformed::tensor(name, "this name is reserved for metadata"));
        }
        match metadata.insert(name.clone(), kept.clone()) {
            Some(other) if other != *kept => {
                let reason = format!("metadata already uses this name for {other:?}");
                return Err(Malformed::tensor(name, reason));
            }
            _ => {}
        }
    }
    if is_marked {
        let names: Vec<&str> = aliases.iter().map(|alias| alias.name.as_str()).collect();
        let mark = serde_json::to_string(&names).map_err(Malformed::new)?;
        metadata.insert(MARK.to_owned(), mark);
    }
    if !metadata.is_empty() {
        metadata.entry(FORMAT.to_owned()).or_insert_with(|| PYTORCH.to_owned());
    }
    Ok(())
}

/// The aliases a file holds: names that are no tensor, each with the index of the tensor that it
/// stands for. An alias of an alias is none.
#[must_use]
pub fn aliases(header: &Header) -> Vec<(String, usize)> {
    let metadata = header.metadata();
    let stored = header.tensors().iter().map(TensorInfo::name);
    match metadata.get(MARK) {
        Some(mark) => {
            let names = listed(mark);
            let entries = names.iter().filter_map(|name| metadata.get_key_value(name));
            resolved(entries.collect(), stored)
        }
        None => inferred(metadata, stored),
    }
}

/// The metadata of a file without what the aliases of [`record`] added to it.
#[must_use]
pub fn user_metadata(header: &Header) -> BTreeMap<String, String> {
    let mut metadata = header.metadata().clone();
    if metadata.contains_key(MARK) {
        for (name, _) in aliases(header) {
            metadata.remove(&name);
        }
        metadata.remove(MARK);
    }
    metadata
}

/// The distinct names that a [`MARK`] lists; none where it is not a list of strings.
fn listed(mark: &str) -> Vec<String> {
    let mut names: Vec<String> = serde_json::from_str(mark).unwrap_or_default();
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The aliases of metadata that has no mark.
fn inferred<'a>(
    metadata: &BTreeMap<String, String>,
    stored: impl Iterator<Item = &'a str>,
) -> Vec<(String, usize)> {
    let entries = metadata.iter().filter(|(name, _)| *name != FORMAT && *name != METADATA_KEY);
    resolved(entries.collect(), stored)
}

/// Of entries `alias → kept`: those that are no tensor and whose kept name is one, with its position.
fn resolved<'a>(
    mut entries: Vec<(&String, &String)>,
    stored: impl Iterator<Item = &'a str>,
) -> Vec<(String, usize)> {
    if entries.is_empty() {
        return Vec::new();
    }
    // Metadata has few entries as a rule, and a file many tensors.
    let asked: HashSet<&str> =
        entries.iter().flat_map(|(name, kept)| [name.as_str(), kept.as_str()]).collect();
    let found: HashMap<&str, usize> =
        stored.zip(0..).filter(|(name, _)| asked.contains(name)).collect();
    entries.retain(|(name, _)| !found.contains_key(name.as_str()));
    entries
        .into_iter()
        .filter_map(|(name, kept)| Some((name.clone(), *found.get(kept.as_str())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{
        dtype::Dtype,
        encode::{encode, Entry},
        safetensors::LENGTH_BYTES,
    };

    type Metadata = BTreeMap<String, String>;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    fn header(names: &[&str], metadata: &Metadata) -> Header {
        let entries: Vec<_> =
            names.iter().map(|name| Entry { name, dtype: Dtype::U8, shape: vec![0] }).collect();
        let encoded = encode(&entries, metadata).unwrap();
        let json = &encoded.bytes[LENGTH_BYTES as usize..];
        Header::parse(json, encoded.bytes.len() as u64).unwrap()
    }

    fn alias(name: &str, kept: &str) -> Alias {
        Alias { name: name.to_owned(), kept: kept.to_owned() }
    }

    fn recorded(pairs: &[(&str, &str)], aliases: &[Alias], stored: &[&str]) -> Metadata {
        let mut metadata = metadata(pairs);
        record(&mut metadata, aliases, stored.iter().copied()).unwrap();
        metadata
    }

    #[test]
    fn what_is_recorded_is_found_again() {
        let metadata = recorded(&[("note", "pt")], &[alias("head", "pt")], &["embed", "pt"]);
        let header = header(&["embed", "pt"], &metadata);
        assert_eq!(aliases(&header), [("head".to_owned(), 1)]);
        assert_eq!(user_metadata(&header), self::metadata(&[("format", "pt"), ("note", "pt")]));
    }

    #[test]
    fn metadata_has_a_format() {
        assert_eq!(recorded(&[], &[], &["w"]), metadata(&[]));
        assert_eq!(recorded(&[("k", "v")], &[], &["w"])[FORMAT], "pt");
        assert_eq!(recorded(&[], &[alias("head", "w")], &["w"])[FORMAT], "pt");
        assert_eq!(recorded(&[(FORMAT, "np")], &[alias("head", "w")], &["w"])[FORMAT], "np");
    }

    #[test]
    fn our_free_form_metadata_makes_no_alias() {
        for pairs in [&[("format", "pt")][..], &[("source", "pt"), ("", "pt"), ("x", "absent")]] {
            let header = header(&["pt"], &recorded(pairs, &[], &["pt"]));
            assert_eq!(aliases(&header), [], "{pairs:?}");
        }
        assert!(!recorded(&[("k", "v"), ("w", "w")], &[], &["w"]).contains_key(MARK));
    }

    #[test]
    fn entries_of_other_writers_are_aliases() {
        let pairs =
            [("format", "w"), ("gone", "w"), ("v", "w"), ("chain", "gone"), ("__metadata__", "w")];
        let header = header(&["v", "w"], &metadata(&pairs));
        assert_eq!(aliases(&header), [("gone".to_owned(), 1)]);
        assert_eq!(user_metadata(&header), metadata(&pairs));
    }

    #[test]
    fn a_mark_that_lies_makes_no_alias() {
        for mark in ["[\"w\"]", "[\"absent\"]", "[\"gone\"]", "{}", "", "[1]"] {
            let metadata = metadata(&[(MARK, mark), ("w", "w"), ("gone", "nowhere"), ("a", "w")]);
            assert_eq!(aliases(&header(&["w"], &metadata)), [], "{mark}");
        }
    }

    #[test]
    fn the_users_entries_are_not_overwritten() {
        let none = || std::iter::empty();
        let mut taken = metadata(&[("head", "mine")]);
        let refused = record(&mut taken, &[alias("head", "embed")], none()).unwrap_err();
        assert_eq!(refused.tensor.as_deref(), Some("head"));
        assert!(record(&mut metadata(&[(MARK, "[]")]), &[], none()).is_err());
        for reserved in [MARK, METADATA_KEY, FORMAT] {
            let refused = record(&mut BTreeMap::new(), &[alias(reserved, "embed")], none());
            assert!(refused.is_err());
        }
    }
}
