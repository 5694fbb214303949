//! The vfs driver: every layer is a complete directory tree, copied from its parent's. It works on every file system.
//!
//! Without root privileges every file in a layer must belong to the user of the process: another owner is an error, or
//! with `ignore_chown_errors` is replaced by that user. In a user namespace the owners can be all that it maps.
//!
//! ```text
//! <graph root>/vfs/            0700
//!   dir/ID/                    the tree; its mode and owner are the root directory's
//!   tempdirs/                  staged and deleted trees, each with its lock
//! ```
//!
//! A new layer is copied and filled in `tempdirs` and renamed to its place. A crash leaves a whole layer, or a temporary
//! directory that the next open removes.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Gid, Mode, Uid};
use rustix::io::Errno;

use crate::driver::config::DriverConfig;
use crate::driver::contract::{
    CreateOptions, DiskUsage, Driver, DriverCapabilities, Entry, EntryKind, FoundLayer, LayerTree, Leftover,
    MountOptions, MountState, Staged,
};
use crate::driver::copy::{self, CopyOptions};
use crate::driver::layer_copy::{Copied, LayerCopy};
use crate::driver::layer_id::check_id;
use crate::driver::options::VfsOptions;
use crate::driver::tree_home::{self, TEMP_DIRS, move_to_place};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::lock::temp_dir::{self, TempDir};
use crate::sys::presence::lstat_if_there;
use crate::sys::{at, make_private_dir, privilege, selinux, tree};
use crate::whiteout::WhiteoutFormat;

/// The driver's name, and that of its directory.
const NAME: &str = "vfs";

/// The directory of the layers, in the home.
const LAYERS: &str = "dir";

/// The driver. It has no state but its settings.
#[derive(Debug)]
pub(crate) struct Vfs {
    home: PathBuf,
    image_store: Option<PathBuf>,
    options: VfsOptions,
}

impl Vfs {
    /// Starts the driver, creating its home.
    pub(crate) fn open(config: &DriverConfig) -> Result<Self> {
        let options = VfsOptions::parse(&config.options)?;
        let driver = Self {
            home: config.root.join(NAME),
            image_store: config.image_store.as_ref().map(|root| root.join(NAME)),
            options,
        };
        for home in driver.writable() {
            make_private_dir(&home.join(LAYERS))?;
        }
        Ok(driver)
    }

    /// The homes in which this driver creates layers.
    fn writable(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.home)
            .chain(&self.image_store)
            .map(PathBuf::as_path)
    }

    /// The home with the layer in `tree`, which can be replaced.
    fn changeable_home(&self, id: &str, tree: &Path) -> Result<&Path> {
        let home = self.writable().find(|home| tree.starts_with(home));
        home.ok_or_else(|| ErrorKind::StoreIsReadOnly.err(format!("changing layer {id:?}")))
    }

    /// Where layers of this kind are created.
    fn base(&self, read_write: bool) -> &Path {
        self.image_store
            .as_deref()
            .filter(|_| !read_write)
            .unwrap_or(&self.home)
    }

    /// The tree of a layer, wherever it is.
    fn find(&self, id: &str) -> Result<PathBuf> {
        check_id(id)?;
        let own = std::iter::once(self.home.clone());
        let additional = self.options.image_stores.iter().map(|root| root.join(NAME));
        let homes = own.chain(additional).chain(self.image_store.clone());
        tree_home::find_dir(homes.map(|home| home.join(LAYERS).join(id)), id)
    }

    fn open_tree(&self, id: &str) -> Result<OwnedFd> {
        let path = self.find(id)?;
        at::open_dir(&path).at("opening", path)
    }

    /// A copy of the parent's tree, or an empty one, in a temporary directory.
    fn prepare(&self, parent: Option<&str>, options: &CreateOptions) -> Result<(TempDir, PathBuf, OwnedFd)> {
        if !options.storage_opt.is_empty() {
            return Err(ErrorKind::NotSupported.err("--storage-opt is not supported for vfs"));
        }
        let mut temp = TempDir::create(&self.base(options.read_write).join(TEMP_DIRS))?;
        let path = temp.addition();
        rustix::fs::mkdir(&path, Mode::RWXU).at("creating directory", &path)?;
        let dir = at::open_dir(&path).at("opening", &path)?;
        share(&dir, &path);
        match parent {
            Some(parent) => {
                let below = self.open_tree(parent)?;
                let owners = options.new_owners();
                if let Some(owners) = owners {
                    owners.check_root()?;
                }
                let copied = CopyOptions {
                    ignore_owners: self.options.ignore_chown_errors,
                    durable: options.durable,
                    owners,
                };
                let copied = copy::copy_tree(below.as_fd(), dir.as_fd(), copied);
                // If the parent is being removed its files vanish during the copy.
                copied
                    .map_err(|error| self.find(parent).map_or_else(|gone| gone, |_still_there| error))
                    .context(|| format!("copying layer {parent:?}"))?;
            }
            None => {
                rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o555)).at("changing the mode of", &path)?;
                self.own(&dir, &path, &options.mappings)?;
            }
        }
        Ok((temp, path, dir))
    }

    /// Gives a layer's root directory to container root.
    fn own(&self, dir: &OwnedFd, path: &Path, mappings: &IdMappings) -> Result<()> {
        let root = mappings.root()?;
        if root == privilege::effective_owner() {
            return Ok(());
        }
        match rustix::fs::fchown(dir, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid))) {
            Err(error) if self.options.ignore_chown_errors => {
                tracing::warn!(path = %path.display(), %error, "cannot set an owner, going on");
                Ok(())
            }
            Err(Errno::PERM) if !privilege::is_root() => {
                let Owner { uid, gid } = root;
                let doing = format!(
                    "giving a layer to {uid}:{gid} without being root (work in a user namespace, map container root \
                     to yourself, or use the driver option vfs.ignore_chown_errors):"
                );
                Err(Error::io_at(doing, path, Errno::PERM))
            }
            result => result.at("changing the owner of", path),
        }
    }

    /// Renames a finished tree to its place. A tree that is there already belongs to a layer that was never recorded.
    fn place(&self, id: &str, options: &CreateOptions, temp: &mut TempDir, path: &Path) -> Result<()> {
        check_id(id)?;
        let target = self.base(options.read_write).join(LAYERS).join(id);
        move_to_place(path, &target, || temp.stage_deletion(&target))
    }
}

/// Gives a directory the label by which containers may use what will be made in it, where SELinux is on. Compat: a failure is
/// only logged.
fn share(dir: &OwnedFd, path: &Path) {
    let label = selinux::policy().map(|policy| policy.shared_files());
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return;
    };
    if let Err(error) = selinux::set_label(dir.as_fd(), &label) {
        tracing::warn!(path = %path.display(), label, %error, "cannot set an SELinux label, going on");
    }
}

/// What an entry of the directory of layers is.
fn kind_of(name: Option<&str>, is_dir: bool) -> EntryKind {
    match name {
        // Of a file system that is mounted there.
        Some("lost+found") => EntryKind::Unknown,
        Some(name) if is_dir && check_id(name).is_ok() => EntryKind::Layer,
        _ => EntryKind::Unknown,
    }
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let (mut temp, path, _dir) = self.prepare(parent, options)?;
        self.place(id, options, &mut temp, &path)
    }

    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities::default()
    }

    fn supports_shifting(&self, _mappings: &IdMappings) -> bool {
        false
    }

    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>> {
        let (mut temp, path, dir) = self.prepare(parent, options)?;
        let unpack_dir = parent.map(|_| -> Result<OwnedFd> {
            let path = temp.addition();
            rustix::fs::mkdir(&path, Mode::RWXU).at("creating directory", &path)?;
            let dir = at::open_dir(&path).at("opening", &path)?;
            share(&dir, &path);
            Ok(dir)
        });
        Ok(Box::new(StagedTree {
            tree: self.tree_of(dir),
            unpack_dir: unpack_dir.transpose()?,
            path,
            temp,
            driver: self,
        }))
    }

    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>> {
        let tree = self.find(id)?;
        let homes = [&tree, tree.parent().unwrap_or(&tree)];
        Ok(homes.map(Path::to_owned).into())
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        check_id(id)?;
        for home in self.writable() {
            let path = home.join(LAYERS).join(id);
            if lstat_if_there(&path)?.is_some() {
                let mut temp = TempDir::create(&home.join(TEMP_DIRS))?;
                temp.stage_deletion(&path)?;
                return Ok(Some(temp));
            }
        }
        Ok(None)
    }

    fn remove_in_place(&self, id: &str) -> Result<()> {
        check_id(id)?;
        for home in self.writable() {
            let path = home.join(LAYERS).join(id);
            tree::remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))?;
        }
        Ok(())
    }

    fn exists(&self, id: &str) -> Result<bool> {
        tree_home::is_found(self.find(id))
    }

    fn found_layers(&self) -> Result<Vec<FoundLayer>> {
        let mut found = Vec::new();
        for (index, home) in self.writable().enumerate() {
            let layers = home.join(LAYERS);
            for entry in list_dir(&layers, kind_of)? {
                let id = entry.name.into_string().ok();
                if let Some(id) = id.filter(|_| entry.kind == EntryKind::Layer) {
                    found.push(FoundLayer {
                        dir: layers.join(&id),
                        id,
                        in_image_store: Some(index > 0),
                        below: None,
                    });
                }
            }
        }
        Ok(found)
    }

    fn list(&self) -> Result<Vec<Entry>> {
        let mut entries = list_dir(&self.home, |name, is_dir| match name {
            Some(LAYERS | TEMP_DIRS) if is_dir => EntryKind::Internal,
            _ => EntryKind::Unknown,
        })?;
        entries.extend(list_dir(&self.home.join(LAYERS), kind_of)?);
        Ok(entries)
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut found = Vec::new();
        for home in self.writable() {
            found.extend(tree_home::leftovers(&home.join(TEMP_DIRS))?);
        }
        Ok(found)
    }

    fn prune(&self) -> Result<()> {
        let results = self
            .writable()
            .map(|home| temp_dir::recover(&home.join(TEMP_DIRS)));
        // Collected first, so that a failure does not stop the others.
        results.collect::<Vec<_>>().into_iter().collect()
    }

    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        if let Some(option) = options.options.iter().find(|option| *option != "ro") {
            return Err(ErrorKind::NotSupported.err(format!("mount option {option:?} with the vfs driver")));
        }
        self.find(id)
    }

    fn unmount(&self, _id: &str) -> Result<()> {
        Ok(())
    }

    fn mount_state(&self, target: &Path) -> Result<MountState> {
        tree_home::mount_state(target)
    }

    fn mount_private(&self, id: &str) -> Result<OwnedFd> {
        self.open_tree(id)
    }

    fn layer_tree(&self, id: &str) -> Result<LayerTree> {
        Ok(self.tree_of(self.open_tree(id)?))
    }

    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>> {
        let tree = self.find(id)?;
        let home = self.changeable_home(id, &tree)?;
        // Every directory beside it is a layer.
        let beside = None;
        LayerCopy::make(tree, beside, &home.join(TEMP_DIRS), copied)
    }

    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        Ok(vec![self.open_tree(id)?])
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        DiskUsage::of_tree(self.open_tree(id)?.as_fd(), id)
    }

    fn additional_image_stores(&self) -> &[PathBuf] {
        &self.options.image_stores
    }

    fn sync_filesystem(&self) -> bool {
        self.options.sync_filesystem
    }
}

impl Vfs {
    fn tree_of(&self, dir: OwnedFd) -> LayerTree {
        LayerTree {
            dir,
            whiteouts: WhiteoutFormat::Apply,
            root_entry: true,
            ignore_chown_errors: self.options.ignore_chown_errors,
            force_mask: None,
            in_user_namespace: privilege::is_rootless(),
        }
    }
}

/// A tree in a temporary directory.
#[derive(Debug)]
struct StagedTree {
    driver: Arc<Vfs>,
    tree: LayerTree,
    /// Where content is unpacked before it is merged into the copy of the parent's tree.
    unpack_dir: Option<OwnedFd>,
    /// The tree, inside `temp`.
    path: PathBuf,
    /// Owns the temporary directory and its lock.
    temp: TempDir,
}

impl Staged for StagedTree {
    fn tree(&self) -> &LayerTree {
        &self.tree
    }

    fn unpack_dir(&self) -> Option<&OwnedFd> {
        self.unpack_dir.as_ref()
    }

    fn reopen(&self) -> Result<OwnedFd> {
        at::open_dir(&self.path).at("opening", &self.path)
    }

    fn path(&self) -> PathBuf {
        self.path.clone()
    }

    fn into_copy(self: Box<Self>, id: &str) -> Result<LayerCopy> {
        let tree = self.driver.find(id)?;
        self.driver.changeable_home(id, &tree)?;
        // Every directory beside it is a layer.
        let beside = None;
        Ok(LayerCopy::of_staged(
            self.tree.dir,
            self.path,
            tree,
            beside,
            self.temp,
        ))
    }

    fn commit(mut self: Box<Self>, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        // The tree is complete without its parent, but no record names the parent any more.
        parent.map(|parent| self.driver.find(parent)).transpose()?;
        self.driver.place(id, options, &mut self.temp, &self.path)
    }
}

/// The entries of a directory; `kind` gets the name, if it is UTF-8, and whether it is a directory.
fn list_dir(dir: &Path, kind: impl Fn(Option<&str>, bool) -> EntryKind) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).at("listing", dir)? {
        let entry = entry.at("listing", dir)?;
        let is_dir = entry.file_type().at("listing", dir)?.is_dir();
        let name = entry.file_name();
        let kind = kind(name.to_str(), is_dir);
        entries.push(Entry { name, kind });
    }
    Ok(entries)
}
