//! Fitting what was unpacked to the layers below it.
//!
//! What a layer's archive says of the layers below depends on them, and they may be made after it was unpacked. So it
//! is written into the staged content once the parent is known, before the exclusive lock is taken; under the lock
//! only the parent's identity is compared.

use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::merge::merge;
use crate::archive::apply::pipeline::Applied;
use crate::archive::apply::settle::settle;
use crate::archive::apply::shared_files::{SharedFiles, Sharing};
use crate::chunked::cache::FORMAT_KEY;
use crate::driver::{Driver, LayerTree, NewOwners, Staged};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::record::layer::LayerRow;
use crate::store::layer_store::locked::LayerStore;
use crate::store::layer_store::new_layer::{StagedItem, Unpacked};
use crate::whiteout::WhiteoutFormat;

/// What [`FORMAT_KEY`] says of a layer whose contents are stored by their digests.
const FLAT: &[u8] = b"{\"format\":1}";

impl Unpacked {
    /// Whether [`Unpacked::fit`] has anything to do.
    pub(crate) fn depends_on_parent(&self) -> bool {
        self.staged.unpack_dir().is_some() || !self.applied.marks.is_empty() || self.goes_by_digest()
    }

    /// Whether contents are to be stored by their digests.
    fn goes_by_digest(&self) -> bool {
        self.format_item().is_some() && self.staged.stores_by_digest()
    }

    /// The item that says how contents are stored; only a layer with a table of contents has it.
    fn format_item(&self) -> Option<&StagedItem> {
        self.items().iter().find(|item| item.key == FORMAT_KEY)
    }

    /// Fits what was unpacked to the layer `parent`: merges it into the copy of its tree, or writes down what the archive
    /// says of it. With `owners` what is shown of the parent gets new owners. To be called once, without a lock; the time it
    /// takes grows with what there is to say, and with what gets new owners. With `durable` it is on disk afterwards. Contents that the driver stores by their digests are stored so now: the tree is whole.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if the parent is gone.
    pub(crate) fn fit(
        &mut self,
        driver: &dyn Driver,
        parent: Option<&str>,
        owners: Option<NewOwners<'_>>,
        durable: bool,
    ) -> Result<()> {
        let mut fitted = self.give_owners(driver, parent, owners).and_then(|given| {
            let (tree, marks) = (self.staged.tree(), &mut self.applied.marks);
            let (below, shown) = given.unzip();
            let fitted = fit(driver, &*self.staged, tree, marks, (parent, shown), durable)?;
            Ok(fitted.or(below))
        });
        if fitted.is_ok() && self.goes_by_digest() {
            fitted = self.store_by_digest(driver, parent, durable);
        }
        self.fitted_to = fitted.map_err(|error| match parent {
            Some(parent) if matches!(driver.exists(parent), Ok(false)) => {
                ErrorKind::LayerUnknown.err(format!("locating parent layer {parent:?}"))
            }
            _ => error,
        })?;
        Ok(())
    }

    /// Returns the tree of the parent, and the one that shows it with new owners.
    fn give_owners(
        &mut self,
        driver: &dyn Driver,
        parent: Option<&str>,
        owners: Option<NewOwners<'_>>,
    ) -> Result<Option<(OwnedFd, OwnedFd)>> {
        let (Some(parent), Some(owners)) = (parent, owners) else {
            return Ok(None);
        };
        let below = driver.layer_tree(parent)?.dir;
        Ok(self
            .staged
            .give_owners(parent, owners)?
            .map(|shown| (below, shown)))
    }

    /// Returns the tree of the parent.
    fn store_by_digest(
        &mut self,
        driver: &dyn Driver,
        parent: Option<&str>,
        durable: bool,
    ) -> Result<Option<OwnedFd>> {
        let below = parent.map(|parent| driver.layer_tree(parent)).transpose()?;
        if self.staged.store_by_digest(parent)?
            && let Some(StagedItem { path, .. }) = self.format_item()
        {
            let written = std::fs::File::create(path).and_then(|mut file| {
                file.write_all(FLAT)?;
                if durable { file.sync_data() } else { Ok(()) }
            });
            written.at("writing", path)?;
        }
        Ok(below.map(|tree| tree.dir))
    }

    /// Whether `parent` is still the layer that the content was fitted to, and not another one with its ID.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if not.
    pub(crate) fn check_parent(&self, driver: &dyn Driver, parent: Option<&str>) -> Result<()> {
        let (Some(fitted_to), Some(parent)) = (&self.fitted_to, parent) else {
            return Ok(());
        };
        let identity = |dir: &OwnedFd| {
            let stat = rustix::fs::fstat(dir).during("looking at the parent layer")?;
            Ok::<_, Error>((stat.st_dev, stat.st_ino))
        };
        if identity(fitted_to)? == identity(&driver.layer_tree(parent)?.dir)? {
            return Ok(());
        }
        let what = format!("parent layer {parent:?} was replaced while the layer was made");
        Err(ErrorKind::LayerUnknown.err(what))
    }
}

/// Returns the tree of the parent, if it was looked at. `shown` is a tree that hides what the parent has.
fn fit(
    driver: &dyn Driver,
    staged: &dyn Staged,
    tree: &LayerTree,
    marks: &mut LayerMarks,
    (parent, shown): (Option<&str>, Option<OwnedFd>),
    durable: bool,
) -> Result<Option<OwnedFd>> {
    if let Some(dir) = staged.unpack_dir() {
        let nothing = SharedFiles::default();
        let sharing = Sharing {
            files: &nothing,
            in_place: true,
        };
        let into = tree.dir.as_fd();
        merge(dir.as_fd(), into, tree.whiteouts, marks, sharing, durable)?;
        return Ok(None);
    }
    let Some(parent) = parent.filter(|_| !marks.is_empty()) else {
        return Ok(None);
    };
    let below = driver.layer_tree(parent)?.dir;
    let mut lowers = Vec::from_iter(shown);
    lowers.append(&mut driver.name_trees(parent)?);
    settle(tree.dir.as_fd(), tree.whiteouts, marks, &lowers, durable)?;
    Ok(Some(below))
}

/// Moves what was unpacked into `content`, which is the tree of the layer `row`, or a copy of it unless `in_place`.
pub(crate) fn merge_into(
    layers: &LayerStore,
    row: &LayerRow,
    content: &LayerTree,
    staged: &dyn Staged,
    applied: &mut Applied,
    in_place: bool,
) -> Result<()> {
    let Applied {
        marks, shared: files, ..
    } = applied;
    let sharing = Sharing { files, in_place };
    let durable = layers.inner.sync_content();
    let into = content.dir.as_fd();
    let unpacked = staged.reopen()?;
    staged.move_into(into, &mut |from| {
        files.link_up(unpacked.as_fd(), from, into)?;
        merge(from, into, content.whiteouts, marks, sharing, durable)
    })?;
    if content.whiteouts == WhiteoutFormat::Apply {
        return Ok(());
    }
    let mut lowers = layers.driver.name_trees(&row.id)?;
    // The first is the layer's own.
    lowers.drain(..1.min(lowers.len()));
    settle(into, content.whiteouts, marks, &lowers, durable)
}
