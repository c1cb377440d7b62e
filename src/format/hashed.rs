//! Whether what a dict has for keys, and a set for elements, can be hashed, and in bounded time.
//!
//! Python hashes a tuple with all that it holds, once for each place that holds it, so that a few
//! bytes of pickle can ask for more time than there is. Each tuple is looked at once here, and the
//! sum of what Python would hash is bounded.

use super::{
    pytorch::{Checkpoint, Meaning},
    steps::Steps,
    value::{Ref, Value},
    Malformed, Refusal,
};
use std::collections::HashMap;

/// Values that one key may consist of, and how deep they may nest.
const MAX_HASHED: usize = 1000;
const MAX_HASHED_DEPTH: usize = 100;

/// Values that are hashed for each byte of the pickle, and in any pickle at all.
const HASHED_A_BYTE: usize = 4;
const FREE_HASHED: usize = 1 << 20;

/// Keys of one dict that may have one hash. Strings have hashes that no file can foresee, numbers of
/// 64 bits spread by themselves; whoever wants many others to collide can have that.
const MAX_COLLIDING: usize = 64;

/// # Errors
/// A key that has no hash, that is too large, or that many others collide with.
pub(super) fn check(checkpoint: &Checkpoint, steps: &Steps<'_>) -> Result<(), Refusal> {
    let pickle = &checkpoint.pickle;
    let mut hashes = Hashes {
        checkpoint,
        sizes: HashMap::new(),
        left: FREE_HASHED + HASHED_A_BYTE * pickle.byte_len(),
    };
    for index in (0..pickle.slot_count()).filter(|&index| checkpoint.reached[index]) {
        let value = Ref::slot(index);
        match (pickle.value(value), checkpoint.meaning(value)) {
            (Value::Set(items), _) => hashes.of_container(items, steps)?,
            (Value::FrozenSet(items), _) => hashes.of_container(items.iter().copied(), steps)?,
            (Value::Dict(items), _) => hashes.of_container(items.step_by(2), steps)?,
            (Value::Call(call), Some(Meaning::OrderedDict | Meaning::Counter)) => {
                hashes.of_container(call.items.step_by(2), steps)?;
            }
            _ => {}
        }
    }
    Ok(())
}

struct Hashes<'a> {
    checkpoint: &'a Checkpoint,
    /// How many values a tuple consists of, and how deep they nest.
    sizes: HashMap<usize, (usize, usize)>,
    left: usize,
}

impl Hashes<'_> {
    fn of_container(
        &mut self,
        keys: impl Iterator<Item = Ref>,
        steps: &Steps<'_>,
    ) -> Result<(), Refusal> {
        let mut seen: HashMap<u64, (usize, Ref)> = HashMap::new();
        for key in keys {
            let size = match key.index() {
                None => self.of_scalar(key)?,
                Some(_) => self.size(key, 0)?.0,
            };
            steps.take(size)?;
            self.left = self.left.checked_sub(size).ok_or_else(refused)?;
            let Some(hash) = self.foreseeable(key, 0) else { continue };
            let (count, last) = seen.entry(hash).or_insert((0, key));
            *count += usize::from(*count == 0 || *last != key);
            *last = key;
            if *count > MAX_COLLIDING {
                let reason = "many keys of a dict or elements of a set have the same hash";
                return Err(Malformed::new(reason).into());
            }
        }
        Ok(())
    }

    fn of_scalar(&self, key: Ref) -> Result<usize, Malformed> {
        match self.checkpoint.pickle.value(key) {
            Value::ByteArray(_) => Err(refused()),
            _ => Ok(1),
        }
    }

    /// How many values a key consists of, and how deep they nest.
    fn size(&mut self, key: Ref, depth: usize) -> Result<(usize, usize), Malformed> {
        let Some(index) = key.index() else { return Ok((self.of_scalar(key)?, 0)) };
        let (Value::Tuple(items) | Value::FrozenSet(items)) = self.checkpoint.pickle.value(key)
        else {
            return match self.checkpoint.meaning(key) {
                Some(Meaning::Size(sizes)) if sizes.len() < MAX_HASHED => Ok((1 + sizes.len(), 0)),
                Some(
                    Meaning::OrderedDict
                    | Meaning::Counter
                    | Meaning::ByteArray(_)
                    | Meaning::Module(_)
                    | Meaning::Same(_)
                    | Meaning::Size(_),
                )
                | None => Err(refused()),
                Some(_) => Ok((1, 0)),
            };
        };
        if let Some(&known) = self.sizes.get(&index) {
            return Ok(known);
        }
        let (mut size, mut deepest) = (1, 0);
        for &item in items {
            if depth == MAX_HASHED_DEPTH {
                return Err(refused());
            }
            let (held, below) = self.size(item, depth + 1)?;
            size += held;
            deepest = deepest.max(below + 1);
            if size > MAX_HASHED || deepest > MAX_HASHED_DEPTH {
                return Err(refused());
            }
        }
        self.sizes.insert(index, (size, deepest));
        Ok((size, deepest))
    }

    /// The hash that a key has in every process, if a file can choose it freely: of a long integer, a
    /// complex number, or a tuple of numbers. Not Python's own number, but one that is equal where
    /// that is.
    fn foreseeable(&self, key: Ref, depth: usize) -> Option<u64> {
        match self.checkpoint.pickle.value(key) {
            Value::BigInt(bytes) => Some(of_integer(bytes)),
            Value::Int(number) if depth > 0 => Some(of_i64(number)),
            Value::Float(number) if depth > 0 => Some(of_float(number)),
            Value::None if depth > 0 => Some(2),
            Value::Bool(value) if depth > 0 => Some(value.into()),
            Value::Tuple(items) => {
                let hashes = items.iter().map(|&item| self.foreseeable(item, depth + 1));
                hashes.collect::<Option<Vec<u64>>>().map(|hashes| of_tuple(&hashes))
            }
            Value::FrozenSet(items) => {
                let mut hashes = items.iter().map(|&item| self.foreseeable(item, depth + 1));
                hashes.try_fold(items.len() as u64, |mixed, hash| Some(mixed ^ shuffled(hash?)))
            }
            Value::Call(_) => match self.checkpoint.meaning(key)? {
                Meaning::Complex(real, imaginary) => {
                    let imaginary = of_float(*imaginary).wrapping_mul(1_000_003);
                    Some(of_float(*real).wrapping_add(imaginary))
                }
                Meaning::Size(sizes) => {
                    let hashes: Vec<u64> = sizes.iter().map(|&size| of_i64(size)).collect();
                    Some(of_tuple(&hashes))
                }
                _ => None,
            },
            _ => None,
        }
    }
}

fn refused() -> Malformed {
    Malformed::new("a key or an element of a set is too large or no such")
}

/// What Python's numbers are hashed modulo.
const MODULUS: u64 = (1 << 61) - 1;

/// Of two's complement bytes, least significant first.
fn of_integer(bytes: &[u8]) -> u64 {
    let is_negative = bytes.last().is_some_and(|&byte| byte >= 0x80);
    let magnitude = bytes.iter().rev().fold(0u128, |hash, &byte| {
        let byte = if is_negative { !byte } else { byte };
        ((hash << 8) | u128::from(byte)) % u128::from(MODULUS)
    }) as u64;
    if is_negative {
        ((magnitude + 1) % MODULUS).wrapping_neg()
    } else {
        magnitude
    }
}

fn of_i64(number: i64) -> u64 {
    let magnitude = number.unsigned_abs() % MODULUS;
    if number < 0 {
        magnitude.wrapping_neg()
    } else {
        magnitude
    }
}

/// A float has the hash of the fraction that it is: its 53 bits, turned around by its exponent.
fn of_float(number: f64) -> u64 {
    if !number.is_finite() {
        return 314_159;
    }
    let bits = number.abs().to_bits();
    let (exponent, fraction) = ((bits >> 52) as i64, bits & ((1 << 52) - 1));
    let (mantissa, exponent) = match exponent {
        0 => (fraction, -1074),
        _ => (fraction | 1 << 52, exponent - 1075),
    };
    let turn = exponent.rem_euclid(61) as u32;
    let turned = (u128::from(mantissa) << turn) % u128::from(MODULUS);
    if number < 0.0 {
        (turned as u64).wrapping_neg()
    } else {
        turned as u64
    }
}

/// What CPython makes of the hash of a frozenset's element, before it joins them.
fn shuffled(hash: u64) -> u64 {
    ((hash ^ 0x055b_4db3) ^ (hash << 16)).wrapping_mul(3_644_798_167)
}

/// CPython's own for tuples: its rounds mix too well for anything simpler to collide where it does.
fn of_tuple(hashes: &[u64]) -> u64 {
    const PRIMES: [u64; 3] =
        [11_400_714_785_074_694_791, 14_029_467_366_897_019_727, 2_870_177_450_012_600_261];
    let mixed = hashes.iter().fold(PRIMES[2], |mixed, &hash| {
        mixed.wrapping_add(hash.wrapping_mul(PRIMES[1])).rotate_left(31).wrapping_mul(PRIMES[0])
    });
    mixed.wrapping_add(hashes.len() as u64 ^ (PRIMES[2] ^ 0x0035_d373))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_python_hashes_alike_are_alike_here() {
        // hash(2**61 - 1) == hash(0), hash(-(2**61 - 1) - 5) == hash(-5)
        let wide = |number: i128| of_integer(&number.to_le_bytes());
        assert_eq!(wide(i128::from(MODULUS)), of_i64(0));
        assert_eq!(wide(i128::from(MODULUS) * 77 + 9), of_i64(9));
        assert_eq!(wide(-i128::from(MODULUS) * 3 - 5), of_i64(-5));
        assert_eq!(of_float(-7.0), of_i64(-7));
        assert_eq!(of_float(2f64.powi(122)), of_i64(1));
        assert_eq!(of_float(0.5), 1_152_921_504_606_846_976);
        assert_eq!(of_float(1e300), 1_224_995_262_755_759_164);
        assert_ne!(of_tuple(&[1, 2]), of_tuple(&[2, 1]));
    }
}
