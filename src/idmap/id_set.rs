//! Sets of IDs, and how many of them become a mapping. Pure.

use std::ops::Range;

use crate::idmap::IdMap;

/// A set of IDs: ranges in order, none of them empty, none next to another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct IdSet(Vec<Range<u64>>);

impl FromIterator<Range<u64>> for IdSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(ranges: T) -> Self {
        let mut ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        ranges.sort_unstable_by_key(|range| range.start);
        let mut set: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match set.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => set.push(range),
            }
        }
        Self(set)
    }
}

impl IdSet {
    /// The IDs on the host that mappings have.
    pub(crate) fn on_host<'a>(maps: impl IntoIterator<Item = &'a IdMap>) -> Self {
        maps.into_iter().map(IdMap::host_ids).collect()
    }

    /// The IDs inside the container that mappings have.
    pub(crate) fn in_container<'a>(maps: impl IntoIterator<Item = &'a IdMap>) -> Self {
        maps.into_iter().map(IdMap::container_ids).collect()
    }

    /// How many IDs.
    pub(crate) fn size(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.start).sum()
    }

    /// The IDs that are not in `other`.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut others = other.0.iter().peekable();
        for range in &self.0 {
            let mut start = range.start;
            while let Some(taken) = others.peek().filter(|taken| taken.start < range.end) {
                left.push(start..taken.start.max(start));
                start = start.max(taken.end);
                // One that goes on may take of the next range, too.
                if taken.end > range.end {
                    break;
                }
                others.next();
            }
            left.push(start..range.end.max(start));
        }
        left.into_iter().collect()
    }

    /// The lowest `count` IDs; `None` if there are not so many.
    pub(crate) fn lowest(&self, count: u64) -> Option<Self> {
        let mut left = count;
        let mut taken = Vec::new();
        for range in &self.0 {
            let end = range.end.min(range.start.saturating_add(left));
            taken.push(range.start..end);
            left -= end - range.start;
        }
        (left == 0).then(|| taken.into_iter().collect())
    }

    /// Maps the IDs of `container`, in order, to those of this set.
    pub(crate) fn mapped_from(&self, container: &Self) -> Vec<IdMap> {
        let mut maps = Vec::new();
        let (mut host, mut inside) = (self.0.iter().cloned(), container.0.iter().cloned());
        let (mut to, mut from) = (0..0, 0..0);
        loop {
            if to.is_empty() {
                let Some(next) = host.next() else { return maps };
                to = next;
            }
            if from.is_empty() {
                let Some(next) = inside.next() else { return maps };
                from = next;
            }
            let size = (to.end - to.start).min(from.end - from.start);
            // All IDs have 32 bits: what does not fit is in no set of them.
            let (Ok(container_id), Ok(host_id), Ok(count)) = (
                u32::try_from(from.start),
                u32::try_from(to.start),
                u32::try_from(size),
            ) else {
                return maps;
            };
            maps.push(IdMap::new(container_id, host_id, count));
            to.start += size;
            from.start += size;
        }
    }
}

/// Maps `size` IDs from container ID 0 on to the lowest of `available` that are not `used`, and `additional` as it is: its
/// IDs are left out on both sides. `None` if there are not so many.
pub(crate) fn allocate(
    size: u32,
    available: &IdSet,
    used: &[IdMap],
    additional: &[IdMap],
) -> Option<Vec<IdMap>> {
    let wanted: IdSet = std::iter::once(0..u64::from(size)).collect();
    let wanted = wanted.without(&IdSet::in_container(additional));
    let free = available.without(&IdSet::on_host(used.iter().chain(additional)));
    let mut maps = free.lowest(wanted.size())?.mapped_from(&wanted);
    maps.extend_from_slice(additional);
    Some(maps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// IDs of the naive model.
    const IDS: u64 = 40;

    /// A small source of numbers that are the same in each run.
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % end
        }

        fn ranges(&mut self) -> Vec<Range<u64>> {
            let count = self.below(5);
            let range = |_| {
                let (start, length) = (self.below(IDS), self.below(8));
                start..start + length
            };
            (0..count).map(range).collect()
        }

        fn maps(&mut self) -> Vec<IdMap> {
            let count = self.below(4);
            let id = |number| u32::try_from(number).unwrap();
            let map = |_| IdMap::new(id(self.below(IDS)), id(self.below(IDS)), id(self.below(6)));
            (0..count).map(map).collect()
        }
    }

    fn model(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        ranges.iter().cloned().flatten().collect()
    }

    fn is_normal(set: &IdSet) -> bool {
        set.0.iter().all(|range| !range.is_empty())
            && set.0.windows(2).all(|pair| pair[0].end < pair[1].start)
    }

    #[test]
    fn sets_are_what_a_naive_model_says() {
        let mut numbers = Numbers(88_172_645_463_325_252);
        for round in 0..20_000 {
            let (one, other) = (numbers.ranges(), numbers.ranges());
            let set: IdSet = one.iter().cloned().collect();
            let without = set.without(&other.iter().cloned().collect());
            let (naive, less) = (model(&one), model(&other));
            assert_eq!(model(&set.0), naive, "{round}: {one:?}");
            assert_eq!(set.size(), naive.len() as u64);
            let left: BTreeSet<u64> = naive.difference(&less).copied().collect();
            assert_eq!(model(&without.0), left, "{round}: {one:?} without {other:?}");
            let count = numbers.below(30);
            let lowest = set.lowest(count);
            assert_eq!(lowest.is_some(), naive.len() as u64 >= count);
            if let Some(lowest) = &lowest {
                let expected: BTreeSet<u64> = naive
                    .iter()
                    .copied()
                    .take(usize::try_from(count).unwrap())
                    .collect();
                assert_eq!(model(&lowest.0), expected, "{round}: {count} of {one:?}");
            }
            for set in [&set, &without].into_iter().chain(&lowest) {
                assert!(is_normal(set), "{set:?}");
            }
        }
    }

    #[test]
    fn an_allocation_is_what_a_naive_model_says() {
        let mut numbers = Numbers(1_234_567_890_123);
        for round in 0..20_000 {
            let size = numbers.below(20);
            let (available, used, additional) = (numbers.ranges(), numbers.maps(), numbers.maps());
            let taken = |ids: fn(&IdMap) -> Range<u64>, maps: &[IdMap]| -> BTreeSet<u64> {
                maps.iter().flat_map(ids).collect()
            };
            let mut free = model(&available);
            for maps in [&used, &additional] {
                free = free.difference(&taken(IdMap::host_ids, maps)).copied().collect();
            }
            let inside = taken(IdMap::container_ids, &additional);
            let wanted: Vec<u64> = (0..size).filter(|id| !inside.contains(id)).collect();
            let found = allocate(
                u32::try_from(size).unwrap(),
                &available.iter().cloned().collect(),
                &used,
                &additional,
            );
            assert_eq!(found.is_some(), free.len() >= wanted.len(), "{round}");
            let Some(found) = found else { continue };
            let (own, rest) = found.split_at(found.len() - additional.len());
            assert_eq!(rest, additional);
            let pairs: Vec<(u64, u64)> = own
                .iter()
                .flat_map(|map| map.container_ids().zip(map.host_ids()))
                .collect();
            let expected: Vec<(u64, u64)> = wanted.into_iter().zip(free).collect();
            assert_eq!(pairs, expected, "{round}");
        }
    }

    #[test]
    fn allocations_are_those_of_the_go_library() {
        let available: IdSet = std::iter::once(100_000..165_536).collect();
        let map = IdMap::new;
        for (size, used, additional, expected) in [
            (1024, vec![], vec![], vec![map(0, 100_000, 1024)]),
            (
                1024,
                vec![map(0, 100_000, 100), map(0, 100_200, 50)],
                vec![],
                vec![map(0, 100_100, 100), map(100, 100_250, 924)],
            ),
            (
                1024,
                vec![],
                vec![map(0, 5000, 1)],
                vec![map(1, 100_000, 1023), map(0, 5000, 1)],
            ),
            (
                1024,
                vec![],
                vec![map(500, 100_010, 10)],
                vec![
                    map(0, 100_000, 10),
                    map(10, 100_020, 490),
                    map(510, 100_510, 514),
                    map(500, 100_010, 10),
                ],
            ),
            (
                1024,
                vec![],
                vec![map(2000, 7, 10)],
                vec![map(0, 100_000, 1024), map(2000, 7, 10)],
            ),
            (0, vec![], vec![], vec![]),
        ] {
            assert_eq!(allocate(size, &available, &used, &additional), Some(expected));
        }
        assert_eq!(allocate(65_537, &available, &[], &[]), None);
    }
}
