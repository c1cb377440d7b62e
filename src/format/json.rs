//! The JSON of a safetensors header, typed exactly as the reference implementation types it.
//!
//! The reference (safetensors 0.8) derives its reader with serde: a map whose `__metadata__` is
//! a map of strings (or null) and whose other entries are `{dtype, shape, data_offsets}`. The
//! derived reader accepts more than the format's prose says: a tensor as an array of its three
//! fields, a dtype as `{"F32": null}`, unknown fields. The readers here are written out by
//! hand because the derived one buffers every value, which costs most of the time of a header
//! with a million tensors; they accept and refuse the same texts (`tests/header.rs` compares).

use super::{dtype::Dtype, Malformed};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// The key whose value is free-form metadata, and so no tensor's name.
pub const METADATA_KEY: &str = "__metadata__";

/// A header as its text says it: nothing but the types is checked.
#[derive(Debug)]
pub struct RawHeader {
    pub metadata: BTreeMap<String, String>,
    pub tensors: Vec<(String, RawTensor)>,
}

/// One tensor's entry; offsets count bytes from the end of the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawTensor {
    pub dtype: Dtype,
    pub shape: Vec<u64>,
    pub data_offsets: (u64, u64),
}

/// Reads the text of a header.
///
/// # Errors
/// What serde_json says of text that is not JSON or not of the types above, with the name of
/// the tensor in whose entry it says so.
pub fn parse(text: &str) -> Result<RawHeader, Malformed> {
    let mut failed_in = None;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer
        .deserialize_map(HeaderVisitor { failed_in: &mut failed_in })
        .and_then(|header| deserializer.end().map(|()| header))
        .map_err(|error| Malformed {
            tensor: failed_in,
            reason: format!("header is not valid: {error}"),
        })
}

struct HeaderVisitor<'a> {
    failed_in: &'a mut Option<String>,
}

impl<'de> Visitor<'de> for HeaderVisitor<'_> {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map from names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata: Option<Option<BTreeMap<String, String>>> = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA_KEY {
                if metadata.replace(map.next_value()?).is_some() {
                    return Err(de::Error::duplicate_field(METADATA_KEY));
                }
                continue;
            }
            match map.next_value() {
                Ok(tensor) => tensors.push((name, tensor)),
                Err(error) => {
                    *self.failed_in = Some(name);
                    return Err(error);
                }
            }
        }
        Ok(RawHeader { metadata: metadata.flatten().unwrap_or_default(), tensors })
    }
}

const FIELDS: [&str; 3] = ["dtype", "shape", "data_offsets"];

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("TensorInfo", &FIELDS, TensorVisitor)
    }
}

struct TensorVisitor;

impl<'de> Visitor<'de> for TensorVisitor {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor's dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        fn once<T, E: de::Error>(
            slot: &mut Option<T>,
            value: T,
            field: &'static str,
        ) -> Result<(), E> {
            match slot.replace(value) {
                Some(_) => Err(E::duplicate_field(field)),
                None => Ok(()),
            }
        }
        let (mut dtype, mut shape, mut data_offsets) = (None, None, None);
        while let Some(Name(field)) = map.next_key()? {
            match &*field {
                "dtype" => once(&mut dtype, map.next_value()?, FIELDS[0])?,
                "shape" => once(&mut shape, map.next_value()?, FIELDS[1])?,
                "data_offsets" => once(&mut data_offsets, map.next_value()?, FIELDS[2])?,
                // Read, not skipped: the reference refuses what it cannot read even here.
                _ => {
                    map.next_value::<Checked>()?;
                }
            }
        }
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| de::Error::missing_field(FIELDS[0]))?,
            shape: shape.ok_or_else(|| de::Error::missing_field(FIELDS[1]))?,
            data_offsets: data_offsets.ok_or_else(|| de::Error::missing_field(FIELDS[2]))?,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawTensor, A::Error> {
        let missing = |index| de::Error::invalid_length(index, &self);
        Ok(RawTensor {
            dtype: seq.next_element()?.ok_or_else(|| missing(0))?,
            shape: seq.next_element()?.ok_or_else(|| missing(1))?,
            data_offsets: seq.next_element()?.ok_or_else(|| missing(2))?,
        })
    }
}

/// Any value, of which nothing is kept: a field that nobody knows may hold a tree of a hundred
/// megabytes of text, which would take many times that as values. What cannot be read as a value,
/// such as a number out of range, is refused all the same.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CheckedVisitor)
    }
}

struct CheckedVisitor;

impl<'de> Visitor<'de> for CheckedVisitor {
    type Value = Checked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any valid JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_str<E>(self, _: &str) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_unit<E>(self) -> Result<Checked, E> {
        Ok(Checked)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Checked, A::Error> {
        while seq.next_element::<Checked>()?.is_some() {}
        Ok(Checked)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Checked, A::Error> {
        while map.next_entry::<Name, Checked>()?.is_some() {}
        Ok(Checked)
    }
}

/// A short string that borrows from the text unless it holds escapes.
struct Name<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Name<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl<'de> Visitor<'de> for NameVisitor {
            type Value = Name<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Name<'de>, E> {
                Ok(Name(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}

impl<'de> Deserialize<'de> for Dtype {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(DtypeVisitor)
    }
}

struct DtypeVisitor;

impl<'de> Visitor<'de> for DtypeVisitor {
    type Value = Dtype;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a dtype")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Dtype, E> {
        Dtype::from_name(name).ok_or_else(|| E::custom(format_args!("dtype {name:?} is unknown")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Dtype, A::Error> {
        let Some((Name(name), ())) = map.next_entry()? else {
            return Err(de::Error::invalid_length(0, &self));
        };
        if map.next_key::<Name>()?.is_some() {
            return Err(de::Error::invalid_length(2, &self));
        }
        self.visit_str(&name)
    }
}
