//! A layer that is made anew as a whole, of its stream.

use std::sync::Arc;

use tokio_util::io::InspectReader;

use crate::archive::apply::pipeline::{ApplyOptions, Inflow};
use crate::archive::apply::selection::Selection;
use crate::bridge::{self, Detached};
use crate::digest::Digest;
use crate::driver::Standing;
use crate::error::{ErrorKind, Result};
use crate::options::{BoxReader, LayerOptions};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::heal::options::{HealEvent, HealOptions};
use crate::store::heal::source::{HealSource, WantedContent};
use crate::store::layer_store::heal::Renewal;
use crate::store::layer_store::new_layer::{Unpacked, mappings_of};
use crate::store::stage::area::{Area, LayerOwners, StagedContent};

/// A layer, and what its record is to say.
#[derive(Clone, Debug)]
pub(super) struct Renewed {
    /// As it is.
    pub(super) row: Arc<LayerRow>,
    /// Digest of the stream.
    pub(super) diff_id: Digest,
    /// Whether it lies with the layers of containers, and not with those of images.
    pub(super) with_containers: bool,
    /// It and the layers on it, by the records.
    pub(super) standings: Vec<Standing>,
}

impl Renewed {
    /// The layer below.
    pub(super) fn parent(&self) -> Option<String> {
        self.row.parent_id().map(str::to_owned)
    }
}

/// The stream that a source gives in an attempt, of which is told that it is read; `None` if there is none.
pub(super) async fn stream_from(
    (source, attempt): (&dyn HealSource, usize),
    wanted: &WantedContent,
    options: &HealOptions,
) -> Result<Option<BoxReader>> {
    let Some(stream) = source.layer_stream(wanted, attempt).await? else {
        return Ok(None);
    };
    options.tell(|| HealEvent::Reading {
        layer: wanted.layer.clone(),
        source: source.name(),
    });
    let Some(tell) = options.teller() else {
        return Ok(Some(stream));
    };
    let layer = wanted.layer.clone();
    let counted = InspectReader::new(stream, move |bytes: &[u8]| {
        tell(HealEvent::Read {
            layer: layer.clone(),
            bytes: bytes.len() as u64,
        });
    });
    Ok(Some(Box::pin(counted)))
}

impl Store {
    /// Makes a layer anew of what `from` gives ([`stream_from`]); `None` if that is nothing. Returns the bytes of the
    /// uncompressed stream.
    pub(super) async fn renew_from(
        &self,
        from: (&dyn HealSource, usize),
        wanted: &WantedContent,
        renewed: &Renewed,
        options: &HealOptions,
    ) -> Result<Option<u64>> {
        let Some(stream) = stream_from(from, wanted, options).await? else {
            return Ok(None);
        };
        let content = self.unpack_anew(stream, None, renewed).await?;
        self.finish_anew(renewed, content).await.map(Some)
    }

    /// Puts what was unpacked in the place of the layer's content. Returns the bytes of the uncompressed stream.
    pub(super) async fn finish_anew(&self, renewed: &Renewed, content: StagedContent) -> Result<u64> {
        let (driver, durable) = (self.inner.driver(), self.inner.sync_content());
        let parent = renewed.parent();
        let fitted = bridge::run(move || {
            let mut unpacked = content.unpacked.into_inner();
            if unpacked.depends_on_parent() {
                unpacked.fit(&*driver, parent.as_deref(), None, durable)?;
            }
            Ok(Detached::new(unpacked))
        });
        let unpacked = fitted.await?;
        let size = unpacked.applied.diff_size;
        self.put_renewed(renewed.clone(), unpacked.into_inner()).await?;
        Ok(size)
    }

    /// A place beside the layer, on the layer below it.
    pub(super) async fn area_for(&self, renewed: &Renewed) -> Result<Area> {
        let row = &renewed.row;
        let layer = LayerOptions {
            writeable: renewed.with_containers,
            mount_label: Some(row.mount_label.clone()).filter(|label| !label.is_empty()),
            ..LayerOptions::default()
        };
        // The layer below has the same: copies with other owners are left.
        let owners = LayerOwners {
            mappings: mappings_of(row),
            ..LayerOwners::default()
        };
        Area::make(&self.inner, renewed.parent(), owners, &layer).await
    }

    /// Unpacks a stream, or some of its entries, beside the layer, on the layer below it, and compares its digest.
    pub(super) async fn unpack_anew(
        &self,
        stream: BoxReader,
        selection: Option<Selection>,
        renewed: &Renewed,
    ) -> Result<StagedContent> {
        let area = self.area_for(renewed).await?;
        let apply = ApplyOptions {
            uncompressed_digest: Some(renewed.diff_id.clone()),
            verify: true,
            selection,
            ..ApplyOptions::default()
        };
        let content = area.unpack_with(Inflow::Blob(stream), apply).await?;
        // Whoever gave it may have sent less than the digest says, which is then that of something else.
        if content.unpacked.applied.diff_digest != renewed.diff_id {
            let found = &content.unpacked.applied.diff_digest;
            let what = format!("the stream has digest {found}, expected {}", renewed.diff_id);
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        Ok(content)
    }

    async fn put_renewed(&self, renewed: Renewed, unpacked: Unpacked) -> Result<()> {
        // Alone: it saves in its middle.
        let step = self.step_alone(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            let id = renewed.row.id.as_str();
            let mut said = LayerRow::clone(&renewed.row);
            let applied = &unpacked.applied;
            // One that is known by its table of contents goes on being known by that alone.
            if said.toc_digest.is_empty() || !said.diff_digest.is_empty() {
                said.diff_digest = renewed.diff_id.clone().into();
                said.diff_size = i64::try_from(applied.diff_size).unwrap_or(-1);
            }
            said.uids.clone_from(&applied.uids);
            said.gids.clone_from(&applied.gids);
            if let Err(error) = layers.restore_directory(id) {
                layers.discard(unpacked);
                return Err(error);
            }
            let row = Arc::clone(&renewed.row);
            layers.renew(Renewal { row, said }, unpacked)?;
            if let Err(error) = layers.mend_standings(&renewed.standings) {
                // The layer is whole; the next check tells of these files.
                tracing::warn!(layer = %renewed.row.id, error = %error.chain(), "cannot write what layers stand on");
            }
            Ok(())
        });
        step.await
    }
}
