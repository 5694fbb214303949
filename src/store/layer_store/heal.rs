//! A layer that gets its content anew: the new tree takes the place of the old one, and the record says the same as before.
//!
//! The exchange of the trees decides, as with a diff that is [applied](crate::record::pending_diff). A tree that a mount
//! shows stays as it is, under another name, until nothing shows it any more.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use crate::archive::apply::settle::literal_dir;
use crate::archive::path::split;
use crate::driver::{Copied, CreateOptions, LayerCopy};
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::record::layer::LayerRow;
use crate::record::pending_diff::PendingDiff;
use crate::store::dirs::layer_location;
use crate::store::layer_store::fit::merge_into;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{StagedTarSplit, Unpacked, mappings_of};

/// What a layer is to have instead of what it has.
pub(crate) struct Renewal {
    /// The layer as it was when the content was made for it.
    pub(crate) row: Arc<LayerRow>,
    /// What its record is to say.
    pub(crate) said: LayerRow,
}

impl LayerStore {
    /// Whether the layers of images and those of containers lie apart, and this one lies with those of containers.
    pub(crate) fn lies_with_containers(&self, id: &str) -> bool {
        let apart = self.inner.options.image_store.is_some();
        let mut images = self.table().rows_in(layer_location::IMAGE_STORE);
        apart && images.all(|image| *image.id != *id)
    }

    /// Makes an empty layer in the driver for one that has a record, if the driver has none.
    pub(crate) fn restore_directory(&mut self, id: &str) -> Result<()> {
        let row = self.get(id)?;
        if self.driver.exists(id)? {
            return Ok(());
        }
        let options = CreateOptions {
            read_write: self.lies_with_containers(id),
            mappings: mappings_of(&row),
            durable: self.inner.sync_content(),
            ..CreateOptions::default()
        };
        self.driver
            .create(id, row.parent_id(), &options)
            .context(|| format!("making layer {id:?} anew"))?;
        self.rely_on_layer(id)?;
        self.settle()
    }

    /// Gives a layer the content that was unpacked for it, and fitted to its parent. On failure it is as before.
    pub(crate) fn renew(&mut self, renewal: Renewal, unpacked: Unpacked) -> Result<()> {
        let id = renewal.row.id.to_string();
        let checked = self
            .check_same(&renewal.row)
            .and_then(|()| unpacked.check_parent(&*self.driver, renewal.row.parent_id()));
        if let Err(error) = checked {
            self.discard(unpacked);
            return Err(error);
        }
        let Unpacked {
            staged, tar_split, ..
        } = unpacked;
        let copy = staged.into_copy(&id)?;
        self.put_in_place(renewal, copy, tar_split)
    }

    /// Gives a layer those of its files anew that were unpacked, and takes these names out. The file for the tar-split has what
    /// the layer has. On failure it is as before.
    pub(crate) fn renew_files(
        &mut self,
        renewal: Renewal,
        unpacked: Unpacked,
        taken_out: &[Vec<u8>],
    ) -> Result<()> {
        let ended = self.copy_with(&renewal.row, &unpacked, taken_out);
        let Unpacked {
            staged, tar_split, ..
        } = unpacked;
        self.discarded.push(staged);
        let copy = ended.context(|| format!("changing files of layer {:?}", renewal.row.id))?;
        self.put_in_place(renewal, copy, tar_split)
    }

    /// A copy of a layer's tree with what was unpacked.
    fn copy_with(&self, row: &LayerRow, unpacked: &Unpacked, taken_out: &[Vec<u8>]) -> Result<LayerCopy> {
        self.check_same(row)?;
        let durable = self.inner.sync_content();
        let copy = files_of(&row.id, self.driver.copy_layer(&row.id, Copied::Tree { durable }))?;
        let mut copy = copy.ok_or_else(|| {
            ErrorKind::NotSupported.err("exchanging directories on the file system of the layers")
        })?;
        let mut tree = files_of(&row.id, self.driver.layer_tree(&row.id))?;
        tree.dir = copy.dir().try_clone().during("duplicating a directory handle")?;
        for path in taken_out {
            let (above, name) = split(path);
            if let Some(dir) = literal_dir(tree.dir.as_fd(), above)?.filter(|_| !name.is_empty()) {
                copy.take_out(dir.as_fd(), name)?;
            }
        }
        let mut applied = unpacked.applied.clone();
        merge_into(self, row, &tree, &*unpacked.staged, &mut applied, false)?;
        Ok(copy)
    }

    /// Makes `copy` the tree of the layer.
    fn put_in_place(
        &mut self,
        renewal: Renewal,
        mut copy: LayerCopy,
        tar_split: StagedTarSplit,
    ) -> Result<()> {
        let Renewal { row, said } = renewal;
        self.check_same(&row)?;
        let shown = self.is_shown(&row.id)?;
        if shown {
            copy.keep_old()?;
        }
        let trees = (self.driver.tree_number(&row.id)?, copy.number()?);
        let diff = PendingDiff::of_row(&said, Some(trees));
        let StagedTarSplit { path, temp } = tar_split;
        self.throw_away([temp]);
        let exchanged = self.exchange(&row.id, copy, Some(&path), &[], &diff);
        exchanged.context(|| format!("making layer {:?} anew", row.id))?;
        if !shown && let Err(error) = self.remove_old_trees(&row.id) {
            // Garbage collection tries again.
            tracing::warn!(layer = %row.id, error = %error.chain(), "cannot remove the old trees of a layer");
        }
        Ok(())
    }

    /// Removes trees that were kept because mounts showed them, and that none shows any more.
    pub(crate) fn remove_all_old_trees(&mut self) -> Result<()> {
        for id in self.driver.layers_with_old_trees()? {
            // One without a record is garbage as a whole.
            if self.table().get(&id).is_some() && !self.is_shown(&id)? {
                self.remove_old_trees(&id)?;
            }
        }
        Ok(())
    }

    fn remove_old_trees(&mut self, id: &str) -> Result<()> {
        let old = self.driver.remove_old_trees(id)?;
        self.throw_away(old);
        Ok(())
    }

    /// Checks that a layer is still the one for which content was made.
    fn check_same(&self, planned: &LayerRow) -> Result<()> {
        let row = self.get(&planned.id)?;
        let same = row.created == planned.created
            && row.parent == planned.parent
            && row.diff_digest == planned.diff_digest
            && mappings_of(&row) == mappings_of(planned);
        if same && !row.is_incomplete() {
            return Ok(());
        }
        let what = format!("layer {:?} was replaced while it was made anew", row.id);
        Err(ErrorKind::LayerUnknown.err(what))
    }
}
