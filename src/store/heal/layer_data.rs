//! Big data items of layers that tell how a layer was put together of parts of its blob.

use std::sync::Arc;

use crate::bridge::{ByteStream, FilePart};
use crate::chunked::cache::{CACHE_KEY, FORMAT_KEY, TOC_KEY};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::check::finding::CheckedItem;
use crate::store::chunked_differ::{AS_NAMED, ChunkedDiffer};
use crate::store::heal::layer::wanted_content;
use crate::store::heal::report::NotHealed;
use crate::store::heal::source::{HealSource, WantedContent};
use crate::store::heal::usage::Usage;

impl Store {
    /// Writes an item of a layer anew. Returns which source gave it.
    ///
    /// The table of contents comes from the blob, and is verified by the manifest of the image; what is made of it is removed,
    /// and made when it is needed.
    pub(super) async fn heal_layer_item(
        &self,
        item: &CheckedItem,
        key: &str,
        usage: &Usage,
        sources: &[Arc<dyn HealSource>],
    ) -> Result<String, NotHealed> {
        if item.read_only {
            return Err(NotHealed::ReadOnly);
        }
        let id = item.id.as_str();
        let layer = self.layer(id).await.map_err(NotHealed::Failed)?;
        let own = || self.name();
        match key {
            FORMAT_KEY if layer.big_data_names().iter().any(|name| name == TOC_KEY) => {
                let put = self.set_layer_big_data(id, key, AS_NAMED).await;
                put.map(|()| own()).map_err(NotHealed::Failed)
            }
            CACHE_KEY => self
                .forget_cache(id)
                .await
                .map(|()| own())
                .map_err(NotHealed::Failed),
            TOC_KEY => {
                let used = usage.get(id).ok_or(NotHealed::UnknownContent)?;
                let wanted = wanted_content(layer.row(), used).ok_or(NotHealed::UnknownContent)?;
                let mut failed = Vec::new();
                for source in sources {
                    match self.renew_table(&**source, &wanted, layer.row()).await {
                        Ok(false) => {}
                        Ok(true) => return Ok(source.name()),
                        Err(error) => failed.push((source.name(), error)),
                    }
                }
                Err(NotHealed::NoSource { failed })
            }
            _ => Err(NotHealed::UnknownContent),
        }
    }

    /// Takes the table of contents of a layer from its blob; `false` if the source cannot give parts of that.
    async fn renew_table(
        &self,
        source: &dyn HealSource,
        wanted: &WantedContent,
        row: &LayerRow,
    ) -> Result<bool> {
        let Some(parts) = source.layer_parts(wanted).await? else {
            return Ok(false);
        };
        let differ =
            ChunkedDiffer::open(self, &parts.blob.annotations, parts.blob.size, parts.source).await?;
        let (digest, text) = differ.into_text();
        if let Some(expected) = row.toc_digest.valid()
            && digest.as_ref() != Some(expected)
        {
            let found = digest.map(|digest| digest.to_string()).unwrap_or_default();
            let what = format!("the table of contents has digest {found}, expected {expected}");
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        let size = text.metadata().during("looking at a table of contents")?.len();
        let stream = ByteStream::of(FilePart::new(text, 0, size));
        self.set_layer_big_data(&row.id, TOC_KEY, stream).await?;
        Ok(true)
    }

    /// Empties the file of what was made of a layer's table of contents, which nobody takes for one then: it is made anew.
    async fn forget_cache(&self, id: &str) -> Result<()> {
        self.set_layer_big_data(id, CACHE_KEY, tokio::io::empty()).await
    }
}
