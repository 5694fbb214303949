//! A layer with a table of contents that is made anew of what is whole of it, and of parts of its blob.

use std::sync::{Arc, Mutex, PoisonError};

use crate::chunked::cache::TOC_KEY;
use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::chunked_differ::{ChunkedDiffer, Savings};
use crate::store::heal::files::DamagedFiles;
use crate::store::heal::options::{HealEvent, HealOptions};
use crate::store::heal::source::{HealSource, WantedContent};
use crate::store::heal::whole::Renewed;
use crate::store::stage::differ::{Differ as _, StagingArea};

impl Store {
    /// Makes a layer with these damaged files anew of parts of its blob, if `source` has that; else `None`. Each file is
    /// verified, and the stream that they make.
    pub(super) async fn renew_parts_from(
        &self,
        source: &dyn HealSource,
        wanted: &WantedContent,
        renewed: &Renewed,
        files: &DamagedFiles,
        options: &HealOptions,
    ) -> Result<Option<Savings>> {
        // Without, its own files would not be found.
        let has_table = renewed.row.big_data_names.iter().any(|name| name == TOC_KEY);
        if !has_table || !self.has_differ() {
            return Ok(None);
        }
        let Some(parts) = source.layer_parts(wanted).await? else {
            return Ok(None);
        };
        options.tell(|| HealEvent::Reading {
            layer: wanted.layer.clone(),
            source: source.name(),
        });
        let savings: Arc<Mutex<Savings>> = Arc::default();
        let told = Arc::clone(&savings);
        let annotations = &parts.blob.annotations;
        let differ = ChunkedDiffer::open(self, annotations, parts.blob.size, parts.source).await?;
        let mut differ = differ
            .expect(renewed.diff_id.clone())
            .without(&wanted.layer, files.wrong().clone())
            .report(move |now| *told.lock().unwrap_or_else(PoisonError::into_inner) = now);
        let area = self.area_for(renewed).await?;
        let content = differ.apply(StagingArea(area)).await?;
        if content.unpacked.uncompressed_digest() != Some(&renewed.diff_id)
            || !content.unpacked.has_tar_split()
        {
            let what = format!("making stream {} of parts", renewed.diff_id);
            return Err(ErrorKind::DigestMismatch.err(what));
        }
        self.finish_anew(renewed, content).await?;
        let savings = *savings.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(savings))
    }
}
