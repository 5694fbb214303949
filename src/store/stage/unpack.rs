//! Unpacking a stream outside every store lock.

use crate::archive::apply::pipeline::{ApplyOptions, Inflow, Source};
use crate::bridge::Detached;
use crate::error::Result;
use crate::options::LayerOptions;
use crate::store::Store;
use crate::store::layer_store::new_layer::Unpacked;
use crate::store::stage::area::{Area, LayerOwners};

impl Store {
    /// Unpacks a stream into a staging directory of the driver, for a layer on `below`. Takes no store lock.
    pub(crate) async fn unpack(
        &self,
        below: Option<String>,
        owners: LayerOwners,
        options: &LayerOptions,
        diff: Source<'_>,
    ) -> Result<Detached<Unpacked>> {
        let area = Area::make(&self.inner, below, owners, options).await?;
        let apply_options = ApplyOptions {
            original_digest: options.original_digest.clone(),
            original_size: options.original_size,
            uncompressed_digest: options.uncompressed_digest.clone(),
            verify: options.verify,
            ..ApplyOptions::default()
        };
        Ok(area
            .unpack_with(Inflow::Blob(diff), apply_options)
            .await?
            .unpacked)
    }
}
