//! Layers that other programs offer in additional layer stores, such as a program that fetches the files of a layer when they
//! are read.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::bridge::{self, ByteStream, Detached};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::driver::LayerUse;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::options::{IdMappingOptions, LayerOptions};
use crate::record::layer::LayerRow;
use crate::record::raw_digest::RawDigest;
use crate::store::Store;
use crate::store::access::{Batch, Needs};
use crate::store::additional_blob::StoredBlob;
use crate::store::layer_steps::create_layer;
use crate::store::layer_store::new_layer::Start;
use crate::store::stage::plan::new_layer;
use crate::store::views::Layer;

/// A layer that an additional layer store offers, from [`Store::lookup_additional_layer`].
///
/// As long as this value lives, the program that serves the store knows that the layer is in use, and keeps it.
/// [`AdditionalLayer::release`] and dropping it end that use; a layer that was made of it by [`AdditionalLayer::put_as`] has
/// a use of its own, until it is deleted.
#[must_use = "the use of the layer ends when this is dropped"]
pub struct AdditionalLayer {
    store: Store,
    /// What its store says of it. It has no ID and no place.
    row: Arc<LayerRow>,
    used: Detached<LayerUse>,
}

impl fmt::Debug for AdditionalLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdditionalLayer")
            .field("dir", &self.used.dir())
            .field("toc_digest", &self.row.toc_digest)
            .finish_non_exhaustive()
    }
}

/// A size of which it is recorded what it is the size of.
fn size_of(digest: &RawDigest, size: i64) -> Option<u64> {
    let size = u64::try_from(size).ok()?;
    (!digest.is_empty() && size > 0).then_some(size)
}

impl AdditionalLayer {
    /// The digest of its table of contents; `None` if the store does not say it.
    pub fn toc_digest(&self) -> Option<&Digest> {
        self.row.toc_digest.valid()
    }

    /// The digest of its blob; `None` if the store does not say it.
    pub fn compressed_digest(&self) -> Option<&Digest> {
        self.row.compressed_digest.valid()
    }

    /// Bytes of its blob; `None` if the store does not say it.
    pub fn compressed_size(&self) -> Option<u64> {
        u64::try_from(self.row.compressed_size)
            .ok()
            .filter(|size| *size > 0)
    }

    /// The digest of its uncompressed tar stream (the diff ID); `None` if the store does not say it.
    pub fn uncompressed_digest(&self) -> Option<&Digest> {
        self.row.diff_digest.valid()
    }

    /// Bytes of its uncompressed tar stream; `None` if the store does not say it.
    pub fn uncompressed_size(&self) -> Option<u64> {
        size_of(&self.row.diff_digest, self.row.diff_size)
    }

    /// How its blob is compressed.
    pub fn compression(&self) -> Compression {
        Compression::from_i64(self.row.compression).unwrap_or_default()
    }

    /// Its blob, as its store has it. If the store says the digest of the blob, the stream ends with an error where the bytes
    /// have another one.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::CorruptMetadata`] if it is no file.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn blob(&self) -> Result<AdditionalBlob> {
        let (dir, row) = (self.used.dir().to_owned(), Arc::clone(&self.row));
        bridge::run(move || {
            let used = LayerUse::begin(&dir);
            let blob = StoredBlob::open(used, &row)?.raw();
            Ok(AdditionalBlob {
                stream: ByteStream::of(blob),
            })
        })
        .await
    }

    /// Creates the layer `id` on `parent` (an ID, name or ID prefix), whose own files are those of this layer, in the
    /// additional layer store: nothing is copied. It is a layer like others, but its files cannot be changed: it is mounted
    /// read-only, and [`Store::apply_diff`] refuses it. [`Store::diff`] against its parent reads the blob in the store.
    ///
    /// Digests, sizes, compression and owners are recorded as the store says them. They are not verified now, since the
    /// files may not have been fetched yet; [`Store::diff`] verifies the blob.
    ///
    /// Takes the layer and container locks for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateId`], [`ErrorKind::DuplicateName`], [`ErrorKind::LayerUnknown`] (the parent),
    /// [`ErrorKind::ParentIsContainer`], [`ErrorKind::UnsafePath`] (an impossible ID), [`ErrorKind::InvalidMappings`] if the
    /// files of the parent have mapped owners, [`ErrorKind::CorruptMetadata`] if the directory in the store is not that of a
    /// layer any more, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn put_as(
        &self,
        id: &str,
        parent: Option<&str>,
        names: impl IntoIterator<Item: AsRef<str>> + Send,
    ) -> Result<Layer> {
        let names = names.into_iter().map(|name| name.as_ref().to_owned());
        let options = LayerOptions {
            id: Some(id.to_owned()),
            names: names.collect(),
            id_mappings: IdMappingOptions {
                host_uid_mapping: true,
                host_gid_mapping: true,
                ..IdMappingOptions::default()
            },
            ..LayerOptions::default()
        };
        self.put(parent, options)
            .await
            .context(|| format!("creating layer {id:?} of one in an additional layer store"))
    }

    async fn put(&self, parent: Option<&str>, options: LayerOptions) -> Result<Layer> {
        let plan = self.store.plan_layer(parent, &options).await?;
        if let Some(parent) = &plan.parent
            && !(parent.uid_map.is_empty() && parent.gid_map.is_empty())
        {
            let what = format!(
                "parent layer {:?} has mapped owners, the files in the additional layer store have not",
                parent.id
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        let dir = self.used.dir().to_owned();
        let used = bridge::run(move || Ok(Detached::new(LayerUse::begin(&dir)))).await?;
        let info = Arc::clone(&self.row);
        let row = self
            .store
            .in_batch(Needs::LAYERS, async move |batch: Batch| {
                let new = batch.with(|held| {
                    let parent = plan.recheck(held.layers()?.table())?;
                    let start = Start::Additional {
                        used: used.into_inner(),
                        info,
                    };
                    Ok(new_layer(options, parent, plan.mappings, start))
                })?;
                create_layer(&batch, new).await
            })
            .await?;
        Ok(Layer::new(&row, None, false))
    }

    /// Ends the use, and waits until the program that serves the store was told. Dropping the value does the same in the
    /// background. A store that does not count uses is no error; a warning is logged.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Cancelled`] while the runtime shuts down; the use ends all the same.
    ///
    /// # Cancellation
    /// The use ends in the background.
    pub async fn release(self) -> Result<()> {
        let used = self.used;
        bridge::run(move || {
            drop(used.into_inner());
            Ok(())
        })
        .await
    }
}

/// What the store says of a layer, as far as a layer here can have it.
fn read_info(used: &LayerUse, toc_digest: &Digest) -> Result<LayerRow> {
    let text = used.info()?;
    let corrupt = |reason: String| {
        let path = used.dir().join("info");
        ErrorKind::CorruptMetadata.err(format!("{reason}:")).at(path)
    };
    // Compat: the Go library does not look at what follows the first value.
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<LayerRow>();
    let info = match values.next() {
        Some(Ok(info)) => info,
        Some(Err(error)) => return Err(corrupt("not the record of a layer".into()).with_source(error)),
        None => return Err(corrupt("empty".into())),
    };
    for digest in [&info.compressed_digest, &info.diff_digest, &info.toc_digest] {
        if !digest.is_empty() && digest.valid().is_none() {
            return Err(corrupt(format!("{digest:?}, not a digest")));
        }
    }
    if let Some(found) = info.toc_digest.valid()
        && found != toc_digest
    {
        let what = format!("a layer whose table of contents has digest {found}, expected {toc_digest}, in");
        return Err(ErrorKind::DigestMismatch.err(what).at(used.dir()));
    }
    if info.compressed_size < 0 || info.diff_size < -1 {
        let sizes = [info.compressed_size, info.diff_size];
        return Err(corrupt(format!("sizes {sizes:?}")));
    }
    if Compression::from_i64(info.compression).is_none() {
        return Err(corrupt(format!("unknown compression {}", info.compression)));
    }
    let sorted = |mut ids: Vec<u32>| {
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    // Everything else is not for a store to say: names, flags, mappings, items that it does not have.
    Ok(LayerRow {
        // A stream was not seen if its size is not said.
        diff_size: match info.diff_size {
            0 if !(info.diff_digest.is_empty() && info.toc_digest.is_empty()) => -1,
            size => size,
        },
        compressed_digest: info.compressed_digest,
        compressed_size: info.compressed_size,
        diff_digest: info.diff_digest,
        toc_digest: info.toc_digest,
        compression: info.compression,
        uids: sorted(info.uids),
        gids: sorted(info.gids),
        ..LayerRow::default()
    })
}

/// # Layers of additional layer stores
impl Store {
    /// Looks for a layer in the additional layer stores of the driver (option `overlay.additionallayerstore`), in the order
    /// of the options, by the digest of its table of contents and, in stores with references, that of its image:
    /// `docker.io/library/debian:12`, with a tag or a digest.
    ///
    /// The program that serves the store may fetch what it needs to answer. Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if no store has it, or the driver has no such stores. What the found store says of the
    /// layer may be wrong: [`ErrorKind::CorruptMetadata`], [`ErrorKind::DigestMismatch`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing stays in use.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store, toc: graphroot::Digest, id: &str) -> graphroot::Result<()> {
    /// use graphroot::ErrorKind;
    /// match store.lookup_additional_layer(&toc, "docker.io/library/debian:12").await {
    ///     Ok(found) => {
    ///         let layer = found.put_as(id, None, ["base"]).await?;
    ///         found.release().await?;
    ///         println!("{} has diff ID {:?}", layer.id(), layer.uncompressed_digest());
    ///     }
    ///     Err(error) if error.kind() == ErrorKind::LayerUnknown => println!("has to be pulled"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn lookup_additional_layer(
        &self,
        toc_digest: &Digest,
        image_ref: &str,
    ) -> Result<AdditionalLayer> {
        let (driver, digest, reference) = (self.inner.driver(), toc_digest.clone(), image_ref.to_owned());
        let found = bridge::run(move || {
            let Some(dir) = driver.find_additional_layer(&digest, &reference) else {
                let what = format!(
                    "additional layer ({:?}, {reference:?}) not found",
                    digest.as_str()
                );
                return Err(ErrorKind::LayerUnknown.err(what));
            };
            let used = LayerUse::begin(&dir);
            let row = read_info(&used, &digest)?;
            Ok((row, used))
        });
        let (row, used) = found.await?;
        Ok(AdditionalLayer {
            store: self.clone(),
            row: Arc::new(row),
            used: Detached::new(used),
        })
    }
}

/// The blob of a layer in an additional layer store, from [`AdditionalLayer::blob`].
///
/// It is both an [`AsyncRead`] and a [`Stream`] of chunks. Each poll that finds no bytes runs one short step on the
/// runtime's blocking pool. The layer is in use until the end of the stream, or until this is dropped.
pub struct AdditionalBlob {
    stream: ByteStream,
}

impl fmt::Debug for AdditionalBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdditionalBlob").finish_non_exhaustive()
    }
}

impl AsyncRead for AdditionalBlob {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Stream for AdditionalBlob {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        Pin::new(&mut self.stream).poll_next(cx)
    }
}
