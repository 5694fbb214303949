//! Calls of the methods of a [`TreeDriver`]: a failure or a panic is an error that names the driver, and what it is to have made
//! has to be there.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use crate::driver::config::DriverConfig;
use crate::driver::home_state::HomeState;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::options::driver::DRIVER_NAMES;
use crate::sys::mount::is_mount_point;
use crate::sys::{at, tree};
use crate::tree_driver::{TreeDriver, caught};

/// Longest name of a driver.
const MAX_NAME: usize = 32;

/// Names of other things in a graph root: directories of Podman, of drivers that Go has or had, and of this library.
const TAKEN_NAMES: [&str; 13] = [
    "artifacts",
    "aufs",
    "cache",
    "devicemapper",
    "libpod",
    "mounts",
    "networks",
    "secrets",
    "tempdirs",
    "tmp",
    "volumes",
    "windows",
    "windowsfilter",
];

/// The driver.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    driver: Arc<dyn TreeDriver>,
    name: &'static str,
    /// Which trees are just being attached or detached.
    state: Arc<HomeState>,
}

impl Calls {
    /// The driver of a configuration; `None` if it has none. Asks the driver for its name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a name that cannot be.
    pub(crate) fn new(config: &DriverConfig) -> Result<Option<Self>> {
        let Some(driver) = config.tree_driver.clone() else {
            return Ok(None);
        };
        let name = caught(|| Ok(driver.name())).during("asking a driver for its name")?;
        let begins = name.starts_with(|first: char| first.is_ascii_lowercase());
        let is_usual = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !begins || !(2..=MAX_NAME).contains(&name.len()) || !name.chars().all(is_usual) {
            return Err(ErrorKind::InvalidInput.err(format!("driver {name:?}: not a name for a driver")));
        }
        if DRIVER_NAMES.contains(&name) {
            return Err(ErrorKind::InvalidInput.err(format!("driver {name:?}: the name of another driver")));
        }
        if TAKEN_NAMES.contains(&name) {
            let what = format!("driver {name:?}: the name of something else in graph roots");
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let state = HomeState::of(&config.root.join(name), &config.run_root.join(name));
        Ok(Some(Self { driver, name, state }))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Calls a method that is about `path`.
    fn call<T>(
        &self,
        doing: &str,
        path: &Path,
        method: impl FnOnce(&dyn TreeDriver) -> io::Result<T>,
    ) -> Result<T> {
        caught(|| method(&*self.driver)).map_err(|error| {
            Error::io_at(format!("driver {:?}: {doing}", self.name), path, error).of_tree_driver()
        })
    }

    pub(super) fn probe(&self, dir: &Path) -> Result<()> {
        caught(|| self.driver.probe(dir)).map_err(|error| {
            let what = format!("storage driver {:?}: probing", self.name);
            let error = ErrorKind::NotSupported.err(what).at(dir).with_source(error);
            error.of_tree_driver()
        })
    }

    /// Makes an empty tree; returns its root directory.
    pub(super) fn create(&self, path: &Path) -> Result<OwnedFd> {
        self.call("creating an empty tree at", path, |driver| {
            driver.create_tree(path)
        })?;
        self.open_new(path)
    }

    /// Clones a tree; `None` if the driver leaves that to a copy. Returns the root directory.
    pub(super) fn clone_tree(&self, source: &Path, path: &Path) -> Result<Option<OwnedFd>> {
        let cloned = self.call("cloning a tree to", path, |driver| {
            driver.clone_tree(source, path)
        });
        match cloned {
            Err(error)
                if matches!(
                    error.io_kind(),
                    Some(io::ErrorKind::Unsupported | io::ErrorKind::CrossesDevices)
                ) =>
            {
                tracing::debug!(error = %error.chain(), "copying a tree that the driver does not clone");
                self.delete(path)?;
                Ok(None)
            }
            cloned => cloned.and_then(|()| self.open_new(path)).map(Some),
        }
    }

    /// Opens a tree that has just been made.
    fn open_new(&self, path: &Path) -> Result<OwnedFd> {
        if !is_tree(path) {
            let what = format!(
                "driver {:?}: says that it has made a tree, and no directory is at",
                self.name
            );
            return Err(ErrorKind::Io.err(what).at(path));
        }
        self.open(path)
    }

    /// Opens the root directory of a tree.
    pub(super) fn open(&self, path: &Path) -> Result<OwnedFd> {
        self.attach(path)?;
        at::open_dir(path).at("opening", path)
    }

    /// Deletes whatever is at `path`.
    pub(super) fn delete(&self, path: &Path) -> Result<()> {
        if is_tree(path) {
            self.detach(path)?;
        }
        // The driver may follow a link that it has left there by mistake.
        if is_tree(path) || path.symlink_metadata().is_err() {
            self.call("deleting a tree at", path, |driver| driver.delete_tree(path))?;
        }
        tree::remove_tree(path).at("removing", path)
    }

    /// Deletes the trees in a temporary directory that may not be there. The first failure is returned; everything else is
    /// deleted all the same.
    pub(super) fn delete_all(&self, dir: &Path) -> Result<()> {
        let entries = match std::fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.at("listing", dir)?,
        };
        let mut result = Ok(());
        for entry in entries {
            let entry = entry.at("listing", dir)?;
            if entry.file_type().at("listing", dir)?.is_dir() {
                result = result.and(self.delete(&entry.path()));
            }
        }
        result
    }

    pub(super) fn sync(&self, path: &Path) -> Result<()> {
        self.call("syncing the tree at", path, |driver| driver.sync_tree(path))
    }

    pub(super) fn attach(&self, path: &Path) -> Result<()> {
        let _alone = self.state.mounts(&path.to_string_lossy());
        self.call("attaching the tree at", path, |driver| driver.attach_tree(path))
    }

    /// As [`Calls::detach`], of a tree that nobody else attaches and that is to be renamed.
    pub(super) fn detach_to_move(&self, path: &Path) -> Result<()> {
        self.detach(path)?;
        match is_mount_point(path).at("looking for a mount at", path)? {
            true => Err(self.still_mounted(path)),
            false => Ok(()),
        }
    }

    /// The error for a tree that the driver was to detach.
    pub(super) fn still_mounted(&self, path: &Path) -> Error {
        let what = format!("driver {:?}: after detaching, a mount is still at", self.name);
        Error::io_at(what, path, Errno::BUSY).of_tree_driver()
    }

    pub(super) fn detach(&self, path: &Path) -> Result<()> {
        let _alone = self.state.mounts(&path.to_string_lossy());
        self.call("detaching the tree at", path, |driver| driver.detach_tree(path))
    }

    pub(super) fn limits_size(&self) -> bool {
        caught(|| Ok(self.driver.limits_size())).unwrap_or_else(|error| {
            tracing::warn!(driver = self.name, %error, "cannot ask a driver for its limits");
            false
        })
    }

    pub(super) fn limit_size(&self, path: &Path, bytes: u64) -> Result<()> {
        self.call("limiting the size of the tree at", path, |driver| {
            driver.limit_size(path, bytes)
        })
    }

    pub(super) fn status(&self) -> Vec<(String, String)> {
        let failed = |error: io::Error| vec![("Driver Error".to_owned(), error.to_string())];
        caught(|| Ok(self.driver.status())).unwrap_or_else(failed)
    }
}

/// Whether there is a directory at `path`, and no link to one.
pub(super) fn is_tree(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|found| found.is_dir())
}
