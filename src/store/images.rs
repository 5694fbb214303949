//! Creating and finding images.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::Result;
use crate::options::{ImageBigData, ImageOptions};
use crate::record::big_data::{self, Items as _};
use crate::record::image::ImageRow;
use crate::record::names::NameOperation;
use crate::record::record_trait::DigestKind;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::{Batch, Held, Needs, hit};
use crate::store::all_stores::remove_dirs;
use crate::store::dirs::item_dir;
use crate::store::ids::random_id;
use crate::store::layer_store::new_layer::flags_json;
use crate::store::views::Image;
use crate::time::Time;

/// # Images
impl Store {
    /// Creates an image on a top layer (an ID, name or ID prefix), or without one.
    ///
    /// If `options.id` names an image of an additional store, the new image starts with its names, metadata, date,
    /// digest, history and big data: so an image of an additional store gets a record in this store.
    ///
    /// Takes the layer lock shared and the image lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateId`](crate::ErrorKind::DuplicateId), [`ErrorKind::DuplicateName`](crate::ErrorKind::DuplicateName), [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown),
    /// [`ErrorKind::InvalidBigDataName`](crate::ErrorKind::InvalidBigDataName), [`ErrorKind::UnsafePath`](crate::ErrorKind::UnsafePath) (an impossible ID).
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store, manifest: Vec<u8>, config: Vec<u8>) -> graphroot::Result<()> {
    /// use graphroot::{Digest, ImageOptions};
    /// let digest = Digest::sha256(&config);
    /// let options = ImageOptions::default()
    ///     .id(digest.encoded())
    ///     .name("localhost/demo:latest")
    ///     .big_data("manifest", manifest)
    ///     .big_data(digest.as_str(), config);
    /// let image = store.create_image(Some("base"), options).await?;
    /// # drop(image);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn create_image(&self, layer: Option<&str>, options: ImageOptions) -> Result<Image> {
        self.create_named_image(layer, options, Vec::new()).await
    }

    /// As [`Store::create_image`]. `names` are taken from the images that have them, as by [`Store::add_names`], in the
    /// same step.
    pub(crate) async fn create_named_image(
        &self,
        layer: Option<&str>,
        options: ImageOptions,
        names: Vec<String>,
    ) -> Result<Image> {
        if let Some(id) = &options.id {
            crate::driver::check_id(id)?;
        }
        let pulled_up = match &options.id {
            None => None,
            Some(id) => self.additional_image(id).await?,
        };
        let needs = match layer {
            Some(_) => Needs::IMAGES_ON_LAYERS,
            None => Needs::IMAGES,
        };
        let layer = layer.map(str::to_owned);
        let row = self.record_image(needs, move |held| {
            let top = match &layer {
                Some(key) => held.find_layer(key)?.id.to_string(),
                None => String::new(),
            };
            let table = held.images()?.table_mut();
            let mut names_after = names;
            let mut options = options;
            if let Some((row, data)) = pulled_up {
                names_after.extend(row.names.iter().cloned());
                names_after.append(&mut options.names);
                merge_pulled_up(&mut options, &row, data);
            }
            let id = match options.id.take() {
                Some(id) => id,
                None => random_id(|id| table.get(id).is_some())?,
            };
            Ok(NewImage {
                row: new_row(&id, &mut options, top)?,
                items: options.big_data,
                names_after,
            })
        });
        Ok(Image::new(&row.await?, false))
    }

    /// Writes the record and the data of a new image in one step.
    pub(crate) async fn record_image(
        &self,
        needs: Needs,
        make: impl FnOnce(&mut Held) -> Result<NewImage> + Send + 'static,
    ) -> Result<Arc<ImageRow>> {
        let dirs = self.inner.dirs.clone();
        self.in_batch(needs, async move |batch: Batch| {
            let begun = batch.with(|held| {
                held.images()?.ensure_written(0)?;
                let NewImage {
                    row,
                    items,
                    names_after,
                } = make(held)?;
                let images = held.images()?;
                let table = images.table_mut();
                let id = row.id.to_string();
                drop(table.insert(row, 0)?);
                let data = item_dir(dirs.images(), &id)?;
                // What a killed process has left under this ID does not belong to the new image.
                remove_dirs(&[data.clone(), item_dir(dirs.run_images(), &id)?])?;
                let items = items.iter().map(|item| (&*item.key, &*item.data));
                if let Err(error) = write_items(&data, items) {
                    clean_up(&id, remove_dirs(&[data]));
                    return Err(error);
                }
                if !names_after.is_empty() {
                    table.apply_names(&id, NameOperation::Add, &names_after)?;
                }
                images.rely_on(data.clone());
                images.rely_on(dirs.images());
                let row = images.get(&id).map(Arc::clone);
                Ok((row.ok_or_else(|| ImageRow::unknown(&id))?, data))
            });
            let (row, data) = begun?;
            if let Err(error) = batch.save().await {
                // It may have come far enough to be seen: the data goes only when the file is without the record again.
                let undone = batch.with(|held| {
                    let images = held.images()?;
                    drop(images.table_mut().remove(&row.id));
                    images.save()
                });
                clean_up(&row.id, undone.and_then(|()| remove_dirs(&[data])));
                return Err(error);
            }
            Ok(row)
        })
        .await
    }

    /// An image of an additional store with this ID and its big data.
    async fn additional_image(&self, id: &str) -> Result<Option<(Arc<ImageRow>, Vec<ImageBigData>)>> {
        let found = self
            .read_all_image_stores(|home, table| {
                let hit = table.find(id).filter(|_| !home.is_primary());
                Ok(hit.map_or(ControlFlow::Continue(()), |row| {
                    ControlFlow::Break((Arc::clone(row), home))
                }))
            })
            .await?;
        let Some((row, home)) = found else { return Ok(None) };
        let mut items = Vec::new();
        for key in &row.big_data_names {
            let data = self.read_image_item(&row, home, key).await?;
            let digest = row
                .big_data_digests
                .get(key)
                .and_then(|text| text.valid().cloned());
            items.push(ImageBigData {
                key: key.clone(),
                data: data.into(),
                digest,
            });
        }
        Ok(Some((row, items)))
    }

    /// The image with this ID, name or ID prefix.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`](crate::ErrorKind::ImageUnknown).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image(&self, id: &str) -> Result<Image> {
        let found = self
            .read_all_image_stores(|home, table| {
                Ok(hit(table
                    .find(id)
                    .map(|row| (home, Image::new(row, home.read_only())))))
            })
            .await?;
        let (home, found) = found.ok_or_else(|| ImageRow::unknown(id))?;
        // A name that was taken from the pulled-up copy of an image must not be found in the original again.
        if !home.is_primary() && self.read_images().await?.get(found.id()).is_some() {
            return Err(ImageRow::unknown(id));
        }
        Ok(found)
    }

    /// All images, those of additional stores last.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn images(&self) -> Result<Vec<Image>> {
        let mut all = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|home, table| {
                all.extend(table.rows().map(|row| Image::new(row, home.read_only())));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(all)
    }

    /// The images whose top layer (or a copy of it with other owners) is this layer (an ID, name or ID prefix).
    ///
    /// Takes the layer lock and the image lock shared for a moment each.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn images_by_top_layer(&self, id: &str) -> Result<Vec<Image>> {
        let layer = self.layer(id).await?;
        let mut all = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|home, table| {
                let rows = table.users_of(layer.id());
                all.extend(rows.map(|row| Image::new(row, home.read_only())));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(all)
    }

    /// The images with this digest, their own or that of one of their manifests; an empty list if there are none.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`](crate::ErrorKind::CorruptMetadata), [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn images_by_digest(&self, digest: &Digest) -> Result<Vec<Image>> {
        let mut all = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|home, table| {
                let rows = table.by_digest(DigestKind::Image, digest);
                all.extend(rows.iter().map(|row| Image::new(row, home.read_only())));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        Ok(all)
    }
}

/// What a new image is made of.
pub(crate) struct NewImage {
    pub(crate) row: ImageRow,
    pub(crate) items: Vec<ImageBigData>,
    /// Names that are taken from the images that have them.
    pub(crate) names_after: Vec<String>,
}

/// Values of the caller take precedence over those of the image in the additional store; lists are joined.
fn merge_pulled_up(options: &mut ImageOptions, row: &ImageRow, data: Vec<ImageBigData>) {
    if options.metadata.is_empty() {
        options.metadata.clone_from(&row.metadata);
    }
    options.creation_date = options.creation_date.or_else(|| Some(row.created.system_time()));
    if options.digest.is_none() {
        options.digest = row.digest.valid().cloned();
    }
    let mut history = row.names_history.clone();
    history.append(&mut options.names_history);
    options.names_history = history;
    let mut items = data;
    items.retain(|item| options.big_data.iter().all(|given| given.key != item.key));
    items.append(&mut options.big_data);
    options.big_data = items;
}

fn new_row(id: &str, options: &mut ImageOptions, top: String) -> Result<ImageRow> {
    let mut row = ImageRow {
        id: id.into(),
        digest: options.digest.clone().into(),
        names: std::mem::take(&mut options.names),
        names_history: std::mem::take(&mut options.names_history),
        layer: top.into(),
        metadata: std::mem::take(&mut options.metadata),
        created: options.creation_date.map_or_else(Time::now, Time::from),
        flags: flags_json(std::mem::take(&mut options.flags)),
        ..ImageRow::default()
    };
    for item in &options.big_data {
        drop(big_data::file_name(&item.key)?);
        let digest = item.digest.clone().unwrap_or_else(|| Digest::sha256(&item.data));
        row.record(&item.key, item.data.len(), digest);
    }
    Ok(row)
}

/// Tells of what a failed creation has left.
fn clean_up(id: &str, undone: Result<()>) {
    if let Err(error) = undone {
        tracing::warn!(image = id, error = %error.chain(), "cannot clean up after a failed creation");
    }
}

/// Writes the items of a new image or container.
pub(crate) fn write_items<'a>(
    dir: &std::path::Path,
    items: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> Result<()> {
    let mut made = false;
    for (key, data) in items {
        if !made {
            big_data::make_dir(dir)?;
            made = true;
        }
        big_data::write_bytes(dir, key, data, true)?;
    }
    Ok(())
}
