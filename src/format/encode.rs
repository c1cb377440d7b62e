//! Writes a safetensors header, byte for byte as the reference implementation (0.8) writes it.
//!
//! Tensors are sorted by dtype, the last of the format's order first, then by name; so each
//! begins at a multiple of its own element size. The JSON has no spaces, and the header is
//! padded with spaces to a multiple of eight bytes. Metadata keys are sorted, where the
//! reference takes whatever order its hash map has.

use super::{
    dtype::Dtype,
    json::METADATA_KEY,
    safetensors::{LENGTH_BYTES, MAX_JSON_LEN},
    Malformed,
};
use std::{cmp::Reverse, collections::BTreeMap, io::Write};

/// What a header is padded to, in bytes, so that every tensor is aligned for its elements.
const ALIGNMENT: usize = 8;

/// A tensor to be written: its shape counts elements as the header does.
#[derive(Debug, Clone)]
pub struct Entry<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: Vec<u64>,
}

/// A header, and where it puts the tensors.
#[derive(Debug)]
pub struct Encoded {
    /// The header with its length in front.
    pub bytes: Vec<u8>,
    /// For each tensor in the order of the file: its index among the entries given, and the
    /// first and last-plus-one byte, counted from the end of the header.
    pub layout: Vec<(usize, u64, u64)>,
}

/// Encodes a header for `entries`, with `metadata` unless it is empty.
///
/// # Errors
/// A tensor named `__metadata__`, a size that overflows or is not whole bytes, or a header over
/// [`MAX_JSON_LEN`].
pub fn encode(
    entries: &[Entry<'_>],
    metadata: &BTreeMap<String, String>,
) -> Result<Encoded, Malformed> {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|&index| (Reverse(entries[index].dtype), entries[index].name));

    let mut bytes = vec![0; LENGTH_BYTES as usize];
    let mut layout = Vec::with_capacity(entries.len());
    bytes.push(b'{');
    if !metadata.is_empty() {
        json(&mut bytes, METADATA_KEY)?;
        bytes.push(b':');
        json(&mut bytes, metadata)?;
    }
    let mut end = 0u64;
    for index in order {
        let entry = &entries[index];
        if entry.name == METADATA_KEY {
            return Err(Malformed::tensor(entry.name, "this name is reserved for metadata"));
        }
        let begin = end;
        end = byte_len(entry)
            .and_then(|size| begin.checked_add(size))
            .ok_or_else(|| Malformed::tensor(entry.name, "size overflows"))?;
        if bytes.len() > LENGTH_BYTES as usize + 1 {
            bytes.push(b',');
        }
        json(&mut bytes, entry.name)?;
        write!(bytes, r#":{{"dtype":"{}","shape":"#, entry.dtype.name()).map_err(Malformed::new)?;
        json(&mut bytes, &entry.shape)?;
        write!(bytes, r#","data_offsets":[{begin},{end}]}}"#).map_err(Malformed::new)?;
        layout.push((index, begin, end));
    }
    bytes.push(b'}');
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), b' ');

    let json_len = bytes.len() as u64 - LENGTH_BYTES;
    if json_len > MAX_JSON_LEN {
        return Err(Malformed::new(format!(
            "header of {json_len} bytes is over the limit of {MAX_JSON_LEN}"
        )));
    }
    bytes[..LENGTH_BYTES as usize].copy_from_slice(&json_len.to_le_bytes());
    Ok(Encoded { bytes, layout })
}

fn byte_len(entry: &Entry<'_>) -> Option<u64> {
    let elements = entry.shape.iter().try_fold(1u64, |product, &size| product.checked_mul(size))?;
    let bits = elements.checked_mul(entry.dtype.bits())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

fn json(bytes: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) -> Result<(), Malformed> {
    serde_json::to_writer(bytes, value).map_err(Malformed::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_a_padded_pair_of_braces() {
        let encoded = encode(&[], &BTreeMap::new()).unwrap();
        assert_eq!(encoded.bytes, b"\x08\0\0\0\0\0\0\0{}      ");
    }

    #[test]
    fn metadata_is_no_tensor_name() {
        let entry = Entry { name: METADATA_KEY, dtype: Dtype::U8, shape: vec![] };
        assert!(encode(&[entry], &BTreeMap::new()).is_err());
    }

    #[test]
    fn a_header_over_the_limit_is_refused() {
        let metadata = BTreeMap::from([("k".to_owned(), "v".repeat(MAX_JSON_LEN as usize))]);
        let refused = encode(&[], &metadata).unwrap_err();
        assert!(refused.reason.contains("over the limit"), "{refused}");
    }
}
