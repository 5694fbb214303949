//! A diff for a layer that is there, while it arrives: it is unpacked beside the layer, without a lock.
//!
//! The layer may change meanwhile, or go. Under the lock it is looked at again: it has to be the same layer, and the files
//! of it that hard links of the diff share must still be where they were found.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crate::archive::apply::pipeline::{Applied, Target};
use crate::archive::apply::present_tree::PresentTree;
use crate::driver::{CreateOptions, Driver, LayerTree, Staged};
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::dirs::layer_location;
use crate::store::inner::Inner;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{StagedTarSplit, mappings_of, mappings_on_disk};
use crate::store::stage::area::{create_tar_split, target_of};
use crate::sys::tree;

/// Where the diff goes until it has arrived. Dropped, it is removed, which may block for long.
#[derive(Debug)]
pub(crate) struct Receiving {
    /// The layer, as it was.
    pub(super) row: Arc<LayerRow>,
    /// Its tree at that time.
    pub(super) tree: OwnedFd,
    pub(super) staged: Box<dyn Staged>,
    pub(super) tar_split: StagedTarSplit,
}

/// A diff that has arrived.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) place: Receiving,
    pub(crate) applied: Applied,
}

impl Receiving {
    /// Makes a place for a diff of the layer that `key` names. Returns where to unpack and the file for the tar-split, too.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    pub(crate) fn begin(
        inner: &Arc<Inner>,
        table: &Table<LayerRow>,
        key: &str,
    ) -> Result<(Target, File, Self)> {
        let driver = inner.driver();
        let row = Arc::clone(table.require(key)?);
        if files_of(&row.id, driver.additional_layer(&row.id))?.is_some() {
            let what = format!(
                "changing layer {:?}, whose files are in an additional layer store",
                row.id
            );
            return Err(ErrorKind::StoreIsReadOnly.err(what));
        }
        if files_of(&row.id, driver.is_fixed(&row.id))? {
            let what = format!("changing layer {:?}, which is a composefs layer", row.id);
            return Err(ErrorKind::NotSupported.err(what));
        }
        let content = files_of(&row.id, driver.layer_tree(&row.id))?;
        let tree = content.dir.try_clone().during("duplicating a directory handle")?;
        let mappings = mappings_on_disk(&*driver, &row, tree.as_fd())?;
        let present = present_tree(&*driver, table, &row, content, &mappings)?;
        let staged = stage_beside(inner, table, &row, &mappings)?;
        let mut temp = TempDir::create(&inner.dirs.layers_tmp())?;
        let path = temp.addition();
        let file = create_tar_split(&path)?;
        let mut target = target_of(staged.tree(), mappings)?;
        target.present = Some(PresentTree {
            is_apart: staged.is_apart(),
            ..present
        });
        let place = Self {
            row,
            tree,
            staged,
            tar_split: StagedTarSplit { path, temp },
        };
        // Dropped in this order: a tree in which something is open cannot be removed with every driver.
        Ok((target, file, place))
    }
}

/// What hard links of a diff find in the layer.
fn present_tree(
    driver: &dyn Driver,
    table: &Table<LayerRow>,
    row: &LayerRow,
    content: LayerTree,
    mappings: &IdMappings,
) -> Result<PresentTree> {
    let complete = !driver.capabilities().stages_apart;
    let below = match driver.layer_tree(&row.parent) {
        _ if !complete || row.parent.is_empty() => None,
        Err(error) if error.kind() == ErrorKind::LayerUnknown => None,
        below => {
            let parent = table.get(&row.parent);
            let owners = parent.map(|parent| mappings_of(parent)).unwrap_or_default();
            Some((below?.dir, owners))
        }
    };
    Ok(PresentTree {
        dir: content.dir,
        form: content.whiteouts,
        mappings: mappings.clone(),
        below,
        is_apart: false,
    })
}

/// An empty tree beside that of the layer `row`, to unpack to. On the same mount: nothing can be renamed to another one,
/// and the homes of images and of containers are two mounts also where they lie on one file system.
fn stage_beside(
    inner: &Inner,
    table: &Table<LayerRow>,
    row: &LayerRow,
    mappings: &IdMappings,
) -> Result<Box<dyn Staged>> {
    let apart = inner.options.image_store.is_some();
    let mut images = table.rows_in(layer_location::IMAGE_STORE);
    let options = CreateOptions {
        read_write: apart && images.all(|image| image.id != row.id),
        mappings: mappings.clone(),
        ..CreateOptions::default()
    };
    inner.driver().stage(None, &options)
}

impl LayerStore {
    /// The layer for which a diff has arrived, as it is by now.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if it is gone, also if another one has its ID, and [`ErrorKind::Io`] of the kind
    /// `ResourceBusy` if the diff shares files with it that are no longer there.
    pub(super) fn check_received(&self, received: &Received) -> Result<Arc<LayerRow>> {
        let (place, shared) = (&received.place, &received.applied.shared);
        let row = self.get(&place.row.id)?;
        let same = row.created == place.row.created
            && row.parent == place.row.parent
            && mappings_of(&row) == mappings_of(&place.row);
        if !same {
            let what = format!("layer {:?} was replaced while a diff for it arrived", row.id);
            return Err(ErrorKind::LayerUnknown.err(what));
        }
        let tree = files_of(&row.id, self.driver.layer_tree(&row.id))?.dir;
        let identity = |dir: &OwnedFd| {
            let stat = rustix::fs::fstat(dir).during("looking at a layer's directory");
            stat.map(|stat| tree::identity(&stat))
        };
        // What changes the tree in place changes the record, too.
        if identity(&tree)? != identity(&place.tree)? || row != place.row {
            shared.check(tree.as_fd()).context(|| {
                format!(
                    "applying a diff to layer {:?}, which was changed meanwhile",
                    row.id
                )
            })?;
        }
        Ok(row)
    }
}
