//! The calls that make values without a storage.

use super::{malformed, text, unknown, Reader};
use crate::format::{
    pytorch::Meaning,
    value::{Ref, Value},
    Refusal,
};

impl<'a> Reader<'a> {
    /// The calls that make values without a storage.
    pub(super) fn plain(
        &mut self,
        module: &str,
        name: &str,
        args: &'a [Ref],
    ) -> Result<Meaning, Refusal> {
        self.charge(args.len())?;
        let values: Vec<Value<'a>> = args.iter().map(|&arg| self.pickle.value(arg)).collect();
        for value in &values {
            self.charge(match value {
                Value::Tuple(items) => items.len(),
                Value::Str(bytes) | Value::Bytes(bytes) => bytes.len(),
                _ => 1,
            })?;
        }
        Ok(match (name, &values[..]) {
            ("Size", [Value::Tuple(sizes)]) => Meaning::Size(self.ints(sizes)?),
            ("device", [Value::Str(kind)]) => Meaning::Device(text(kind), None),
            ("device", [Value::Str(kind), Value::Int(index)]) => {
                Meaning::Device(text(kind), Some(*index))
            }
            ("encode", [Value::Str(_), Value::Str(_)]) => match self.encoded(args) {
                Some(bytes) => Meaning::Bytes(bytes),
                None => return unknown("_codecs.encode of other letters than bytes"),
            },
            ("complex", [Value::Float(real), Value::Float(imaginary)]) => {
                Meaning::Complex(*real, *imaginary)
            }
            ("bytes", []) => Meaning::Bytes(vec![]),
            ("bytearray", []) => Meaning::ByteArray(vec![]),
            ("bytearray", [Value::Bytes(bytes)]) => Meaning::ByteArray(bytes.to_vec()),
            ("bytearray", [Value::Call(call)]) => {
                let args = self.tuple(call.args)?;
                let is_encoded = matches!(self.class(call.callable), Some(("_codecs", "encode")));
                let len = args.first().map(|&arg| self.pickle.value(arg));
                self.charge(len.map_or(1, |value| match value {
                    Value::Str(bytes) => bytes.len(),
                    _ => 1,
                }))?;
                match is_encoded.then(|| self.encoded(args)).flatten() {
                    Some(bytes) => Meaning::ByteArray(bytes),
                    None => return unknown("a bytearray of what is no bytes"),
                }
            }
            (
                "build_intlist" | "build_doublelist" | "build_boollist" | "build_tensorlist",
                [Value::List(_)],
            )
            | ("restore_type_tag", [_, Value::Str(_)]) => {
                if let Value::Call(inner) = &values[0] {
                    let class = self.class(inner.callable);
                    if class.is_some_and(|(_, name)| name == "restore_type_tag") {
                        return malformed("a type tag has another for its value");
                    }
                }
                Meaning::Same(args[0])
            }
            // A number is how many zeros to make, without a byte in the file for any.
            ("bytes" | "bytearray", [Value::Int(_) | Value::BigInt(_), ..]) => {
                return malformed(format!("{module}.{name} is given a length"))
            }
            _ => return unknown(format!("{module}.{name} with unusual arguments")),
        })
    }

    /// The bytes that `_codecs.encode(text, "latin1")` makes.
    fn encoded(&self, args: &[Ref]) -> Option<Vec<u8>> {
        let &[letters, encoding] = args else { return None };
        let Value::Str(letters) = self.pickle.value(letters) else { return None };
        if !self.is_text(encoding, "latin1") {
            return None;
        }
        let letters = str::from_utf8(letters).ok()?;
        letters.chars().map(|letter| u8::try_from(u32::from(letter)).ok()).collect()
    }
}
