//! Named data of images.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::bridge;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::record::big_data::{self, Items as _};
use crate::record::image::ImageRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::big_data::item::{check_new, missing_item, named, not_known, set_item};
use crate::store::dirs::item_dir;
use crate::store::inner::StoreOrigin;

/// Tells the digest of a manifest, which for some old formats is not that of all its bytes. The default for
/// [`Store::set_image_big_data`] is [`Digest::sha256`], right for OCI and Docker schema 2 manifests.
pub type ManifestDigest = fn(&[u8]) -> Result<Digest>;

/// # Big data of images
impl Store {
    /// Keys of an image's big data items.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn list_image_big_data(&self, id: &str) -> Result<Vec<String>> {
        let found = self
            .read_all_image_stores(|_, table| Ok(hit(table.find(id).map(Arc::clone))))
            .await?;
        Ok(found.ok_or_else(|| ImageRow::unknown(id))?.big_data_names.clone())
    }

    /// A big data item of an image.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::NotFound`] for an item that does not exist (removing the image may
    /// resolve that), [`ErrorKind::InvalidBigDataName`] for an empty key.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_big_data(&self, id: &str, key: &str) -> Result<Bytes> {
        let mut rows = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|home, table| {
                rows.extend(table.find(id).map(|row| (Arc::clone(row), home)));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        let mut result = Err(ImageRow::unknown(id));
        for (row, home) in rows {
            result = self.read_image_item(&row, home, key).await.map(Bytes::from);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn image_dir(&self, home: StoreOrigin) -> PathBuf {
        match home {
            StoreOrigin::Primary => self.inner.dirs.images(),
            StoreOrigin::Additional { index, .. } => self.inner.additional_images[index].dir.clone(),
        }
    }

    pub(crate) async fn read_image_item(
        &self,
        row: &ImageRow,
        home: StoreOrigin,
        key: &str,
    ) -> Result<Vec<u8>> {
        let key = named(&row.big_data_names, key, "image", &row.id)?.to_owned();
        let recorded = row.recorded(&key);
        let (dir, id) = (item_dir(self.image_dir(home), &row.id)?, row.id.clone());
        let read = bridge::run(move || {
            big_data::read(&dir, &key, recorded.as_ref())?.ok_or_else(|| missing_item(&key, "image", &id))
        });
        match read.await {
            Err(error) if error.is_not_found() && !self.image_is_there(&row.id).await? => {
                Err(ImageRow::unknown(&row.id))
            }
            read => read,
        }
    }

    /// Whether an image has this ID.
    async fn image_is_there(&self, id: &str) -> Result<bool> {
        let found = self.read_all_image_stores(|_, table| Ok(hit(table.get(id).map(drop))));
        Ok(found.await?.is_some())
    }

    /// Size in bytes of a big data item of an image, from the record or else from the file.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::SizeUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_big_data_size(&self, id: &str, key: &str) -> Result<u64> {
        let unknown = || not_known(ErrorKind::SizeUnknown, key, "image", id);
        let found = self
            .read_all_image_stores(|_, table| {
                let size = table
                    .find(id)
                    .and_then(|row| row.big_data_sizes.get(key).copied());
                Ok(hit(size.and_then(|size| u64::try_from(size).ok())))
            })
            .await?;
        if let Some(size) = found {
            return Ok(size);
        }
        match self.image_big_data(id, key).await {
            Ok(data) => Ok(data.len() as u64),
            Err(error) => Err(unknown().with_source(error)),
        }
    }

    /// Recorded digest of a big data item of an image.
    ///
    /// Takes the image lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::DigestUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_big_data_digest(&self, id: &str, key: &str) -> Result<Digest> {
        let found = self
            .read_all_image_stores(|_, table| {
                let digest = table.find(id).and_then(|row| row.big_data_digests.get(key));
                Ok(hit(digest.and_then(|digest| digest.valid().cloned())))
            })
            .await?;
        found.ok_or_else(|| not_known(ErrorKind::DigestUnknown, key, "image", id))
    }

    /// Stores a big data item with an image of the primary store and records its size and digest. Images are found
    /// by the digests of items whose key begins with `manifest`; for those `manifest_digest` says the digest
    /// (`None`: SHA-256 of all bytes).
    ///
    /// Takes the image lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::InvalidBigDataName`], and what `manifest_digest` reports.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn set_image_big_data(
        &self,
        id: &str,
        key: &str,
        data: impl Into<Bytes>,
        manifest_digest: Option<ManifestDigest>,
    ) -> Result<()> {
        check_new(key, "image")?;
        let (image, key, data) = (id.to_owned(), key.to_owned(), data.into());
        let dirs = self.inner.dirs.images();
        self.write_to_image_store(move |store| {
            let row = Arc::clone(store.require(&image)?);
            let digest = match manifest_digest.filter(|_| key.starts_with("manifest")) {
                Some(digest) => digest(&data).map_err(|error| {
                    ErrorKind::DigestUnknown
                        .err(format!("digesting manifest of image {:?}", row.id))
                        .with_source(error)
                })?,
                None => Digest::sha256(&data),
            };
            set_item(store, &*row, &item_dir(dirs, &row.id)?, &key, &data, digest)
        })
        .await
    }
}
