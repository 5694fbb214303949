//! Files and directories that are kept open for the next look-up, no more than a few of them.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// Files of all kinds that are kept open.
const MAX_OPEN: usize = 64;

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// The cache file of a layer.
    Cache,
    /// The directory of a layer's files.
    Directory,
}

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// By the number of the layer, the one used last at the end.
    files: Mutex<Vec<(u64, Use, Arc<File>)>>,
}

impl OpenFiles {
    /// The file of a layer; `open` opens it where it is not open. `None` if that fails.
    pub(super) fn get(
        &self,
        layer: u64,
        what: Use,
        open: impl FnOnce() -> Option<File>,
    ) -> Option<Arc<File>> {
        if let Some(file) = self.find(layer, what) {
            return Some(file);
        }
        // Without the mutex: another task may do the same meanwhile, which costs little.
        let file = Arc::new(open()?);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = (files.len() >= MAX_OPEN).then(|| files.remove(0));
        files.push((layer, what, Arc::clone(&file)));
        drop(files);
        drop(closed);
        Some(file)
    }

    fn find(&self, layer: u64, what: Use) -> Option<Arc<File>> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let at = files
            .iter()
            .rposition(|(of, is, _)| (*of, *is) == (layer, what))?;
        let tail = files.get_mut(at..)?;
        tail.rotate_left(1);
        files.last().map(|(_, _, file)| Arc::clone(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn the_ones_used_last_stay_open() {
        let files = OpenFiles::default();
        let opened = |layer: u64, what: Use| {
            let mut opened = false;
            files.get(layer, what, || {
                opened = true;
                Some(file())
            });
            opened
        };
        assert!(opened(0, Use::Cache) && opened(0, Use::Directory));
        assert!(!opened(0, Use::Cache) && !opened(0, Use::Directory));
        for layer in 1..=62 {
            assert!(opened(layer, Use::Cache));
        }
        assert!(!opened(0, Use::Cache));
        assert!(opened(63, Use::Cache));
        assert!(!opened(0, Use::Cache));
        assert!(opened(0, Use::Directory), "the one that was not used for longest");
        assert!(files.get(99, Use::Cache, || None).is_none());
    }
}
