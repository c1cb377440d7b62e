//! Which tensors of a state_dict lie in the same memory. Pure: addresses in, groups out.
//!
//! ```text
//! addresses  0        100       200       300
//! a          |---------|
//! b          |---------|                        the very view that a is: can be an alias of it
//! c                |--------|                   overlaps both: shares, but is no alias
//! d                             |----|          alone
//! ```
//!
//! Storages do not decide, addresses do: two tensors over one numpy array have two storages,
//! and two halves of one storage share nothing. Views that interleave without touching the
//! same element count as sharing.

use std::collections::HashMap;

/// Where a tensor's elements lie.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct View<'a> {
    pub name: &'a str,
    /// Distinguishes address spaces: one number a device.
    pub device: i64,
    /// First and last-plus-one address; equal for a tensor without elements.
    pub begin: u64,
    pub end: u64,
    pub layout: Layout<'a>,
}

/// How a view reads its memory: equal layouts at equal addresses are the same tensor.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout<'a> {
    pub scalar_type: i8,
    /// Whether the elements are read conjugated or negated.
    pub flips: u8,
    pub shape: &'a [i64],
    pub strides: &'a [i64],
}

/// The groups of two and more tensors whose memory overlaps, directly or through another one
/// of the group. Each group is in the order of `views`, and so are the groups, by their first.
#[must_use]
pub fn overlapping(views: &[View<'_>]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> =
        (0..views.len()).filter(|&i| views[i].begin < views[i].end).collect();
    order.sort_by_key(|&i| (views[i].device, views[i].begin, views[i].end));

    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut reach = None;
    for index in order {
        let View { device, begin, end, .. } = views[index];
        match (reach, groups.last_mut()) {
            (Some((same, last)), Some(group)) if same == device && begin < last => {
                group.push(index);
                reach = Some((device, end.max(last)));
            }
            _ => {
                groups.push(vec![index]);
                reach = Some((device, end));
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    for group in &mut groups {
        group.sort_unstable();
    }
    groups.sort_unstable();
    groups
}

/// Of one group: each tensor that is the very view of one before it, with that one.
#[must_use]
pub fn duplicates(views: &[View<'_>], group: &[usize]) -> Vec<(usize, usize)> {
    let mut first = HashMap::new();
    group
        .iter()
        .filter_map(|&index| {
            let view = &views[index];
            let kept = *first.entry((view.begin, &view.layout)).or_insert(index);
            (kept != index).then_some((index, kept))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &'static str, begin: u64, end: u64) -> View<'static> {
        let layout = Layout { scalar_type: 0, flips: 0, shape: &[], strides: &[] };
        View { name, device: 0, begin, end, layout }
    }

    #[test]
    fn neighbours_do_not_overlap() {
        assert!(overlapping(&[view("a", 0, 100), view("b", 100, 200)]).is_empty());
    }

    #[test]
    fn a_chain_is_one_group_in_the_order_given() {
        let views = [view("c", 90, 150), view("b", 50, 60), view("a", 0, 100), view("d", 150, 160)];
        assert_eq!(overlapping(&views), [vec![0, 1, 2]]);
    }

    #[test]
    fn groups_are_in_the_order_of_their_first() {
        let views = [view("z", 50, 60), view("y", 0, 10), view("b", 0, 10), view("a", 50, 60)];
        assert_eq!(overlapping(&views), [vec![0, 3], vec![1, 2]]);
    }

    #[test]
    fn devices_are_spaces_of_their_own() {
        let mut other = view("b", 0, 100);
        other.device = 1;
        assert!(overlapping(&[view("a", 0, 100), other]).is_empty());
    }

    #[test]
    fn tensors_without_elements_share_nothing() {
        assert!(overlapping(&[view("a", 0, 100), view("b", 50, 50)]).is_empty());
    }

    #[test]
    fn only_the_very_same_view_is_a_duplicate() {
        let mut transposed = view("c", 0, 100);
        transposed.layout.strides = &[1, 2];
        let views = [view("b", 0, 100), view("a", 0, 100), transposed, view("d", 0, 50)];
        let [group] = &overlapping(&views)[..] else { panic!("one group") };
        // "d" has the layout of "a" here only because these views leave shapes out.
        assert_eq!(duplicates(&views[..3], &[0, 1, 2]), [(1, 0)]);
        assert_eq!(group, &[0, 1, 2, 3]);
    }
}
