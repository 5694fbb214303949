//! What entries of a tar stream the Go library does not take in a table of contents, although it unpacks them otherwise.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use super::entry::Unfit;
use crate::archive::path::{clean, show};
use crate::archive::tar::reader::Entry;

/// The paths of the entries so far.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Hashes of the paths.
    names: HashSet<u64>,
    /// Those of devices and pipes.
    special: HashSet<u64>,
    hasher: RandomState,
    /// Scratch: the path of the entry.
    path: Vec<u8>,
}

impl Paths {
    /// Notes the next entry.
    pub(super) fn note(&mut self, entry: &Entry) -> Result<(), Unfit> {
        let unfit = |what: &str| Err(Unfit(format!("{} {what}", show(&entry.name))));
        if entry.name.split(|byte| *byte == b'/').any(|part| part == b"..") {
            return unfit("leads through a parent directory");
        }
        clean(&entry.name, &mut self.path);
        let hash = self.hasher.hash_one(&self.path);
        if !self.names.insert(hash) {
            return unfit("is there twice");
        }
        match entry.kind {
            b'3' | b'4' | b'6' => drop(self.special.insert(hash)),
            b'1' => {
                clean(&entry.link, &mut self.path);
                if self.special.contains(&self.hasher.hash_one(&self.path)) {
                    return unfit("is a link to a device or pipe");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
