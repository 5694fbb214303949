//! A directory as a zstd:chunked blob.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use futures::StreamExt as _;

use super::file_blob::FileBlob;
use super::writer;
use crate::archive::diff::export::Export;
use crate::bridge::{self, ByteStream};
use crate::error::{Error, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::sys::{at, unnamed};

/// What [`pack_directory`] makes.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PackedDirectory {
    /// The blob, in a file without a name in the directory for temporary files: it is gone with its last clone.
    pub blob: FileBlob,
    /// The annotations that say where its table of contents is. Empty if the directory has what such blobs cannot have
    /// (see [`Store::diff`](crate::Store::diff)): the blob is an ordinary one then.
    pub annotations: BTreeMap<String, String>,
}

/// Packs what is below a directory into a zstd:chunked blob, of which a [`ChunkedDiffer`](crate::ChunkedDiffer) makes a
/// layer. All processors compress. Takes no lock.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io) for what cannot be read, or for a full disk.
///
/// # Cancellation
/// Nothing remains.
///
/// ```no_run
/// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
/// use graphroot::{ChunkedDiffer, LayerOptions, StagingOptions, chunked};
/// use std::sync::Arc;
///
/// let packed = chunked::pack_directory("/srv/rootfs").await?;
/// let size = packed.blob.size();
/// let differ = ChunkedDiffer::open(&store, &packed.annotations, size, Arc::new(packed.blob)).await?;
/// let staged = store.prepare_staged_layer(StagingOptions::default(), differ).await?;
/// let layer = store.apply_staged_layer(None, LayerOptions::default(), staged).await?;
/// # drop(layer);
/// # Ok(())
/// # }
/// ```
pub async fn pack_directory(dir: impl Into<PathBuf>) -> Result<PackedDirectory> {
    let dir = dir.into();
    let temporary = std::env::temp_dir();
    let (tar, mut file) = bridge::run(move || {
        let root = at::open_dir(&dir).at("opening", &dir)?;
        let tar = Export::tree(root.as_fd(), &IdMappings::default(), 0)?;
        let open = at::open_dir(&temporary).at("opening", &temporary)?;
        let file = unnamed::create(open.as_fd()).at("making a temporary file in", &temporary)?;
        Ok((tar, file))
    })
    .await?;
    let (compressed, annotations) = writer::compressed(tar, None);
    let mut bytes = ByteStream::new(compressed);
    let mut size = 0;
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|error| Error::io("packing a directory", error))?;
        size += chunk.len() as u64;
        file = bridge::run(move || {
            file.write_all(&chunk).during("writing a temporary file")?;
            Ok(file)
        })
        .await?;
    }
    let path = PathBuf::from("a packed directory");
    Ok(PackedDirectory {
        blob: FileBlob::part(Arc::new(file), path.into(), 0, size),
        annotations: annotations.get().cloned().unwrap_or_default(),
    })
}
