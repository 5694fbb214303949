//! The contract between the store and a storage driver.
//!
//! [`Driver`] blocks and is object-safe: the store calls it from finite steps on the blocking pool. A driver knows
//! layers by ID and parent; it reads neither archives nor records. It hands out open directories and says how
//! deletions are written in them; the store passes both on to the archive code.
//!
//! Unless a method says otherwise the caller holds the layer store's lock, exclusively for everything that changes
//! something. The driver checks the IDs that it is given ([`Driver::check_id`]).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::driver::layer_copy::{self, Copied, LayerCopy};
use crate::driver::layer_id::check_id;
use crate::driver::layer_use::LayerUse;
use crate::driver::new_owners::NewOwners;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::sys::btrfs::SnapshotChanges;
use crate::sys::tree;
use crate::whiteout::{Namespace, WhiteoutFormat};

/// The properties of a new layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct CreateOptions {
    /// A container's layer rather than an image's: default quotas apply.
    pub(crate) read_write: bool,
    /// Owners inside the layer.
    pub(crate) mappings: IdMappings,
    /// The mappings of the parent's files, if they are others: what the layer shows of the parent gets new owners.
    pub(crate) parent_mappings: Option<IdMappings>,
    /// `--storage-opt` of a container, such as `size`.
    pub(crate) storage_opt: BTreeMap<String, String>,
    /// The SELinux label of the files, or empty; for drivers without mounts, which could show it.
    pub(crate) mount_label: String,
    /// The files that the driver makes are on disk before the layer is visible, or will be with what is written later on
    /// the same file system; see [`Driver::names_to_sync`] for the names.
    pub(crate) durable: bool,
}

impl CreateOptions {
    /// The new owners of the parent's files.
    pub(crate) fn new_owners(&self) -> Option<NewOwners<'_>> {
        let (from, to) = (self.parent_mappings.as_ref()?, &self.mappings);
        (from != to).then_some(NewOwners { from, to })
    }
}

/// How to mount a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountOptions {
    /// SELinux label, or empty.
    pub(crate) mount_label: String,
    /// Owners wanted in the mount, if the driver can show others than those on disk ([`Driver::supports_shifting`]).
    pub(crate) mappings: IdMappings,
    /// Mount options as in `mount -o`, one each; empty means the driver's own.
    pub(crate) options: Vec<String>,
    /// Skip syncing where the driver can.
    pub(crate) volatile: bool,
}

/// The directory of a layer's own files, open, and how to write into it.
#[derive(Debug)]
pub(crate) struct LayerTree {
    /// The directory; can be listed.
    pub(crate) dir: OwnedFd,
    /// How deletions are written in it.
    pub(crate) whiteouts: WhiteoutFormat,
    /// Whether an entry for the root (`./`) in a layer stream sets the root's mode and owner.
    pub(crate) root_entry: bool,
    /// Go on when an owner cannot be set.
    pub(crate) ignore_chown_errors: bool,
    /// Mode of every file; the real one goes into an attribute.
    pub(crate) force_mask: Option<u32>,
    /// In a user namespace: devices cannot be made and are skipped.
    pub(crate) in_user_namespace: bool,
}

/// The content of a layer that does not exist yet, filled outside the locks. Dropped without a commit it is removed,
/// which may block for long.
pub(crate) trait Staged: Send + Sync + fmt::Debug {
    /// Where the content goes.
    fn tree(&self) -> &LayerTree;

    /// The path of [`Staged::tree`].
    fn path(&self) -> PathBuf;

    /// An empty directory of the same file system, where [`Staged::tree`] is the copy of a whole tree: content is
    /// unpacked there and then merged into the copy. `None` where it goes into the tree itself.
    fn unpack_dir(&self) -> Option<&OwnedFd> {
        None
    }

    /// Opens the directory of [`Staged::tree`] anew. Another process may have mounted the driver's home on itself meanwhile:
    /// nothing can be renamed from a directory that was opened before to one that is opened after that.
    fn reopen(&self) -> Result<OwnedFd>;

    /// Whether [`Staged::move_into`] copies the content first, since nothing can be linked to or renamed from one layer to another.
    fn is_apart(&self) -> bool {
        false
    }

    /// Has `move_all` move the content by renames into the tree `into`, which is that of a layer, or a [copy](LayerCopy) of one;
    /// it gets the directory that has the content, perhaps copied to where that is possible.
    fn move_into(
        &self,
        _into: BorrowedFd<'_>,
        move_all: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        move_all(self.reopen()?.as_fd())
    }

    /// Gives what the layer shows of `parent` new owners, where it was not staged with them; before anything is fitted to
    /// the parent. Returns the tree that shows them and hides what the parent has, if there is one. It is then committed on
    /// this parent only. After an error the content is to be given up.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidMappings`], [`ErrorKind::Io`], [`ErrorKind::LayerUnknown`] if the parent is gone.
    fn give_owners(&mut self, _parent: &str, _owners: NewOwners<'_>) -> Result<Option<OwnedFd>> {
        Ok(None)
    }

    /// Whether [`Staged::store_by_digest`] can do something.
    fn stores_by_digest(&self) -> bool {
        false
    }

    /// Puts the content, which is whole and has been fitted to the layers below, into the driver's form for contents stored by
    /// their digests. Returns whether it did. After an error the content is to be given up. It is then committed on
    /// this parent only.
    ///
    /// # Errors
    /// As [`Staged::commit`].
    fn store_by_digest(&mut self, _parent: Option<&str>) -> Result<bool> {
        Ok(false)
    }

    /// The content as a copy that can take the place of the tree of the layer `id`, which is there. It has been fitted to the
    /// layer's parent, and was staged on it.
    ///
    /// The caller holds the layer store's lock exclusively.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if the layer is gone; [`ErrorKind::StoreIsReadOnly`] if it is in a store that can only be
    /// read; [`ErrorKind::NotSupported`] if its form does not allow it.
    fn into_copy(self: Box<Self>, id: &str) -> Result<LayerCopy>;

    /// Makes the content the layer `id` on `parent`, by renames. On failure nothing of the layer is left.
    ///
    /// The caller holds the layer store's lock exclusively. The options are those that the content was staged with.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if the parent is gone, [`ErrorKind::InvalidInput`] if it cannot be committed on that
    /// parent, [`ErrorKind::UnsafePath`] for an ID that the driver refuses.
    fn commit(self: Box<Self>, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()>;
}

/// The directories from which a layer's changes are read, for drivers that keep changes apart.
#[derive(Debug)]
pub(crate) struct OverlayDiff {
    /// The layer's own changes.
    pub(crate) dir: OwnedFd,
    /// The directories of the layers below, topmost first.
    pub(crate) lowers: Vec<OwnedFd>,
    /// Which attributes mark opaque directories.
    pub(crate) namespace: Namespace,
}

/// Space used by a layer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskUsage {
    /// Bytes in files, hard links counted once.
    pub size: u64,
    /// Distinct inodes.
    pub inodes: u64,
}

impl DiskUsage {
    /// That of the tree of a layer, which `dir` is.
    pub(crate) fn of_tree(dir: BorrowedFd<'_>, id: &str) -> Result<Self> {
        let usage = tree::usage(dir).during(format!("measuring layer {id:?}"))?;
        Ok(Self {
            size: usage.size,
            inodes: usage.inodes,
        })
    }
}

/// What a storage driver can do beside making and mounting layers.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCapabilities {
    /// A layer can be unpacked before the layer below it exists. If not, an image's layers are unpacked one after the
    /// other.
    pub stages_apart: bool,
    /// A layer can be put together from files that other layers have already, instead of being unpacked.
    pub differ: bool,
    /// Containers' layers can have limits on bytes and inodes.
    pub quota: bool,
}

/// What an entry of a driver's directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A layer.
    Layer,
    /// The driver's own.
    Internal,
    /// Neither: nothing that this driver makes.
    Unknown,
}

/// An entry of a driver's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its name; that of a layer is its ID.
    pub(crate) name: OsString,
    /// What it is.
    pub(crate) kind: EntryKind,
}

/// A layer, and what it stands on by the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The layer.
    pub(crate) id: String,
    /// The layers below, nearest first.
    pub(crate) below: Vec<String>,
    /// Whether images say too that it is the lowest one.
    pub(crate) is_lowest: bool,
}

/// Something that a killed process has left in the driver's directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// What it is.
    pub(crate) kind: LeftoverKind,
}

/// What a killed process has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LeftoverKind {
    /// A temporary directory: content that was being unpacked, or is being deleted.
    TempDir,
    /// A staging directory of the Go library.
    Staging,
    /// A symbolic link to a layer that is not there.
    Link,
}

/// What the driver's directories tell of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundLayer {
    /// Its ID.
    pub(crate) id: String,
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// Whether it is in the separate image store; `None` if the driver has all layers in one place, wherever their records
    /// are.
    pub(crate) in_image_store: Option<bool>,
    /// The layers below, nearest first; `None` if the driver does not know. Of a copy of a layer with other owners that
    /// layer is the first.
    pub(crate) below: Option<Vec<String>>,
}

/// A file of the driver that does not agree with the records about what a layer stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StandingDamage {
    /// The layer.
    pub(crate) id: String,
    /// The name of the file in the layer's directory.
    pub(crate) file: &'static str,
    /// What is wrong with it.
    pub(crate) reason: String,
}

/// Whether a layer is mounted at its mount target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MountState {
    /// It is, in this mount namespace.
    Here,
    /// Not in this mount namespace, but a use may be in another one, or need no mount.
    Elsewhere,
    /// It is not: a count of its uses is out of date, for instance since a reboot.
    Nowhere,
}

/// A storage driver. The module's head says which locks the caller holds.
pub(crate) trait Driver: Send + Sync + fmt::Debug {
    /// The driver's name, also the prefix of the metadata directories.
    fn name(&self) -> &'static str;

    /// The driver's directory, `<graph root>/<name>`.
    fn home(&self) -> &Path;

    /// What the driver can do. No system call.
    fn capabilities(&self) -> DriverCapabilities;

    /// Refuses IDs that are no single file name, and names that the driver needs itself.
    ///
    /// # Errors
    /// [`ErrorKind::UnsafePath`].
    fn check_id(&self, id: &str) -> Result<()> {
        check_id(id)
    }

    /// Creates an empty layer on `parent`. A copy of a template layer is a child of the template.
    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()>;

    /// Looks for a layer in the additional layer stores of the driver, by the digest of its table of contents and the
    /// reference of its image. Takes no lock. Returns its directory; `None` if there is none that can be used.
    fn find_additional_layer(&self, _toc_digest: &Digest, _reference: &str) -> Option<PathBuf> {
        None
    }

    /// Creates a layer whose own files are those of a layer in an additional layer store. Only their place is recorded; the
    /// use ends when the layer is removed.
    fn create_additional(
        &self,
        id: &str,
        _parent: Option<&str>,
        _layer: LayerUse,
        _options: &CreateOptions,
    ) -> Result<()> {
        let what = format!(
            "layer {id:?} in an additional layer store with the {} driver",
            self.name()
        );
        Err(ErrorKind::NotSupported.err(what))
    }

    /// The directory in an additional layer store in which a layer's own files are; `None` if they are the driver's, and can
    /// be changed.
    fn additional_layer(&self, _id: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Whether a mount can show other owners with these mappings: by ID-mapped mounts, or by a mount program that maps
    /// them.
    fn supports_shifting(&self, mappings: &IdMappings) -> bool;

    /// Whether a mount that shows other owners maps those of new files too, so that they are on disk as the container
    /// sees them.
    fn shifts_new_files(&self) -> bool {
        false
    }

    /// Starts the content of a layer on `parent`. Takes no store lock and needs none. With
    /// [`DriverCapabilities::stages_apart`] the content can be committed on another parent than this one.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is no such parent, or not any more.
    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>>;

    /// The directories that have to be synced so that a layer that has just been created or committed survives a power
    /// cut: those in which its names stand, and those of its own of which modes and owners were set. Also those that have
    /// to be synced after its removal; then some of them are gone.
    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>>;

    /// Makes the layer unusable now; what has to be deleted moves to the returned directory, which is removed when
    /// dropped: drop it after the locks are released. A layer that does not exist is not an error.
    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>>;

    /// As [`Driver::defer_remove`], for a disk without room for a directory: the layer is deleted where it is, which may
    /// take long. A failure leaves a part of it.
    fn remove_in_place(&self, id: &str) -> Result<()>;

    /// Whether the driver has the layer, in its home or an additional store; not if the ID can be that of none.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and others, if that cannot be told.
    fn exists(&self, id: &str) -> Result<bool>;

    /// Whether the driver works. What it fails in if not tells nothing of a layer.
    fn check_works(&self) -> Result<()> {
        Ok(())
    }

    /// Everything in the driver's own home, by kind.
    fn list(&self) -> Result<Vec<Entry>>;

    /// The IDs of the layers in the driver's own home.
    fn list_layers(&self) -> Result<Vec<String>> {
        let layers = self.list()?.into_iter();
        Ok(layers
            .filter(|entry| entry.kind == EntryKind::Layer)
            .filter_map(|entry| entry.name.into_string().ok())
            .collect())
    }

    /// The layers in the driver's home and in a separate image store, with what their directories tell of what they stand
    /// on. Changes nothing.
    fn found_layers(&self) -> Result<Vec<FoundLayer>>;

    /// Which of the driver's own files do not agree with what layers stand on. Changes nothing. Layers that the driver
    /// does not have are passed over.
    fn examine(&self, _layers: &[Standing]) -> Result<Vec<StandingDamage>> {
        Ok(Vec::new())
    }

    /// Makes these files of a layer anew. Needs the layer store's lock exclusively.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if the driver lacks one of the layers.
    fn mend(&self, _layer: &Standing) -> Result<()> {
        Ok(())
    }

    /// What killed processes have left in the driver's directories, other than layers. What is in use is not among it. Changes
    /// nothing. Needs the layer store's lock.
    fn leftovers(&self) -> Result<Vec<Leftover>>;

    /// Removes what the driver has in its directories for layers that are not there. Needs the layer store's lock
    /// exclusively.
    fn remove_strays(&self) -> Result<()> {
        Ok(())
    }

    /// Removes the temporary data of killed processes, their temporary mounts included. Data in use, by this process or
    /// another, stays. Needs no store lock. The first failure is returned; everything else is removed all the same.
    fn prune(&self) -> Result<()>;

    /// Mounts the layer, or counts one more use in this process, and returns the mount target.
    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf>;

    /// Undoes one [`Driver::mount`].
    fn unmount(&self, id: &str) -> Result<()>;

    /// Undoes every [`Driver::mount`] of a layer by whichever process, and a mount that a killed one has left.
    fn unmount_all(&self, id: &str) -> Result<()> {
        self.unmount(id)
    }

    /// Whether what [`Driver::mount`] has returned is still mounted.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] and others, if that cannot be told: a mount that cannot be looked at may be in use.
    fn mount_state(&self, target: &Path) -> Result<MountState>;

    /// Whether a layer is mounted at the mount target that the driver itself gives it, whoever counts that mount; nowhere with a
    /// driver that has no such targets.
    fn own_mount_state(&self, id: &str) -> Result<MountState> {
        let paths = self.metadata(id)?;
        let target = paths.get("MergedDir").map(Path::new);
        target.map_or(Ok(MountState::Nowhere), |target| self.mount_state(target))
    }

    /// Opens the root directory of the whole layer, with the layers below it, for reading.
    ///
    /// If that takes a mount it is read-only and has no path: no other task or process can use or unmount it, and it is
    /// not counted. It ends when the last file in it is closed. A mount of the same layer by [`Driver::mount`] neither
    /// changes it nor is changed by it. Owners are those on disk.
    fn mount_private(&self, id: &str) -> Result<OwnedFd>;

    /// Opens the directory of the layer's own files for applying a diff to it or measuring it.
    fn layer_tree(&self, id: &str) -> Result<LayerTree>;

    /// Removes what a killed process has left in the tree of the layer that is no part of it, when it
    /// [moved content](Staged::move_into) there.
    fn remove_half_moved(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    /// A copy of the layer's own tree that can take its place; `None` if the file system cannot exchange trees. If a mount
    /// shows the tree, the caller has it [stay](LayerCopy::keep_old).
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::StoreIsReadOnly`], [`ErrorKind::Io`]; [`Error::is_busy`](crate::Error::is_busy)
    /// if the driver cannot exchange the tree while files in it are open.
    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>>;

    /// A number that tells the tree of a layer from one that [takes its place](LayerCopy::take_place). If a killed process was
    /// exchanging them, that is completed, or taken back, before.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is no such layer, [`ErrorKind::Io`].
    fn tree_number(&self, id: &str) -> Result<u64> {
        layer_copy::number_of(self.layer_tree(id)?.dir.as_fd())
    }

    /// The layers of which trees are kept that others have replaced while a mount showed them
    /// ([`LayerCopy::keep_old`]).
    fn layers_with_old_trees(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Moves such trees of a layer to the returned directory, which is removed when dropped. The caller has made sure that no
    /// mount shows them.
    fn remove_old_trees(&self, _id: &str) -> Result<Option<TempDir>> {
        Ok(None)
    }

    /// The directories in which the layer's files are found, its own first.
    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>>;

    /// As [`Driver::file_trees`], for everything but the contents of files; deletions are in them as the driver writes them.
    fn name_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        self.file_trees(id)
    }

    /// Whether the layer's own files are in a form in which they cannot be changed.
    fn is_fixed(&self, _id: &str) -> Result<bool> {
        Ok(false)
    }

    /// The directories that hold the layer's changes against its direct parent `parent`; `None` if only a comparison of
    /// whole trees shows them ([`Driver::mount_private`] for both).
    fn overlay_diff(&self, _id: &str, _parent: Option<&str>) -> Result<Option<OverlayDiff>> {
        Ok(None)
    }

    /// Begins to find out in which inodes the trees of a layer and of its direct parent can differ, that [`Driver::mount_private`]
    /// has opened; `None` where only a comparison of whole trees shows it.
    fn snapshot_changes(&self, _new: BorrowedFd<'_>, _old: BorrowedFd<'_>) -> Option<SnapshotChanges> {
        None
    }

    /// The driver's report on itself, in the order in which it is shown.
    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// Paths of one layer by their well-known names (`UpperDir`, `LowerDir`, `WorkDir`, `MergedDir`).
    fn metadata(&self, _id: &str) -> Result<BTreeMap<String, String>> {
        Ok(BTreeMap::new())
    }

    /// Space used by the layer's own files; of a container's layer with limits by the count that they are held against.
    fn disk_usage(&self, id: &str) -> Result<DiskUsage>;

    /// A mount of a layer that would go with what the driver has mounted for itself. If nothing is recorded to be mounted, it is that
    /// of someone who records mounts in another run root.
    fn dependent_mount(&self) -> Result<Option<PathBuf>> {
        Ok(None)
    }

    /// Undoes what the driver has mounted for itself, at shutdown, and removes staging directories that no process uses.
    fn cleanup(&self) -> Result<()> {
        Ok(())
    }

    /// Roots of additional read-only stores.
    fn additional_image_stores(&self) -> &[PathBuf];

    /// Whether saves that finish content sync the whole file system (option `sync=filesystem`).
    fn sync_filesystem(&self) -> bool;
}
