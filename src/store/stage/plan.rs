//! The plan for a new layer: made before the work begins, checked again under the exclusive lock.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::LayerOptions;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::layer_store::locked::LayerStore;
use crate::store::layer_store::new_layer::{NewLayer, Start, Unpacked, other_mappings};
use crate::store::stage::area::LayerOwners;

/// The parent and the mappings of a new layer; checked again under the exclusive lock.
#[derive(Debug)]
pub(crate) struct LayerPlan {
    pub(crate) parent: Option<Arc<LayerRow>>,
    /// A parent in an additional store is not checked again: this store cannot delete it.
    pub(crate) parent_read_only: bool,
    /// The mappings of the files on disk.
    pub(crate) mappings: IdMappings,
}

impl LayerPlan {
    /// ID of the parent.
    pub(crate) fn parent_id(&self) -> Option<String> {
        self.parent.as_ref().map(|row| row.id.to_string())
    }

    /// Whose the layer's files are.
    pub(crate) fn owners(&self) -> LayerOwners {
        LayerOwners {
            mappings: self.mappings.clone(),
            parent: self.parent_mappings(),
            from_mount: false,
        }
    }

    /// The mappings of the parent's files, if they are others.
    pub(crate) fn parent_mappings(&self) -> Option<IdMappings> {
        other_mappings(self.parent.as_deref(), &self.mappings)
    }

    /// The layer to make of what was unpacked, if that is still possible.
    pub(crate) fn layer(
        self,
        layers: &mut LayerStore,
        options: LayerOptions,
        unpacked: Unpacked,
    ) -> Result<NewLayer> {
        match self.recheck(layers.table()) {
            Ok(parent) => {
                let start = Start::Unpacked(Box::new(unpacked));
                Ok(new_layer(options, parent, self.mappings, start))
            }
            Err(error) => {
                layers.discard(unpacked);
                Err(error)
            }
        }
    }

    /// The parent as it is now, if the layer can still be made on it.
    pub(crate) fn recheck(&self, table: &Table<LayerRow>) -> Result<Option<Arc<LayerRow>>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        if self.parent_read_only {
            return Ok(Some(Arc::clone(parent)));
        }
        let Some(row) = table.get_complete(&parent.id) else {
            let what = format!(
                "parent layer {:?} was deleted while the layer was made",
                parent.id
            );
            return Err(ErrorKind::LayerUnknown.err(what));
        };
        if row.uid_map != parent.uid_map || row.gid_map != parent.gid_map {
            let what = format!(
                "parent layer {:?} changed its ID mappings while the layer was made",
                parent.id
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        Ok(Some(Arc::clone(row)))
    }
}

/// Joins the options with the plan.
pub(crate) fn new_layer(
    options: LayerOptions,
    parent: Option<Arc<LayerRow>>,
    mappings: IdMappings,
    start: Start,
) -> NewLayer {
    NewLayer {
        id: options.id.unwrap_or_default(),
        names: options.names,
        parent,
        start,
        mount_label: options.mount_label.unwrap_or_default(),
        writeable: options.writeable,
        mappings,
        mapped_by_mount: false,
        metadata: options.metadata,
        flags: options.flags,
        big_data: options.big_data,
        storage_opt: options.storage_opt,
        volatile: options.volatile,
        companion: None,
    }
}
