//! Layers that are built in a temporary directory and then take their place.
//!
//! A layer with content is built whole inside a locked temporary directory, and takes its place by one rename; then
//! its symbolic link is made. A crash leaves a temporary directory, or a whole layer that no record names.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Stat, Uid};
use rustix::io::Errno;

use crate::driver::contract::{CreateOptions, Driver as _, LayerTree, Staged};
use crate::driver::copy;
use crate::driver::layer_copy::LayerCopy;
use crate::driver::new_owners::NewOwners;
use crate::driver::overlay::build::Root;
use crate::driver::overlay::composefs::{self, Converted};
use crate::driver::overlay::driver::composefs_layer;
use crate::driver::overlay::layer::{make_link, move_away};
use crate::driver::overlay::layout::{LOWER, LOWER_LAYERS, TEMP_DIRS, check_id};
use crate::driver::overlay::link_files::open_tree;
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::sys::project_quota::same_project;
use crate::sys::{at, make_private_subdir, tree};

/// A layer directory in a temporary directory.
#[derive(Debug)]
pub(super) struct StagedOverlay {
    driver: Arc<Overlay>,
    tree: LayerTree,
    /// The layer directory, inside `temp`.
    dir: PathBuf,
    /// Owns the temporary directory and its lock.
    temp: TempDir,
    /// The layer's link ID.
    link: String,
    /// The link ID of the parent that it is built on.
    parent_link: Option<String>,
    options: CreateOptions,
    /// Contents are stored by their digests, and the tree is in an image.
    is_image: bool,
    /// It shows what its parent has with other owners.
    is_fitted: bool,
}

impl Overlay {
    /// Builds a layer in a temporary directory.
    pub(super) fn stage_layer(
        self: Arc<Self>,
        parent: Option<&str>,
        options: &CreateOptions,
    ) -> Result<StagedOverlay> {
        let quota = self.check_options(options)?;
        let mut temp = TempDir::create(&self.stores.base(options.read_write).join(TEMP_DIRS))?;
        let dir = temp.addition();
        let built = self.build(&dir, parent, options, quota)?;
        Ok(StagedOverlay {
            tree: self.tree_of(built.diff),
            dir,
            temp,
            link: built.link,
            parent_link: built.parent_link,
            options: options.clone(),
            is_image: false,
            is_fitted: false,
            driver: self,
        })
    }
}

impl Staged for StagedOverlay {
    fn tree(&self) -> &LayerTree {
        &self.tree
    }

    fn reopen(&self) -> Result<OwnedFd> {
        open_tree(&self.path())
    }

    fn path(&self) -> PathBuf {
        self.dir.join("diff")
    }

    fn give_owners(&mut self, parent: &str, owners: NewOwners<'_>) -> Result<Option<OwnedFd>> {
        self.put_on(Some(parent), &self.options)?;
        let place = self.driver.stores.require(parent)?.dir;
        self.parent_link = Some(self.driver.link_name(parent, &place)?);
        let made = self
            .driver
            .give_owners(&self.dir, &self.tree.dir, parent, owners, &self.options);
        self.is_fitted = true;
        made.map(Some).map_err(|error| self.driver.gone_or(parent, error))
    }

    fn stores_by_digest(&self) -> bool {
        let driver = &self.driver;
        driver.options.use_composefs && driver.program.is_none() && !self.options.read_write
    }

    fn store_by_digest(&mut self, parent: Option<&str>) -> Result<bool> {
        if !self.stores_by_digest() {
            return Ok(false);
        }
        if !composefs::is_supported() {
            tracing::warn!("overlay.use_composefs without effect: the kernel has no EROFS");
            return Ok(false);
        }
        self.put_on(parent, &self.options)?;
        if let Some(parent) = parent {
            let dir = self.driver.stores.require(parent)?.dir;
            self.parent_link = Some(self.driver.link_name(parent, &dir)?);
        }
        let shown = match parent {
            Some(parent) => names_of_two_digits(&self.driver.name_trees(parent)?)?,
            None => BTreeSet::new(),
        };
        let (objects, old) = (self.temp.addition(), self.temp.addition());
        rustix::fs::mkdir(&objects, Mode::RWXU).at("creating", &objects)?;
        let tree = self.reopen()?;
        let (contents, layer) = (open_tree(&objects)?, open_tree(&self.dir)?);
        let durable = self.options.durable;
        match composefs::convert(&tree, contents.as_fd(), layer.as_fd(), &shown, durable)? {
            Converted::Yes => {}
            Converted::No(reason) => {
                tracing::warn!(reason, "a layer is stored as without overlay.use_composefs");
                return Ok(false);
            }
        }
        copy::link_root(tree.as_fd(), contents.as_fd())?;
        let path = self.path();
        rustix::fs::rename(&path, &old).at("moving the tree of a layer,", &path)?;
        rustix::fs::rename(&objects, &path).at("moving the contents of a layer to", &path)?;
        self.tree = self.driver.tree_of(contents);
        self.is_image = true;
        tree::remove_tree(&old).at("removing", old)?;
        Ok(true)
    }

    fn into_copy(self: Box<Self>, id: &str) -> Result<LayerCopy> {
        let layer = self.driver.stores.require(id)?.dir;
        if self.is_image {
            return Err(composefs_layer(id));
        }
        self.driver.changeable_home(id, &layer)?;
        let (path, original) = (self.path(), layer.join("diff"));
        remove_no_directory(&original)?;
        let made = make_private_subdir(&original);
        made.context(|| format!("making a directory for the lost tree of layer {id:?}"))?;
        let to = &self.tree.dir;
        let same = open_tree(&original).map(|from| same_project(from.as_fd(), to.as_fd()));
        same?.at("setting the project of", &path)?;
        Ok(LayerCopy::of_staged(
            self.tree.dir,
            path,
            original,
            Some(layer),
            self.temp,
        ))
    }

    fn commit(mut self: Box<Self>, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        check_id(id)?;
        self.driver.check_options(options)?;
        self.put_on(parent, options)?;
        let driver = Arc::clone(&self.driver);
        let home = driver.stores.base(options.read_write);
        let target = home.join(id);
        let mut renamed = rustix::fs::rename(&self.dir, &target);
        if let Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) = renamed {
            tracing::warn!(
                layer = id,
                "replacing the directory of a layer that was never recorded"
            );
            driver.lift_limits(&target);
            move_away(home, id, &mut self.temp)?;
            renamed = rustix::fs::rename(&self.dir, &target);
        }
        renamed.at("moving a layer to its place", &target)?;
        let linked = make_link(home, &self.link, id);
        if linked.is_err() {
            self.temp.stage_deletion(&target)?;
        }
        linked
    }
}

/// Removes what is in the place of a layer's tree and is no directory: a file, or a link that leads elsewhere.
fn remove_no_directory(path: &Path) -> Result<()> {
    match rustix::fs::lstat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Directory => {
            std::fs::remove_file(path).at("removing", path)
        }
        Ok(_) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("looking at", path),
    }
}

/// The names of two hexadecimal digits in the root that `trees`, topmost first, show together.
fn names_of_two_digits(trees: &[OwnedFd]) -> Result<BTreeSet<[u8; 2]>> {
    const DOING: &str = "looking at the root of a layer";
    let (mut decided, mut shown) = (BTreeSet::new(), BTreeSet::new());
    let mut buffer = tree::listing_buffer();
    for root in trees {
        let names = tree::list_names(root.as_fd(), &mut buffer).during(DOING)?;
        for name in names.split(|byte| *byte == 0) {
            let Ok(name) = <[u8; 2]>::try_from(name) else {
                continue;
            };
            if !name.iter().all(u8::is_ascii_hexdigit) || !decided.insert(name) {
                continue;
            }
            let stat = at::lstat_at(root.as_fd(), &name).during(DOING)?;
            let is_whiteout = |stat: &Stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
            };
            if stat.is_some_and(|stat| !is_whiteout(&stat)) {
                shown.insert(name);
            }
        }
    }
    Ok(shown)
}

impl StagedOverlay {
    /// Makes the staged layer a child of `parent`, if it is not yet.
    fn put_on(&self, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let driver = &self.driver;
        let Some(parent) = parent else {
            if self.parent_link.is_none() {
                return Ok(());
            }
            return Err(
                ErrorKind::InvalidInput.err("committing a layer without the parent that it was staged on")
            );
        };
        // Another layer may have the same ID by now; then its link ID differs.
        let place = driver.stores.require(parent)?;
        let link = driver
            .link_name(parent, &place.dir)
            .map_err(|error| driver.gone_or(parent, error))?;
        if self.parent_link.as_ref() == Some(&link) {
            return Ok(());
        }
        if self.is_image || self.is_fitted {
            return Err(stores::unknown(parent));
        }
        let new = driver.parent(parent)?;
        let container_root = options.mappings.root()?;
        let diff = &self.tree.dir;
        let write = || -> rustix::io::Result<()> {
            let layer = rustix::fs::openat(CWD, &self.dir, tree::DIR_FLAGS, Mode::empty())?;
            for (name, flags) in [
                (LOWER, AtFlags::empty()),
                (LOWER_LAYERS, AtFlags::empty()),
                ("empty", AtFlags::REMOVEDIR),
            ] {
                match rustix::fs::unlinkat(&layer, name, flags) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            new.below.write(&layer, options.durable)?;
            let Root { mode, owner } = driver.on_disk(new.root, container_root);
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let stat = rustix::fs::fstat(diff)?;
            if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
                rustix::fs::fchown(diff, Some(uid), Some(gid))?;
                for name in ["work", "merged"] {
                    rustix::fs::chownat(&layer, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
                }
            }
            driver.keep_real(diff, new.root, options.read_write)?;
            rustix::fs::fchmod(diff, Mode::from_raw_mode(mode))
        };
        write().at("putting a staged layer on its parent in", &self.dir)
    }
}
