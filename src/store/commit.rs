//! Layers under the IDs that image programs give them, and containers that become images: what a container changed
//! becomes such a layer, and an image is built on it.

use std::time::SystemTime;

use tokio::io::AsyncRead;

use crate::archive::apply::pipeline::Source;
use crate::error::{ErrorKind, Result};
use crate::options::{DiffOptions, LayerOptions};
use crate::store::Store;
use crate::store::image_builder::{Base, ConfigChanges, ImageBuilder, config_setters};
use crate::store::image_config::History;
use crate::store::image_name;
use crate::store::layer_identity::LayerIdentity;
use crate::store::views::{Container, Image, Layer};

/// What an image made by [`Store::commit`] is to be. By default it has no name, and what it runs is what the
/// container's image runs.
#[derive(Clone, Debug, Default)]
pub struct CommitOptions {
    names: Vec<String>,
    created: Option<SystemTime>,
    created_by: String,
    comment: Option<String>,
    changes: ConfigChanges,
}

impl CommitOptions {
    /// An image without a name, made now.
    pub fn new() -> Self {
        Self::default()
    }

    config_setters!();

    /// Adds a name, which is taken from an image that has it. Image programs expect `HOST/PATH:TAG`; those without a
    /// registry are under `localhost`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Sets when the image was made; the default is the moment of the call.
    #[must_use]
    pub fn created(mut self, created: SystemTime) -> Self {
        self.created = Some(created);
        self
    }

    /// Says in the history which command made the changes.
    #[must_use]
    pub fn created_by(mut self, command: impl Into<String>) -> Self {
        self.created_by = command.into();
        self
    }

    /// Adds a remark to the history; the default is `FROM` and the name of the container's image.
    #[must_use]
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// # Images of containers, and their layers
impl Store {
    /// Makes an image of a container (an ID, name, ID prefix or the ID of its layer): what the container changed
    /// becomes a new layer on the top layer of its image, whose config and history are extended.
    ///
    /// A container that is being written to is committed as each file is when it is read; for one moment of all
    /// files, stop or freeze its processes. What is on volumes or otherwise mounted over the container is not in it.
    ///
    /// Locks are taken as by [`Store::diff`], [`Store::put_layer`] and [`ImageBuilder::build`], one after the other,
    /// and none while data flows. The layer and the image have the IDs that Podman and Buildah give them; a layer with
    /// the same content in the same place is reused.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`]; [`ErrorKind::ImageUnknown`] if the container's image is gone;
    /// [`ErrorKind::InvalidInput`] if that image's config does not describe its layers, or for a name that image programs
    /// cannot read; those of [`Store::diff`],
    /// [`Store::put_layer`] and [`Store::image_config`]. There is no image then, but a layer that no image names may
    /// remain, since other programs may use it already; the next commit of the same content does.
    ///
    /// # Cancellation
    /// As a failure, after a crash too: the image is there as a whole or not at all.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::CommitOptions;
    /// let options = CommitOptions::new().name("localhost/app:2").created_by("apt-get upgrade");
    /// let image = store.commit("my-container", options).await?;
    /// println!("{} has {} layers", image.id(), store.image_layers(image.id()).await?.len());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn commit(&self, container: &str, options: CommitOptions) -> Result<Image> {
        let container = self.container(container).await?;
        let context = format!("committing container {:?}", container.id());
        Box::pin(self.commit_container(&container, options))
            .await
            .map_err(|error| error.context(context))
    }

    async fn commit_container(&self, container: &Container, options: CommitOptions) -> Result<Image> {
        image_name::check_all(&options.names)?;
        let base = match container.image_id() {
            Some(id) => Some(Base::read(self, id).await?),
            None => None,
        };
        let below = base.as_ref().and_then(|base| base.image.top_layer());
        let diff = self
            .diff(None, container.layer_id(), DiffOptions::uncompressed())
            .await?;
        // It stays if the image cannot be built: another commit, or a pull, may have begun to use it.
        let layer = self
            .put_by_content(below, LayerOptions::default(), Box::pin(diff))
            .await?;
        let from = base
            .as_ref()
            .and_then(|base| base.image.names().first())
            .map(|name| format!("FROM {name}"));
        let mut step = History::new(options.created_by);
        step.comment = options.comment.or(from).unwrap_or_default();
        step.author = options.changes.author.clone().unwrap_or_default();
        let builder = ImageBuilder {
            base: None,
            top_layer: Some(layer),
            names: options.names,
            created: options.created,
            history: vec![step],
            changes: options.changes,
        };
        builder.build_on(self, base).await
    }

    /// Creates a layer on `parent` (an ID, name or ID prefix) from a tar stream, as [`Store::put_layer`] does, under the
    /// ID that image programs give to a layer of an image: one that follows from the content of it and of the layers
    /// below. If there is such a layer already, that one is returned; Podman's next pull of an image with the same
    /// layers uses them likewise.
    ///
    /// Locks as [`Store::put_layer`].
    ///
    /// # Errors
    /// As [`Store::put_layer`].
    ///
    /// # Cancellation
    /// As [`Store::put_layer`].
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store, blob: tokio::fs::File) -> graphroot::Result<()> {
    /// let layer = store.put_image_layer(None, blob).await?;
    /// let image = graphroot::ImageBuilder::new().top_layer(layer.id()).build(&store).await?;
    /// # drop(image);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_image_layer(&self, parent: Option<&str>, diff: impl AsyncRead + Send) -> Result<Layer> {
        self.put_image_layer_with(parent, LayerOptions::default(), diff)
            .await
    }

    /// As [`Store::put_image_layer`], with options: with digests that the stream must have, for instance. A layer that
    /// is there already is returned as it is, but the stream is read and verified all the same.
    ///
    /// Locks as [`Store::put_layer`].
    ///
    /// # Errors
    /// As [`Store::put_layer`]; [`ErrorKind::InvalidInput`] if the options name an ID or a template.
    ///
    /// # Cancellation
    /// As [`Store::put_layer`].
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store, blob: tokio::fs::File, digest: graphroot::Digest) -> graphroot::Result<()> {
    /// use graphroot::{ErrorKind, LayerOptions};
    /// let options = LayerOptions::default().verify_original_digest(digest);
    /// match store.put_image_layer_with(None, options, blob).await {
    ///     Ok(layer) => println!("{}", layer.id()),
    ///     Err(error) if error.kind() == ErrorKind::DigestMismatch => println!("refused: {}", error.chain()),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_image_layer_with(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        diff: impl AsyncRead + Send,
    ) -> Result<Layer> {
        if options.id.is_some() || options.template.is_some() {
            let what = "the layer of an image has the ID that follows from its content, and no template";
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let parent = match parent {
            Some(parent) => Some(self.layer(parent).await?.id().to_owned()),
            None => None,
        };
        let put = self.put_by_content(parent.as_deref(), options, Box::pin(diff));
        let id = put.await?;
        self.layer(&id).await
    }

    /// Makes a stream a layer on `parent` (an exact ID), or finds the one that there is. Returns its ID.
    async fn put_by_content(
        &self,
        parent: Option<&str>,
        mut options: LayerOptions,
        diff: Source<'_>,
    ) -> Result<String> {
        // It is unpacked while it is read; its ID follows from its digest.
        let staged = self.stage_diff(parent, &options, diff).await?;
        let diff_id = staged.uncompressed_digest().cloned();
        let diff_id =
            diff_id.ok_or_else(|| ErrorKind::DigestUnknown.err("the diff ID of an unpacked layer"))?;
        let id = LayerIdentity::DiffId(diff_id.clone()).layer_id(parent);
        options.id = Some(id.clone());
        match self.commit_diff(parent, options, staged).await {
            Ok(_put) => Ok(id),
            Err(error) if error.kind() == ErrorKind::DuplicateId => {
                let known = self.layer(&id).await?;
                let same = known.id() == id
                    && known.parent() == parent
                    && known.uncompressed_digest().as_ref() == Some(&diff_id);
                if same { Ok(id) } else { Err(error) }
            }
            Err(error) => Err(error),
        }
    }
}
