//! Directories of layers in which files were looked for last: files come one directory after the other.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// Directories that are kept open: those of what is planned and of what is read, of several layers.
const MAX_OPEN: usize = 8;

/// A directory of a layer.
#[derive(Debug)]
struct Parent {
    /// The number of the layer.
    layer: u64,
    /// Its name as it was asked for.
    path: Vec<u8>,
    dir: Arc<File>,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Parents(
    /// The one used last at the end.
    Mutex<Vec<Parent>>,
);

impl Parents {
    /// The directory at `path` of a layer; `open` opens it where it is not open. `None` if that fails.
    pub(super) fn get(
        &self,
        layer: u64,
        path: &[u8],
        open: impl FnOnce() -> Option<File>,
    ) -> Option<Arc<File>> {
        if let Some(dir) = self.find(layer, path) {
            return Some(dir);
        }
        // Without the mutex: another task may do the same meanwhile, which costs little.
        let dir = Arc::new(open()?);
        let mut parents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = (parents.len() >= MAX_OPEN).then(|| parents.remove(0));
        parents.push(Parent {
            layer,
            path: path.to_vec(),
            dir: Arc::clone(&dir),
        });
        drop(parents);
        drop(closed);
        Some(dir)
    }

    fn find(&self, layer: u64, path: &[u8]) -> Option<Arc<File>> {
        let mut parents = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = parents
            .iter()
            .rposition(|parent| parent.layer == layer && parent.path == path)?;
        let tail = parents.get_mut(at..)?;
        tail.rotate_left(1);
        parents.last().map(|parent| Arc::clone(&parent.dir))
    }
}

/// Divides a name into that of a directory and that of something in it; `None` where it does not name something so.
pub(super) fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
    let (path, base) = name.split_at_checked(at)?;
    (!matches!(base, b"" | b"." | b"..")).then_some((path, base))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_divided_at_their_last_slash() {
        assert_eq!(split(b"a"), Some((&b""[..], &b"a"[..])));
        assert_eq!(split(b"./a/../b"), Some((&b"./a/../"[..], &b"b"[..])));
        assert_eq!(split(b"/a"), Some((&b"/"[..], &b"a"[..])));
        for name in [&b""[..], b"/", b"a/", b".", b"..", b"a/.."] {
            assert_eq!(split(name), None);
        }
    }

    #[test]
    fn the_ones_used_last_stay_open() {
        let parents = Parents::default();
        let opened = |layer: u64, path: &[u8]| {
            let mut opened = false;
            parents.get(layer, path, || {
                opened = true;
                File::open("/dev/null").ok()
            });
            opened
        };
        assert!(opened(0, b"a") && opened(0, b"b") && opened(1, b"a"));
        assert!(!opened(0, b"a") && !opened(0, b"b") && !opened(1, b"a"));
        for layer in 2..7 {
            assert!(opened(layer, b"a"));
        }
        assert!(!opened(0, b"a"));
        assert!(opened(7, b"a"));
        assert!(!opened(0, b"a"));
        assert!(opened(0, b"b"), "the one that was not used for longest");
        assert!(parents.get(9, b"a", || None).is_none());
    }
}
