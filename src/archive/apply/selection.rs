//! Which entries of an archive are unpacked, where that is not all.

use std::collections::BTreeSet;

use crate::archive::path::clean;
use crate::archive::tar::reader::Entry;

/// Some names of an archive, cleaned, and hard links to them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selection {
    names: BTreeSet<Vec<u8>>,
    scratch: Vec<u8>,
}

impl Selection {
    pub(crate) fn new(names: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self {
            names: names.into_iter().collect(),
            scratch: Vec::new(),
        }
    }

    /// Whether an entry is one of them. The entries are asked about in their order.
    pub(crate) fn takes(&mut self, entry: &Entry) -> bool {
        if entry.kind == b'1' {
            clean(&entry.link, &mut self.scratch);
            if self.names.contains(&self.scratch) {
                // Others may be links to this one.
                clean(&entry.name, &mut self.scratch);
                self.names.insert(self.scratch.clone());
                return true;
            }
        }
        clean(&entry.name, &mut self.scratch);
        self.names.contains(&self.scratch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_links_to_them_are_taken() {
        let entry = |kind, name: &str, link: &str| Entry {
            kind,
            name: name.into(),
            link: link.into(),
            ..Entry::default()
        };
        let mut selection = Selection::new([b"a/b".to_vec(), b"dir".to_vec()]);
        let cases = [
            (entry(b'0', "./a/b", ""), true),
            (entry(b'5', "dir/", ""), true),
            (entry(b'0', "dir/file", ""), false),
            (entry(b'1', "link", "/a/../a/b"), true),
            (entry(b'1', "second", "link"), true),
            (entry(b'1', "third", "dir/file"), false),
            (entry(b'2', "symbolic", "a/b"), false),
        ];
        for (entry, taken) in cases {
            assert_eq!(selection.takes(&entry), taken, "{entry:?}");
        }
    }
}
