//! Planning a new layer under shared locks.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::{IdMappingOptions, LayerOptions};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::dirs::check_layer_id;
use crate::store::layer_store::locked::LayerStore;
use crate::store::layer_store::new_layer::mappings_of;
use crate::store::stage::plan::LayerPlan;

impl Store {
    /// Checks the request under shared locks and finds the parent and the mappings.
    pub(crate) async fn plan_layer(&self, parent: Option<&str>, options: &LayerOptions) -> Result<LayerPlan> {
        if let Some(id) = &options.id {
            check_layer_id(&*self.inner.driver(), id)?;
        }
        let mut found = None;
        let id = options.id.as_deref().unwrap_or_default();
        let free = |table: &_| LayerStore::check_free(table, id, &options.names);
        match parent {
            None => free(&*self.unlocked_layers().await?)?,
            Some(key) => {
                found = self
                    .read_all_layer_stores(|home, table| {
                        if !home.read_only() {
                            free(table)?;
                        }
                        Ok(match table.find_complete(key) {
                            Some(row) => ControlFlow::Break((Arc::clone(row), home.read_only())),
                            None => ControlFlow::Continue(()),
                        })
                    })
                    .await?;
                let Some((row, _)) = &found else {
                    return Err(ErrorKind::LayerUnknown.err(format!("locating parent layer {key:?}")));
                };
                let used = self
                    .read_container_store(|table| Ok(table.by_layer(&row.id).is_some()))
                    .await?;
                if used {
                    return Err(ErrorKind::ParentIsContainer.err(format!("creating a layer on {key:?}")));
                }
            }
        }
        let mappings = self.choose_mappings(&options.id_mappings, found.as_ref().map(|(row, _)| &**row))?;
        let (parent, parent_read_only) = match found {
            Some((row, read_only)) => (Some(row), read_only),
            None => (None, false),
        };
        Ok(LayerPlan {
            parent,
            parent_read_only,
            mappings,
        })
    }

    /// The mappings for the files of a layer: those asked for, else the parent's, else the store's; none if the
    /// driver maps owners when it mounts.
    pub(crate) fn choose_mappings(
        &self,
        wanted: &IdMappingOptions,
        parent: Option<&LayerRow>,
    ) -> Result<IdMappings> {
        let mappings = self.wanted_mappings(wanted, parent)?;
        if mappings.is_identity() || self.inner.driver().supports_shifting(&mappings) {
            return Ok(IdMappings::default());
        }
        Ok(mappings)
    }

    /// The mappings asked for, else the parent's, else the store's.
    pub(crate) fn wanted_mappings(
        &self,
        wanted: &IdMappingOptions,
        parent: Option<&LayerRow>,
    ) -> Result<IdMappings> {
        let inherited = parent.map_or_else(|| self.inner.options.id_mappings.clone(), mappings_of);
        let choose = |host: bool, asked: &Vec<_>, inherited: Vec<_>| match (host, asked.is_empty()) {
            (true, _) => Vec::new(),
            (false, false) => asked.clone(),
            (false, true) => inherited,
        };
        let mappings = IdMappings {
            uids: choose(wanted.host_uid_mapping, &wanted.uid_map, inherited.uids),
            gids: choose(wanted.host_gid_mapping, &wanted.gid_map, inherited.gids),
        };
        mappings.validate()?;
        Ok(mappings)
    }
}
