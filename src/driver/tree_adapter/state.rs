//! The adapter's state: starting the driver, and making trees.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::driver::config::DriverConfig;
use crate::driver::contract::CreateOptions;
use crate::driver::copy::{self, CopyOptions};
use crate::driver::quota::Quota;
use crate::driver::staged_tree::HomeHost;
use crate::driver::tree_adapter::calls::{Calls, is_tree};
use crate::driver::tree_home::{TreeHome, move_to_place, own_empty_root};
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::options::driver::OptionString;
use crate::sys::mount::is_mount_point;
use crate::sys::presence;
use crate::sys::{at, list_dir_if_there, make_private_dir};

/// The directory of the layers.
const LAYERS: &str = "dir";
/// Marks the directory of a driver of a program's own.
const MARK: &str = ".graphroot-tree-driver";

/// How often a tree is detached anew to be moved.
const MAX_RACES: u32 = 100;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct TreeAdapter {
    pub(super) home: TreeHome,
    pub(super) calls: Calls,
    pub(super) image_stores: Vec<PathBuf>,
}

/// The names of the drivers of programs that have a directory in a graph root.
pub(crate) fn marked_homes(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in list_dir_if_there(root)? {
        let name = entry?.file_name();
        if let Some(name) = name.to_str()
            && presence::is_file(&root.join(name).join(MARK))?
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl TreeAdapter {
    /// Starts the driver, creating its home.
    pub(crate) fn open(config: &DriverConfig, calls: Calls) -> Result<Self> {
        let name = calls.name();
        let image_stores = image_stores(name, &config.options)?;
        let path = config.root.join(name);
        // The graph root may have to be made.
        let above = presence::first_above(&config.root)?;
        calls.probe(above)?;
        let mark = path.join(MARK);
        if !presence::is_file(&mark)? {
            make_private_dir(&path)?;
            let mut entries = std::fs::read_dir(&path).at("listing", &path)?;
            if entries.next().is_some() {
                let what = format!("driver {name:?}: the directory belongs to something else:");
                return Err(ErrorKind::InvalidInput.err(what).at(path));
            }
            std::fs::File::create(&mark).at("creating", &mark)?;
            let dir = at::open_dir(&path).at("opening", &path)?;
            rustix::fs::fsync(&dir).at("syncing", &path)?;
        }
        let additional = image_stores.iter().map(|root| root.join(name)).collect();
        Ok(Self {
            home: TreeHome::make(path, LAYERS, &[MARK], additional)?,
            calls,
            image_stores,
        })
    }

    /// A temporary directory in which trees are made and deleted.
    pub(super) fn temp_dir(&self) -> Result<TempDir> {
        let mut temp = TempDir::create(&self.home.temp_dirs())?;
        let (calls, dir) = (self.calls.clone(), temp.path().to_owned());
        temp.set_companion(move || calls.delete_all(&dir));
        Ok(temp)
    }

    /// Opens the root directory of a layer's tree.
    pub(super) fn open_layer(&self, id: &str) -> Result<OwnedFd> {
        let path = self.home.find(id)?;
        // The layer may have been removed meanwhile.
        self.calls
            .open(&path)
            .map_err(|error| self.home.find(id).map_or_else(|gone| gone, |_still_there| error))
    }

    /// The limit that a new layer gets, in bytes.
    pub(super) fn limit(&self, options: &CreateOptions) -> Result<Option<u64>> {
        let Some(quota) = Quota::parse(&options.storage_opt)? else {
            return Ok(None);
        };
        let name = self.calls.name();
        if !self.calls.limits_size() {
            return Err(ErrorKind::NotSupported
                .err("limiting the size of a layer")
                .with_source(format!("--storage-opt is not supported for {name}")));
        }
        match quota.inodes {
            Some(_) => {
                Err(ErrorKind::InvalidInput.err(format!("unknown option inodes with the {name} driver")))
            }
            None => Ok(quota.size),
        }
    }

    /// Makes a tree at `path` that is empty, or has what the layer `parent` has, with the owners and the limit that are asked for.
    pub(super) fn make(&self, path: &Path, parent: Option<&str>, options: &CreateOptions) -> Result<OwnedFd> {
        let limit = self.limit(options)?;
        let dir = match parent {
            None => {
                let dir = self.calls.create(path)?;
                own_empty_root(&dir, path, &options.mappings)?;
                dir
            }
            Some(parent) => self
                .copy(path, parent, options)
                // The parent may have been removed meanwhile.
                .map_err(|error| {
                    self.home
                        .find(parent)
                        .map_or_else(|gone| gone, |_still_there| error)
                })
                .context(|| format!("cloning layer {parent:?}"))?,
        };
        if let Some(bytes) = limit {
            self.calls.limit_size(path, bytes)?;
        }
        Ok(dir)
    }

    fn copy(&self, path: &Path, parent: &str, options: &CreateOptions) -> Result<OwnedFd> {
        let owners = options.new_owners();
        if let Some(owners) = owners {
            owners.check_root()?;
        }
        let source = self.home.find(parent)?;
        let below = self.open_layer(parent)?;
        let Some(dir) = self.calls.clone_tree(&source, path)? else {
            let dir = self.calls.create(path)?;
            let copied = CopyOptions {
                ignore_owners: false,
                durable: options.durable,
                owners,
            };
            copy::copy_tree(below.as_fd(), dir.as_fd(), copied)?;
            return Ok(dir);
        };
        if let Some(owners) = owners {
            copy::own_tree(dir.as_fd(), owners, options.durable)
                .context(|| format!("changing the owners of a clone of layer {parent:?}"))?;
        }
        if options.durable {
            self.calls.sync(path)?;
        }
        Ok(dir)
    }

    /// A copy of the tree at `original`, with everything that belongs to it.
    pub(super) fn copy_all(&self, original: &Path, path: &Path, durable: bool) -> Result<OwnedFd> {
        let from = self.calls.open(original)?;
        let dir = match self.calls.clone_tree(original, path)? {
            Some(dir) => dir,
            None => {
                let dir = self.calls.create(path)?;
                copy::copy_all(from.as_fd(), dir.as_fd())?;
                dir
            }
        };
        if durable {
            self.calls.sync(path)?;
        }
        Ok(dir)
    }

    /// Gives the tree at `path` in `temp` its place as the layer `id`.
    pub(super) fn place(&self, id: &str, path: &Path, temp: &mut TempDir) -> Result<()> {
        let place = self.home.place(id)?;
        self.calls.detach_to_move(path)?;
        move_to_place(path, &place, || self.stage_deletion(temp, &place))
    }

    /// Whether the tree at `path` is a directory that can be exchanged with another: one that is a mount can not.
    pub(super) fn can_be_exchanged(path: &Path) -> Result<bool> {
        let is_mount = is_mount_point(path).at("looking for a mount at", path)?;
        Ok(!is_mount)
    }
}

impl HomeHost for TreeAdapter {
    fn home(&self) -> &TreeHome {
        &self.home
    }

    fn before_place(&self, _id: &str, path: &Path, dir: OwnedFd, _options: &CreateOptions) -> Result<()> {
        // What is open in a tree need not keep it from being detached, but may.
        drop(dir);
        self.calls.detach_to_move(path)
    }

    fn check_exchange(&self, path: &Path) -> Result<()> {
        self.calls.attach(path)?;
        if Self::can_be_exchanged(path)? {
            return Ok(());
        }
        let what = format!(
            "exchanging trees that are mounts, with the {} driver:",
            self.calls.name()
        );
        Err(ErrorKind::NotSupported.err(what).at(path))
    }

    fn stage_deletion(&self, temp: &mut TempDir, path: &Path) -> Result<bool> {
        for _ in 0..MAX_RACES {
            if is_tree(path) {
                self.calls.detach(path)?;
            }
            match temp.stage_deletion(path) {
                // Somebody who only looks at it has attached it again.
                Err(error) if error.has_errno(Errno::BUSY) => {}
                staged => return staged,
            }
        }
        Err(self.calls.still_mounted(path))
    }
}

/// The additional image stores in the options for a driver. There are no other options.
fn image_stores(name: &str, options: &[String]) -> Result<Vec<PathBuf>> {
    let mut stores = Vec::new();
    for whole in options {
        let own = whole.trim_start().strip_prefix(name);
        let own = own.and_then(|rest| rest.strip_prefix('.'));
        let option = OptionString::parse(own.unwrap_or(whole))?;
        if !option.driver.is_empty() {
            continue;
        }
        match option.key.as_str() {
            "imagestore" | "additionalimagestore" => stores.extend(option.directories(false)?),
            _ => return Err(option.unknown()),
        }
    }
    Ok(stores)
}
