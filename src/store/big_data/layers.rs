//! Named data of layers.

use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;

use crate::bridge;
use crate::bridge::{ByteStream, Detached, FilePart};
use crate::error::IoContext as _;
use crate::error::{Error, Result};
use crate::lock::temp_dir::TempDir;
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::big_data::item::{check_new, missing_item, named};
use crate::store::big_data::reader::BigDataReader;
use crate::store::deleted::ReadLayers;
use crate::store::dirs::item_dir;
use crate::store::inner::StoreOrigin;

/// Bytes that one step writes of an item that comes in as a stream.
const SPOOL_STEP: usize = 1 << 20;

/// # Big data of layers
impl Store {
    /// Keys of a layer's big data items, in the order in which they were first set.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn list_layer_big_data(&self, id: &str) -> Result<Vec<String>> {
        Ok(self.layer(id).await?.big_data_names().to_vec())
    }

    /// A big data item of a layer.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown), also if the layer is deleted meanwhile, [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) for an item that does not exist,
    /// [`ErrorKind::InvalidBigDataName`](crate::ErrorKind::InvalidBigDataName) for an empty key.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_big_data(&self, id: &str, key: &str) -> Result<BigDataReader> {
        let (row, home) = self.layer_row(id).await?;
        self.open_layer_item(row, home, key).await
    }

    async fn layer_row(&self, id: &str) -> Result<(Arc<LayerRow>, StoreOrigin)> {
        let found = self
            .read_all_layer_stores(|home, table| Ok(hit(table.find(id).map(|row| (Arc::clone(row), home)))))
            .await?;
        found.ok_or_else(|| LayerRow::unknown(id))
    }

    /// As [`Store::layer_big_data`], as a file.
    #[cfg(feature = "pull")]
    pub(crate) async fn layer_item_file(&self, id: &str, key: &str) -> Result<File> {
        let (row, home) = self.layer_row(id).await?;
        Ok(self.open_layer_file(row, home, key).await?.0)
    }

    pub(crate) async fn open_layer_item(
        &self,
        row: Arc<LayerRow>,
        home: StoreOrigin,
        key: &str,
    ) -> Result<BigDataReader> {
        let (file, size) = self.open_layer_file(row, home, key).await?;
        Ok(BigDataReader {
            stream: ByteStream::of(FilePart::new(file, 0, size)),
            size,
        })
    }

    /// The file of an item, and its size.
    pub(crate) async fn open_layer_file(
        &self,
        row: Arc<LayerRow>,
        home: StoreOrigin,
        key: &str,
    ) -> Result<(File, u64)> {
        let id = row.id.clone();
        let key = named(&row.big_data_names, key, "layer", &id)?.to_owned();
        let layer = ReadLayers::new(self.clone(), row, None);
        let dir = match home {
            StoreOrigin::Primary => self.inner.dirs.layer_data(&id)?,
            StoreOrigin::Additional { index, .. } => {
                item_dir(self.inner.additional_layers[index].dir.clone(), &id)?
            }
        };
        let opened = bridge::run(move || {
            let file = big_data::open(&dir, &key)?.ok_or_else(|| missing_item(&key, "layer", &id))?;
            let size = file.metadata().at("looking at big data item", &key)?.len();
            Ok((file, size))
        });
        match opened.await {
            Ok(opened) => Ok(opened),
            Err(error) => Err(layer.explain(error).await),
        }
    }

    /// Stores a big data item with a layer of the primary store, replacing the old one only if `data` ends well.
    ///
    /// The stream is written to a temporary file and synced first; then the layer lock is taken exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`](crate::ErrorKind::LayerUnknown), [`ErrorKind::InvalidBigDataName`](crate::ErrorKind::InvalidBigDataName), [`ErrorKind::Io`](crate::ErrorKind::Io) for what `data` reports.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn set_layer_big_data(&self, id: &str, key: &str, data: impl AsyncRead + Send) -> Result<()> {
        check_new(key, "layer")?;
        let (temp, path) = self.spool(data).await?;
        let (layer, key) = (id.to_owned(), key.to_owned());
        let temp = self
            .write_to_layer_store(move |layers| {
                let row = layers.find_complete(&layer)?;
                let dir = layers.inner.dirs.layer_data(&row.id)?;
                big_data::make_dir(&dir)?;
                let target = dir.join(&*big_data::file_name(&key)?);
                std::fs::rename(&path, &target).at("moving a big data item to", &target)?;
                layers.rely_on_data(dir);
                if !row.big_data_names.contains(&key) {
                    layers
                        .table_mut()
                        .update(&row.id, |row| row.big_data_names.push(key))?;
                }
                Ok(temp)
            })
            .await?;
        // Its directory is empty now, and nobody has to wait for its removal.
        bridge::run(move || {
            drop(temp.into_inner());
            Ok(())
        })
        .await
    }

    /// Writes a stream to a temporary file that can become an item; each step on the pool writes what has arrived by then.
    async fn spool(&self, data: impl AsyncRead + Send) -> Result<(Detached<TempDir>, PathBuf)> {
        let failed = |error| Error::io("receiving a big data item", error);
        let dir = self.inner.dirs.layers_tmp();
        let (mut file, path, temp) = bridge::run(move || {
            let mut temp = TempDir::create(&dir)?;
            let path = temp.addition();
            let mut new = File::options();
            let file = new.write(true).create_new(true).mode(0o600).open(&path);
            Ok((file.at("creating", &path)?, path, Detached::new(temp)))
        })
        .await?;
        let mut data = Box::pin(data);
        let mut buffer = bytes::BytesMut::with_capacity(SPOOL_STEP);
        loop {
            let count = data.read_buf(&mut buffer).await.map_err(failed)?;
            let is_over = count == 0;
            if is_over || buffer.len() >= SPOOL_STEP {
                let chunk = buffer.split().freeze();
                file = bridge::run(move || {
                    file.write_all(&chunk).map_err(failed)?;
                    if is_over {
                        // Whatever the umask is.
                        file.set_permissions(Permissions::from_mode(0o600))
                            .map_err(failed)?;
                        file.sync_all().map_err(failed)?;
                    }
                    Ok(file)
                })
                .await?;
                buffer.reserve(SPOOL_STEP);
            }
            if is_over {
                return Ok((temp, path));
            }
        }
    }
}
