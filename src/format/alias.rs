//! Names that share a tensor, written into `__metadata__`.
//!
//! A safetensors file holds every tensor once, so tied weights are stored under one name and the
//! others stand in `__metadata__` as `removed name → kept name`, the convention of safetensors'
//! own `save_model`. Metadata is free-form, and `{"format": "pt"}` beside a tensor `pt` is no
//! alias: only the names that the entry [`MARK`] lists are taken for aliases, and only
//! this library writes that entry.

use super::{
    json::METADATA_KEY,
    safetensors::{Header, TensorInfo},
    Malformed,
};
use std::collections::{BTreeMap, HashSet};

/// The metadata key that lists, as a JSON array, which other keys are aliases.
pub const MARK: &str = "veturboio.aliases";

/// A name that stands for another name's tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    pub name: String,
    pub kept: String,
}

/// Adds `aliases` to the metadata of a file to be written.
///
/// # Errors
/// Metadata that already uses [`MARK`], or an alias's name for something else: writing the
/// alias would lose the user's entry, leaving it out would lose the tensor.
pub fn record(metadata: &mut BTreeMap<String, String>, aliases: &[Alias]) -> Result<(), Malformed> {
    if metadata.contains_key(MARK) {
        return Err(Malformed::new(format!("metadata key {MARK:?} is reserved")));
    }
    if aliases.is_empty() {
        return Ok(());
    }
    for Alias { name, kept } in aliases {
        if name == MARK || name == METADATA_KEY {
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
    let names: Vec<&str> = aliases.iter().map(|alias| alias.name.as_str()).collect();
    let mark = serde_json::to_string(&names).map_err(Malformed::new)?;
    metadata.insert(MARK.to_owned(), mark);
    Ok(())
}

/// The aliases a file holds: names that [`MARK`] lists, that are no tensor, and whose kept
/// name is one.
#[must_use]
pub fn aliases(header: &Header) -> Vec<Alias> {
    let names = marked(header);
    if names.is_empty() {
        return Vec::new();
    }
    let tensors: HashSet<&str> = header.tensors().iter().map(TensorInfo::name).collect();
    names
        .into_iter()
        .filter(|name| !tensors.contains(name.as_str()))
        .filter_map(|name| {
            let kept = header.metadata().get(&name)?.clone();
            tensors.contains(kept.as_str()).then_some(Alias { name, kept })
        })
        .collect()
}

/// The metadata of a file without what [`record`] added to it.
#[must_use]
pub fn user_metadata(header: &Header) -> BTreeMap<String, String> {
    let mut metadata = header.metadata().clone();
    for alias in aliases(header) {
        metadata.remove(&alias.name);
    }
    metadata.remove(MARK);
    metadata
}

/// The distinct names that [`MARK`] lists; none where it is not a list of strings.
fn marked(header: &Header) -> Vec<String> {
    let mark = header.metadata().get(MARK);
    let mut names: Vec<String> =
        mark.and_then(|list| serde_json::from_str(list).ok()).unwrap_or_default();
    let mut seen = HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{
        dtype::Dtype,
        encode::{encode, Entry},
        safetensors::LENGTH_BYTES,
    };

    fn header(names: &[&str], metadata: &BTreeMap<String, String>) -> Header {
        let entries: Vec<_> =
            names.iter().map(|name| Entry { name, dtype: Dtype::U8, shape: vec![0] }).collect();
        let encoded = encode(&entries, metadata).unwrap();
        let json = &encoded.bytes[LENGTH_BYTES as usize..];
        Header::parse(json, encoded.bytes.len() as u64).unwrap()
    }

    fn alias(name: &str, kept: &str) -> Alias {
        Alias { name: name.to_owned(), kept: kept.to_owned() }
    }

    #[test]
    fn what_is_recorded_is_found_again() {
        let mut metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let tied = [alias("head", "embed")];
        record(&mut metadata, &tied).unwrap();
        let header = header(&["embed", "pt"], &metadata);
        assert_eq!(aliases(&header), tied);
        assert_eq!(user_metadata(&header), [("format".to_owned(), "pt".to_owned())].into());
    }

    #[test]
    fn free_form_metadata_makes_no_alias() {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        assert_eq!(aliases(&header(&["pt"], &metadata)), []);
    }

    #[test]
    fn a_mark_that_lies_makes_no_alias() {
        for mark in ["[\"w\"]", "[\"absent\"]", "[\"gone\"]", "{}", "", "[1]"] {
            let metadata = [
                (MARK.to_owned(), mark.to_owned()),
                ("w".to_owned(), "w".to_owned()),
                ("gone".to_owned(), "nowhere".to_owned()),
            ];
            assert_eq!(aliases(&header(&["w"], &metadata.into())), [], "{mark}");
        }
    }

    #[test]
    fn the_users_entries_are_not_overwritten() {
        let mut metadata = BTreeMap::from([("head".to_owned(), "mine".to_owned())]);
        let refused = record(&mut metadata, &[alias("head", "embed")]).unwrap_err();
        assert_eq!(refused.tensor.as_deref(), Some("head"));
        let mut metadata = BTreeMap::from([(MARK.to_owned(), "[]".to_owned())]);
        assert!(record(&mut metadata, &[]).is_err());
        for reserved in [MARK, METADATA_KEY] {
            assert!(record(&mut BTreeMap::new(), &[alias(reserved, "embed")]).is_err());
        }
    }
}
