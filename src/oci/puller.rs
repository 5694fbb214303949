//! Pulling images: what a caller sees.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::layers::{self, Tally};
use super::manifest::{self, Config, Document, Manifest};
use super::partial::Partials;
use super::platform::Platform;
use super::progress::{ImageState, Progress};
use super::record::{self, NewImage};
use super::reference::{self, ImageRef};
use super::registry::{Registries, RegistryOptions};
use super::source::{Fetched, ImageSource, check};
use crate::bridge;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::views::Image;

/// How a [`Puller`] works.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which image of an index is meant; by default the one for this machine.
    pub platform: Platform,
    /// Blobs that are downloaded at the same time.
    pub downloads: usize,
    /// Layers that are unpacked at the same time. A blob is unpacked while it is downloaded, so fewer than
    /// [`PullOptions::downloads`] bound those too.
    pub unpackers: usize,
    /// Keep what came of a blob when its download is interrupted, for the next attempt. It costs writing each blob to
    /// disk beside its layer's files.
    pub keep_partial: bool,
    /// File of credentials instead of the usual ones (`auth.json`, Docker's `config.json`).
    pub auth_file: Option<PathBuf>,
    /// Registries (`HOST[:PORT]`) that are talked to without TLS. Those on this machine always are.
    pub plain_http: Vec<String>,
    /// How often in a row a request is repeated when nothing comes of it.
    pub retries: u32,
    /// Wait before the first repetition, doubled for each further one, unless the registry asks for another.
    pub backoff: Duration,
    /// No wait is longer than this, whatever the registry asks for.
    pub max_wait: Duration,
    /// A registry that sends nothing for this long counts as gone.
    pub stall: Duration,
    /// Where events go.
    pub progress: Progress,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::default(),
            downloads: 6,
            unpackers: 8,
            keep_partial: false,
            auth_file: None,
            plain_http: Vec::new(),
            retries: 5,
            backoff: Duration::from_millis(250),
            max_wait: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            progress: Progress::default(),
        }
    }
}

impl PullOptions {
    /// Sets [`PullOptions::platform`].
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// Sets [`PullOptions::downloads`].
    #[must_use]
    pub fn downloads(mut self, downloads: usize) -> Self {
        self.downloads = downloads;
        self
    }

    /// Sets [`PullOptions::unpackers`].
    #[must_use]
    pub fn unpackers(mut self, unpackers: usize) -> Self {
        self.unpackers = unpackers;
        self
    }

    /// Sets [`PullOptions::keep_partial`].
    #[must_use]
    pub fn keep_partial(mut self, keep: bool) -> Self {
        self.keep_partial = keep;
        self
    }

    /// Sets [`PullOptions::progress`].
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }

    pub(crate) fn registry(&self) -> RegistryOptions {
        RegistryOptions {
            auth_file: self.auth_file.clone(),
            plain_http: self.plain_http.clone(),
            retries: self.retries,
            backoff: self.backoff,
            max_wait: self.max_wait,
            stall: self.stall,
        }
    }
}

/// What a pull has brought.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Digest of what the reference names: a manifest, or an index of several.
    pub digest: Digest,
    /// Digest of the manifest for the platform.
    pub manifest: Digest,
    /// Layers for which a blob was transferred.
    pub transferred: usize,
    /// Layers that were there, were made by somebody else meanwhile, or were copied from a layer that was there.
    pub reused: usize,
}

/// Pulls images into one store. Cheap to clone; the clones share connections and bounds.
#[derive(Clone, Debug)]
pub struct Puller {
    pub(crate) shared: Arc<PullContext>,
}

/// What all pulls of a puller have in common.
#[derive(Debug)]
pub(crate) struct PullContext {
    pub(crate) store: Store,
    pub(crate) options: PullOptions,
    pub(crate) registries: Registries,
    pub(crate) partials: Option<Partials>,
    downloads: Arc<Semaphore>,
    unpackers: Arc<Semaphore>,
}

async fn acquire(semaphore: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let permit = Arc::clone(semaphore).acquire_owned().await;
    permit.map_err(|closed| ErrorKind::Cancelled.err("waiting for a turn").with_source(closed))
}

impl PullContext {
    /// A place among the downloads; nobody needs one for what is on this machine.
    pub(crate) async fn download(&self, source: &ImageSource) -> Result<Option<OwnedSemaphorePermit>> {
        match source.is_remote() {
            true => acquire(&self.downloads).await.map(Some),
            false => Ok(None),
        }
    }

    /// A place among the unpackers; to be asked for after that among the downloads.
    pub(crate) async fn unpacker(&self) -> Result<OwnedSemaphorePermit> {
        acquire(&self.unpackers).await
    }
}

impl Puller {
    /// A puller for a store. Nothing is connected to yet.
    pub fn new(store: &Store, options: PullOptions) -> Self {
        let partials = options
            .keep_partial
            .then(|| Partials::new(store.inner.dirs.partial()));
        Self {
            shared: Arc::new(PullContext {
                store: store.clone(),
                registries: Registries::new(options.registry()),
                partials,
                downloads: Arc::new(Semaphore::new(options.downloads.max(1))),
                unpackers: Arc::new(Semaphore::new(options.unpackers.max(1))),
                options,
            }),
        }
    }

    /// Pulls an image and gives it the name that Podman would give it. Names are taken from images that have them.
    ///
    /// Takes the store's locks for moments only. Waits for other tasks and processes that pull the same image.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such image, or none for the platform; [`ErrorKind::Registry`] if the
    /// registry cannot be reached, refuses, or breaks off again and again; [`ErrorKind::DigestMismatch`] naming both
    /// digests; [`ErrorKind::NotSupported`] for what is no container image; [`ErrorKind::InvalidInput`] for documents
    /// that make no sense; and those of [`Store::put_layer`]. Layers that were complete stay, for the next attempt.
    ///
    /// # Cancellation
    /// As a failure.
    pub async fn pull(&self, image: &ImageRef) -> Result<Pulled> {
        self.observed(image.clone(), None).await
    }

    /// As [`Puller::pull`], but with these names, perhaps none.
    ///
    /// # Errors
    /// As [`Puller::pull`], and [`ErrorKind::InvalidInput`] for what is no image name.
    ///
    /// # Cancellation
    /// As a failure.
    pub async fn pull_as(&self, image: &ImageRef, names: &[&str]) -> Result<Pulled> {
        let names = names
            .iter()
            .map(|name| reference::full_name(name))
            .collect::<Result<_>>()?;
        self.observed(image.clone(), Some(names)).await
    }

    /// Pulls several images at the same time; the results are in the order of the images. One that fails does not
    /// disturb the others.
    ///
    /// # Cancellation
    /// As a failure of those that are not done.
    pub async fn pull_all(&self, images: &[ImageRef]) -> Vec<Result<Pulled>> {
        let mut tasks = JoinSet::new();
        for (index, image) in images.iter().enumerate() {
            let (puller, image) = (self.clone(), image.clone());
            tasks.spawn(async move { (index, puller.observed(image, None).await) }.in_current_span());
        }
        let mut results: Vec<Option<Result<Pulled>>> = images.iter().map(|_| None).collect();
        while let Some(joined) = tasks.join_next().await {
            match joined {
                Ok((index, result)) => {
                    if let Some(place) = results.get_mut(index) {
                        *place = Some(result);
                    }
                }
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_aborted) => {}
            }
        }
        let missing = || Err(ErrorKind::Cancelled.err("the runtime is shutting down"));
        results
            .into_iter()
            .map(|result| result.unwrap_or_else(missing))
            .collect()
    }

    /// Removes what interrupted downloads have left for the next attempt, except what somebody is adding to. Returns
    /// how many bytes that frees.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub async fn discard_partial(&self) -> Result<u64> {
        let partials = Partials::new(self.shared.store.inner.dirs.partial());
        bridge::run(move || partials.discard_all()).await
    }

    async fn observed(&self, image: ImageRef, names: Option<Vec<String>>) -> Result<Pulled> {
        let text: Arc<str> = image.to_string().into();
        let span = tracing::info_span!("pull", image = &*text);
        let progress = &self.shared.options.progress;
        // Boxed: the state of a pull is large.
        let result = Box::pin(self.work(&image, &text, names)).instrument(span).await;
        match &result {
            Ok(pulled) => progress.image(&text, || ImageState::Done {
                id: pulled.image.id().to_owned(),
            }),
            Err(error) => progress.image(&text, || ImageState::Failed { error: error.chain() }),
        }
        result.map_err(|error| error.context(format!("pulling {text}")))
    }

    async fn work(&self, image: &ImageRef, text: &Arc<str>, names: Option<Vec<String>>) -> Result<Pulled> {
        let PullContext { store, options, .. } = &*self.shared;
        let source = ImageSource::open(image, &self.shared.registries).await?;
        let (top, instance, manifest) = self.resolve(&source).await?;
        // Before anything is transferred: a name that cannot be given is found out now.
        let names = match names {
            Some(names) => names,
            None => source.default_names(image).await?,
        };
        options.progress.image(text, || ImageState::Resolved {
            manifest: instance.digest.clone(),
            blobs: manifest
                .layers
                .iter()
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
        });
        let id = manifest.config.digest.encoded().to_owned();
        // Images with one config are one image. Whoever comes second finds it done.
        let _flight = store.flight(&format!("image-{id}")).await?;
        let config_bytes = match record::known_config(store, &manifest.config.digest).await? {
            Some(bytes) => bytes,
            None => {
                let _turn = self.shared.download(&source).await?;
                source.small(&manifest.config).await?
            }
        };
        let config = Config::parse(&config_bytes)?;
        let (blobs, diff_ids) = (manifest.layers, config.diff_ids);
        if blobs.len() != diff_ids.len() {
            let what = format!(
                "a manifest of {} layers for a config of {}",
                blobs.len(),
                diff_ids.len()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let (layer, tally) = layers::ensure(&self.shared, &source, blobs, diff_ids).await?;
        let new = NewImage {
            id,
            layer,
            names,
            created: config.created,
            config: (manifest.config.digest, config_bytes),
            top: (top.digest.clone(), top.bytes),
            instance: (instance.digest.clone(), instance.bytes),
        };
        let image = record::write(store, new).await?;
        let Tally { transferred, reused } = tally;
        Ok(Pulled {
            image,
            digest: top.digest,
            manifest: instance.digest,
            transferred,
            reused,
        })
    }

    /// Fetches what the reference names, and the manifest for the platform.
    async fn resolve(&self, source: &ImageSource) -> Result<(Fetched, Fetched, Manifest)> {
        let _turn = self.shared.download(source).await?;
        let top = source.top().await?;
        match manifest::parse(&top.bytes, top.media_type.as_deref())? {
            Document::Image(manifest) => Ok((top.clone(), top, manifest)),
            Document::Index(index) => {
                let chosen = manifest::choose(&index, &self.shared.options.platform)?;
                let instance = source.manifest(&chosen.digest).await?;
                check(&instance.bytes, &chosen.digest, "the manifest")?;
                match manifest::parse(&instance.bytes, Some(&chosen.media_type))? {
                    Document::Image(manifest) => Ok((top, instance, manifest)),
                    Document::Index(_) => Err(ErrorKind::NotSupported.err("an index of indexes")),
                }
            }
        }
    }
}
