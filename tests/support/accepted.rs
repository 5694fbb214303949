//! Differences between this library and its peers that are accepted: the rows of tables, and what they match.

use super::peers::PeerSet;

/// A difference, with the lines by which a comparison tells it (`*` is any text).
pub(crate) struct Accepted {
    pub(crate) key: &'static str,
    pub(crate) why: &'static str,
    /// Whether it shows with old peers, with those of Debian 13 (1.57), with newer ones.
    pub(crate) old: bool,
    pub(crate) middle: bool,
    pub(crate) new: bool,
    /// Whether only the steps that name it may show it, and then have to.
    pub(crate) by_step: bool,
    /// Whether it does not show each time: the peer's threads race.
    pub(crate) sometimes: bool,
    /// With this driver alone.
    pub(crate) driver: Option<&'static str>,
    pub(crate) lines: &'static [&'static str],
}

pub(crate) const ANY: Accepted = Accepted {
    key: "",
    why: "",
    old: true,
    middle: true,
    new: true,
    by_step: false,
    sometimes: false,
    driver: None,
    lines: &[],
};

pub(crate) const OLD: Accepted = Accepted {
    middle: false,
    new: false,
    ..ANY
};

pub(crate) const NEW: Accepted = Accepted { old: false, ..ANY };

/// The versions of a peer that the tables tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// Before 1.44 or so, as in Debian 12.
    Old,
    /// That of Debian 13 (1.57).
    Middle,
    New,
}

impl PeerSet {
    /// How old the library of its programs is.
    pub(crate) fn age(self) -> Age {
        match self.storage_version() {
            version if version < (1, 44) => Age::Old,
            version if version < (1, 60) => Age::Middle,
            _ => Age::New,
        }
    }
}

impl Accepted {
    /// Whether it shows with this driver and a peer of this age.
    fn applies(&self, driver: &str, age: Age) -> bool {
        let shows = match age {
            Age::Old => self.old,
            Age::Middle => self.middle,
            Age::New => self.new,
        };
        shows && self.driver.is_none_or(|own| own == driver)
    }

    /// Whether it has to show with this driver and a peer of this age.
    pub(crate) fn is_due(&self, driver: &str, age: Age) -> bool {
        self.applies(driver, age) && !self.sometimes
    }
}

/// The difference of which a line tells, if it is accepted in a step that names `differs`.
pub(crate) fn accepting(
    table: &'static [Accepted],
    line: &str,
    differs: Option<&str>,
    driver: &str,
    age: Age,
) -> Option<&'static Accepted> {
    table.iter().find(|accepted| {
        accepted.applies(driver, age)
            && (!accepted.by_step || differs == Some(accepted.key))
            && accepted.lines.iter().any(|pattern| matches(pattern, line))
    })
}

/// Panics unless every row has a key and a reason of its own.
#[track_caller]
pub(crate) fn check(table: &[Accepted]) {
    for of in [|row: &Accepted| row.key, |row: &Accepted| row.why] {
        let texts: std::collections::BTreeSet<&str> = table.iter().map(of).collect();
        assert!(texts.len() == table.len() && !texts.contains(""), "{texts:?}");
    }
    assert!(table.iter().all(|row| row.why.len() > 20));
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(rest) = text.strip_prefix(before) else {
        return false;
    };
    let starts = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    starts.into_iter().any(|at| matches(after, &rest[at..]))
}

#[test]
fn patterns_match_whole_lines() {
    assert!(matches("a*c*", "abc"));
    assert!(matches("a*", "a"));
    assert!(matches("*: only", "/x: y: only"));
    assert!(!matches("a*c", "abcd"));
    assert!(!matches("b", "abc"));
    assert!(!matches("*b", "abc"));
}
