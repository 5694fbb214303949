//! Named data of layers, images and containers, on disk beside their records.

use std::fmt;
use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, ReadBuf};

use crate::bridge::{self, ByteStream, Detached, FilePart};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::record::WriteGuard;
use crate::record::big_data::{self, Items, Recorded};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::intent;
use crate::record::layer::LayerRow;
use crate::record::table::Table;
use crate::store::access::hit;
use crate::store::deleted::ReadLayers;
use crate::store::dirs::item_dir;
use crate::store::inner::StoreOrigin;
use crate::store::views::Container;
use crate::store::{Store, containers, images};
use crate::sys::make_private_subdir;

/// Bytes that one step writes of an item that comes in as a stream.
const SPOOL_STEP: usize = 1 << 20;

/// Tells the digest of a manifest, which for some old formats is not that of all its bytes. The default for
/// [`Store::set_image_big_data`] is [`Digest::sha256`], right for OCI and Docker schema 2 manifests.
pub type ManifestDigest = fn(&[u8]) -> Result<Digest>;

/// A big data item of a layer as a stream, made by [`Store::layer_big_data`]. It stays readable when the item is
/// replaced or its layer deleted.
///
/// It is both an [`AsyncRead`] and a [`Stream`] of chunks. Each poll that finds no bytes runs one short step on the
/// runtime's blocking pool; a reader that is not polled costs an open file.
pub struct BigDataReader {
    stream: ByteStream,
    size: u64,
}

impl BigDataReader {
    /// Bytes of the whole item.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Debug for BigDataReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BigDataReader")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl AsyncRead for BigDataReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Stream for BigDataReader {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}

fn missing_item(key: &str, kind: &str, id: &str) -> Error {
    ErrorKind::NotFound.err(format!("locating item named {key:?} for {kind} with ID {id:?}"))
}

/// Refuses a key under which nothing can be stored.
fn check_new(key: &str) -> Result<()> {
    big_data::file_name(key).map(drop)
}

/// The item `key` of a record with these keys. A file that no record names is none: a writer that was killed leaves
/// one, and so does the Go library.
fn named<'a>(names: &'a [String], key: &str, kind: &str, id: &str) -> Result<&'a str> {
    if key.is_empty() {
        return Err(ErrorKind::InvalidBigDataName.err("big data key \"\" (empty)"));
    }
    let found = names.iter().find(|name| *name == key);
    found
        .map(String::as_str)
        .ok_or_else(|| missing_item(key, kind, id))
}

/// Sets an item of an image or container whose files are in `dir`, and has it recorded where the record does not say
/// the same already.
fn set_item<R: Items>(
    store: &mut WriteGuard<R>,
    row: &R,
    dir: &Path,
    key: &str,
    data: &[u8],
    digest: Digest,
) -> Result<()> {
    let new = Recorded {
        size: i64::try_from(data.len()).unwrap_or(i64::MAX),
        digest: digest.to_string(),
    };
    let mut record = |intent: &str| {
        for dir in [Some(dir), dir.parent()].into_iter().flatten() {
            store.rely_on(dir.to_owned());
        }
        store.table_mut().update(row.id(), |row| {
            row.record(key, data.len(), digest.clone());
            row.set_intent(intent);
        })?;
        store.save()
    };
    let exists = row.items().0.iter().any(|name| name == key);
    let same = exists && row.recorded(key).as_ref() == Some(&new);
    if same || !exists {
        if same {
            // Left waiting by a killed writer, it would be found before what is written now.
            big_data::settle(dir, key, &new)?;
        }
        images::write_items(dir, std::iter::once((key, data)))?;
        return if same { Ok(()) } else { record("") };
    }
    make_private_subdir(dir)?;
    big_data::write_waiting(dir, key, data, &new, true)?;
    record(intent::DATA)?;
    // Whatever fails from here on: the item is set, and the next user of the store completes this.
    big_data::settle(dir, key, &new)?;
    record("")
}

/// # Big data
impl Store {
    // ---- layers ----

    /// Keys of a layer's big data items, in the order in which they were first set.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
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
    /// [`ErrorKind::LayerUnknown`], also if the layer is deleted meanwhile, [`ErrorKind::NotFound`] for an item that does not exist,
    /// [`ErrorKind::InvalidBigDataName`] for an empty key.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_big_data(&self, id: &str, key: &str) -> Result<BigDataReader> {
        let found = self
            .read_all_layer_stores(|home, table| Ok(hit(table.find(id).map(|row| (Arc::clone(row), home)))))
            .await?;
        let Some((row, home)) = found else {
            return Err(ErrorKind::LayerUnknown.err(format!("locating layer with ID {id:?}")));
        };
        self.open_layer_item(row, home, key).await
    }

    pub(crate) async fn open_layer_item(
        &self,
        row: Arc<LayerRow>,
        home: StoreOrigin,
        key: &str,
    ) -> Result<BigDataReader> {
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
            Ok(BigDataReader {
                stream: ByteStream::of(FilePart::new(file, 0, size)),
                size,
            })
        });
        match opened.await {
            Ok(reader) => Ok(reader),
            Err(error) => Err(layer.explain(error).await),
        }
    }

    /// Stores a big data item with a layer of the primary store, replacing the old one only if `data` ends well.
    ///
    /// The stream is read to a temporary file first; then the layer lock is taken exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::InvalidBigDataName`], [`ErrorKind::Io`] for what `data` reports.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn set_layer_big_data(&self, id: &str, key: &str, data: impl AsyncRead + Send) -> Result<()> {
        check_new(key)?;
        let (temp, path) = self.spool(data).await?;
        let (layer, key) = (id.to_owned(), key.to_owned());
        self.write_to_layer_store(move |layers| {
            let row = layers.find(&layer)?;
            let dir = layers.inner.dirs.layer_data(&row.id)?;
            make_private_subdir(&dir)?;
            let mut file =
                std::fs::File::open(&path).map_err(|error| Error::io_at("opening", &path, error))?;
            big_data::write_stream(&dir, &key, &mut file, true)?;
            drop(temp.into_inner());
            layers.rely_on_data(dir);
            if row.big_data_names.contains(&key) {
                return Ok(());
            }
            layers
                .table_mut()
                .update(&row.id, |row| row.big_data_names.push(key))?;
            layers.save()
        })
        .await
    }

    /// Writes a stream to a temporary file; each step on the pool writes what has arrived by then.
    async fn spool(&self, data: impl AsyncRead + Send) -> Result<(Detached<TempDir>, PathBuf)> {
        let failed = |error| Error::io("receiving a big data item", error);
        let dir = self.inner.dirs.layers_tmp();
        let (mut file, path, temp) = bridge::run(move || {
            let mut temp = TempDir::create(&dir)?;
            let path = temp.addition();
            let file = std::fs::File::create_new(&path).at("creating", &path)?;
            Ok((file, path, Detached::new(temp)))
        })
        .await?;
        let mut data = Box::pin(data);
        let mut buffer = bytes::BytesMut::with_capacity(SPOOL_STEP);
        loop {
            let count = data.read_buf(&mut buffer).await.map_err(failed)?;
            if !buffer.is_empty() && (count == 0 || buffer.len() >= SPOOL_STEP) {
                let chunk = buffer.split().freeze();
                file = bridge::run(move || {
                    file.write_all(&chunk).map_err(failed)?;
                    Ok(file)
                })
                .await?;
                buffer.reserve(SPOOL_STEP);
            }
            if count == 0 {
                return Ok((temp, path));
            }
        }
    }

    // ---- images ----

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
        Ok(found.ok_or_else(|| images::unknown(id))?.big_data_names.clone())
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
        let mut result = Err(images::unknown(id));
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
                Err(images::unknown(&row.id))
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
        let unknown = || ErrorKind::SizeUnknown.err(format!("item {key:?} of image {id:?}"));
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
        found.ok_or_else(|| ErrorKind::DigestUnknown.err(format!("item {key:?} of image {id:?}")))
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
        check_new(key)?;
        let (image, key, data) = (id.to_owned(), key.to_owned(), data.into());
        let dirs = self.inner.dirs.images();
        self.write_to_image_store(move |store| {
            let row = store
                .find(&image)
                .map(Arc::clone)
                .ok_or_else(|| images::unknown(&image))?;
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

    // ---- containers ----

    /// Keys of a container's big data items.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn list_container_big_data(&self, id: &str) -> Result<Vec<String>> {
        Ok(self.container(id).await?.big_data_names().to_vec())
    }

    /// A big data item of a container.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::NotFound`] for an item that does not exist,
    /// [`ErrorKind::InvalidBigDataName`] for an empty key.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_big_data(&self, id: &str, key: &str) -> Result<Bytes> {
        self.read_container_item(&self.container(id).await?, key).await
    }

    pub(crate) async fn read_container_item(&self, container: &Container, key: &str) -> Result<Bytes> {
        let id = container.id().to_owned();
        let key = named(container.big_data_names(), key, "container", &id)?.to_owned();
        let dir = item_dir(self.inner.dirs.containers(), &id)?;
        let recorded = container.recorded_big_data(&key);
        let read = bridge::run(move || {
            let data = big_data::read(&dir, &key, recorded.as_ref())?;
            let data = data.ok_or_else(|| missing_item(&key, "container", &id))?;
            Ok(Bytes::from(data))
        });
        match read.await {
            Err(error) if error.is_not_found() => {
                let is_there = |table: &Table<ContainerRow>| Ok(table.get(container.id()).is_some());
                match self.read_container_store(is_there).await? {
                    true => Err(error),
                    false => Err(containers::unknown(container.id())),
                }
            }
            read => read,
        }
    }

    /// Size in bytes of a big data item of a container. If it is not recorded yet, the item is read, and its size and
    /// digest recorded, in one step under the exclusive container lock.
    ///
    /// Takes the container lock shared for a moment; exclusively for one step if the size has to be recorded.
    ///
    /// # Errors
    /// [`ErrorKind::SizeUnknown`].
    ///
    /// # Cancellation
    /// Nothing has changed, or what was computed is recorded in the background.
    pub async fn container_big_data_size(&self, id: &str, key: &str) -> Result<u64> {
        let unknown = |error| {
            ErrorKind::SizeUnknown
                .err(format!("item {key:?} of container {id:?}"))
                .with_source(error)
        };
        if let Some(size) = self.container(id).await.map_err(unknown)?.big_data_size(key) {
            return Ok(size);
        }
        Ok(self.measure_container_item(id, key).await.map_err(unknown)?.0)
    }

    /// Digest (SHA-256) of a big data item of a container. If it is not recorded yet, the item is read, and its size and
    /// digest recorded, in one step under the exclusive container lock.
    ///
    /// Takes the container lock shared for a moment; exclusively for one step if the digest has to be recorded.
    ///
    /// # Errors
    /// [`ErrorKind::DigestUnknown`].
    ///
    /// # Cancellation
    /// Nothing has changed, or what was computed is recorded in the background.
    pub async fn container_big_data_digest(&self, id: &str, key: &str) -> Result<Digest> {
        let unknown = |error| {
            ErrorKind::DigestUnknown
                .err(format!("item {key:?} of container {id:?}"))
                .with_source(error)
        };
        if let Some(digest) = self.container(id).await.map_err(unknown)?.big_data_digest(key) {
            return Ok(digest);
        }
        Ok(self.measure_container_item(id, key).await.map_err(unknown)?.1)
    }

    /// The size and digest of a big data item of a container, found out from the item and recorded unless a concurrent
    /// caller has done so. One step under the exclusive lock: what is recorded is of the content that is there.
    async fn measure_container_item(&self, id: &str, key: &str) -> Result<(u64, Digest)> {
        let (container, key) = (id.to_owned(), key.to_owned());
        let dirs = self.inner.dirs.containers();
        self.write_to_container_store(move |store| {
            let row = store
                .find(&container)
                .map(Arc::clone)
                .ok_or_else(|| containers::unknown(&container))?;
            let key = named(&row.big_data_names, &key, "container", &row.id)?;
            let view = Container::new(&row);
            if let (Some(size), Some(digest)) = (view.big_data_size(key), view.big_data_digest(key)) {
                return Ok((size, digest));
            }
            let dir = item_dir(dirs, &row.id)?;
            let recorded = row.recorded(key);
            let data = big_data::read(&dir, key, recorded.as_ref())?
                .ok_or_else(|| missing_item(key, "container", &row.id))?;
            if let Some(recorded) = recorded {
                // It is found by what the record says, which changes now.
                big_data::settle(&dir, key, &recorded)?;
            }
            let digest = Digest::sha256(&data);
            store
                .table_mut()
                .update(&row.id, |row| row.record(key, data.len(), digest.clone()))?;
            store.save()?;
            Ok((data.len() as u64, digest))
        })
        .await
    }

    /// Stores a big data item with a container and records its size and SHA-256 digest.
    ///
    /// Takes the container lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::InvalidBigDataName`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn set_container_big_data(&self, id: &str, key: &str, data: impl Into<Bytes>) -> Result<()> {
        check_new(key)?;
        let (container, key, data) = (id.to_owned(), key.to_owned(), data.into());
        let dirs = self.inner.dirs.containers();
        self.write_to_container_store(move |store| {
            let row = store
                .find(&container)
                .map(Arc::clone)
                .ok_or_else(|| containers::unknown(&container))?;
            let digest = Digest::sha256(&data);
            set_item(store, &*row, &item_dir(dirs, &row.id)?, &key, &data, digest)
        })
        .await
    }
}
