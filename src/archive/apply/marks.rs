//! What a layer says of the layers below it, collected while its archive is unpacked.
//!
//! Whiteouts and opaque markers speak of the layers below only (OCI image layer specification, "whiteouts"): they have
//! no order among the entries of an archive, and what the archive brings itself is not hidden by them. Directories that
//! an archive only implies say nothing of themselves: what the layers below have there stays. So all of them are
//! carried out once the whole archive has been seen and the layers below are known
//! ([`settle`](crate::archive::apply::settle), [`merge`](crate::archive::apply::merge)).
//!
//! Paths are clean. Those of whiteouts and markers are taken as they stand, through no link: what is no directory below
//! has nothing in it that could be hidden.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{ErrorKind, Result};
use crate::idmap::Owner;

/// How much memory the marks of one archive may take.
const MAX_SIZE: usize = 128 << 20;

/// What a mark takes besides its path.
const MARK_SIZE: usize = 64;

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LayerMarks {
    deleted: BTreeMap<Vec<u8>, Option<Owner>>,
    opaque: BTreeSet<Vec<u8>>,
    implied: BTreeSet<Vec<u8>>,
    root_entry: bool,
    /// Memory that they take; a mark that is given twice counts twice.
    size: usize,
}

impl LayerMarks {
    /// The layers below shall not have `path`; `owner` is that of a file that says so.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for too many of them.
    pub(crate) fn delete(&mut self, path: Vec<u8>, owner: Option<Owner>) -> Result<()> {
        self.count(&path)?;
        self.deleted.insert(path, owner);
        Ok(())
    }

    /// The layers below shall have nothing in the directory `path`.
    ///
    /// # Errors
    /// As [`LayerMarks::delete`].
    pub(crate) fn empty(&mut self, path: &[u8]) -> Result<()> {
        self.count(path)?;
        self.opaque.insert(path.to_vec());
        Ok(())
    }

    /// A directory was made that has had no entry yet. One entry with a long name implies very many.
    ///
    /// # Errors
    /// As [`LayerMarks::delete`].
    pub(crate) fn imply(&mut self, path: &[u8]) -> Result<()> {
        self.count(path)?;
        self.implied.insert(path.to_vec());
        Ok(())
    }

    fn count(&mut self, path: &[u8]) -> Result<()> {
        self.size = self.size.saturating_add(path.len() + MARK_SIZE);
        if self.size > MAX_SIZE {
            let what = "more whiteouts and directories without an entry than a layer may have";
            return Err(ErrorKind::InvalidArchive.err(what));
        }
        Ok(())
    }

    /// The directory at `path` has an entry, or is known from the layers below.
    pub(crate) fn describe(&mut self, path: &[u8]) {
        if path.is_empty() {
            self.root_entry = true;
        } else if !self.implied.is_empty() {
            self.implied.remove(path);
        }
    }

    /// Whether the archive has an entry for its root.
    pub(crate) fn has_root_entry(&self) -> bool {
        self.root_entry
    }

    /// Whether nothing depends on the layers below.
    pub(crate) fn is_empty(&self) -> bool {
        self.deleted.is_empty() && self.opaque.is_empty() && self.implied.is_empty()
    }

    /// Names that the layers below shall not have.
    pub(crate) fn deleted(&self) -> impl Iterator<Item = (&[u8], Option<Owner>)> {
        self.deleted.iter().map(|(path, owner)| (path.as_slice(), *owner))
    }

    /// Directories in which the layers below shall have nothing; empty for the root.
    pub(crate) fn opaque(&self) -> impl Iterator<Item = &[u8]> {
        self.opaque.iter().map(Vec::as_slice)
    }

    /// Directories without an entry; perhaps something else, or nothing, is there by now.
    pub(crate) fn implied(&self) -> impl Iterator<Item = &[u8]> {
        self.implied.iter().map(Vec::as_slice)
    }

    /// Whether the directory at `path` has no entry.
    pub(crate) fn is_implied(&self, path: &[u8]) -> bool {
        if path.is_empty() {
            !self.root_entry
        } else {
            self.implied.contains(path)
        }
    }

    /// Whether the layer's root is opaque.
    pub(crate) fn empties_root(&self) -> bool {
        self.opaque.contains(&[][..])
    }

    /// Whether a mark on a directory above hides what the layers below have at `path`.
    pub(crate) fn covers(&self, path: &[u8]) -> bool {
        if path.is_empty() || (self.opaque.is_empty() && self.deleted.is_empty()) {
            return false;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut above = slashes.map(|(index, _)| path.get(..index).unwrap_or_default());
        self.empties_root() || above.any(|dir| self.opaque.contains(dir) || self.deleted.contains_key(dir))
    }

    /// Whether a whiteout, of it or of a directory above, takes `path` away.
    pub(crate) fn deletes(&self, path: &[u8]) -> bool {
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let mut ends = slashes.map(|(index, _)| index).chain([path.len()]);
        !self.deleted.is_empty()
            && ends.any(|end| self.deleted.contains_key(path.get(..end).unwrap_or_default()))
    }

    /// As [`LayerMarks::covers`], or by a whiteout of `path` itself.
    pub(crate) fn hides(&self, path: &[u8]) -> bool {
        self.deleted.contains_key(path) || self.covers(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_hide_what_is_below_them() {
        let mut marks = LayerMarks::default();
        assert!(marks.is_empty() && !marks.covers(b"a/b"));
        marks.delete(b"a/b".to_vec(), None).unwrap();
        marks.empty(b"c").unwrap();
        assert!(marks.deletes(b"a/b") && marks.deletes(b"a/b/c/d") && !marks.deletes(b"a"));
        assert!(marks.hides(b"a/b") && !marks.covers(b"a/b") && marks.covers(b"a/b/c/d"));
        assert!(
            !marks.deletes(b"c/x")
                && marks.covers(b"c/x")
                && !marks.hides(b"c")
                && !marks.hides(b"a")
                && !marks.hides(b"a/bc")
        );
        assert!(!marks.covers(b""));
        marks.empty(b"").unwrap();
        assert!(marks.covers(b"x") && marks.empties_root());
    }

    #[test]
    fn marks_take_so_much_memory_and_no_more() {
        let mut marks = LayerMarks::default();
        let path = vec![b'x'; 4096];
        let refused = (0..1 << 20).find_map(|_| marks.delete(path.clone(), None).err());
        assert_eq!(refused.unwrap().kind(), ErrorKind::InvalidArchive);
        assert_eq!(marks.empty(b"a").unwrap_err().kind(), ErrorKind::InvalidArchive);
        let mut marks = LayerMarks::default();
        // Each directory of such a path is one of its own.
        let refused =
            (0..1 << 16).find_map(|_| (0..path.len()).find_map(|end| marks.imply(&path[..end]).err()));
        assert_eq!(refused.unwrap().kind(), ErrorKind::InvalidArchive);
    }

    #[test]
    fn a_directory_is_implied_until_it_has_an_entry() {
        let mut marks = LayerMarks::default();
        marks.imply(b"a").unwrap();
        marks.imply(b"a/b").unwrap();
        assert!(marks.is_implied(b"a") && marks.is_implied(b"") && !marks.is_empty());
        marks.describe(b"a");
        marks.describe(b"");
        assert!(!marks.is_implied(b"a") && !marks.is_implied(b"") && marks.has_root_entry());
        assert_eq!(marks.implied().collect::<Vec<_>>(), [b"a/b"]);
    }
}
