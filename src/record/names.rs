//! Lists of names.

use std::collections::HashSet;

/// A change to a list of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameOperation {
    /// The given names replace the old ones.
    Set,
    /// The given names come before the old ones.
    Add,
    /// The given names go.
    Remove,
}

/// Drops repetitions, the first occurrence stays; `true` if there were any.
pub(crate) fn dedupe(names: &mut Vec<String>) -> bool {
    if names.len() < 2 {
        return false;
    }
    let mut seen = HashSet::with_capacity(names.len());
    let keep: Vec<bool> = names.iter().map(|name| seen.insert(name.as_str())).collect();
    if keep.iter().all(|keep| *keep) {
        return false;
    }
    let mut keep = keep.into_iter();
    names.retain(|_| keep.next().unwrap_or(true));
    true
}
