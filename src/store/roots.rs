//! The directories of a store must be different ones: two sets of records in one directory have one lock, which would
//! be waited for while it is held.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::StoreOptions;

/// Directories that have to differ. They are told apart by device and inode: links and bind mounts lead to the same
/// directory on other paths.
#[derive(Debug, Default)]
pub(crate) struct DistinctDirs(Vec<Known>);

#[derive(Debug)]
struct Known {
    identity: (u64, u64),
    what: &'static str,
    path: PathBuf,
}

impl DistinctDirs {
    /// The roots that `options` name.
    ///
    /// # Errors
    /// As [`DistinctDirs::add`].
    pub(crate) fn roots(options: &StoreOptions) -> Result<Self> {
        let mut roots = Self::default();
        roots.add("graph root", &options.graph_root)?;
        roots.add("run root", &options.run_root)?;
        if let Some(image_store) = &options.image_store {
            roots.add("image store", image_store)?;
        }
        Ok(roots)
    }

    /// Adds a directory; `what` is its name in an error. One that does not exist is none of the others.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming both if it is there already.
    pub(crate) fn add(&mut self, what: &'static str, path: &Path) -> Result<()> {
        match self.find(path)? {
            Found::Missing => Ok(()),
            Found::Known(known) => {
                let (first, second) = (known.path.display(), path.display());
                let text = format!(
                    "the {} {first} and the {what} {second} are one directory",
                    known.what
                );
                Err(ErrorKind::InvalidInput.err(text))
            }
            Found::New(identity) => {
                let path = path.to_owned();
                self.0.push(Known { identity, what, path });
                Ok(())
            }
        }
    }

    /// As [`DistinctDirs::add`]; `false` if a directory of the same kind is there already.
    pub(crate) fn add_another(&mut self, what: &'static str, path: &Path) -> Result<bool> {
        if let Found::Known(known) = self.find(path)?
            && known.what == what
        {
            return Ok(false);
        }
        self.add(what, path).map(|()| true)
    }

    fn find(&self, path: &Path) -> Result<Found<'_>> {
        let stat = match rustix::fs::stat(path) {
            Err(Errno::NOENT) => return Ok(Found::Missing),
            stat => stat.at("looking at", path)?,
        };
        let identity = (stat.st_dev, stat.st_ino);
        let known = self.0.iter().find(|known| known.identity == identity);
        Ok(known.map_or(Found::New(identity), Found::Known))
    }
}

enum Found<'a> {
    Missing,
    Known(&'a Known),
    New((u64, u64)),
}
