//! Giving a layer another tree, in a dataset that gets the layer's name.
//!
//! ```text
//! <dataset>/graphroot-<n>-new       the new tree, with graphroot:replaces="<n> ID"
//! rename ID to graphroot-<n>-old
//! rename graphroot-<n>-new to ID
//! destroy graphroot-<n>-old         after the locks are released
//! ```
//!
//! Clones of the old tree are promoted before it is destroyed, and keep what they have; with a daemon before it is renamed.
//!
//! Two renames cannot be made one. If a process is killed between them, or the second one fails, the layer has no dataset, and
//! those of the number say which layer it is. Whoever then asks which tree the layer has, or recovers the temporary
//! directory, makes the second rename: the first one is made when the new tree is whole. Who looks for a layer without the layer
//! store's lock may have to wait for that moment.

use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use crate::driver::copy;
use crate::driver::layer_copy::{Copied, Exchange, LayerCopy};
use crate::driver::staged_tree::WholeTree;
use crate::driver::zfs::command::Refusal;
use crate::driver::zfs::datasets::{Datasets, Listed, REPLACES};
use crate::driver::zfs::mounting::Access;
use crate::driver::zfs::names::Temporary;
use crate::driver::zfs::state::{Zfs, in_use};
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;

/// How often, and how far apart, a layer is looked for that is missing while it is exchanged.
const MAX_LOOKS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(20);

/// The number of the tree that was made with the temporary directory of this number; 0 is that of every layer's first one.
fn tree_number(number: &str) -> u64 {
    number.parse::<u64>().map_or(0, |number| number.saturating_add(1))
}

impl Listed {
    /// The number of the temporary directory, and the ID, if this was made to take the place of a layer's tree.
    fn replaced(&self) -> Option<(&str, &str)> {
        self.replaces.as_deref()?.split_once(' ')
    }
}

impl Datasets {
    /// The exchanges between whose renames a process is, or was killed: their numbers, and the IDs of the layers.
    fn begun<'a>(&'a self, listed: &'a [Listed]) -> impl Iterator<Item = (&'a str, &'a str)> {
        let is_there = |name: &str| listed.iter().any(|found| found.name == name);
        let ours = listed.iter().filter(|found| found.is_ours);
        ours.filter_map(move |found| {
            let (number, id) = found.replaced()?;
            let [new, old] = [Temporary::New, Temporary::Old].map(|kind| self.root.temporary(number, kind));
            let layer = self.root.layer(id).ok()?;
            (found.name == new && is_there(&old) && !is_there(&layer)).then_some((number, id))
        })
    }

    fn complete(&self, number: &str, id: &str) -> Result<()> {
        let new = self.root.temporary(number, Temporary::New);
        match self.rename(&new, &self.root.layer(id)?)? {
            Ok(()) => {
                tracing::warn!(layer = id, "completed an exchange of trees that was cut off");
                Ok(())
            }
            // Somebody else was faster.
            Err(refusal) if refusal.is_missing() || refusal.is_there() => Ok(()),
            Err(refusal) => Err(refusal.into_error()),
        }
    }

    /// Completes the exchange of this number, whose lock the caller holds, if it was begun.
    pub(super) fn complete_exchange(&self, number: &str, listed: &[Listed]) -> Result<()> {
        let mut begun = self.begun(listed).filter(|(begun, _id)| *begun == number);
        begun.try_for_each(|(number, id)| self.complete(number, id))
    }

    /// Completes the exchange of a layer's trees, if it was begun. Nobody is exchanging them now.
    fn complete_exchange_of(&self, id: &str) -> Result<()> {
        let listed = self.list(false)?;
        let mut begun = self.begun(&listed).filter(|(_number, begun)| *begun == id);
        begun.try_for_each(|(number, id)| self.complete(number, id))
    }

    fn is_exchanged(&self, id: &str) -> Result<bool> {
        let listed = self.list(false)?;
        Ok(self.begun(&listed).any(|(_number, begun)| begun == id))
    }
}

impl Zfs {
    /// As [`Zfs::find`], without the layer store's lock: another process may be exchanging the layer's trees.
    pub(super) fn find_unlocked(&self, id: &str) -> Result<String> {
        for _ in 0..MAX_LOOKS {
            match self.find(id) {
                Err(error)
                    if error.kind() == ErrorKind::LayerUnknown && self.datasets.is_exchanged(id)? =>
                {
                    thread::sleep(PAUSE);
                }
                Err(error) if error.kind() == ErrorKind::LayerUnknown => break,
                found => return found,
            }
        }
        // It may have got its other tree meanwhile.
        self.find(id)
    }

    /// The number of a layer's tree. An exchange that was cut off is completed.
    pub(super) fn number_of_tree(&self, id: &str) -> Result<u64> {
        let layer = self.datasets.root.layer(id)?;
        let mut found = self.datasets.look_up(&layer)?;
        if found.is_none() {
            self.datasets.complete_exchange_of(id)?;
            found = self.datasets.look_up(&layer)?;
        }
        let found = found
            .filter(|found| found.removed.is_none())
            .ok_or_else(|| ErrorKind::LayerUnknown.err(format!("locating the dataset of layer {id:?}")))?;
        Ok(found.replaced().map_or(0, |(number, _id)| tree_number(number)))
    }

    /// The properties of a dataset that is to take the place of a layer's.
    fn replacing(&self, layer: &str, id: &str, temp: &TempDir) -> Result<Vec<String>> {
        let mut properties = vec![format!("{REPLACES}={} {id}", temp.number())];
        for (name, value) in self.datasets.properties("quota", layer)? {
            if !matches!(value.as_str(), "0" | "none" | "-") {
                properties.push(format!("{name}={value}"));
            }
        }
        Ok(properties)
    }

    /// A copy of a layer's tree that can take its place.
    pub(super) fn copy_of(&self, id: &str, copied: Copied) -> Result<LayerCopy> {
        let layer = self.find(id)?;
        self.unmount_unused(id, &layer)?;
        let temp = self.temp_dir()?;
        let properties = self.replacing(&layer, id, &temp)?;
        let tree = match copied {
            // A snapshot is on disk when it is made.
            Copied::Tree { durable: _ } => self.temporary_tree(temp, Some(id), &properties)?,
            Copied::Root => {
                let tree = self.temporary_tree(temp, None, &properties)?;
                let from = self.open_layer(id, Access::Read)?;
                copy::link_root(from.as_fd(), tree.dir.as_fd())
                    .context(|| format!("copying the root of layer {id:?}"))?;
                tree
            }
        };
        Ok(self.with_exchange(tree, id))
    }

    /// A tree that was staged, as a copy of a layer's.
    pub(super) fn as_copy_of(&self, tree: WholeTree, id: &str) -> Result<LayerCopy> {
        let layer = self.find(id)?;
        let new = self.datasets.root.temporary(tree.temp.number(), Temporary::New);
        for property in self.replacing(&layer, id, &tree.temp)? {
            self.datasets.set(&new, &property)?;
        }
        Ok(self.with_exchange(tree, id))
    }

    /// Ends all mounts of a layer whose trees are to be exchanged.
    ///
    /// # Errors
    /// [`Error::is_busy`](crate::Error::is_busy): not everywhere can a dataset with open files be renamed.
    fn unmount_unused(&self, id: &str, layer: &str) -> Result<()> {
        self.unmount_whole(id)?;
        match self.is_in_use(id)? {
            true => Err(in_use("exchanging", layer)),
            false => Ok(()),
        }
    }

    fn with_exchange(&self, tree: WholeTree, id: &str) -> LayerCopy {
        let WholeTree { dir, path, temp } = tree;
        let exchange = DatasetExchange {
            driver: self.clone(),
            id: id.to_owned(),
            path,
            number: tree_number(temp.number()),
        };
        LayerCopy::with_exchange(dir, Box::new(exchange), temp)
    }
}

/// See the module's head.
#[derive(Debug)]
struct DatasetExchange {
    driver: Zfs,
    id: String,
    /// Where the new tree is mounted.
    path: PathBuf,
    /// Its number.
    number: u64,
}

impl Exchange for DatasetExchange {
    fn number(&self) -> u64 {
        self.number
    }

    fn take_place(self: Box<Self>, temp: &mut TempDir) -> Result<()> {
        let Self { driver, id, path, .. } = &*self;
        let datasets = &driver.datasets;
        let layer = datasets.root.layer(id)?;
        let [new, old] =
            [Temporary::New, Temporary::Old].map(|kind| datasets.root.temporary(temp.number(), kind));
        driver.unmount_unused(id, &layer)?;
        if !driver.mounter.unmount(path)? {
            return Err(in_use("exchanging", &new));
        }
        driver.move_target(&new, id)?;
        driver.release_clones(&layer, Some(&new))?;
        // Who finds the old tree has to know whose it is.
        datasets.set(&layer, &driver.mark())?;
        let (ending, number) = (datasets.clone(), temp.number().to_owned());
        temp.set_companion(move || ending.destroy_temporary(&number));
        let renamed = |from: &str, to: &str| {
            let renamed = datasets.rename(from, to)?;
            renamed
                .map_err(|refusal| Refusal::into_error(refusal).context(format!("renaming {from} to {to}")))
        };
        renamed(&layer, &old)?;
        if let Err(error) = renamed(&new, &layer) {
            renamed(&old, &layer)?;
            return Err(error);
        }
        driver.destroy_with(temp, old);
        Ok(())
    }
}
