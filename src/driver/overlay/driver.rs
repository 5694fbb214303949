//! The driver contract, carried out by the overlay driver.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::digest::Digest;
use crate::driver::contract::{
    CreateOptions, DiskUsage, Driver, DriverCapabilities, Entry, EntryKind, FoundLayer, LayerTree, Leftover,
    LeftoverKind, MountOptions, MountState, OverlayDiff, Staged, Standing, StandingDamage,
};
use crate::driver::layer_copy::{Copied, LayerCopy, OLD_TREE};
use crate::driver::layer_id::is_usual_id;
use crate::driver::layer_use::LayerUse;
use crate::driver::overlay::additional_layers;
use crate::driver::overlay::composefs::{Image, open_root};
use crate::driver::overlay::examine;
use crate::driver::overlay::layout::{self, LINKS, NAME, STAGING, TEMP_DIRS};
use crate::driver::overlay::link_files::{exists, open_tree};
use crate::driver::overlay::repair::{dangling, remove_dangling};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores::{Lower, generations};
use crate::driver::tree_home::is_found;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::staging_lock::{self, StagingLock};
use crate::lock::temp_dir::{self, TempDir};
use crate::sys::mount::{is_live_mount, mounts_below, place_on_disk, unmount_lazily};
use crate::sys::mount_namespaces::is_mounted_elsewhere;
use crate::sys::{at, list_dir_if_there, tree};

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn home(&self) -> &Path {
        &self.stores.home
    }

    fn capabilities(&self) -> DriverCapabilities {
        DriverCapabilities {
            stages_apart: true,
            differ: true,
            quota: self.quotas.is_some(),
        }
    }

    fn check_id(&self, id: &str) -> Result<()> {
        layout::check_id(id)
    }

    fn create(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        self.create_layer(id, parent, options)
    }

    fn find_additional_layer(&self, toc_digest: &Digest, reference: &str) -> Option<PathBuf> {
        additional_layers::find(&self.options.layer_stores, toc_digest, reference)
    }

    fn create_additional(
        &self,
        id: &str,
        parent: Option<&str>,
        layer: LayerUse,
        options: &CreateOptions,
    ) -> Result<()> {
        self.create_additional_layer(id, parent, layer, options)
    }

    fn additional_layer(&self, id: &str) -> Result<Option<PathBuf>> {
        let tree = self.stores.elsewhere(&self.stores.require(id)?.dir)?;
        Ok(tree.and_then(|tree| tree.parent().map(Path::to_owned)))
    }

    fn supports_shifting(&self, mappings: &IdMappings) -> bool {
        self.can_shift(mappings)
    }

    fn shifts_new_files(&self) -> bool {
        self.program.is_some()
    }

    fn stage(self: Arc<Self>, parent: Option<&str>, options: &CreateOptions) -> Result<Box<dyn Staged>> {
        Ok(Box::new(self.stage_layer(parent, options)?))
    }

    fn names_to_sync(&self, id: &str) -> Result<Vec<PathBuf>> {
        let dir = self.stores.require(id)?.dir;
        let home = dir.parent().unwrap_or(&self.stores.home).to_owned();
        let own = self.stores.elsewhere(&dir)?.is_none().then(|| dir.join("diff"));
        Ok(own.into_iter().chain([dir, home.join(LINKS), home]).collect())
    }

    fn defer_remove(&self, id: &str) -> Result<Option<TempDir>> {
        self.remove_layer(id)
    }

    fn remove_in_place(&self, id: &str) -> Result<()> {
        self.remove_layer_in_place(id)
    }

    fn exists(&self, id: &str) -> Result<bool> {
        is_found(self.stores.require(id))
    }

    fn list(&self) -> Result<Vec<Entry>> {
        let home = &self.stores.home;
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(home).at("listing", home)? {
            let entry = entry.at("listing", home)?;
            let (name, is_dir) = (entry.file_name(), entry.file_type().at("listing", home)?.is_dir());
            // No ID is anything but UTF-8.
            let mut kind = layout::kind_of(name.to_str().unwrap_or_default(), is_dir);
            if kind == EntryKind::Layer && !looks_like_a_layer(&home.join(&name), &name)? {
                kind = EntryKind::Unknown;
            }
            entries.push(Entry { name, kind });
        }
        Ok(entries)
    }

    fn found_layers(&self) -> Result<Vec<FoundLayer>> {
        let writable = self.stores.writable().count();
        let mut found = Vec::new();
        for layer in examine::found_layers(self.stores.all(), writable)? {
            if looks_like_a_layer(&layer.dir, layer.id.as_ref())? {
                found.push(layer);
            }
        }
        Ok(found)
    }

    fn examine(&self, layers: &[Standing]) -> Result<Vec<StandingDamage>> {
        examine::examine(self.stores.all(), layers)
    }

    fn mend(&self, layer: &Standing) -> Result<()> {
        let writable = self.stores.writable().count();
        examine::mend(self.stores.all(), writable, layer)
    }

    fn remove_strays(&self) -> Result<()> {
        self.stores.writable().try_for_each(remove_dangling)
    }

    fn leftovers(&self) -> Result<Vec<Leftover>> {
        let mut found = Vec::new();
        let mut add = |paths: Vec<PathBuf>, kind| {
            found.extend(paths.into_iter().map(|path| Leftover { path, kind }));
        };
        let homes = self.stores.writable().map(|home| home.join(TEMP_DIRS));
        for root in homes.chain([self.private_mounts()]) {
            add(temp_dir::stale(&root)?, LeftoverKind::TempDir);
        }
        add(
            stale_staging(&self.stores.home.join(STAGING))?,
            LeftoverKind::Staging,
        );
        for home in self.stores.writable() {
            add(dangling(home)?, LeftoverKind::Link);
        }
        Ok(found)
    }

    fn prune(&self) -> Result<()> {
        let homes = self.stores.writable().map(|home| home.join(TEMP_DIRS));
        let results = homes
            .chain([self.private_mounts()])
            .map(|root| temp_dir::recover(&root));
        // Collected first, so that a failure does not stop the others.
        results.collect::<Vec<_>>().into_iter().collect()
    }

    fn mount(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        self.mount_layer(id, options)
    }

    fn unmount(&self, id: &str) -> Result<()> {
        self.unmount_layer(id)
    }

    fn unmount_all(&self, id: &str) -> Result<()> {
        self.unmount_whole(id)
    }

    fn mount_state(&self, target: &Path) -> Result<MountState> {
        use std::io::ErrorKind::{NotADirectory, NotConnected, NotFound};
        let is_here = match is_live_mount(target) {
            // There is no such directory, or the program that served the mount has died.
            Err(error) if matches!(error.kind(), NotFound | NotADirectory | NotConnected) => false,
            looked => looked.at("looking for a mount at", target)?,
        };
        Ok(match is_here {
            true => MountState::Here,
            false if is_mounted_elsewhere(target).at("looking in other mount namespaces for", target)? => {
                MountState::Elsewhere
            }
            false => MountState::Nowhere,
        })
    }

    fn mount_private(&self, id: &str) -> Result<OwnedFd> {
        self.open_private(id)
    }

    fn layer_tree(&self, id: &str) -> Result<LayerTree> {
        let place = self.stores.require(id)?;
        Ok(self.tree_of(open_tree(&self.stores.tree(&place.dir)?)?))
    }

    fn copy_layer(&self, id: &str, copied: Copied) -> Result<Option<LayerCopy>> {
        let dir = self.stores.require(id)?.dir;
        let home = self.changeable_home(id, &dir)?;
        let original = dir.join("diff");
        LayerCopy::make(original, Some(dir), &home.join(TEMP_DIRS), copied)
    }

    fn layers_with_old_trees(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for home in self.stores.writable() {
            for entry in std::fs::read_dir(home).at("listing", home)? {
                let entry = entry.at("listing", home)?;
                let is_dir = entry.file_type().at("listing", home)?.is_dir();
                let Ok(id) = entry.file_name().into_string() else {
                    continue;
                };
                let is_layer =
                    layout::kind_of(&id, is_dir) == EntryKind::Layer && layout::check_id(&id).is_ok();
                if is_layer && !old_trees(&entry.path())?.is_empty() {
                    found.push(id);
                }
            }
        }
        Ok(found)
    }

    fn remove_old_trees(&self, id: &str) -> Result<Option<TempDir>> {
        let dir = self.stores.require(id)?.dir;
        let trees = old_trees(&dir)?;
        let home = self.stores.writable().find(|home| dir.starts_with(home));
        let Some(home) = home.filter(|_| !trees.is_empty()) else {
            return Ok(None);
        };
        let mut temp = TempDir::create(&home.join(TEMP_DIRS))?;
        for tree in trees {
            temp.stage_deletion(&tree)?;
        }
        Ok(Some(temp))
    }

    fn file_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        let mut lowers = self.below(id)?;
        // In an older generation files may be without the contents that they have further down, and have no others.
        lowers.sort_by_key(Lower::is_older);
        self.trees(id, lowers, |dir, contents| self.open_contents(dir, contents))
    }

    fn name_trees(&self, id: &str) -> Result<Vec<OwnedFd>> {
        self.trees(id, self.below(id)?, |dir, _contents| {
            let mount = Image::open(dir)?.mount()?;
            open_root(&mount).at("opening the image of a layer in", dir)
        })
    }

    fn is_fixed(&self, id: &str) -> Result<bool> {
        Image::exists(&self.stores.require(id)?.dir)
    }

    fn overlay_diff(&self, id: &str, parent: Option<&str>) -> Result<Option<OverlayDiff>> {
        let dir = self.stores.require(id)?.dir;
        if !self.native_diff() {
            return Ok(None);
        }
        let below = self.stores.lower_dirs(id, &dir)?;
        // Above an image files are copied up without their contents, and directories are redirected.
        for dir in std::iter::once(&dir).chain(&below) {
            if Image::exists(dir)? {
                return Ok(None);
            }
        }
        let direct = match (parent, below.first()) {
            (None, None) => true,
            (Some(parent), Some(first)) => self.stores.require(parent)?.dir == *first,
            _ => false,
        };
        if !direct {
            return Ok(None);
        }
        let open = |dir: &PathBuf| open_tree(&self.stores.tree(dir)?);
        Ok(Some(OverlayDiff {
            dir: open(&dir)?,
            lowers: below.iter().map(open).collect::<Result<_>>()?,
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
        let mut rows = vec![("Backing Filesystem".to_owned(), self.filesystem_type.to_owned())];
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
        let lowers = self.stores.lower_dirs(id, &place.dir)?;
        if !lowers.is_empty() {
            let lowers: Vec<String> = lowers.iter().map(|dir| text(&dir.join("diff"))).collect();
            rows.insert("LowerDir".to_owned(), lowers.join(":"));
        }
        Ok(rows)
    }

    fn disk_usage(&self, id: &str) -> Result<DiskUsage> {
        if let Some(quotas) = &self.quotas
            && let Some(usage) = quotas.usage(&self.stores.require(id)?.dir)?
        {
            return Ok(usage);
        }
        let content = self.layer_tree(id)?;
        DiskUsage::of_tree(content.dir.as_fd(), id)
    }

    fn dependent_mount(&self) -> Result<Option<PathBuf>> {
        if !self.home_is_bound()? {
            return Ok(None);
        }
        let home = self.real_home()?;
        let mounts = mounts_below(&home).at("reading the mounts below", &home)?;
        Ok(mounts.into_iter().find(|point| *point != home))
    }

    fn cleanup(&self) -> Result<()> {
        if self.prune_staging()? || !self.home_is_bound()? {
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

impl Overlay {
    /// The trees of a layer and of those below, its own first. `open_image` opens that of an image, given the layer's
    /// directory and its directory of contents.
    fn trees(
        &self,
        id: &str,
        lowers: Vec<Lower>,
        open_image: impl Fn(&Path, PathBuf) -> Result<OwnedFd>,
    ) -> Result<Vec<OwnedFd>> {
        let dir = self.stores.require(id)?.dir;
        let own = self.stores.tree(&dir)?;
        let own = match Image::exists(&dir)? {
            true => open_image(&dir, own)?,
            false => open_tree(&own)?,
        };
        let mut trees = vec![own];
        for lower in lowers {
            trees.push(match lower.image() {
                Some(dir) => open_image(dir, lower.full())?,
                None => open_tree(&lower.full())?,
            });
        }
        Ok(trees)
    }

    /// What lies below a layer's own tree: its older generations, and the layers below.
    fn below(&self, id: &str) -> Result<Vec<Lower>> {
        let dir = self.stores.require(id)?.dir;
        let mut lowers = generations(dir.parent().unwrap_or(&dir), id)?;
        lowers.extend(self.stores.lowers(id, &dir)?);
        Ok(lowers)
    }

    /// The overlay directory with the layer in `dir`, whose tree can be replaced.
    pub(super) fn changeable_home(&self, id: &str, dir: &Path) -> Result<&Path> {
        if Image::exists(dir)? {
            return Err(composefs_layer(id));
        }
        let home = self.stores.writable().find(|home| dir.starts_with(home));
        home.filter(|_| !matches!(self.stores.elsewhere(dir), Ok(Some(_))))
            .ok_or_else(|| ErrorKind::StoreIsReadOnly.err(format!("changing layer {id:?}")))
    }

    /// Removes staged layers of the Go library that no process uses any more. Returns whether some are in use.
    fn prune_staging(&self) -> Result<bool> {
        let root = self.stores.home.join(STAGING);
        let mut in_use = false;
        for entry in list_dir_if_there(&root)? {
            let dir = entry?.path();
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

    /// Whether the home is a mount of itself, made by a driver, and not a file system of its own.
    fn home_is_bound(&self) -> Result<bool> {
        if self.options.skip_mount_home {
            return Ok(false);
        }
        let home = &self.real_home()?;
        let parent = home.parent().unwrap_or(home);
        let device = |path: &Path| {
            rustix::fs::stat(path)
                .at("looking at", path)
                .map(|stat| stat.st_dev)
        };
        if device(home)? != device(parent)? {
            return Ok(false);
        }
        // Somebody else may have mounted another directory of the same file system there.
        let place = |path: &Path| {
            let dir = at::open_dir(path).at("opening", path)?;
            place_on_disk(dir.as_fd(), path).at("looking for the mount of", path)
        };
        let (Some(place_of_home), Some(above)) = (place(home)?, place(parent)?) else {
            return Ok(true);
        };
        let beside = home.strip_prefix(parent).unwrap_or(home);
        Ok(place_of_home.path == above.path.join(beside))
    }

    /// The path of the home without links.
    fn real_home(&self) -> Result<PathBuf> {
        let home = &self.stores.home;
        #[expect(
            clippy::disallowed_methods,
            reason = "the path is of the store, and not of a layer"
        )]
        std::fs::canonicalize(home).at("finding", home)
    }
}

/// The error for a change of a layer whose tree is in an image.
pub(super) fn composefs_layer(id: &str) -> Error {
    ErrorKind::NotSupported.err(format!("changing layer {id:?}, which is a composefs layer"))
}

/// The staging directories of killed processes. One that was made a moment ago may not have its lock yet.
fn stale_staging(root: &Path) -> Result<Vec<PathBuf>> {
    const MOMENT: std::time::Duration = std::time::Duration::from_secs(60);
    let mut found = Vec::new();
    for entry in list_dir_if_there(root)? {
        let dir = entry?.path();
        let lock = dir.join("staging.lock");
        let changed = lock.metadata().and_then(|metadata| metadata.modified());
        // One that cannot be looked at is left alone as well.
        let is_new = changed.map_or(true, |changed| changed.elapsed().is_ok_and(|age| age < MOMENT));
        if !is_new && staging_lock::is_free(&lock)? == Some(true) {
            found.push(dir);
        }
    }
    Ok(found)
}

/// Whether a directory in the home is a layer, or what is left of one: it has a layer's files, or a name as programs give
/// them. `lost+found`, for example, is none.
fn looks_like_a_layer(dir: &Path, name: &std::ffi::OsStr) -> Result<bool> {
    let is_usual = name.to_str().is_some_and(is_usual_id);
    Ok(is_usual || exists(&dir.join("diff"))? || exists(&dir.join("link"))? || exists(&dir.join("lower"))?)
}

/// The trees in a layer's directory that others have replaced.
fn old_trees(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).at("listing", dir)? {
        let entry = entry.at("listing", dir)?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(OLD_TREE.as_bytes())
        {
            found.push(entry.path());
        }
    }
    Ok(found)
}
