//! Which tensor of a load goes to which device, and what becomes of its dtype. Pure: names in, two
//! lists out.
//!
//! ```text
//! storages of the plan    a  b  c  d        c is wanted on two devices, d with another dtype
//! stay (host memory)      a  b              as the plan has them: mapped, or copied
//! parcels                       c  c' d     travel through segments of host memory
//! ```
//!
//! A storage that stays is placed as any other load would. A parcel is a storage that must be copied
//! or converted on its way: for a device, or for host memory in another dtype.

mod rules;

use crate::{
    format::{
        dtype::{is_floating, scalar_size},
        Malformed,
    },
    plan::{Place, Plan, Storage, Tensor},
    slice::Runs,
};
use rules::Rules;
use std::collections::HashMap;

/// A device, by the numbers of `c10::DeviceType` and `c10::Device::index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Device {
    pub kind: i8,
    /// -1 means the current one of its kind.
    pub index: i8,
}

impl Device {
    pub const CPU: Self = Self { kind: 0, index: -1 };

    /// Host memory has no other device beside it.
    #[must_use]
    pub fn is_cpu(self) -> bool {
        self.kind == Self::CPU.kind
    }
}

/// Where tensors are wanted, and with which dtype.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The device of what no rule names.
    pub otherwise: Option<Device>,
    /// A name or the beginning of some, up to a dot, and the device of those. The longest decides.
    pub rules: HashMap<String, Device>,
    /// The `c10::ScalarType` that tensors of floating point are to have.
    pub dtype: Option<i8>,
}

impl Default for Placement {
    fn default() -> Self {
        Self { otherwise: Some(Device::CPU), rules: HashMap::new(), dtype: None }
    }
}

impl Placement {
    /// Whether everything stays in host memory as it is.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.rules.is_empty() && self.dtype.is_none() && self.otherwise.is_some_and(Device::is_cpu)
    }
}

/// A storage that travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    pub device: Device,
    pub from: Runs,
    /// Bytes of a number whose order is turned around; 1 leaves them as they are.
    pub swapped: u64,
    /// Whether it cannot be used where a page of the file puts it.
    pub is_copied: bool,
    /// Bytes as the file has them.
    pub byte_len: u64,
    /// `c10::ScalarType` in the file, and where it arrives.
    pub from_type: i8,
    pub to_type: i8,
    /// One of its tensors, by its place in [`Spread::tensors`].
    pub tensor: usize,
}

impl Parcel {
    /// Whether its bytes can be sent on from wherever they come to lie, because nobody looks at the
    /// elements on the way.
    #[must_use]
    pub fn may_lie_anywhere(&self) -> bool {
        !self.is_copied || (self.swapped == 1 && self.from_type == self.to_type)
    }

    /// Bytes for a storage that is there already and has their dtype.
    #[must_use]
    pub fn raw(from: Runs, scalar_type: i8, tensor: usize) -> Self {
        let byte_len = from.byte_len();
        let (from_type, to_type) = (scalar_type, scalar_type);
        let (device, swapped, is_copied) = (Device::CPU, 1, false);
        Self { device, from, swapped, is_copied, byte_len, from_type, to_type, tensor }
    }
}

/// Where a storage of a load is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// In the region, as the plan of what stays says.
    Region(Storage),
    /// Which parcel it is, and how many bytes it has where it arrives.
    Parcel { index: usize, byte_len: u64 },
}

/// A load, spread over devices.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Spread {
    /// What stays in host memory; its own tensors are not used.
    pub stay: Plan,
    pub parcels: Vec<Parcel>,
    pub homes: Vec<Home>,
    pub tensors: Vec<Tensor>,
    pub names: Vec<(String, usize)>,
}

impl Spread {
    /// Bytes that are moved.
    #[must_use]
    pub fn byte_len(&self) -> u64 {
        let away: u64 = self.parcels.iter().map(|parcel| parcel.byte_len).sum();
        self.stay.byte_len() + away
    }

    /// Everything stays as it is.
    #[must_use]
    pub fn of_one(mut plan: Plan, names: Vec<(String, usize)>) -> Self {
        let tensors = std::mem::take(&mut plan.tensors);
        let homes = plan.storages.iter().copied().map(Home::Region).collect();
        Self { stay: plan, parcels: Vec::new(), homes, tensors, names }
    }

    /// Has nothing stay at its offset in the file: each storage gets memory of its own, so that there
    /// need be no addresses for what lies between them. Returns whether that takes fewer.
    pub fn gather(&mut self) -> bool {
        let end = self.stay.ranges.last().map_or(0, |last| last.end);
        if end == 0 || self.stay.byte_len() > end / 2 {
            return false;
        }
        self.stay.ranges.clear();
        for home in &mut self.homes {
            let Home::Region(storage) = home else { continue };
            let Storage { place: Place::Mapped(start), byte_len: 1.. } = *storage else { continue };
            let from = Runs::one(start..start + storage.byte_len);
            let made = self.stay.place(from, u64::MAX, 1);
            *storage = self.stay.storages[made];
        }
        true
    }
}

/// Spreads what `plan` and `names` describe. With `in_order` the tensors keep their positions, and
/// one that has several names goes where the first of them is wanted; otherwise it goes wherever
/// one is.
///
/// # Errors
/// A tensor for which no device is named, and one that cannot have the dtype.
pub fn spread(
    plan: &Plan,
    names: Vec<(String, usize)>,
    placement: &Placement,
    in_order: bool,
) -> Result<Spread, Malformed> {
    let stay = Plan { inflated_from: plan.inflated_from, ..Plan::default() };
    let spread = Spread { stay, ..Spread::default() };
    let mut made = Making { plan, placement, spread, storages: HashMap::new() };
    let rules = Rules::new(placement);
    if in_order {
        if names.is_empty() && !placement.rules.is_empty() && !plan.tensors.is_empty() {
            let reason = "its tensors have no names of their own that map_location could mean";
            return Err(Malformed::new(reason));
        }
        let mut first: Vec<Option<&str>> = vec![None; plan.tensors.len()];
        for (name, tensor) in &names {
            first[*tensor].get_or_insert(name);
        }
        for (tensor, name) in first.into_iter().enumerate() {
            // What has no name is nothing a rule could mean.
            let device = match name {
                Some(name) => rules.named(name)?,
                None => placement.otherwise.unwrap_or(Device::CPU),
            };
            made.tensor(tensor, device, name.unwrap_or_default())?;
        }
        made.spread.names = names;
    } else {
        let mut tensors = HashMap::new();
        for (name, tensor) in names {
            let device = rules.named(&name)?;
            let index = match tensors.get(&(tensor, device)) {
                Some(&index) => index,
                None => made.tensor(tensor, device, &name)?,
            };
            tensors.insert((tensor, device), index);
            made.spread.names.push((name, index));
        }
    }
    made.spread.stay.put_ranges_in_order();
    Ok(made.spread)
}

struct Making<'a> {
    plan: &'a Plan,
    placement: &'a Placement,
    spread: Spread,
    /// Which storage one of the plan has become on a device, and the dtype it has there.
    storages: HashMap<(usize, Device), (usize, i8, i8)>,
}

impl Making<'_> {
    fn tensor(&mut self, index: usize, device: Device, name: &str) -> Result<usize, Malformed> {
        let tensor = &self.plan.tensors[index];
        let (from, to) = (tensor.scalar_type, self.dtype(tensor.scalar_type));
        let key = (tensor.storage, device);
        let storage = match self.storages.get(&key) {
            None => {
                let storage = self.storage(tensor, device, from, to, name)?;
                self.storages.insert(key, (storage, from, to));
                storage
            }
            // One conversion for all of a storage, or none.
            Some(&(storage, others, became))
                if others == from || (others == became && from == to) =>
            {
                storage
            }
            Some(_) => {
                let reason = "shares a storage with a tensor of another dtype: neither can change";
                return Err(Malformed::tensor(name, reason));
            }
        };
        let item_size = scalar_size(to).unwrap_or(tensor.item_size);
        self.spread.tensors.push(Tensor { storage, scalar_type: to, item_size, ..tensor.clone() });
        Ok(self.spread.tensors.len() - 1)
    }

    /// The dtype that a tensor is to have.
    fn dtype(&self, from: i8) -> i8 {
        match self.placement.dtype {
            Some(to) if is_floating(from) => to,
            _ => from,
        }
    }

    fn storage(
        &mut self,
        tensor: &Tensor,
        device: Device,
        from: i8,
        to: i8,
        name: &str,
    ) -> Result<usize, Malformed> {
        let storage = self.plan.storages[tensor.storage];
        let is_whole = storage.byte_len.is_multiple_of(tensor.item_size.max(1));
        if from != to && !is_whole {
            let reason = format!("its storage of {} bytes has no whole elements", storage.byte_len);
            return Err(Malformed::tensor(name, reason));
        }
        let (runs, swapped) = self.plan.source(storage);
        let is_copied = matches!(storage.place, Place::Copied(_));
        let home = if device.is_cpu() && from == to {
            // What was copied must be copied again, whatever its alignment is.
            let align = if is_copied { u64::MAX } else { 1 };
            let stay = &mut self.spread.stay;
            let index = stay.place(runs, align, swapped);
            Home::Region(stay.storages[index])
        } else {
            let (byte_len, tensor) = (storage.byte_len, self.spread.tensors.len());
            self.spread.parcels.push(Parcel {
                device,
                from: runs,
                swapped,
                is_copied,
                byte_len,
                from_type: from,
                to_type: to,
                tensor,
            });
            let size = |scalar_type| scalar_size(scalar_type).unwrap_or(1);
            // At most the file's length times 8: within 64 bits.
            let byte_len = if from == to { byte_len } else { byte_len / size(from) * size(to) };
            Home::Parcel { index: self.spread.parcels.len() - 1, byte_len }
        };
        self.spread.homes.push(home);
        Ok(self.spread.homes.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::safetensors::{Header, LENGTH_BYTES};

    const FAR: Device = Device { kind: 20, index: 1 };
    const NEAR: Device = Device { kind: 20, index: 0 };
    const BF16: i8 = 15;
    const F32: i8 = 6;

    fn rules(rules: &[(&str, Device)], otherwise: Option<Device>) -> Placement {
        let rules = rules.iter().map(|&(name, device)| (name.to_owned(), device)).collect();
        Placement { otherwise, rules, dtype: None }
    }

    /// Two tensors of float32, one of int64.
    fn plan() -> Plan {
        let json = r#"{"a.w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a.x.w":{"dtype":"F32","shape":[2],"data_offsets":[16,24]},"i":{"dtype":"I64","shape":[1],"data_offsets":[24,32]}}"#;
        let json = format!("{json:<200}");
        let header = Header::parse(json.as_bytes(), LENGTH_BYTES + 200 + 32).unwrap();
        Plan::of_header(&header).unwrap()
    }

    fn names() -> Vec<(String, usize)> {
        ["a.w", "a.x.w", "i"].into_iter().map(str::to_owned).zip(0..).collect()
    }

    #[test]
    fn what_is_gathered_needs_no_memory_for_what_lies_between() {
        let mut near = Spread::of_one(plan(), names());
        assert!(near.gather(), "a header longer than the tensors");
        assert_eq!((near.stay.ranges.len(), near.stay.copies_len, near.byte_len()), (0, 192, 32));
        let places = near.homes.iter().map(|home| match home {
            Home::Region(storage) => storage.place,
            Home::Parcel { .. } => panic!("nothing travels"),
        });
        assert_eq!(places.collect::<Vec<_>>(), [0, 64, 128].map(Place::Copied));
        assert!(!near.gather(), "no more than once");
    }

    #[test]
    fn what_stays_is_planned_as_ever_and_the_rest_travels() {
        let placement = rules(&[("a.x", FAR)], Some(Device::CPU));
        let spread = spread(&plan(), names(), &placement, false).unwrap();
        assert_eq!(spread.stay.storages.len(), 2);
        let [parcel] = &spread.parcels[..] else { panic!("{:?}", spread.parcels) };
        assert_eq!((parcel.device, parcel.byte_len), (FAR, 8));
        assert_eq!(spread.homes[spread.tensors[1].storage], Home::Parcel { index: 0, byte_len: 8 });
        assert_eq!(spread.homes.len(), 3);
    }

    #[test]
    fn what_two_names_want_on_two_devices_is_there_twice() {
        let mut names = names();
        names.push(("tied".to_owned(), 0));
        let placement = rules(&[("tied", FAR)], Some(NEAR));
        let apart = spread(&plan(), names.clone(), &placement, false).unwrap();
        assert_eq!(apart.tensors.len(), 4);
        assert_eq!(apart.parcels.iter().filter(|parcel| parcel.device == FAR).count(), 1);
        let together = spread(&plan(), names, &rules(&[], Some(NEAR)), false).unwrap();
        assert_eq!((together.tensors.len(), together.names[3].1), (3, 0));
    }

    #[test]
    fn only_floating_point_is_converted() {
        let placement = Placement { dtype: Some(BF16), ..Placement::default() };
        let spread = spread(&plan(), names(), &placement, true).unwrap();
        let types: Vec<_> = spread.tensors.iter().map(|tensor| tensor.scalar_type).collect();
        assert_eq!(types, [BF16, BF16, 4]);
        assert_eq!(spread.homes[0], Home::Parcel { index: 0, byte_len: 8 });
        assert_eq!((spread.parcels[0].from_type, spread.parcels[0].to_type), (F32, BF16));
    }

    #[test]
    fn a_tensor_without_a_device_is_refused_by_name() {
        let refused = spread(&plan(), names(), &rules(&[("a", NEAR)], None), false).unwrap_err();
        assert_eq!(refused, Malformed::tensor("i", "map_location names no device for it"));
    }

    #[test]
    fn dtypes_that_share_a_storage_are_converted_alike_or_not_at_all() {
        let mut plan = plan();
        plan.tensors[2].storage = plan.tensors[0].storage;
        let placement = Placement { dtype: Some(BF16), ..Placement::default() };
        let refused = spread(&plan, names(), &placement, false).unwrap_err();
        assert!(refused.reason.contains("shares a storage"), "{refused:?}");
        assert!(spread(&plan, names(), &rules(&[], Some(NEAR)), false).is_ok());
    }
}
