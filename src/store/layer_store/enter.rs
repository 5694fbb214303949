//! Taking over the exclusive lock: what a crash left incomplete is deleted or completed first.

use std::sync::Arc;

use crate::driver::is_usual_id;
use crate::error::{Error, Result};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::record::{WriteGuard, lost};
use crate::store::dirs::layer_location;
use crate::store::evidence::{self, layers_of_other_mode};
use crate::store::inner::Inner;
use crate::store::layer_store::counts::HeldCounts;
use crate::store::layer_store::locked::LayerStore;

impl LayerStore {
    /// Takes over a held lock and deletes or completes what a crash left incomplete.
    pub(crate) fn enter(inner: Arc<Inner>, guard: WriteGuard<LayerRow>) -> Result<Self> {
        let driver = inner.driver();
        let mut store = Self {
            guard,
            inner,
            driver,
            trash: Vec::new(),
            discarded: Vec::new(),
            counts: HeldCounts::default(),
            has_new_content: false,
        };
        store.check_not_lost()?;
        if store.guard.reloaded() {
            store.inner.try_recover();
        }
        if store.guard.needs_repair() {
            store.finish_diffs()?;
            let mut incomplete = store.guard.incomplete();
            // A complete layer that goes with another item is decided on when all locks are held.
            incomplete.retain(|id| store.guard.get(id).is_some_and(|row| row.is_incomplete()));
            for id in &incomplete {
                tracing::warn!(layer = id, "deleting incomplete layer");
            }
            match store.delete_all(&incomplete) {
                Err(error) if !error.is_full() => store.leave_behind(&incomplete, &error)?,
                deleted => deleted?,
            }
            // Names that stood in two records were resolved when the file was read.
            store.guard.save()?;
        }
        Ok(store)
    }

    /// Removes the records of incomplete layers whose files cannot be removed: they would keep everyone from using the store.
    /// What is left of them are layers without records, of which a check tells.
    fn leave_behind(&mut self, ids: &[String], error: &Error) -> Result<()> {
        for id in ids {
            if self.guard.table_mut().remove(id).is_some() {
                tracing::warn!(layer = id, error = %error.chain(), "the files of a deleted layer stay");
            }
        }
        self.save()
    }

    /// Refuses to change records that are missing although the driver has layers that none of those there names: a save would
    /// make the loss look like a store without them.
    fn check_not_lost(&self) -> Result<()> {
        let options = &self.inner.options;
        // In transient mode a reboot takes the records of containers' layers and leaves the layers; with a separate image
        // store each of the two files has the records of some only.
        let alone = !options.transient && options.image_store.is_none();
        let Some(file) = self.unwritten(layer_location::STABLE).filter(|_| alone) else {
            return Ok(());
        };
        let unknown = self.layer_without_record()?;
        unknown.map_or(Ok(()), |id| Err(lost(file, &format!("layer {id:?}"))))
    }

    /// A layer of the driver that has no record.
    fn layer_without_record(&self) -> Result<Option<String>> {
        let elsewhere = layers_of_other_mode(&self.inner.dirs, self.inner.options.transient)?;
        // Other names may be anybody's, as that of `lost+found` where the driver's home is a file system of its own.
        let is_unknown =
            |id: &String| is_usual_id(id) && self.table().get(id).is_none() && !elsewhere.contains(id);
        Ok(self.driver.list_layers()?.into_iter().find(is_unknown))
    }

    /// What shows that there are containers that outlive a reboot and have no record: the layer of one of them, which may
    /// have lost its record too.
    pub(crate) fn layer_without_container<'a>(
        &'a self,
        images: impl Iterator<Item = &'a Arc<ImageRow>>,
        containers: &Table<ContainerRow>,
    ) -> Result<Option<String>> {
        if self.unwritten(layer_location::STABLE).is_some() {
            return self.layer_without_record();
        }
        let found = evidence::layer_without_container(self.table(), images, containers);
        Ok(found.map(str::to_owned))
    }
}
