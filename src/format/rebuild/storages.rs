//! The storages that a pickle names by persistent ids.

use super::{is_known, malformed, refuse_unknown_names, text, unknown, Reader};
use crate::format::{
    dtype::{TorchDtype, BYTE},
    pytorch::Storage,
    shown,
    value::{Ref, Value},
    Malformed, Refusal,
};

/// Bytes of the longest location of a storage, such as `cuda:0`.
const MAX_LOCATION: usize = 64;

/// What the id of a storage says: class, key, location and count of elements.
type Described<'a> = ((&'a str, &'a str), Ref, &'a [u8], i64);

/// The integers that a storage of quantized numbers is made of.
fn stored_as(class: &str) -> Option<TorchDtype> {
    TorchDtype::from_name(match class {
        "QInt8Storage" => "int8",
        "QUInt8Storage" | "QUInt4x2Storage" | "QUInt2x4Storage" => "uint8",
        "QInt32Storage" => "int32",
        _ => return None,
    })
}

/// A storage as a persistent id names it.
struct Named<'a> {
    key: Ref,
    dtype: TorchDtype,
    elements: i64,
    location: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Every storage that the pickle names, used or not, as far as their classes are known.
    ///
    /// Even a file that is then refused for an unknown name must not lie about its storages: its
    /// next reader may be torch.
    pub(super) fn storages(&mut self) -> Result<(), Refusal> {
        let is_known = refuse_unknown_names(self.pickle).is_ok();
        let pickle = self.pickle;
        self.is_listing = true;
        for id in pickle.persistent_ids() {
            self.steps.take(1)?;
            let named = match self.named(id) {
                Ok(named) => named,
                Err(Refusal::Malformed(malformed)) if is_known => return Err(malformed.into()),
                // What is no storage at all is no lie about one; the unknown name says more.
                Err(Refusal::Malformed(_) | Refusal::Unknown(_)) => continue,
                Err(stopped) => return Err(stopped),
            };
            match self.take_down(&named) {
                Ok(_) | Err(Refusal::Unknown(_)) => {}
                Err(lie) => return Err(lie),
            }
        }
        self.is_listing = false;
        Ok(())
    }

    pub(super) fn storage(&mut self, value: Ref) -> Result<usize, Refusal> {
        match self.pickle.value(value) {
            Value::Persistent(id) => self.persistent(id),
            _ => malformed("a tensor lies in what is no storage"),
        }
    }

    /// Takes down a storage by its persistent id.
    pub(super) fn persistent(&mut self, id: Ref) -> Result<usize, Refusal> {
        let named = self.named(id)?;
        self.take_down(&named)
    }

    /// What a persistent id says of a storage.
    fn named(&self, id: Ref) -> Result<Named<'a>, Refusal> {
        let no_storage = || Refusal::from(Malformed::new("a tensor lies in what is no storage"));
        let Value::Tuple(parts) = self.pickle.value(id) else { return Err(no_storage()) };
        if let &[tag, class, _, _] = parts {
            if let (true, Value::Global(module, name)) =
                (self.is_text(tag, "module"), self.pickle.value(class))
            {
                return unknown(format!("{module}.{name}"));
            }
        }
        let (class, key, location, elements) = match *parts {
            [tag, class, key, location, n] => self.described(tag, class, key, location, n),
            [tag, class, key, location, n, view] => {
                let described = self.described(tag, class, key, location, n);
                if described.is_none() || !matches!(self.pickle.value(view), Value::None) {
                    return unknown("a view of a storage");
                }
                described
            }
            _ => None,
        }
        .ok_or_else(no_storage)?;
        let dtype = match class {
            (_, "UntypedStorage") => BYTE,
            ("torch", name) if self.is_listing && name.starts_with('Q') => match stored_as(name) {
                Some(dtype) => dtype,
                None => return unknown(format!("torch.{name}")),
            },
            (module, name) => match TorchDtype::from_storage_class(name) {
                Some(dtype) => dtype,
                None if is_known(module, name) => return Err(no_storage()),
                None => return unknown(format!("{module}.{name}")),
            },
        };
        Ok(Named { key, dtype, elements, location })
    }

    fn take_down(&mut self, named: &Named<'a>) -> Result<usize, Refusal> {
        let &Named { key, dtype, elements, location } = named;
        let byte_len = u64::try_from(elements)
            .ok()
            .and_then(|elements| elements.checked_mul(dtype.item_size()))
            .ok_or_else(|| {
                Malformed::new(format!("storage {} of {elements} elements", self.shown(key)))
            })?;
        self.named_storage(key, dtype, byte_len, location)
    }

    /// The storage of a key, which is taken down if it is new.
    fn named_storage(
        &mut self,
        key: Ref,
        dtype: TorchDtype,
        byte_len: u64,
        location: &'a [u8],
    ) -> Result<usize, Refusal> {
        let Value::Str(name) = self.pickle.value(key) else {
            return malformed("a tensor lies in what is no storage");
        };
        let placed = self.places.get(&key).copied();
        // A long name is hashed once for each string that spells it, and not each time it is used.
        let known = match placed {
            None => {
                self.steps.take(name.len() >> 4)?;
                self.keys.get(name).copied()
            }
            known => known,
        };
        let index = match known {
            None => self.push(name, dtype, byte_len, location)?,
            Some(index) => {
                let storage = &self.read.storages[index];
                match (storage.byte_len == byte_len, storage.dtype == dtype) {
                    (true, true) => index,
                    // Tensors without elements may share one storage whatever their dtypes are.
                    (true, false) if byte_len == 0 => {
                        if let Some(&twin) = self.empty.get(&(index, dtype)) {
                            return Ok(twin);
                        }
                        let twin = self.push(name, dtype, 0, location)?;
                        self.empty.insert((index, dtype), twin);
                        return Ok(twin);
                    }
                    // The dtype that the pickle names first counts, as it does to torch.
                    (true, false) if self.is_ordered => index,
                    (true, false) => {
                        self.is_ambiguous = true;
                        return unknown("a storage of two dtypes");
                    }
                    _ => {
                        let key = self.shown(key);
                        return malformed(format!("storage {key} is described in two ways"));
                    }
                }
            }
        };
        if placed.is_none() {
            self.places.insert(key, index);
        }
        if known.is_none() {
            self.keys.insert(name, index);
        }
        Ok(index)
    }

    fn push(
        &mut self,
        name: &[u8],
        dtype: TorchDtype,
        byte_len: u64,
        location: &[u8],
    ) -> Result<usize, Refusal> {
        if location.len() > MAX_LOCATION {
            let len = location.len();
            return malformed(format!(
                "storage {} has a location of {len} bytes",
                shown(&text(name))
            ));
        }
        let (key, location) = (text(name), text(location));
        self.read.storages.push(Storage { key, dtype, byte_len, location });
        Ok(self.read.storages.len() - 1)
    }

    /// Class, key, location and count of elements, if these are the parts of a storage's id.
    fn described(
        &self,
        tag: Ref,
        class: Ref,
        key: Ref,
        location: Ref,
        elements: Ref,
    ) -> Option<Described<'a>> {
        let values = [key, location, elements].map(|part| self.pickle.value(part));
        match (self.pickle.value(class), values) {
            (
                Value::Global(module, name),
                [Value::Str(_), Value::Str(location), Value::Int(elements)],
            ) if self.is_text(tag, "storage") => Some(((module, name), key, location, elements)),
            _ => None,
        }
    }

    fn shown(&self, key: Ref) -> String {
        shown(&self.pickle.text(key).unwrap_or_default())
    }
}
