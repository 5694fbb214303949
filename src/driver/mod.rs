//! Drivers: where layer content lies and how it is mounted.
//!
//! [`Driver`] is blocking and object-safe: the store calls it from blocking tasks only. A driver knows layers by ID
//! and parent; it neither reads archives nor metadata records. For content it hands out open directories and says
//! what form deletions take there; the store passes them on to the archive code.
//!
//! Unless a method says otherwise the caller holds the layer store's lock, exclusively for everything that changes
//! something. Layer IDs have been checked by [`check_id`].

mod chown;
#[cfg(test)]
pub(crate) mod conformance;
mod copy;
mod filesystem_type;
#[cfg(test)]
mod go_tests;
pub(crate) mod options;
mod overlay;
pub(crate) mod select;
mod vfs;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::whiteout::{Namespace, WhiteoutFormat};

/// What a new layer shall be like.
#[derive(Clone, Debug, Default)]
pub(crate) struct CreateOptions {
    /// A container's layer rather than an image's: default quotas apply.
    pub(crate) read_write: bool,
    /// Owners inside the layer.
    pub(crate) mappings: IdMappings,
    /// SELinux label, or empty.
    pub(crate) mount_label: String,
    /// `--storage-opt` of a container, such as `size`.
    pub(crate) storage_opt: BTreeMap<String, String>,
    /// What the driver writes about the layer is on disk before the layer can be seen.
    pub(crate) durable: bool,
}

/// How to mount a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountOptions {
    /// SELinux label, or empty.
    pub(crate) mount_label: String,
    /// Owners wanted in the mount.
    pub(crate) mappings: IdMappings,
    /// Mount options as in `mount -o`, one each; empty means the driver's own.
    pub(crate) options: Vec<String>,
    /// Skip syncing where the driver can.
    pub(crate) volatile: bool,
    /// Never map owners at mount time.
    pub(crate) disable_shifting: bool,
}

/// A layer's own tree, open.
#[derive(Debug)]
pub(crate) struct LayerTree {
    /// The tree; can be listed.
    pub(crate) dir: OwnedFd,
    /// How deletions lie in it.
    pub(crate) form: WhiteoutFormat,
    /// Whether an entry for the root (`./`) in a layer stream sets the root's mode and owner.
    pub(crate) root_entry: bool,
    /// Go on when an owner cannot be set.
    pub(crate) ignore_chown_errors: bool,
    /// Mode for everything, the real one goes into an attribute.
    pub(crate) force_mask: Option<u32>,
    /// In a user namespace: devices cannot be made and are skipped.
    pub(crate) in_user_namespace: bool,
}

/// LayerTree that is being unpacked outside the lock. Dropped without commit it is removed.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Where the content goes.
    pub(crate) content: LayerTree,
    /// The path of `content.dir`, inside `temp`.
    pub(crate) path: PathBuf,
    /// Owns the staging directory and its lock.
    pub(crate) temp: TempDir,
    /// The driver's own name for the layer; empty if it has none beside the ID.
    pub(crate) link: String,
    /// What the driver noted about the layers below; empty if it is not needed.
    pub(crate) lower: String,
}

/// The trees that tell what a layer changes, for drivers that keep changes apart.
#[derive(Debug)]
pub(crate) struct OverlayDiff {
    /// The layer's own changes.
    pub(crate) dir: OwnedFd,
    /// The trees below, topmost first.
    pub(crate) lowers: Vec<OwnedFd>,
    /// Which attributes mark opaque directories.
    pub(crate) namespace: Namespace,
}

/// Space used by a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes in files, hard links counted once.
    pub size: u64,
    /// Distinct inodes.
    pub inodes: u64,
}

/// What a storage driver does. See the module's head for the locks that the caller holds.
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// The driver's name, also the prefix of the metadata directories.
    fn name(&self) -> &'static str;

    /// The driver's directory, `<graph root>/<name>`.
    fn home(&self) -> &Path;

    /// Creates an empty layer on `parent`. A copy of a template layer is a child of the template.
    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()>;

    /// Rewrites the owners in a layer that was created but has no content of its own yet.
    fn update_id_map(&self, id: &str, from: &IdMappings, to: &IdMappings, mount_label: &str) -> Result<()>;

    /// Whether owners can be mapped at mount time with these maps.
    fn supports_shifting(&self, mappings: &IdMappings) -> bool;

    /// Whether content can be staged without the parent that it will be committed on: [`Driver::stage`] then needs
    /// only some layer, or none, and [`Driver::commit_staged`] may name another parent.
    fn stages_apart(&self) -> bool;

    /// Starts content for a layer that will be created on `parent`. Takes no store lock and needs none.
    ///
    /// Fails with [`ErrorKind::LayerUnknown`] if the parent vanished meanwhile.
    fn stage(&self, parent: Option<&str>, options: &CreateOptions) -> Result<Staged>;

    /// Creates the layer from staged content, by renames. On failure nothing of the layer is left.
    fn commit_staged(
        &self,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
        staged: Staged,
    ) -> Result<()>;

    /// Makes the layer unusable now; what has to be deleted moves to the returned directory, which is removed when
    /// dropped: drop it after the locks are released. A layer that does not exist is not an error.
    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>>;

    /// Whether the driver has the layer, in its home or an additional store.
    fn exists(&self, id: &str) -> bool;

    /// Everything in the driver's own home that it takes for a layer.
    fn list_layers(&self) -> Result<Vec<String>>;

    /// Directories in which temporary directories of killed processes may lie.
    fn temp_dir_roots(&self) -> Vec<PathBuf>;

    /// Mounts the layer (or counts one more use in this process) and returns the directory.
    fn get(&self, id: &str, options: &MountOptions) -> Result<PathBuf>;

    /// Undoes one [`Driver::get`].
    fn put(&self, id: &str) -> Result<()>;

    /// Opens the layer's own tree for applying a diff to it or measuring it.
    fn content(&self, id: &str) -> Result<LayerTree>;

    /// The trees in which the layer's files are found, its own first.
    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>>;

    /// The trees that tell the layer's changes against its direct parent `parent`; `None` if only a comparison of
    /// mounted trees can tell (then use [`mount_tree`] for both).
    fn upper(&self, id: &str, parent: Option<&str>) -> Result<Option<OverlayDiff>>;

    /// The driver's report on itself, in the order in which it is shown.
    fn status(&self) -> Vec<(String, String)>;

    /// Paths of one layer by their well-known names (`UpperDir`, `LowerDir`, `WorkDir`, `MergedDir`).
    fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>>;

    /// Space used by the layer's own tree.
    fn disk_usage(&self, id: &str) -> Result<DiskUsage>;

    /// Frees kernel resources at shutdown.
    fn cleanup(&self) -> Result<()>;

    /// Roots of additional read-only stores.
    fn additional_image_stores(&self) -> &[PathBuf];

    /// Whether saves that finish content sync the whole file system (option `sync=filesystem`).
    fn sync_filesystem(&self) -> bool;
}

/// A layer mounted for reading; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct TreeMount {
    driver: Arc<dyn Driver>,
    id: String,
    /// The mounted tree.
    pub(crate) dir: OwnedFd,
}

/// Mounts a layer read-only to look at its tree.
pub(crate) fn mount_tree(driver: &Arc<dyn Driver>, id: &str) -> Result<TreeMount> {
    let options = MountOptions {
        options: vec!["ro".into()],
        ..MountOptions::default()
    };
    let path = driver.get(id, &options)?;
    let opened = crate::sys::at::open_dir(&path);
    match opened {
        Ok(dir) => Ok(TreeMount {
            driver: Arc::clone(driver),
            id: id.into(),
            dir,
        }),
        Err(error) => {
            if let Err(error) = driver.put(id) {
                tracing::warn!(layer = id, error = %error.chain(), "cannot unmount");
            }
            Err(crate::error::Error::io_at("opening mounted layer", path, error))
        }
    }
}

impl Drop for TreeMount {
    fn drop(&mut self) {
        if let Err(error) = self.driver.put(&self.id) {
            tracing::warn!(layer = self.id, error = %error.chain(), "cannot unmount");
        }
    }
}

/// Refuses layer IDs that are no single file name or that a driver uses itself.
pub(crate) fn check_id(id: &str) -> Result<()> {
    let reserved = matches!(id, "" | "." | ".." | "l" | "staging" | "tempdirs" | "tmp");
    if reserved || id.len() > 200 || id.bytes().any(|b| b == b'/' || b == 0) {
        return Err(ErrorKind::UnsafePath.err(format!("ID {id:?}")));
    }
    Ok(())
}
