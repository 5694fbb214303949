//! What all pulls of one [`Puller`](super::Puller) share: the store, options, connections and bounds.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::manifest::{self, Document, Fetched};
use super::options::PullOptions;
use super::partial::Partials;
use super::reference::ImageRef;
use super::repository::Registries;
use super::source::ImageSource;
use crate::bridge;
use crate::error::{ErrorKind, Result};
use crate::lock::single_flight::{self, Flight};
use crate::options::PartialPullOptions;
use crate::store::Store;
use crate::store::image_manifest::ImageManifest;
use crate::store::transfer_dirs::TransferDirs;

/// An index may list indexes, but not deeper than this.
const MAX_INDEXES: usize = 4;

/// The state that the pulls of one puller share.
#[derive(Debug)]
pub(crate) struct PullContext {
    pub(crate) store: Store,
    pub(crate) options: PullOptions,
    pub(crate) registries: Arc<Registries>,
    /// Interrupted downloads, if they are kept.
    pub(crate) partials: Option<Partials>,
    /// Which layers are pulled in part, and how.
    pub(crate) in_part: PartialPullOptions,
    dirs: TransferDirs,
    downloads: Arc<Semaphore>,
    unpackers: Arc<Semaphore>,
}

async fn acquire(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(|closed| {
        ErrorKind::Cancelled
            .err("waiting for a permit")
            .with_source(closed)
    })
}

impl PullContext {
    pub(crate) fn new(store: &Store, options: PullOptions) -> Self {
        let dirs = store.transfer_dirs();
        Self {
            store: store.clone(),
            registries: Arc::new(Registries::new(options.registry.clone())),
            partials: options
                .keep_partial
                .then(|| Partials::new(dirs.partial_blobs.clone())),
            in_part: PartialPullOptions::new(store.pull_options()),
            dirs,
            downloads: Arc::new(Semaphore::new(options.downloads.max(1))),
            unpackers: Arc::new(Semaphore::new(options.unpackers.max(1))),
            options,
        }
    }

    /// Whether layers are pulled in part where their blobs can be.
    pub(crate) fn takes_parts(&self) -> bool {
        self.in_part.enable_partial_images && self.store.has_differ()
    }

    /// Waits for the exclusive lock of `key` among all tasks and processes that pull into this store.
    pub(crate) async fn flight(&self, key: &str) -> Result<Flight> {
        single_flight::acquire(&self.dirs.flights, key).await
    }

    /// A permit to download; none is needed for a source on this machine.
    pub(crate) async fn download(&self, source: &ImageSource) -> Result<Option<OwnedSemaphorePermit>> {
        match source.is_remote() {
            true => acquire(&self.downloads).await.map(Some),
            false => Ok(None),
        }
    }

    /// A permit to unpack; to be asked for after that to download.
    pub(crate) async fn unpacker(&self) -> Result<OwnedSemaphorePermit> {
        acquire(&self.unpackers).await
    }

    /// Opens a source of layers for something else than a pull, if the policy does not refuse the image.
    pub(super) async fn open_for_layers(&self, image: &ImageRef) -> Result<ImageSource> {
        let (policy, checked) = (self.options.policy.clone(), image.clone());
        bridge::run(move || policy.refuse_rejected(&checked)).await?;
        self.open(image).await
    }

    /// Opens a source.
    pub(super) async fn open(&self, image: &ImageRef) -> Result<ImageSource> {
        ImageSource::open(image, &self.registries, &self.store).await
    }

    /// Fetches what the reference names, and the manifest for the platform.
    pub(super) async fn resolve(&self, source: &ImageSource) -> Result<(Fetched, Fetched, ImageManifest)> {
        let _turn = self.download(source).await?;
        let top = source.top().await?;
        let mut instance = top.clone();
        for _ in 0..=MAX_INDEXES {
            match manifest::parse(&instance.bytes)? {
                Document::Image(manifest) => return Ok((top, instance, manifest)),
                Document::Index(index) => {
                    let chosen = index.choose(&self.options.platform)?;
                    instance = source.manifest(&chosen).await?;
                    chosen.check(&instance.bytes, "the manifest")?;
                }
            }
        }
        Err(ErrorKind::NotSupported.err(format!("more than {MAX_INDEXES} indexes, one in the other")))
    }
}
