//! Files and directories that belong to no item.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::driver::{Leftover, LeftoverKind, is_usual_id};
use crate::error::Result;
use crate::record::{TAR_SPLIT, big_data};
use crate::sys::{list_dir_if_there, temporary_names};

/// Something in the directories of a store that belongs to no item.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Stray {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub kind: StrayKind,
}

/// What a stray is.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StrayKind {
    /// The tar-split file of a layer that has no record.
    TarSplit,
    /// The big data of a layer that has no record.
    LayerData,
    /// The data of an image that has no record.
    ImageData,
    /// The data of a container that has no record.
    ContainerData,
    /// A temporary directory in which nobody is working any more.
    TempDir,
    /// A staging directory in which nobody is working any more.
    Staging,
    /// A symbolic link of the overlay driver to a layer that is not there.
    Link,
    /// A file that was to replace a file of records.
    RecordsInTheMaking,
    /// A file that was to replace an item of big data.
    DataInTheMaking,
}

impl StrayKind {
    /// Which operation leaves such a thing, if its process is killed. No process uses it any more: those in which one works are
    /// locked by it, or made under locks that the check has held too, and are no strays.
    pub const fn left_by(self) -> &'static str {
        match self {
            Self::TarSplit => "putting a layer or deleting one",
            Self::LayerData => "setting big data of a layer or deleting one",
            Self::ImageData => "creating an image or deleting one",
            Self::ContainerData => "creating a container or deleting one",
            Self::TempDir => "putting a layer, deleting one that cannot be removed yet, or looking at one",
            Self::Staging => "pulling a layer in parts",
            Self::Link => "creating a layer or deleting one",
            Self::RecordsInTheMaking => "any change of records",
            Self::DataInTheMaking => "setting big data",
        }
    }
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            StrayKind::TarSplit => "tar-split file of a layer without a record",
            StrayKind::LayerData => "big data of a layer without a record",
            StrayKind::ImageData => "data of an image without a record",
            StrayKind::ContainerData => "data of a container without a record",
            StrayKind::TempDir => "temporary directory of a process that has ended",
            StrayKind::Staging => "staging directory of a process that has ended",
            StrayKind::Link => "link to a layer that is not there",
            StrayKind::RecordsInTheMaking => "unfinished file of records of a process that has ended",
            StrayKind::DataInTheMaking => "unfinished item of big data of a process that has ended",
        };
        let left_by = self.kind.left_by();
        write!(f, "{}: {what}; left by {left_by}", self.path.display())
    }
}

/// The usual IDs among the names in `dir` that end in `suffix`; none if `dir` is missing.
pub(crate) fn ids_in(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for entry in list_dir_if_there(dir)? {
        let name = entry?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(suffix)) else {
            continue;
        };
        if is_usual_id(id) {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// What the driver knows of.
pub(super) fn of_driver(leftovers: Vec<Leftover>) -> impl Iterator<Item = Stray> {
    leftovers.into_iter().map(|leftover| Stray {
        path: leftover.path,
        kind: match leftover.kind {
            LeftoverKind::TempDir => StrayKind::TempDir,
            LeftoverKind::Staging => StrayKind::Staging,
            LeftoverKind::Link => StrayKind::Link,
        },
    })
}

/// What killed writers have left beside these files of records, and in the directories of items in `dirs`. The caller holds
/// the locks of all of them.
pub(super) fn in_the_making(files: &[PathBuf], dirs: &BTreeSet<PathBuf>) -> Result<Vec<Stray>> {
    let mut found = Vec::new();
    let mut add = |paths: Vec<PathBuf>, kind| {
        found.extend(paths.into_iter().map(|path| Stray { path, kind }));
    };
    for file in files {
        add(temporary_names::stale(&[file])?, StrayKind::RecordsInTheMaking);
    }
    for dir in dirs {
        for id in ids_in(dir, "")? {
            add(big_data::stale(&dir.join(id))?, StrayKind::DataInTheMaking);
        }
    }
    Ok(found)
}

/// The strays of one kind in a directory, where `known` are the IDs of items.
pub(super) fn strays_in(dir: &Path, kind: StrayKind, known: &HashSet<&str>) -> Result<Vec<Stray>> {
    let suffix = match kind {
        StrayKind::TarSplit => TAR_SPLIT,
        _ => "",
    };
    let ids = ids_in(dir, suffix)?.into_iter();
    let unknown = ids.filter(|id| !known.contains(id.as_str()));
    Ok(unknown
        .map(|id| Stray {
            path: dir.join(format!("{id}{suffix}")),
            kind,
        })
        .collect())
}
