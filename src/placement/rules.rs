//! Which device the rules of a [`Placement`] give to a name.

use super::{Device, Placement};
use crate::format::Malformed;
use std::collections::HashMap;

/// The rules of a [`Placement`] as a tree, one step down for each part of a name between dots: a
/// name is looked up in one pass over it, however many dots it has and rules there are.
pub(super) struct Rules<'a> {
    /// Where each part leads from a node. The root is node 0.
    steps: HashMap<(usize, &'a str), usize>,
    /// The device of each node that a rule ends at.
    devices: Vec<Option<Device>>,
    /// The device of what no rule names.
    otherwise: Option<Device>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(placement: &'a Placement) -> Self {
        let otherwise = placement.rules.get("").copied().or(placement.otherwise);
        let mut rules = Self { steps: HashMap::new(), devices: vec![None], otherwise };
        for (rule, &device) in &placement.rules {
            let mut node = 0;
            for part in rule.split('.') {
                let new = rules.devices.len();
                node = *rules.steps.entry((node, part)).or_insert(new);
                if node == new {
                    rules.devices.push(None);
                }
            }
            rules.devices[node] = Some(device);
        }
        rules
    }

    /// The device of the longest rule that is `name`, or what it begins with up to a dot.
    fn device(&self, name: &str) -> Option<Device> {
        let mut found = None;
        let mut node = 0;
        for part in name.split('.') {
            let Some(&next) = self.steps.get(&(node, part)) else { break };
            node = next;
            found = self.devices[node].or(found);
        }
        found.or(self.otherwise)
    }

    /// The same, with an error where there is none.
    pub(super) fn named(&self, name: &str) -> Result<Device, Malformed> {
        self.device(name)
            .ok_or_else(|| Malformed::tensor(name, "map_location names no device for it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Device = Device { kind: 20, index: 1 };
    const NEAR: Device = Device { kind: 20, index: 0 };

    fn rules(rules: &[(&str, Device)], otherwise: Option<Device>) -> Placement {
        let rules = rules.iter().map(|&(name, device)| (name.to_owned(), device)).collect();
        Placement { otherwise, rules, dtype: None }
    }

    #[test]
    fn the_longest_rule_decides_and_ends_at_a_dot() {
        let device = |placement: &Placement, name| Rules::new(placement).device(name);
        let placement = rules(&[("a", NEAR), ("a.x", FAR)], Some(Device::CPU));
        assert_eq!(device(&placement, "a.w"), Some(NEAR));
        assert_eq!(device(&placement, "a"), Some(NEAR));
        assert_eq!(device(&placement, "a.x.w"), Some(FAR));
        assert_eq!(device(&placement, "a.xy"), Some(NEAR));
        assert_eq!(device(&placement, "ab"), Some(Device::CPU));
        assert_eq!(device(&rules(&[("a", NEAR)], None), "b"), None);
        assert_eq!(device(&rules(&[("", FAR)], Some(NEAR)), "b"), Some(FAR));
    }

    /// The rule as it is documented, looked up prefix by prefix.
    fn naive(placement: &Placement, name: &str) -> Option<Device> {
        let ends = name.rmatch_indices('.').map(|(dot, _)| dot);
        std::iter::once(name.len())
            .chain(ends)
            .find_map(|end| placement.rules.get(&name[..end]).copied())
            .or_else(|| placement.rules.get("").copied())
            .or(placement.otherwise)
    }

    #[test]
    fn the_tree_of_rules_finds_what_the_prefixes_do() {
        let parts = ["", "a", "b", "."];
        let names: Vec<String> = (0..4_usize.pow(4))
            .map(|n| (0..4).map(|at| parts[n / 4_usize.pow(at) % 4]).collect::<Vec<_>>().join("."))
            .flat_map(|name| [name.trim_start_matches('.').to_owned(), name])
            .collect();
        for chosen in 0..64_usize {
            let some = names.iter().enumerate().filter(|(n, _)| n * 31 % 64 == chosen);
            let with = some.map(|(n, name)| (name.as_str(), if n % 2 == 0 { NEAR } else { FAR }));
            let placement = rules(&with.collect::<Vec<_>>(), Some(Device::CPU));
            let tree = Rules::new(&placement);
            for name in &names {
                assert_eq!(tree.device(name), naive(&placement, name), "{name:?}");
            }
        }
    }

    #[test]
    fn a_name_of_many_dots_is_looked_up_in_one_pass() {
        // Prefix by prefix this would hash eight gigabytes.
        let hostile = ".".repeat(1 << 17);
        let long = format!("{hostile}a");
        let placement = rules(&[(&long, FAR), ("a", NEAR)], Some(Device::CPU));
        let tree = Rules::new(&placement);
        assert_eq!(tree.device(&hostile), Some(Device::CPU));
        assert_eq!(tree.device(&format!("{long}.b")), Some(FAR));
        assert_eq!(tree.device(&format!("{long}b")), Some(Device::CPU));
    }
}
