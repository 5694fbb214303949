//! One image, copied to another store.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::options::ImageBigData;
use crate::record::image::ImageRow;
use crate::record::record_trait::Record as _;
use crate::store::access::Needs;
use crate::store::copy_to::layer::Job;
use crate::store::copy_to::plan::SourceImage;
use crate::store::images::NewImage;

impl Job {
    /// Copies the record and the data of an image whose layers are there.
    pub(super) async fn copy_image(&self, image: &SourceImage) -> Result<()> {
        let mut items = Vec::new();
        for key in &image.row.big_data_names {
            let data = self.from.read_image_item(&image.row, image.home, key).await?;
            items.push(ImageBigData::new(key, data));
        }
        let mut row = ImageRow::clone(&image.row);
        row.set_intent("");
        let needs = match row.layer.is_empty() {
            true => Needs::IMAGES,
            false => Needs::IMAGES_ON_LAYERS,
        };
        let recorded = self.to.record_image(needs, move |held| {
            if !row.layer.is_empty() && held.layer(&row.layer).is_none() {
                let what = format!("layer {:?}, which image {:?} needs", row.layer, row.id);
                return Err(ErrorKind::LayerUnknown.err(what));
            }
            if !row.layer.is_empty() {
                row.mapped_layers.retain(|copy| held.layer(copy).is_some());
            }
            Ok(NewImage {
                row,
                items,
                names_after: Vec::new(),
            })
        });
        recorded.await.map(|row: Arc<ImageRow>| drop(row))
    }
}
