//! Names of datasets, and finding the one that a graph root is in. Names have a form, so that nothing else is ever handed to
//! the program.

use std::os::fd::AsFd as _;
use std::path::Path;

use crate::digest::Digest;
use crate::driver::layer_id;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::at;
use crate::sys::mount::type_and_source;
use crate::sys::presence;

/// Longest name of a dataset or snapshot.
const MAX_LENGTH: usize = 255;

/// How the names of datasets and snapshots begin that belong to a temporary directory; its number follows.
const TEMPORARY: &str = "graphroot-";

/// Longest end of a temporary name: the digits of the number, and the ending.
const MAX_NUMBER: usize = 20 + "-new".len();

/// What a dataset that belongs to a temporary directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Temporary {
    /// A layer that is being made.
    New,
    /// A layer that is being removed.
    Old,
}

/// The dataset that has those of the layers.
#[derive(Clone, Debug)]
pub(super) struct Root {
    name: String,
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':')
}

impl Root {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what cannot be the name of a dataset, or is too long for those below it.
    pub(super) fn new(name: &str) -> Result<Self> {
        // The name of a dataset, though not that of a pool, may have spaces.
        let is_component = |part: &str| {
            let good = part.bytes().all(|byte| is_plain(byte) || byte == b' ');
            !matches!(part, "" | "." | "..") && good
        };
        let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
        let bad = match () {
            () if !begins_well || !name.split('/').all(is_component) => "no name of a dataset",
            () if name.len() + 1 + TEMPORARY.len() + MAX_NUMBER > MAX_LENGTH => "too long",
            () => {
                return Ok(Self {
                    name: name.to_owned(),
                });
            }
        };
        Err(ErrorKind::InvalidInput.err(format!("zfs dataset {name:?} for layers: {bad}")))
    }

    /// The dataset that the directory `root` is in.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] if it is in none.
    pub(super) fn of(root: &Path) -> Result<Self> {
        // It may have to be made.
        let above = presence::first_above(root)?;
        let dir = at::open_dir(above).at("opening", above)?;
        let found = type_and_source(dir.as_fd()).at("looking up the file system of", above)?;
        match found {
            Some((kind, source)) if matches!(kind.as_str(), "zfs" | "fuse.zfs") => Self::new(&source),
            _ => {
                let what = format!("no zfs dataset found for rootdir '{}'", root.display());
                let source = "prerequisites for driver not satisfied (wrong filesystem?)";
                Err(ErrorKind::NotSupported.err(what).with_source(source))
            }
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The pool.
    pub(super) fn pool(&self) -> &str {
        self.name
            .split_once('/')
            .map_or(&self.name, |(pool, _below)| pool)
    }

    /// Refuses IDs that cannot be names of datasets, and those that begin as temporary ones do.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafePath`].
    pub(super) fn check_id(&self, id: &str) -> Result<()> {
        layer_id::check_id(id)?;
        let bad = match () {
            () if !id.bytes().all(is_plain) => "no name of a zfs dataset",
            () if id.starts_with(TEMPORARY) => "a temporary dataset",
            // The longest name that is made of it is that of a snapshot.
            () if self.name.len() + 1 + id.len() + 1 + TEMPORARY.len() + MAX_NUMBER > MAX_LENGTH => {
                "name of a zfs dataset too long"
            }
            () => return Ok(()),
        };
        Err(ErrorKind::UnsafePath.err(format!("ID {id:?}: {bad}")))
    }

    /// The dataset of a layer.
    pub(super) fn layer(&self, id: &str) -> Result<String> {
        self.check_id(id)?;
        Ok(format!("{}/{id}", self.name))
    }

    /// The ID of the layer that has this dataset.
    pub(super) fn id_of<'a>(&self, dataset: &'a str) -> Option<&'a str> {
        let id = dataset.strip_prefix(&self.name)?.strip_prefix('/')?;
        self.check_id(id).is_ok().then_some(id)
    }

    /// The number of the temporary directory to which a dataset of this name belongs.
    pub(super) fn number_of<'a>(&self, dataset: &'a str) -> Option<&'a str> {
        let name = dataset.strip_prefix(&self.name)?.strip_prefix('/')?;
        let number = name.strip_prefix(TEMPORARY)?;
        number
            .strip_suffix("-new")
            .or_else(|| number.strip_suffix("-old"))
    }

    /// The dataset that belongs to the temporary directory of this number.
    pub(super) fn temporary(&self, number: &str, kind: Temporary) -> String {
        let ending = match kind {
            Temporary::New => "new",
            Temporary::Old => "old",
        };
        format!("{}/{TEMPORARY}{number}-{ending}", self.name)
    }
}

/// The snapshot of a dataset that belongs to the temporary directory of this number.
pub(super) fn snapshot(dataset: &str, number: &str) -> String {
    format!("{dataset}@{TEMPORARY}{number}")
}

/// The mark of the datasets that are made for this home.
pub(super) fn mark_of(home: &Path) -> String {
    // A path may be longer than a value, and have a tab.
    let digest = Digest::sha256(home.as_os_str().as_encoded_bytes());
    digest.encoded()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_datasets_are_taken() {
        for good in ["tank", "tank/a b", "Tank_1.x:y-z/containers"] {
            assert_eq!(Root::new(good).unwrap().name(), good);
        }
        let long = format!("tank/{}", "x".repeat(220));
        for bad in [
            "",
            "-rf",
            "/tank",
            "tank/",
            "tank//a",
            "tank/..",
            "tank@a",
            "tank#a",
            "tank/a%b",
            "1tank",
            "tank\n",
            "tank/ä",
            long.as_str(),
        ] {
            let error = Root::new(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(error.chain().contains(&format!("{bad:?}")), "{}", error.chain());
        }
        assert_eq!(Root::new("tank/a/b").unwrap().pool(), "tank");
        assert_eq!(Root::new("tank").unwrap().pool(), "tank");
    }

    #[test]
    fn layers_have_names_of_datasets() {
        let root = Root::new("tank/a").unwrap();
        assert_eq!(root.layer("x.1").unwrap(), "tank/a/x.1");
        assert_eq!(root.id_of("tank/a/x.1"), Some("x.1"));
        for other in ["tank/a", "tank/ab", "tank/a/b/c", "tank/a/graphroot-1-new"] {
            assert_eq!(root.id_of(other), None, "{other}");
        }
        let long = "x".repeat(214);
        for bad in [
            "a@b",
            "a b",
            "a/b",
            "a#",
            "ä",
            "graphroot-1-new",
            "a\tb",
            "",
            long.as_str(),
        ] {
            assert_eq!(
                root.layer(bad).unwrap_err().kind(),
                ErrorKind::UnsafePath,
                "{bad:?}"
            );
        }
        assert_eq!(root.temporary("7", Temporary::New), "tank/a/graphroot-7-new");
        assert_eq!(snapshot("tank/a/x", "7"), "tank/a/x@graphroot-7");
    }

    #[test]
    fn other_file_systems_have_no_dataset() {
        let error = Root::of(Path::new("/proc/none/below")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        let text = error.chain();
        assert!(
            text.contains("no zfs dataset found for rootdir '/proc/none/below'"),
            "{text}"
        );
        assert!(text.contains("prerequisites for driver not satisfied"), "{text}");
    }
}
