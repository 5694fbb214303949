//! Which names an archive has had so far, and the position of each file's line in the tar-split data.
//!
//! Names are kept as keyed 64-bit hashes, so an entry costs some 20 bytes however long its name is, and names
//! that collide cannot be crafted. Should two names collide by chance, the second is taken for a repetition of the first:
//! its payload is recorded as a segment, nothing worse.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Set in a value if an entry had this name.
const NAMED: u64 = 1;

/// See the module's head.
#[derive(Default)]
pub(crate) struct Seen {
    keys: RandomState,
    /// Values: [`NAMED`], and the position of a line plus one, shifted by one.
    map: HashMap<u64, u64, BuildHasherDefault<Identity>>,
}

impl Seen {
    fn key(&self, path: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write(path);
        hasher.finish()
    }

    /// Notes an entry's clean name; whether it is the first of that name.
    pub(crate) fn name(&mut self, path: &[u8]) -> bool {
        let value = self.map.entry(self.key(path)).or_insert(0);
        let first = *value & NAMED == 0;
        *value |= NAMED;
        first
    }

    /// Notes that the line at `position` of the recorder relies on the file at `path`.
    pub(crate) fn set_line(&mut self, path: &[u8], position: u64) {
        let value = self.map.entry(self.key(path)).or_insert(0);
        *value = (*value & NAMED) | (position + 1) << 1;
    }

    /// The line that relies on the file at `path`, and forgets it.
    pub(crate) fn take_line(&mut self, path: &[u8]) -> Option<u64> {
        let value = self.map.get_mut(&self.key(path))?;
        let line = *value >> 1;
        *value &= NAMED;
        line.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_lines_share_the_table() {
        let mut seen = Seen::default();
        assert!(seen.name(b"a/b"));
        assert!(!seen.name(b"a/b"));
        seen.set_line(b"a/b", 0);
        assert!(!seen.name(b"a/b"), "a line changes nothing for the name");
        assert_eq!(seen.take_line(b"a/b"), Some(0));
        assert_eq!(seen.take_line(b"a/b"), None);
        assert_eq!(seen.take_line(b"nothing"), None);
    }
}
