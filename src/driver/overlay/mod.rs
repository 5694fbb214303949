//! The overlay driver: a layer is a directory of changes, put on top of those below by the kernel's overlayfs.
//!
//! [`layout`] shows what lies on disk, [`layer`] how it comes there, [`get`] how it is mounted.
//!
//! Where the kernel cannot mount layers a program does ([`program`]): if the option names one, if the store has been
//! used with one before, or if the kernel's overlay does not work here and the program is installed. Whiteouts are in
//! the kernel's form without a program, and files as in the layer's tar stream with one, for a program may be all that
//! somebody has who may not make devices.
//!
//! Locks: as [`crate::driver`] says. Besides, a mutex of this process is held while a layer is mounted or unmounted,
//! because uses are counted per process.

mod flags;
mod get;
mod home_state;
mod id_mapped;
mod layer;
mod layout;
mod mount;
mod probe;
mod program;
mod repair;
mod stores;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

use crate::driver::filesystem_type::FilesystemType;
use crate::driver::options::OverlayOptions;
use crate::driver::overlay::home_state::HomeState;
use crate::driver::overlay::id_mapped::Namespaces;
use crate::driver::overlay::layout::{LINKS, MOUNT_PROGRAM_FLAG, STAGING, TEMP_DIRS};
use crate::driver::overlay::probe::Probe;
use crate::driver::overlay::stores::{Stores, exists, generations, open_tree};
use crate::driver::select::DriverConfig;
use crate::driver::{CreateOptions, DiskUsage, Driver, LayerTree, MountOptions, OverlayDiff, Staged};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::staging_lock::StagingLock;
use crate::lock::temp_dir::TempDir;
use crate::sys::mount::{may_mount, unmount_lazily};
use crate::sys::{atomic, make_private_dir, privilege, tree};
use crate::whiteout::{Namespace, WhiteoutFormat};

/// The driver's name.
pub(super) const NAME: &str = "overlay";

/// The driver.
#[derive(Debug)]
pub(crate) struct Overlay {
    stores: Stores,
    /// `<run root>/overlay`.
    run_home: PathBuf,
    options: OverlayOptions,
    /// Name of the file system below.
    backing: &'static str,
    /// Which attributes hold overlay's marks.
    namespace: Namespace,
    /// Changes of owners and modes copy no content.
    metacopy: bool,
    /// Mounts in place of the kernel.
    program: Option<PathBuf>,
    shared: Arc<HomeState>,
    /// The home has been made a private mount.
    is_private: AtomicBool,
    /// User namespaces of recent mounts.
    namespaces: Namespaces,
}

impl Overlay {
    /// Starts the driver, creating its home. [`ErrorKind::NotSupported`] if overlay does not work here; a home that
    /// did not exist does not exist then either.
    pub(crate) fn open(config: &DriverConfig) -> Result<Self> {
        let options = OverlayOptions::parse(&config.options)?;
        let (home, run_home) = (config.root.join(NAME), config.run_root.join(NAME));
        if !privilege::is_root() {
            let what = "overlay without being root, at least in a user namespace (podman unshare, unshare --map-auto -rm)";
            return Err(ErrorKind::NotSupported.err(what));
        }
        make_private_dir(&config.root)?;
        let backing = FilesystemType::of(&config.root)?;
        let rootless = privilege::is_rootless();
        // Not left to the probes, which would remember that overlay does not work here.
        if rootless && !may_mount(&config.root) {
            let what =
                "overlay in a mount namespace that belongs to another user namespace (unshare --mount)";
            return Err(ErrorKind::NotSupported.err(what));
        }
        check_quota(backing, &options)?;
        let fresh = !exists(&home)?;
        make_home(&home)?;
        make_private_dir(&run_home)?;
        let image_store = config.image_store.as_ref().map(|root| root.join(NAME));
        if let Some(store) = &image_store {
            make_home(store)?;
        }
        let mut driver = Self {
            stores: Stores {
                home,
                image_store,
                additional: options.image_stores.iter().map(|root| root.join(NAME)).collect(),
                known: Mutex::default(),
            },
            shared: HomeState::of(&config.root.join(NAME), &run_home),
            run_home,
            program: options.mount_program.clone(),
            options,
            backing: backing.name(),
            namespace: if rootless {
                Namespace::User
            } else {
                Namespace::Trusted
            },
            metacopy: false,
            is_private: AtomicBool::new(false),
            namespaces: Namespaces::default(),
        };
        match driver.choose_mounter(config, backing, fresh) {
            Ok(()) => Ok(driver),
            Err(error) => {
                if fresh {
                    driver.remove_fresh_home();
                }
                Err(error)
            }
        }
    }

    /// Finds out whether the kernel or a program mounts layers, and marks the store accordingly.
    fn choose_mounter(&mut self, config: &DriverConfig, backing: FilesystemType, fresh: bool) -> Result<()> {
        let flag = self.stores.home.join(MOUNT_PROGRAM_FLAG);
        let written = if fresh {
            None
        } else {
            std::fs::read_to_string(&flag).ok()
        };
        let known = match written.as_deref().map(str::trim) {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        if self.program.is_none() {
            let marked = match known {
                Some(known) => known,
                None if fresh => false,
                None => probe::has_mount_program_traces(&self.stores.home)?,
            };
            let search = || {
                let path = config.search_path.clone().or_else(|| std::env::var_os("PATH"));
                program::find(program::DEFAULT, &path.unwrap_or_default())
            };
            if marked {
                // The kernel would show this store's whiteouts as files.
                self.program = Some(search().ok_or_else(|| program::missing(&self.stores.home))?);
            } else {
                match self.check_kernel(backing) {
                    // Compat: so does the Go library, which may be the next to open the store.
                    Err(error) if error.kind() == ErrorKind::NotSupported => match search() {
                        Some(program) => {
                            tracing::info!(
                                program = %program.display(), reason = %error.chain(),
                                "mounting through a program"
                            );
                            self.program = Some(program);
                        }
                        None => return Err(error),
                    },
                    result => result?,
                }
            }
        }
        if self.program.is_some()
            && self.options.force_mask.is_none()
            && self.namespace == Namespace::User
            && backing.is_network()
        {
            tracing::warn!("owners cannot be set on a network file system: using overlay.force_mask=700");
            self.options.force_mask = Some(0o700);
        }
        let uses_program = self.program.is_some();
        if known != Some(uses_program) {
            // Compat: without it the Go library looks through every file of the store when it opens it.
            let mark: &[u8] = if uses_program { b"true" } else { b"false" };
            atomic::write_file(&flag, mark, 0o600, false)?;
        }
        Ok(())
    }

    /// Whether the kernel's overlay works here; [`ErrorKind::NotSupported`] if not.
    fn check_kernel(&mut self, backing: FilesystemType) -> Result<()> {
        if backing.refuses_overlay() || (self.namespace == Namespace::User && backing.is_network()) {
            return Err(ErrorKind::NotSupported
                .err(format!("overlay over {} without a mount program", backing.name())));
        }
        self.probe().overlay()?;
        self.metacopy = self.probe().metacopy()?;
        Ok(())
    }

    /// Takes back what [`Overlay::open`] has created: a home is taken for a sign that overlay works here.
    fn remove_fresh_home(&self) {
        for dir in [LINKS, TEMP_DIRS, ""] {
            if let Err(error) = rustix::fs::rmdir(self.stores.home.join(dir))
                && error != Errno::NOENT
            {
                tracing::debug!(%error, dir, "part of a new overlay home stays");
            }
        }
    }

    fn probe(&self) -> Probe<'_> {
        Probe {
            home: &self.stores.home,
            run_home: &self.run_home,
            mount_options: &self.options.mount_options,
            namespace: self.namespace,
            shared: &self.shared,
        }
    }

    /// Whether a layer's own directory tells its changes. What a program writes is its own affair.
    fn native_diff(&self) -> bool {
        self.program.is_none() && self.probe().native_diff()
    }

    /// Whether mounts can skip syncing.
    fn volatile(&self) -> bool {
        self.program.is_some() || self.probe().volatile()
    }

    fn content_of(&self, dir: OwnedFd) -> LayerTree {
        LayerTree {
            dir,
            form: match self.program {
                Some(_) => WhiteoutFormat::Verbatim,
                None => WhiteoutFormat::Overlay(self.namespace),
            },
            root_entry: false,
            ignore_chown_errors: self.options.ignore_chown_errors,
            force_mask: self.options.force_mask,
            in_user_namespace: self.namespace == Namespace::User,
        }
    }

    /// Removes staging directories of partial pulls that were given up. Says whether some are still in use.
    fn prune_staging(&self) -> Result<bool> {
        let root = self.stores.home.join(STAGING);
        let entries = match std::fs::read_dir(&root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).at("listing", root),
        };
        let mut in_use = false;
        for entry in entries {
            let dir = entry.at("listing", &root)?.path();
            let lock = match StagingLock::try_acquire(&dir.join("staging.lock")) {
                Ok(lock) => lock,
                Err(error) => {
                    tracing::warn!("{}", error.chain());
                    continue;
                }
            };
            match lock {
                None => in_use = true,
                Some(_lock) => {
                    if let Err(error) = tree::remove_tree(&dir) {
                        tracing::warn!(dir = %dir.display(), %error, "cannot remove a staging directory");
                    }
                }
            }
        }
        Ok(in_use)
    }

    /// Whether the home is mounted on itself, as opposed to being a file system that somebody else mounted.
    fn home_is_bound(&self) -> Result<bool> {
        let home = &self.stores.home;
        let parent = home.parent().unwrap_or(home);
        let device = |path: &Path| {
            rustix::fs::stat(path)
                .at("looking at", path)
                .map(|stat| stat.st_dev)
        };
        Ok(device(home)? == device(parent)?)
    }
}

/// Refuses quotas that cannot be kept.
fn check_quota(backing: FilesystemType, options: &OverlayOptions) -> Result<()> {
    if options.size > 0 || options.inodes > 0 {
        let what = "driver options \"overlay.size\" and \"overlay.inodes\"";
        return Err(match backing.name() {
            "xfs" => ErrorKind::NotSupported.err(format!("{what} (project quotas)")),
            name => ErrorKind::InvalidInput.err(format!("{what} need an xfs file system, not {name}")),
        });
    }
    Ok(())
}

/// Makes an overlay directory and its directory of short names, 0755 whatever the umask.
fn make_home(home: &Path) -> Result<()> {
    if let Some(root) = home.parent() {
        make_private_dir(root)?;
    }
    for dir in [home, &home.join(LINKS)] {
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdir(dir, mode) {
            Ok(()) => rustix::fs::chmodat(CWD, dir, mode, rustix::fs::AtFlags::empty())
                .at("changing the mode of", dir)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("creating", dir),
        }
    }
    Ok(())
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.stores.home
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        self.create_layer(id, parent, options)
    }

    fn update_id_map(&self, id: &str, from: &IdMappings, to: &IdMappings, mount_label: &str) -> Result<()> {
        self.map_owners(id, from, to, mount_label)
    }

    fn supports_shifting(&self, mappings: &IdMappings) -> bool {
        self.can_shift(mappings)
    }

    fn stages_apart(&self) -> bool {
        true
    }

    fn stage(&self, parent: Option<&str>, options: &CreateOptions) -> Result<Staged> {
        self.stage_layer(parent, options)
    }

    fn commit_staged(
        &self,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
        staged: Staged,
    ) -> Result<()> {
        self.commit_layer(id, parent, options, staged)
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        self.remove_layer(id)
    }

    fn exists(&self, id: &str) -> bool {
        self.stores.require(id).is_ok()
    }

    fn list_layers(&self) -> Result<Vec<String>> {
        let home = &self.stores.home;
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(home).at("listing", home)? {
            let entry = entry.at("listing", home)?;
            if entry.file_type().at("listing", home)?.is_dir() {
                ids.extend(
                    entry
                        .file_name()
                        .into_string()
                        .ok()
                        .filter(|name| layout::is_layer(name)),
                );
            }
        }
        Ok(ids)
    }

    fn temp_dir_roots(&self) -> Vec<PathBuf> {
        self.stores.writable().map(|home| home.join(TEMP_DIRS)).collect()
    }

    fn get(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        self.get_layer(id, options)
    }

    fn put(&self, id: &str) -> Result<()> {
        self.put_layer(id)
    }

    fn content(&self, id: &str) -> Result<LayerTree> {
        let place = self.stores.require(id)?;
        Ok(self.content_of(open_tree(&place.dir.join("diff"))?))
    }

    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        let dir = self.stores.require(id)?.dir;
        let mut trees = vec![open_tree(&dir.join("diff"))?];
        for older in generations(dir.parent().unwrap_or(&dir), id)? {
            trees.push(open_tree(&older.full())?);
        }
        for lower in self.stores.lowers(id, &dir)? {
            trees.push(open_tree(&lower.full())?);
        }
        Ok(trees)
    }

    fn upper(&self, id: &str, parent: Option<&str>) -> Result<Option<OverlayDiff>> {
        let dir = self.stores.require(id)?.dir;
        if exists(&dir.join("composefs-data"))? || !self.native_diff() {
            return Ok(None);
        }
        let below = self.stores.lower_trees(id, &dir)?;
        let direct = match (parent, below.first()) {
            (None, None) => true,
            (Some(parent), Some(first)) => {
                let place = self.stores.require(parent)?;
                first.parent() == Some(&*place.dir)
            }
            _ => false,
        };
        if !direct {
            return Ok(None);
        }
        Ok(Some(OverlayDiff {
            dir: open_tree(&dir.join("diff"))?,
            lowers: below.iter().map(|tree| open_tree(tree)).collect::<Result<_>>()?,
            namespace: self.namespace,
        }))
    }

    fn status(&self) -> Vec<(String, String)> {
        let flags = [
            ("Supports d_type", true),
            ("Native Overlay Diff", self.native_diff()),
            ("Using metacopy", self.metacopy),
            ("Supports shifting", self.can_shift(&IdMappings::default())),
            ("Supports volatile", self.volatile()),
        ];
        let mut rows = vec![("FilesystemType Filesystem".to_owned(), self.backing.to_owned())];
        rows.extend(flags.map(|(name, value)| (name.to_owned(), value.to_string())));
        rows
    }

    fn metadata(&self, id: &str) -> Result<BTreeMap<String, String>> {
        let place = self.stores.require(id)?;
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut rows = BTreeMap::from([
            ("WorkDir".to_owned(), text(&place.dir.join("work"))),
            ("MergedDir".to_owned(), text(&self.merged(id, &place))),
            ("UpperDir".to_owned(), text(&place.dir.join("diff"))),
        ]);
        let lowers = self.stores.lower_trees(id, &place.dir)?;
        if !lowers.is_empty() {
            let lowers: Vec<String> = lowers.iter().map(|tree| text(tree)).collect();
            rows.insert("LowerDir".to_owned(), lowers.join(":"));
        }
        Ok(rows)
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        let content = self.content(id)?;
        let usage = tree::usage(content.dir.as_fd()).during(format!("measuring layer {id:?}"))?;
        Ok(DiskUsage {
            size: usage.size,
            inodes: usage.inodes,
        })
    }

    fn cleanup(&self) -> Result<()> {
        if self.prune_staging()? || self.options.skip_mount_home || !self.home_is_bound()? {
            return Ok(());
        }
        self.is_private.store(false, Ordering::Relaxed);
        unmount_lazily(&self.stores.home).at("unmounting", &self.stores.home)
    }

    fn additional_image_stores(&self) -> &[PathBuf] {
        &self.options.image_stores
    }

    fn sync_filesystem(&self) -> bool {
        self.options.sync_filesystem
    }
}
