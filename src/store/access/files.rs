//! All files of records under their locks, whatever is in them.

use std::path::PathBuf;

use bytes::Bytes;

use crate::error::Result;
use crate::record::Location;
use crate::record::container::ContainerRow;
use crate::record::held_files::{HeldFiles, HeldMounts};
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record;
use crate::store::Store;

/// The files of records of all stores, with their locks held. Released in the reverse order.
pub(crate) struct StoreFiles {
    pub(crate) mounts: HeldMounts,
    pub(crate) containers: HeldFiles<ContainerRow>,
    /// Shared in any case.
    additional_images: Vec<HeldFiles<ImageRow>>,
    /// The primary store, then that of the graph root if images lie apart.
    pub(crate) images: Vec<HeldFiles<ImageRow>>,
    /// Shared in any case.
    additional_layers: Vec<HeldFiles<LayerRow>>,
    pub(crate) layers: HeldFiles<LayerRow>,
}

/// A file of records and its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileText {
    pub(crate) path: PathBuf,
    /// Whether it is forced to disk.
    pub(crate) sync: bool,
    /// `None` if it is not there.
    pub(crate) content: Option<Bytes>,
}

/// The content of all files of records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreTexts {
    /// By location.
    pub(crate) layers: Vec<FileText>,
    /// By store.
    pub(crate) additional_layers: Vec<Vec<FileText>>,
    /// By store.
    pub(crate) images: Vec<Vec<FileText>>,
    /// By store.
    pub(crate) additional_images: Vec<Vec<FileText>>,
    /// By location.
    pub(crate) containers: Vec<FileText>,
    pub(crate) mounts: FileText,
}

impl Store {
    /// Takes the locks of all records without loading them, exclusively if the files of the primary stores are to be replaced.
    ///
    /// If dropped: nothing happened.
    pub(crate) async fn hold_files(&self, exclusive: bool) -> Result<StoreFiles> {
        let inner = &self.inner;
        let layers = inner.layers.hold_files(exclusive).await?;
        let mut additional_layers = Vec::new();
        for store in &inner.additional_layers {
            additional_layers.push(store.records.hold_files().await?);
        }
        let mut images = vec![inner.images.hold_files(exclusive).await?];
        if let Some(graph_images) = &inner.graph_images {
            images.push(graph_images.hold_files(exclusive).await?);
        }
        let mut additional_images = Vec::new();
        for store in inner.additional_images.iter().filter(|store| store.read_only) {
            additional_images.push(store.records.hold_files().await?);
        }
        let containers = inner.containers.hold_files(exclusive).await?;
        let mounts = inner.mounts.hold_file(exclusive).await?;
        Ok(StoreFiles {
            mounts,
            containers,
            additional_images,
            images,
            additional_layers,
            layers,
        })
    }
}

fn texts<R: Record>(files: &HeldFiles<R>) -> Result<Vec<FileText>> {
    let with = |(location, content): (&Location, Option<Bytes>)| FileText {
        path: location.path.clone(),
        sync: location.sync,
        content,
    };
    Ok(files.locations().iter().zip(files.read()?).map(with).collect())
}

impl StoreFiles {
    /// Reads all of them. Blocking.
    pub(crate) fn read(&self) -> Result<StoreTexts> {
        Ok(StoreTexts {
            layers: texts(&self.layers)?,
            additional_layers: self.additional_layers.iter().map(texts).collect::<Result<_>>()?,
            images: self.images.iter().map(texts).collect::<Result<_>>()?,
            additional_images: self.additional_images.iter().map(texts).collect::<Result<_>>()?,
            containers: texts(&self.containers)?,
            mounts: FileText {
                path: self.mounts.path().to_owned(),
                sync: true,
                content: self.mounts.read()?,
            },
        })
    }
}
