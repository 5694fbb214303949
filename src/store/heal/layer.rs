//! One layer that is made anew, of the first source that has its content.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::heal::driver_data::standings_on;
use crate::store::heal::files::DamagedFiles;
use crate::store::heal::options::HealOptions;
use crate::store::heal::report::{HealedHow, NotHealed};
use crate::store::heal::source::{HealSource, OneLayer, WantedContent};
use crate::store::heal::usage::{Usage, Use};
use crate::store::heal::whole::Renewed;
use crate::store::layer_store::new_layer::mappings_of;

/// How often one source is asked for a layer.
const MAX_ATTEMPTS: usize = 16;

/// The content that a layer should have, by its record or by the images that have it.
pub(super) fn wanted_content(row: &LayerRow, used: &Use) -> Option<WantedContent> {
    let by_images = || match used.diff_ids.as_slice() {
        [only] => Some(only),
        _ => None,
    };
    Some(WantedContent {
        layer: row.id.to_string(),
        diff_id: row.diff_digest.valid().or_else(by_images)?.clone(),
        compressed_digest: row.compressed_digest.valid().cloned(),
        blobs: used.blobs.clone(),
        images: used.images.clone(),
    })
}

impl Store {
    /// Makes a layer anew; only these `files` of it, if nothing else is wrong and that is possible. No layer below it is
    /// `broken`, nor is a layer taken as a source that is.
    pub(super) async fn heal_layer(
        &self,
        id: &str,
        files: Option<&DamagedFiles>,
        usage: &Usage,
        broken: &BTreeSet<String>,
        options: &HealOptions,
    ) -> Result<HealedHow, NotHealed> {
        let nothing = Use::default();
        let used = usage.get(id).unwrap_or(&nothing);
        let of_container = self
            .read_container_store(|table| Ok(table.by_layer(id).is_some()))
            .await;
        if of_container.map_err(NotHealed::Failed)? {
            return Err(NotHealed::OfContainer);
        }
        let (row, parent, with_containers) = self.row_of(id).await.map_err(NotHealed::Failed)?;
        let owners_differ = |parent: &LayerRow| mappings_of(parent) != mappings_of(&row);
        if used.is_copy || parent.as_deref().is_some_and(owners_differ) {
            return Err(NotHealed::Copy);
        }
        let wanted = wanted_content(&row, used).ok_or(NotHealed::UnknownContent)?;
        let renewed = Renewed {
            row,
            diff_id: wanted.diff_id.clone(),
            with_containers,
            standings: standings_on(usage, id),
        };
        let own = self.own_sources(&wanted, broken).await;
        let own = own.map_err(NotHealed::Failed)?;
        let mut failed = Vec::new();
        for source in own.iter().chain(&options.sources) {
            let source = &**source;
            if let Some(files) = files
                && let Some(how) = self
                    .heal_by_parts(source, &wanted, &renewed, files, options)
                    .await
            {
                return Ok(how);
            }
            for attempt in 0..MAX_ATTEMPTS {
                let from = (source, attempt);
                match self.heal_by_stream(from, &wanted, &renewed, files, options).await {
                    Ok(None) => break,
                    Ok(Some(how)) => return Ok(how),
                    // Not that of the source.
                    Err(error) if error.kind() == ErrorKind::Io && error.is_busy() => {
                        return Err(NotHealed::Failed(error));
                    }
                    Err(error) => failed.push((source.name(), error)),
                }
            }
        }
        Err(NotHealed::NoSource { failed })
    }

    /// `None` if it is to be read as a whole.
    async fn heal_by_parts(
        &self,
        source: &dyn HealSource,
        wanted: &WantedContent,
        renewed: &Renewed,
        files: &DamagedFiles,
        options: &HealOptions,
    ) -> Option<HealedHow> {
        let parts = self.renew_parts_from(source, wanted, renewed, files, options);
        match parts.await {
            Ok(savings) => savings.map(|savings| HealedHow::Parts {
                source: source.name(),
                fetched: savings.fetched,
                reused: savings.reused,
            }),
            Err(error) => {
                tracing::info!(layer = wanted.layer, error = %error.chain(), "reading a layer as a whole");
                None
            }
        }
    }

    /// `None` if the source has no such stream.
    async fn heal_by_stream(
        &self,
        from: (&dyn HealSource, usize),
        wanted: &WantedContent,
        renewed: &Renewed,
        files: Option<&DamagedFiles>,
        options: &HealOptions,
    ) -> Result<Option<HealedHow>> {
        let source = || from.0.name();
        if let Some(files) = files.filter(|_| self.stages_apart()) {
            let paths = self.renew_files_from(from, wanted, renewed, files, options);
            match paths.await {
                Ok(paths) => {
                    let source = source();
                    return Ok(paths.map(|paths| HealedHow::Files { source, paths }));
                }
                // As a whole it may be possible.
                Err(error) => {
                    tracing::info!(layer = wanted.layer, error = %error.chain(), "making a whole layer anew");
                }
            }
        }
        let size = self.renew_from(from, wanted, renewed, options).await?;
        Ok(size.map(|size| HealedHow::Layer {
            source: source(),
            size,
        }))
    }

    /// The record of a layer, that of the layer below, and whether it lies with the layers of containers.
    async fn row_of(&self, id: &str) -> Result<(Arc<LayerRow>, Option<Arc<LayerRow>>, bool)> {
        let id = id.to_owned();
        let found = self.step(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            let row = layers.get(&id)?;
            let parent = layers.table().get(&row.parent).cloned();
            Ok((row, parent, layers.lies_with_containers(&id)))
        });
        found.await
    }

    /// Other layers of the store, and of its additional stores, that have the content.
    async fn own_sources(
        &self,
        wanted: &WantedContent,
        broken: &BTreeSet<String>,
    ) -> Result<Vec<Arc<dyn HealSource>>> {
        let layers = self.layers_by_uncompressed_digest(&wanted.diff_id).await?;
        let others = layers.iter().filter(|layer| !broken.contains(layer.id()));
        let source = |id: &str| -> Arc<dyn HealSource> {
            Arc::new(OneLayer {
                store: self.clone(),
                id: id.to_owned(),
            })
        };
        Ok(others.map(|layer| source(layer.id())).collect())
    }
}
