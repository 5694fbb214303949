//! The directories of the driver and of additional stores, and making subvolumes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use crate::driver::contract::{CreateOptions, Entry, EntryKind};
use crate::driver::copy::{self, CopyOptions};
use crate::driver::layer_id::check_id;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::sys::{at, btrfs, make_private_dir, privilege};

/// The directory of the layers.
pub(super) const LAYERS: &str = "subvolumes";
/// Locked temporary directories.
pub(super) const TEMP_DIRS: &str = "tempdirs";
/// The limits of layers.
pub(super) const LIMITS: &str = "quotas";

/// `<graph root>/btrfs`, and the same directories of additional stores, which are only read.
#[derive(Debug)]
pub(super) struct Home {
    pub(super) path: PathBuf,
    additional: Vec<PathBuf>,
}

impl Home {
    /// Creates the directories of its own.
    pub(super) fn make(path: PathBuf, additional: Vec<PathBuf>) -> Result<Self> {
        make_private_dir(&path.join(LAYERS))?;
        Ok(Self { path, additional })
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.path.join(LAYERS)
    }

    pub(super) fn temp_dirs(&self) -> PathBuf {
        self.path.join(TEMP_DIRS)
    }

    /// Where the subvolume of a layer is, or would be.
    pub(super) fn place(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        Ok(self.layers().join(id))
    }

    /// The subvolume of a layer, wherever it is.
    pub(super) fn find(&self, id: &str) -> Result<PathBuf> {
        let own = self.place(id)?;
        let additional = self.additional.iter().map(|home| home.join(LAYERS).join(id));
        std::iter::once(own)
            .chain(additional)
            .find(|place| place.is_dir())
            .ok_or_else(|| ErrorKind::LayerUnknown.err(format!("locating the subvolume of layer {id:?}")))
    }

    /// The subvolume of a layer that can be changed.
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

    /// Makes a subvolume at `path` that is empty, or has what the layer `parent` has, with the owners that are asked for.
    pub(super) fn subvolume(
        &self,
        path: &Path,
        parent: Option<&str>,
        options: &CreateOptions,
    ) -> Result<OwnedFd> {
        let Some(parent) = parent else {
            let dir = empty_subvolume(path)?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o555)).at("changing the mode of", path)?;
            own_root(&dir, path, &options.mappings)?;
            return Ok(dir);
        };
        let below = self.open_layer(parent)?;
        let owners = options.new_owners();
        if let Some(owners) = owners {
            owners.check_root()?;
        }
        let made = snapshot_or_copy(&below, path, options);
        // The parent may have been removed meanwhile.
        let gone_or = |error| self.find(parent).map_or_else(|gone| gone, |_still_there| error);
        let (dir, owned) = made
            .map_err(gone_or)
            .context(|| format!("making a snapshot of layer {parent:?}"))?;
        if let Some(owners) = owners.filter(|_| !owned) {
            copy::own_tree(dir.as_fd(), owners, options.durable)
                .context(|| format!("changing the owners of a snapshot of layer {parent:?}"))?;
        }
        Ok(dir)
    }

    /// Moves what is at the place of a layer away: it belongs to a layer that was never recorded.
    pub(super) fn clear_place(&self, place: &Path, temp: &mut Option<TempDir>) -> Result<()> {
        if rustix::fs::lstat(place).is_err() {
            return Ok(());
        }
        let temp = match temp {
            Some(temp) => temp,
            None => temp.insert(TempDir::create(&self.temp_dirs())?),
        };
        stage_deletion(temp, place).map(drop)
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
                    Some(LAYERS | TEMP_DIRS | LIMITS) if is_dir && is_home => EntryKind::Internal,
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
}

/// Moves a subvolume to a temporary directory, also one that was made read-only; `false` if there is none.
pub(super) fn stage_deletion(temp: &mut TempDir, path: &Path) -> Result<bool> {
    match temp.stage_deletion(path) {
        Err(error) if error.has_errno(Errno::ROFS) => {
            let dir = at::open_dir(path).at("opening", path)?;
            btrfs::clear_read_only(dir.as_fd()).at("making the subvolume writable at", path)?;
            temp.stage_deletion(path)
        }
        moved => moved,
    }
}

/// Makes an empty subvolume; returns its root directory.
pub(super) fn empty_subvolume(path: &Path) -> Result<OwnedFd> {
    let (above, name) = parts(path)?;
    btrfs::create_subvolume(above.as_fd(), &name).at("failed to create btrfs subvolume", path)?;
    at::open_dir(path).at("opening", path)
}

/// Makes a snapshot of the layer with the root directory `source`, or a copy where it has no subvolume (as one that was restored
/// from a backup), or one on another file system. Returns its root directory, and whether it has the new owners.
fn snapshot_or_copy(source: &OwnedFd, path: &Path, options: &CreateOptions) -> Result<(OwnedFd, bool)> {
    let (above, name) = parts(path)?;
    match btrfs::snapshot(source.as_fd(), above.as_fd(), &name) {
        Err(error @ (Errno::INVAL | Errno::XDEV)) => {
            tracing::info!(%error, "copying a layer of which there can be no snapshot");
            let dir = empty_subvolume(path)?;
            let copied = CopyOptions {
                ignore_owners: false,
                durable: options.durable,
                owners: options.new_owners(),
            };
            copy::copy_tree(source.as_fd(), dir.as_fd(), copied)?;
            return Ok((dir, true));
        }
        made => made.at("failed to create btrfs snapshot", path)?,
    }
    Ok((at::open_dir(path).at("opening", path)?, false))
}

/// Makes a copy of a layer's own tree, with everything that belongs to it.
pub(super) fn copy_of(source: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    let (above, name) = parts(path)?;
    match btrfs::snapshot(source.as_fd(), above.as_fd(), &name) {
        Err(Errno::INVAL) => {
            let dir = empty_subvolume(path)?;
            copy::copy_all(source.as_fd(), dir.as_fd())?;
            Ok(dir)
        }
        made => {
            made.at("failed to create btrfs snapshot", path)?;
            at::open_dir(path).at("opening", path)
        }
    }
}

fn parts(path: &Path) -> Result<(OwnedFd, Vec<u8>)> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(ErrorKind::InvalidInput.err("no path of a subvolume:").at(path));
    };
    let dir = at::open_dir(above).at("opening", above)?;
    Ok((dir, name.as_encoded_bytes().to_vec()))
}

/// Gives the root directory of a layer to container root.
fn own_root(dir: &OwnedFd, path: &Path, mappings: &IdMappings) -> Result<()> {
    let root = mappings.root()?;
    if root == privilege::effective_owner() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(root.uid), Gid::from_raw(root.gid));
    rustix::fs::fchown(dir, Some(uid), Some(gid)).at("changing the owner of", path)
}
