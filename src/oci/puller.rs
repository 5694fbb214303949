//! Pulling images into a store.

use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::Instrument as _;

use super::context::PullContext;
use super::diff_ids;
use super::image_layers::ImageLayers;
use super::layers::{self, Tally};
use super::manifest::{Config, Fetched};
use super::meter::Meter;
use super::options::PullOptions;
use super::partial::Partials;
use super::progress::ImageState;
use super::reference::{self, ImageRef};
#[cfg(feature = "signatures")]
use super::signatures::signature::Signature;
use super::source::ImageSource;
use super::wanted::WantedLayer;
use crate::bridge;
use crate::chunked::BlobSource;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::image_manifest::Descriptor;
use crate::store::image_record::{self, NewImage};
use crate::store::layer_identity::image_id;
use crate::store::views::Image;

/// The result of a pull.
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
    /// Layers that the store had, that another task or process made meanwhile, or that were copied from another layer.
    pub reused: usize,
}

/// Pulls images into one store. Cheap to clone; the clones share connections and bounds.
#[derive(Clone, Debug)]
pub struct Puller {
    context: Arc<PullContext>,
}

impl Puller {
    /// A puller for a store. Nothing is connected to yet.
    pub fn new(store: &Store, options: PullOptions) -> Self {
        Self {
            context: Arc::new(PullContext::new(store, options)),
        }
    }

    /// Pulls an image and gives it the names that the newest Podman would give it. Names are taken from images that have
    /// them.
    ///
    /// | From | Names |
    /// |---|---|
    /// | `docker://NAME` | `NAME`, with its registry and tag |
    /// | `oci:DIRECTORY:NAME` | `NAME` as that of an image in a registry: `app` is `docker.io/library/app:latest` |
    /// | `oci:DIRECTORY`, `oci:DIRECTORY:@INDEX`, `dir:DIRECTORY` | none |
    /// | `oci-archive:FILE` with or without `:NAME` | what the annotation `io.containerd.image.name`, or else `org.opencontainers.image.ref.name`, says; without a registry it is in `localhost/` |
    /// | `docker-archive:FILE` with or without `:@INDEX` | all that the archive gives it; those without a registry are in `localhost/` |
    /// | `docker-archive:FILE:NAME` | that name as the archive gives it |
    ///
    /// A name with a digest has to be that of what is pulled.
    ///
    /// Takes the store's locks for moments only. Waits for other tasks and processes that pull the same image.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such image, or none for the platform; [`ErrorKind::Registry`] if the
    /// registry cannot be reached, refuses, or breaks off again and again; [`ErrorKind::Rejected`] if
    /// [`PullOptions::policy`] or the registries configuration forbids it; [`ErrorKind::DigestMismatch`] naming both
    /// digests; [`ErrorKind::InvalidArchive`] for a layer that cannot be unpacked, the digest of whose damaged blob is then
    /// not computed; [`ErrorKind::NotSupported`] for what is no container image; [`ErrorKind::InvalidInput`] for documents
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

    /// Pulls the image that a user names: as [`Puller::pull`], or [`Puller::pull_as`] with `names`, of what
    /// [`RegistriesConf::resolve_ref`](super::RegistriesConf::resolve_ref) makes of it with
    /// [`RegistryOptions::registries_conf`](super::RegistryOptions::registries_conf). If it may be in several registries,
    /// these are tried one after the other.
    ///
    /// # Errors
    /// As [`Puller::pull`] and `resolve_ref`; of the last registry, with what the others have failed with.
    ///
    /// # Cancellation
    /// As a failure.
    pub async fn pull_by_name(&self, name: &str, names: Option<&[&str]>) -> Result<Pulled> {
        let images = self.context.options.registry.registries_conf.resolve_ref(name)?;
        let mut failed: Vec<String> = Vec::new();
        for image in &images {
            let pulled = match names {
                Some(names) => self.pull_as(image, names).await,
                None => self.pull(image).await,
            };
            match pulled {
                Ok(pulled) => return Ok(pulled),
                Err(error) if images.len() == 1 => return Err(error),
                Err(error) if failed.len() + 1 == images.len() => {
                    let count = images.len();
                    let others = failed.join("\n * ");
                    let what = format!("{count} errors occurred while pulling:\n * {others}\n * ");
                    return Err(error.context(what));
                }
                Err(error) => failed.push(error.chain()),
            }
        }
        Err(ErrorKind::NotFound.err(format!("{name:?} may be nowhere")))
    }

    /// Pulls several images at the same time; the results are in the order of the images. One that fails does not
    /// disturb the others.
    ///
    /// # Errors
    /// As [`Puller::pull`], for each image its own.
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

    /// Removes what interrupted downloads have left for the next attempt, except those of downloads in progress. Returns
    /// how many bytes that frees.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the removal goes on in the background.
    pub async fn discard_partial(&self) -> Result<u64> {
        let partials = Partials::new(self.context.store.transfer_dirs().partial_blobs);
        bridge::run(move || partials.discard_all()).await
    }

    /// A blob of an image, `blob` in its manifest, as a source of ranges. Its bytes are not verified: whoever reads a
    /// part of a blob has to know the digest of that part.
    ///
    /// Nothing of a registry is asked for before ranges are read. They are read with as few requests as the registry
    /// allows, of which 6 are in flight at the most; a request that fails or breaks off is repeated as
    /// [`PullOptions::registry`] says. What is read goes to [`PullOptions::progress`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is no such blob; [`ErrorKind::DigestMismatch`] if it has another size;
    /// [`ErrorKind::Rejected`] if [`PullOptions::policy`] rejects the image, whatever signatures it has;
    /// [`ErrorKind::InvalidInput`] for an archive that cannot be read; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing remains.
    pub async fn blob_source(&self, image: &ImageRef, blob: &Descriptor) -> Result<Arc<dyn BlobSource>> {
        let source = self.context.open_for_layers(image).await?;
        let meter = Meter::start(&self.context.options.progress, &blob.digest, blob.size, 0);
        source.ranges(blob, meter).await
    }

    /// The layers of an image elsewhere, for [`Store::heal`]. Nothing is connected to yet. They are verified by the digests that
    /// the store knows, so of [`PullOptions::policy`] only `reject` counts; an image that it rejects is not asked for.
    pub fn layers_of(&self, image: ImageRef) -> ImageLayers {
        ImageLayers::new(Arc::clone(&self.context), Some(image))
    }

    /// The layers of the images in registries that have the names of the damaged images, for [`Store::heal`]. An image of
    /// which the digest is recorded is asked for by that: its name may have moved to another one. The policy counts as in
    /// [`Puller::layers_of`].
    pub fn layers_by_name(&self) -> ImageLayers {
        ImageLayers::new(Arc::clone(&self.context), None)
    }

    async fn observed(&self, image: ImageRef, names: Option<Vec<String>>) -> Result<Pulled> {
        let text: Arc<str> = image.to_string().into();
        let span = tracing::info_span!("pull", image = &*text);
        let progress = &self.context.options.progress;
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

    /// The signatures of an image, as they are kept, after the policy has accepted them.
    #[cfg(feature = "signatures")]
    async fn verified(
        &self,
        source: &ImageSource,
        image: &ImageRef,
        manifest: &Fetched,
    ) -> Result<Vec<Vec<u8>>> {
        let _turn = self.context.download(source).await?;
        let wanted = self.context.options.policy.wants_openpgp(image);
        let found = source.signatures(&manifest.digest, wanted).await?;
        let kept = found.iter().map(Signature::to_bytes).collect::<Result<_, _>>();
        let kept = kept.map_err(|why| ErrorKind::InvalidInput.err(why))?;
        let (policy, image, bytes) = (
            self.context.options.policy.clone(),
            image.clone(),
            manifest.bytes.clone(),
        );
        bridge::run(move || policy.verify(&image, &bytes, &found)).await?;
        Ok(kept)
    }

    /// Images of which signatures are wanted are refused already.
    #[cfg(not(feature = "signatures"))]
    async fn verified(&self, _: &ImageSource, _: &ImageRef, _: &Fetched) -> Result<Vec<Vec<u8>>> {
        Ok(Vec::new())
    }

    async fn work(&self, image: &ImageRef, text: &Arc<str>, names: Option<Vec<String>>) -> Result<Pulled> {
        let PullContext { store, options, .. } = &*self.context;
        let (policy, checked) = (options.policy.clone(), image.clone());
        bridge::run(move || policy.check_before_pull(&checked)).await?;
        let source = self.context.open(image).await?;
        let (top, instance, manifest) = self.context.resolve(&source).await?;
        let signatures = self.verified(&source, image, &instance).await?;
        // Before anything is transferred: a name that cannot be given is found out now.
        let names = match names {
            Some(names) => names,
            None => source.default_names(image).await?,
        };
        for name in &names {
            let digest = name.split_once('@').map(|(_, digest)| digest);
            if digest.is_some_and(|digest| {
                ![&top, &instance]
                    .iter()
                    .any(|known| known.digest.as_str() == digest)
            }) {
                let what = "Digest of source image's manifest would not match destination reference";
                return Err(ErrorKind::DigestMismatch.err(format!("{what} {name}")));
            }
        }
        options.progress.image(text, || ImageState::Resolved {
            manifest: instance.digest.clone(),
            blobs: manifest
                .layers
                .iter()
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
        });
        // Images with one config and the same layers are one image. The second pull finds it complete.
        let key = format!("image-{}", manifest.config.digest.encoded());
        let _flight = self.context.flight(&key).await?;
        let config_bytes = match image_record::known_config(store, &manifest.config.digest).await? {
            Some(bytes) => bytes,
            None => {
                let _turn = self.context.download(&source).await?;
                source.small(&manifest.config).await?
            }
        };
        let config = Config::parse(&config_bytes)?;
        let blobs = manifest.layers;
        let diff_ids = match config.diff_ids.is_empty() {
            true => diff_ids::compute(&self.context, &source, &blobs).await?,
            false => config.diff_ids,
        };
        if blobs.len() != diff_ids.len() {
            let what = format!(
                "a manifest of {} layers for a config of {}",
                blobs.len(),
                diff_ids.len()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let reference = match image {
            ImageRef::Registry(reference) => Some(reference.to_string().into()),
            _ => None,
        };
        let wanted = blobs.into_iter().zip(diff_ids);
        let wanted = wanted
            .map(|(blob, diff_id)| WantedLayer::new(blob, diff_id))
            .collect();
        let ensured = layers::ensure(&self.context, &source, reference.as_ref(), wanted).await?;
        let new = NewImage {
            id: image_id(&manifest.config.digest, &ensured.identities),
            layer: ensured.top,
            names,
            created: config.created,
            config: (manifest.config.digest, config_bytes),
            top: (top.digest.clone(), top.bytes),
            instance: (instance.digest.clone(), instance.bytes),
            signatures,
        };
        let image = image_record::write(store, new).await?;
        let Tally { transferred, reused } = ensured.tally;
        Ok(Pulled {
            image,
            digest: top.digest,
            manifest: instance.digest,
            transferred,
            reused,
        })
    }
}
