//! What a test has: a driver in a graph root of its own, used as a store uses it.

use std::any::Any;
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::driver::select::open_driver;
use crate::driver::{CreateOptions, Driver, DriverConfig, MountOptions};
use crate::error::{Error, Result};
use crate::tree_driver::TreeDriver;

/// Why a test has failed.
#[derive(Debug)]
pub(super) struct Fault(pub(super) String);

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self(error.chain())
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        io::Error::from(error).into()
    }
}

/// Fails unless something is as it should be.
pub(super) fn ensure(is_so: bool, otherwise: impl FnOnce() -> String) -> Result<(), Fault> {
    match is_so {
        true => Ok(()),
        false => Err(Fault(otherwise())),
    }
}

/// What a thread said when it panicked.
pub(super) fn panic_message(panic: Box<dyn Any + Send>) -> String {
    let said = panic.downcast::<String>().map(|said| *said);
    let said = said.or_else(|panic| panic.downcast::<&str>().map(|said| (*said).to_owned()));
    match said {
        Ok(said) => format!("the driver panicked: {said}"),
        Err(_other) => "the driver panicked".to_owned(),
    }
}

/// See the module's head.
pub(super) struct Bed {
    /// The driver itself.
    pub(super) own: Arc<dyn TreeDriver>,
    /// The same as the store has it.
    pub(super) driver: Arc<dyn Driver>,
    /// Another object of the same driver, as another process has it.
    other: Arc<dyn TreeDriver>,
    pub(super) root: PathBuf,
}

impl Bed {
    pub(super) fn make(
        own: Arc<dyn TreeDriver>,
        other: Arc<dyn TreeDriver>,
        directory: &Path,
    ) -> Result<Self, Fault> {
        Self::make_with(own, other, directory, Vec::new())
    }

    fn make_with(
        own: Arc<dyn TreeDriver>,
        other: Arc<dyn TreeDriver>,
        directory: &Path,
        options: Vec<String>,
    ) -> Result<Self, Fault> {
        let root = directory.join("graph");
        let config = DriverConfig {
            name: Some(own.name().to_owned()),
            root: root.clone(),
            run_root: directory.join("run"),
            options,
            tree_driver: Some(Arc::clone(&own)),
            ..DriverConfig::default()
        };
        let driver = open_driver(&config)?;
        Ok(Self {
            own,
            driver,
            other,
            root,
        })
    }

    /// The same graph root as another process has it.
    pub(super) fn in_another_process(&self) -> Result<Self, Fault> {
        let (own, other) = (Arc::clone(&self.other), Arc::clone(&self.own));
        Self::make(own, other, self.directory()?)
    }

    /// Another graph root, of another process, that has this one as an additional read-only store.
    pub(super) fn of_which_this_is_additional(&self) -> Result<Self, Fault> {
        let directory = self.directory()?.join("another");
        std::fs::create_dir(&directory)?;
        let (own, other) = (Arc::clone(&self.other), Arc::clone(&self.own));
        let option = format!("{}.imagestore={}", own.name(), self.root.display());
        Self::make_with(own, other, &directory, vec![option])
    }

    /// The test's directory, in which the graph root is.
    pub(super) fn directory(&self) -> Result<&Path, Fault> {
        let above = self.root.parent();
        above.ok_or_else(|| Fault("the graph root is in no directory".to_owned()))
    }

    /// Makes a layer and fills its tree, of which the owner may write into the root.
    pub(super) fn layer(
        &self,
        id: &str,
        parent: Option<&str>,
        fill: impl FnOnce(&Path) -> Result<(), Fault>,
    ) -> Result<PathBuf, Fault> {
        self.driver.create(id, parent, &CreateOptions::default())?;
        let tree = self.tree(id)?;
        if parent.is_none() {
            std::fs::set_permissions(&tree, Permissions::from_mode(0o755))?;
        }
        fill(&tree)?;
        Ok(tree)
    }

    /// A layer on `parent` that is as it.
    pub(super) fn clone_of(&self, id: &str, parent: &str) -> Result<PathBuf, Fault> {
        self.layer(id, Some(parent), |_tree| Ok(()))
    }

    /// The tree of a layer, to be looked at.
    pub(super) fn tree(&self, id: &str) -> Result<PathBuf, Fault> {
        Ok(self.driver.mount(id, &MountOptions::default())?)
    }

    /// Deletes a layer.
    pub(super) fn delete(&self, id: &str) -> Result<(), Fault> {
        if let Some(temp) = self.driver.defer_remove(id)? {
            temp.remove()?;
        }
        Ok(())
    }

    /// A path at which nothing is, where new trees are made.
    pub(super) fn new_path(&self, name: &str) -> PathBuf {
        self.driver.home().join("dir").join(name)
    }
}

/// Writes a file.
pub(super) fn write(tree: &Path, name: &str, content: &str) -> Result<(), Fault> {
    Ok(std::fs::write(tree.join(name), content)?)
}
