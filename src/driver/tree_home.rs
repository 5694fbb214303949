//! The directories of a driver of which each layer is a tree of its own, in one directory with those of all other layers.
//! Additional stores are only read.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use crate::driver::contract::{Entry, EntryKind, FoundLayer, Leftover, LeftoverKind, MountState};
use crate::driver::layer_id::check_id;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir;
use crate::sys::presence::is_dir;
use crate::sys::{at, make_private_dir, privilege};

/// Locked temporary directories.
pub(super) const TEMP_DIRS: &str = "tempdirs";

/// `<graph root>/<driver>`, and the same directories of additional stores.
#[derive(Debug)]
pub(super) struct TreeHome {
    pub(super) path: PathBuf,
    /// The name of the directory of the layers.
    layers: &'static str,
    /// The other names in the home.
    internal: &'static [&'static str],
    additional: Vec<PathBuf>,
}

impl TreeHome {
    /// Creates the directories of its own.
    pub(super) fn make(
        path: PathBuf,
        layers: &'static str,
        internal: &'static [&'static str],
        additional: Vec<PathBuf>,
    ) -> Result<Self> {
        make_private_dir(&path.join(layers))?;
        Ok(Self {
            path,
            layers,
            internal,
            additional,
        })
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.path.join(self.layers)
    }

    pub(super) fn temp_dirs(&self) -> PathBuf {
        self.path.join(TEMP_DIRS)
    }

    /// Where the tree of a layer is, or would be.
    pub(super) fn place(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        Ok(self.layers().join(id))
    }

    /// The tree of a layer, wherever it is.
    pub(super) fn find(&self, id: &str) -> Result<PathBuf> {
        let own = self.place(id)?;
        let additional = self.additional.iter().map(|home| home.join(self.layers).join(id));
        find_dir(std::iter::once(own).chain(additional), id)
    }

    /// The tree of a layer that can be changed.
    pub(super) fn find_own(&self, id: &str) -> Result<PathBuf> {
        let found = self.find(id)?;
        match found.starts_with(&self.path) {
            true => Ok(found),
            false => Err(ErrorKind::StoreIsReadOnly.err(format!("changing layer {id:?}"))),
        }
    }

    pub(super) fn open_layer(&self, id: &str) -> Result<OwnedFd> {
        let path = self.find(id)?;
        match at::open_dir(&path) {
            // It was removed meanwhile.
            Err(Errno::NOENT) => self.find(id).and(Err(Errno::NOENT).at("opening", path)),
            opened => opened.at("opening", path),
        }
    }

    /// Everything in the directories.
    pub(super) fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for (dir, is_home) in [(self.path.clone(), true), (self.layers(), false)] {
            for entry in std::fs::read_dir(&dir).at("listing", &dir)? {
                let entry = entry.at("listing", &dir)?;
                let is_dir = entry.file_type().at("listing", &dir)?.is_dir();
                let name = entry.file_name();
                let kind = match name.to_str() {
                    Some(name) if is_home && (name == self.layers || name == TEMP_DIRS) && is_dir => {
                        EntryKind::Internal
                    }
                    Some(name) if is_home && self.internal.contains(&name) => EntryKind::Internal,
                    // Of a file system that is mounted there.
                    Some("lost+found") => EntryKind::Unknown,
                    Some(name) if is_dir && !is_home && check_id(name).is_ok() => EntryKind::Layer,
                    _ => EntryKind::Unknown,
                };
                entries.push(Entry { name, kind });
            }
        }
        Ok(entries)
    }

    /// The layers, of which the directories do not tell what they stand on.
    pub(super) fn found_layers(&self) -> Result<Vec<FoundLayer>> {
        let entries = self.list()?.into_iter();
        let ids = entries
            .filter(|entry| entry.kind == EntryKind::Layer)
            .filter_map(|entry| entry.name.into_string().ok());
        let found = ids.map(|id| FoundLayer {
            dir: self.layers().join(&id),
            id,
            in_image_store: None,
            below: None,
        });
        Ok(found.collect())
    }

    pub(super) fn leftovers(&self) -> Result<Vec<Leftover>> {
        leftovers(&self.temp_dirs())
    }
}

/// The temporary directories of killed processes.
pub(super) fn leftovers(temp_dirs: &Path) -> Result<Vec<Leftover>> {
    let dirs = temp_dir::stale(temp_dirs)?.into_iter();
    let leftovers = dirs.map(|path| Leftover {
        path,
        kind: LeftoverKind::TempDir,
    });
    Ok(leftovers.collect())
}

/// Whether a layer is there that is used without a mount.
pub(super) fn mount_state(target: &Path) -> Result<MountState> {
    Ok(match is_dir(target)? {
        true => MountState::Elsewhere,
        false => MountState::Nowhere,
    })
}

/// The first of these places at which there is a directory, the tree of layer `id`.
///
/// # Errors
/// [`ErrorKind::LayerUnknown`] if there is none.
pub(super) fn find_dir(places: impl Iterator<Item = PathBuf>, id: &str) -> Result<PathBuf> {
    for place in places {
        if is_dir(&place)? {
            return Ok(place);
        }
    }
    Err(ErrorKind::LayerUnknown.err(format!("locating the tree of layer {id:?}")))
}

/// Whether a layer was found.
pub(super) fn is_found<T>(found: Result<T>) -> Result<bool> {
    match found {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::LayerUnknown | ErrorKind::UnsafePath) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Renames a finished tree to its place. What is there belongs to a layer that was never recorded; `clear` moves it away.
pub(super) fn move_to_place(from: &Path, place: &Path, clear: impl FnOnce() -> Result<bool>) -> Result<()> {
    // An empty directory would be replaced by the rename itself.
    let mut renamed = at::rename(from, place);
    if let Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) = renamed {
        clear()?;
        renamed = at::rename(from, place);
    }
    renamed.at("moving a layer's tree to", place)
}

/// Gives the root directory of a layer that has no parent its mode, and to container root.
pub(super) fn own_empty_root(dir: &OwnedFd, path: &Path, mappings: &IdMappings) -> Result<()> {
    rustix::fs::fchmod(dir, Mode::from_raw_mode(0o555)).at("changing the mode of", path)?;
    let root = mappings.root()?;
    if root == privilege::effective_owner() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(root.uid), Gid::from_raw(root.gid));
    rustix::fs::fchown(dir, Some(uid), Some(gid)).at("changing the owner of", path)
}
