//! The levels that the containers of a store have: `s0` with a pair of the 1,024 categories. What has one level may not touch
//! what has another.

use std::collections::BTreeSet;

/// Categories that a level is chosen from. Compat: as many as the Go library takes.
const CATEGORIES: u32 = 1024;

/// How many pairs there are.
const PAIRS: u32 = CATEGORIES * (CATEGORIES - 1) / 2;

/// The level of files that no container may use.
pub(super) const PRIVATE: &str = "s0:c1022,c1023";

/// The levels in use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Levels {
    /// Numbers of pairs, below [`PAIRS`].
    used: BTreeSet<u32>,
}

impl Levels {
    /// Adds the level of a label. One that [`Levels::unused`] cannot return is passed over.
    pub(crate) fn add(&mut self, label: &str) {
        if let Some(number) = level_of(label).and_then(number_of) {
            self.used.insert(number);
        }
    }

    /// A level that is not in use; `None` if all are. `random` chooses among them.
    pub(crate) fn unused(&self, random: u32) -> Option<String> {
        // That of files which no container may use has the last number.
        let last = PAIRS - 1;
        let start = random % last;
        let number = (start..last)
            .chain(0..start)
            .find(|number| !self.used.contains(number))?;
        let (low, high) = pair_of(number);
        Some(format!("s0:c{low},c{high}"))
    }
}

/// The level of a label; `None` if it has none.
fn level_of(label: &str) -> Option<&str> {
    label.splitn(4, ':').nth(3)
}

/// The categories with this number, the lower first: pairs are counted by the higher one, then by the lower.
fn pair_of(number: u32) -> (u32, u32) {
    let (mut low, mut high) = (number, 1);
    while low >= high {
        low -= high;
        high += 1;
    }
    (low, high)
}

/// The number of a level that has exactly two categories, however it is written.
fn number_of(level: &str) -> Option<u32> {
    let category = |text: &str| -> Option<u32> {
        let number = text.strip_prefix('c')?.parse().ok()?;
        (number < CATEGORIES).then_some(number)
    };
    let mut found = BTreeSet::new();
    for item in level.strip_prefix("s0:")?.split(',') {
        let (first, last) = item.split_once('.').unwrap_or((item, item));
        found.extend(category(first)?..=category(last)?);
    }
    match (found.first(), found.last()) {
        (Some(low), Some(high)) if found.len() == 2 => Some(high * (high - 1) / 2 + low),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_pair_has_one_number() {
        let mut number = 0;
        for high in 1..CATEGORIES {
            for low in 0..high {
                assert_eq!(pair_of(number), (low, high));
                number += 1;
            }
        }
        assert_eq!(number, PAIRS);
        assert_eq!(number_of(PRIVATE), Some(PAIRS - 1));
    }

    #[test]
    fn a_level_is_known_however_it_is_written() {
        let of = |text| number_of(text);
        assert_eq!(of("s0:c0,c1"), Some(0));
        for same in ["s0:c7,c6", "s0:c6.c7", "s0:c6,c7,c6", "s0:c7,c6.c7"] {
            assert_eq!(of(same), of("s0:c6,c7"), "{same}");
        }
        let others = [
            "",
            "s0",
            "s0:",
            "s0:c1",
            "s0:c1,c2,c3",
            "s0:c1.c9",
            "s1:c1,c2",
            "s0:c1,c1024",
            "s0:c1,",
            "s0-s0:c1,c2",
            "s0:c1,c-2",
            "s0:c2.c1",
            "s0:c0.c4294967295",
        ];
        for other in others {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn the_last_level_is_found_and_then_none() {
        let mut levels = Levels::default();
        levels.used.extend((0..PAIRS - 1).filter(|number| *number != 77));
        let (low, high) = pair_of(77);
        assert_eq!(levels.unused(u32::MAX), Some(format!("s0:c{low},c{high}")));
        levels.used.insert(77);
        assert_eq!(levels.unused(5), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Beside a model that keeps the texts of the labels.
        #[test]
        fn containers_share_no_level(draws in prop::collection::vec(any::<u32>(), 1..200), small in any::<bool>()) {
            let mut levels = Levels::default();
            let mut model = HashSet::from([format!("u:r:t:{PRIVATE}")]);
            levels.add(&format!("u:r:t:{PRIVATE}"));
            for draw in draws {
                // Few numbers: then most are taken.
                let draw = if small { draw % 16 } else { draw };
                let level = levels.unused(draw).unwrap();
                let label = format!("u:r:t:{level}");
                prop_assert!(model.insert(label.clone()), "{label} twice");
                // As the Go library writes it.
                let (low, high) = level.strip_prefix("s0:c").unwrap().split_once(",c").unwrap();
                prop_assert!(low.parse::<u32>().unwrap() < high.parse::<u32>().unwrap());
                levels.add(&label);
            }
        }
    }
}
