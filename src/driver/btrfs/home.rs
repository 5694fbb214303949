//! The names in the driver's directory, and making subvolumes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::io::Errno;

use crate::driver::contract::CreateOptions;
use crate::driver::copy::{self, CopyOptions};
use crate::driver::tree_home::{TreeHome, own_empty_root};
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::sys::presence::lstat_if_there;
use crate::sys::{at, btrfs, selinux};

/// The directory of the layers.
pub(super) const LAYERS: &str = "subvolumes";
/// The limits of layers.
pub(super) const LIMITS: &str = "quotas";

/// The names in the home beside the directory of the layers.
pub(super) const INTERNAL: &[&str] = &[LIMITS];

/// Makes a subvolume at `path` that is empty, or has what the layer `parent` has, with the owners that are asked for.
pub(super) fn subvolume(
    home: &TreeHome,
    path: &Path,
    parent: Option<&str>,
    options: &CreateOptions,
) -> Result<OwnedFd> {
    let dir = unlabelled_subvolume(home, path, parent, options)?;
    // Compat: where SELinux is off labels are left out. Where it is on each file gets its own, since there is no mount.
    if !options.mount_label.is_empty() && selinux::policy().is_some() {
        copy::label_tree(dir.as_fd(), &options.mount_label, options.durable)
            .context(|| format!("labelling the files of a new layer {:?}", options.mount_label))?;
    }
    Ok(dir)
}

fn unlabelled_subvolume(
    home: &TreeHome,
    path: &Path,
    parent: Option<&str>,
    options: &CreateOptions,
) -> Result<OwnedFd> {
    let Some(parent) = parent else {
        let dir = empty_subvolume(path)?;
        own_empty_root(&dir, path, &options.mappings)?;
        return Ok(dir);
    };
    let below = home.open_layer(parent)?;
    let owners = options.new_owners();
    if let Some(owners) = owners {
        owners.check_root()?;
    }
    let made = snapshot_or_copy(&below, path, options);
    // The parent may have been removed meanwhile.
    let gone_or = |error| home.find(parent).map_or_else(|gone| gone, |_still_there| error);
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
pub(super) fn clear_place(home: &TreeHome, place: &Path, temp: &mut Option<TempDir>) -> Result<()> {
    if lstat_if_there(place)?.is_none() {
        return Ok(());
    }
    let temp = match temp {
        Some(temp) => temp,
        None => temp.insert(TempDir::create(&home.temp_dirs())?),
    };
    stage_deletion(temp, place).map(drop)
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
