//! The safetensors header: eight bytes of length, JSON, then the bytes of the tensors.
//!
//! ```text
//! 0        8                8+N                                file length
//! | N, u64 | JSON, N bytes  | a ......... | b .... | c ......... |
//!                           0             a.end    b.end         c.end = last
//! ```
//!
//! [`Header::json_len`] and [`Header::parse`] make the checks of the reference implementation
//! (safetensors 0.8) in its order, and one more: a name that stands twice is refused, where the
//! reference silently keeps the last. Whoever holds a `Header` may rely on this: the tensors lie
//! in offset order, without hole or overlap, from the end of the header to the end of the file,
//! and each takes exactly the bytes its shape and dtype say.

use super::{
    dtype::Dtype,
    json::{self, RawTensor},
    Malformed, Shape,
};
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

/// Bytes of the length that opens a file.
pub const LENGTH_BYTES: u64 = 8;

/// The longest JSON the format allows, in bytes: the reference's guard against a length that
/// asks a reader for an absurd allocation.
pub const MAX_JSON_LEN: u64 = 100_000_000;

/// One tensor, as a checked header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    dtype: Dtype,
    shape: Vec<u64>,
    begin: u64,
    end: u64,
}

impl TensorInfo {
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes in elements as the header counts them; torch packs two `F4` into one.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.shape
    }

    /// Where the tensor's bytes lie, counted from the end of the header.
    #[must_use]
    pub fn bytes(&self) -> Range<u64> {
        self.begin..self.end
    }
}

/// What a file holds, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    tensors: Vec<TensorInfo>,
    metadata: BTreeMap<String, String>,
    data_start: u64,
}

impl Header {
    /// Reads the length that opens a file: checks 1 to 3.
    ///
    /// `prefix` holds the first bytes of a file of `file_len` bytes, at least eight of them if
    /// the file has so many. Returns the length of the JSON in bytes.
    ///
    /// # Errors
    /// A file or prefix too short for the length, a length over [`MAX_JSON_LEN`], or one that
    /// reaches past the end of the file.
    pub fn json_len(prefix: &[u8], file_len: u64) -> Result<u64, Malformed> {
        let too_short =
            || Malformed::new(format!("file of {file_len} bytes is too short for a header"));
        if file_len < LENGTH_BYTES {
            return Err(too_short());
        }
        let length: [u8; 8] =
            prefix.get(..8).and_then(|bytes| bytes.try_into().ok()).ok_or_else(too_short)?;
        let json_len = u64::from_le_bytes(length);
        if json_len > MAX_JSON_LEN {
            return Err(Malformed::new(format!(
                "header length {json_len} is over the limit of {MAX_JSON_LEN}"
            )));
        }
        if LENGTH_BYTES + json_len > file_len {
            return Err(Malformed::new(format!(
                "header of {json_len} bytes does not fit in a file of {file_len} bytes"
            )));
        }
        Ok(json_len)
    }

    /// Reads the JSON of a file of `file_len` bytes: checks 4 to 10.
    ///
    /// # Errors
    /// The first check that fails, with the tensor it fails on.
    pub fn parse(json: &[u8], file_len: u64) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(json)
            .map_err(|error| Malformed::new(format!("header is not UTF-8: {error}")))?;
        let raw = json::parse(text)?;
        refuse_duplicates(&raw.tensors)?;
        let mut tensors: Vec<TensorInfo> = raw.tensors.into_iter().map(TensorInfo::from).collect();
        tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));

        let mut last = 0;
        for tensor in &tensors {
            tensor.check(last).map_err(|reason| Malformed::tensor(&tensor.name, reason))?;
            last = tensor.end;
        }
        let data_start = LENGTH_BYTES + json.len() as u64;
        if data_start.checked_add(last) != Some(file_len) {
            let end = u128::from(data_start) + u128::from(last);
            let why = if end > file_len.into() { ": it is cut short" } else { "" };
            return Err(Malformed::new(format!(
                "tensors end at byte {end} but the file at byte {file_len}{why}"
            )));
        }
        Ok(Self { tensors, metadata: raw.metadata, data_start })
    }

    /// The tensors in the order of their bytes.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The free-form strings under `__metadata__`, as they stand in the file.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The byte of the file where the tensors begin.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.data_start
    }

    /// Gives the tensors away, to keep their names and shapes without a copy.
    pub(crate) fn into_tensors(self) -> Vec<TensorInfo> {
        self.tensors
    }
}

impl TensorInfo {
    pub(crate) fn into_name(self) -> String {
        self.name
    }

    /// Checks 6 to 9, for a tensor whose predecessor ends at `previous_end`.
    fn check(&self, previous_end: u64) -> Result<(), String> {
        let Range { start, end } = self.bytes();
        if start != previous_end || end < start {
            return Err(format!("bytes {start}..{end} do not follow on from {previous_end}"));
        }
        let (shape, dtype) = (Shape(&self.shape), self.dtype.name());
        let bits = self
            .shape
            .iter()
            .try_fold(1u64, |product, &size| product.checked_mul(size))
            .and_then(|elements| elements.checked_mul(self.dtype.bits()))
            .ok_or_else(|| format!("shape {shape} of {dtype} overflows"))?;
        if bits % 8 != 0 {
            return Err(format!("{bits} bits are not whole bytes"));
        }
        let size = bits / 8;
        if end - start != size {
            return Err(format!(
                "bytes {start}..{end} do not hold shape {shape} of {dtype}, which takes {size}"
            ));
        }
        Ok(())
    }
}

impl From<(String, RawTensor)> for TensorInfo {
    fn from((name, raw): (String, RawTensor)) -> Self {
        let (begin, end) = raw.data_offsets;
        Self { name, dtype: raw.dtype, shape: raw.shape, begin, end }
    }
}

fn refuse_duplicates(tensors: &[(String, RawTensor)]) -> Result<(), Malformed> {
    let mut seen = HashSet::with_capacity(tensors.len());
    match tensors.iter().find(|(name, _)| !seen.insert(name.as_str())) {
        Some((name, _)) => Err(Malformed::tensor(name, "name stands twice in the header")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str, data_len: u64) -> Result<Header, Malformed> {
        Header::parse(json.as_bytes(), LENGTH_BYTES + json.len() as u64 + data_len)
    }

    #[test]
    fn tensors_come_in_the_order_of_their_bytes() {
        let header = parse(
            r#"{"b":{"dtype":"U8","shape":[3],"data_offsets":[4,7]},
                "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},
                "__metadata__":{"k":"v"}} "#,
            7,
        )
        .unwrap();
        let names: Vec<_> = header.tensors().iter().map(TensorInfo::name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(header.tensors()[1].bytes(), 4..7);
        assert_eq!(header.metadata()["k"], "v");
    }

    #[test]
    fn a_refusal_names_the_tensor() {
        let refused = |json: &str, data_len| parse(json, data_len).unwrap_err().to_string();
        let hole = refused(r#"{"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#, 2);
        assert_eq!(hole, r#"tensor "w": bytes 1..2 do not follow on from 0"#);
        let unknown = refused(r#"{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,1]}}"#, 1);
        assert!(unknown.starts_with(r#"tensor "w": header is not valid: dtype "F99" is unknown"#));
        let twice = refused(
            r#"{"w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},
                "w":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}"#,
            0,
        );
        assert_eq!(twice, r#"tensor "w": name stands twice in the header"#);
    }

    #[test]
    fn lengths_at_the_edge_of_u64_do_not_wrap() {
        for length in [u64::MAX, u64::MAX - 7, MAX_JSON_LEN + 1] {
            let refused = Header::json_len(&length.to_le_bytes(), u64::MAX).unwrap_err();
            assert!(refused.reason.contains("over the limit"), "{refused}");
        }
        let end = u64::MAX;
        let json = format!(r#"{{"w":{{"dtype":"U8","shape":[{end}],"data_offsets":[0,{end}]}}}}"#);
        assert!(parse(&json, 0).is_err());
    }
}
