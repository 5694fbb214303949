//! Putting a layer in two steps: unpack now, name the parent later.
//!
//! [`Store::put_layers`] does this for streams that are at hand; an image pull has streams that begin when they like.

use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::{BoxReader, LayerOptions};
use crate::store::Store;
use crate::store::layer_store::Unpacked;
use crate::store::stage::put_layer::PutLayer;

/// A layer that is unpacked and has no place in the store yet. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct StagedDiff {
    /// `None` once it has become a layer.
    unpacked: Option<Box<Unpacked>>,
    mappings: IdMappings,
}

impl Drop for StagedDiff {
    fn drop(&mut self) {
        if let Some(unpacked) = self.unpacked.take() {
            // It may be a large tree.
            bridge::spawn_detached(move || drop(unpacked));
        }
    }
}

impl Store {
    /// Whether a layer can be unpacked before the one below it is there.
    pub(crate) fn stages_apart(&self) -> bool {
        self.inner.driver().stages_apart()
    }

    /// Unpacks a stream for a layer that will lie somewhere above `on`, or directly on it if the driver does not
    /// keep layers apart.
    pub(crate) async fn stage_diff(
        &self,
        on: Option<&str>,
        options: &LayerOptions,
        diff: BoxReader,
    ) -> Result<StagedDiff> {
        let plan = self.plan_layer(on, options).await?;
        let below = plan.parent_id();
        let mappings = plan.mappings;
        let unpacked = self.unpack(below, &mappings, options, diff).await?;
        Ok(StagedDiff {
            unpacked: Some(Box::new(unpacked)),
            mappings,
        })
    }

    /// Makes an unpacked stream the layer that `options` describe, on `parent`.
    pub(crate) async fn commit_diff(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        mut staged: StagedDiff,
    ) -> Result<PutLayer> {
        let plan = self.plan_layer(parent, &options).await?;
        if plan.mappings != staged.mappings {
            let what = format!(
                "layer {:?} was unpacked for other owners than its parent has",
                options.id
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        match staged.unpacked.take() {
            Some(unpacked) => self.commit(plan, options, *unpacked).await,
            None => Err(ErrorKind::InvalidInput.err("a diff that is a layer already")),
        }
    }
}
