//! Building images: config, manifest and record from layers that are in the store, as Buildah and Podman write them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::Store;
use crate::store::image_config::{History, ImageConfig, write_time};
use crate::store::image_manifest::{Descriptor, ImageManifest, OCI_LAYER};
use crate::store::image_name;
use crate::store::image_record::{self, NewImage};
use crate::store::image_types::OCI_CONFIG;
use crate::store::views::{Image, Layer};

/// What is to be different in a new image's config from that of its base image.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConfigChanges {
    pub(crate) author: Option<String>,
    pub(crate) os: Option<String>,
    pub(crate) architecture: Option<String>,
    pub(crate) variant: Option<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) entrypoint: Option<Vec<String>>,
    pub(crate) cmd: Option<Vec<String>>,
    pub(crate) user: Option<String>,
    pub(crate) working_dir: Option<String>,
    pub(crate) stop_signal: Option<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) exposed_ports: BTreeSet<String>,
    pub(crate) volumes: BTreeSet<String>,
}

impl ConfigChanges {
    fn apply(self, config: &mut ImageConfig) {
        let set = |field: &mut String, value: Option<String>| {
            if let Some(value) = value {
                *field = value;
            }
        };
        let run = &mut config.run;
        for (name, value) in &self.env {
            run.set_env(name, value);
        }
        if let Some(entrypoint) = self.entrypoint {
            run.entrypoint = entrypoint;
            run.cmd = Vec::new();
        }
        if let Some(cmd) = self.cmd {
            run.cmd = cmd;
        }
        set(&mut run.user, self.user);
        set(&mut run.working_dir, self.working_dir);
        set(&mut run.stop_signal, self.stop_signal);
        run.labels.extend(self.labels);
        run.exposed_ports.extend(self.exposed_ports);
        run.volumes.extend(self.volumes);
        set(&mut config.author, self.author);
        set(&mut config.os, self.os);
        set(&mut config.architecture, self.architecture);
        set(&mut config.variant, self.variant);
    }
}

/// Setters for the field `changes: ConfigChanges` of a builder.
macro_rules! config_setters {
    () => {
        /// Says who made the image.
        #[must_use]
        pub fn author(mut self, author: impl Into<String>) -> Self {
            self.changes.author = Some(author.into());
            self
        }

        /// Sets the platform, in the words of OCI: `platform("linux", "arm64", "v8")`. The variant may be empty. The
        /// default is the base image's platform, else this machine's.
        #[must_use]
        pub fn platform(
            mut self,
            os: impl Into<String>,
            architecture: impl Into<String>,
            variant: impl Into<String>,
        ) -> Self {
            self.changes.os = Some(os.into());
            self.changes.architecture = Some(architecture.into());
            self.changes.variant = Some(variant.into());
            self
        }

        /// Sets a variable of the environment.
        #[must_use]
        pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.changes.env.push((name.into(), value.into()));
            self
        }

        /// Sets the entrypoint, the words in front of the command. The base image's command then no longer counts, as
        /// in a Dockerfile.
        #[must_use]
        pub fn entrypoint(mut self, words: impl IntoIterator<Item: Into<String>>) -> Self {
            self.changes.entrypoint = Some(words.into_iter().map(Into::into).collect());
            self
        }

        /// Sets the command, or the default arguments of the entrypoint.
        #[must_use]
        pub fn cmd(mut self, words: impl IntoIterator<Item: Into<String>>) -> Self {
            self.changes.cmd = Some(words.into_iter().map(Into::into).collect());
            self
        }

        /// Sets the user, `USER[:GROUP]`.
        #[must_use]
        pub fn user(mut self, user: impl Into<String>) -> Self {
            self.changes.user = Some(user.into());
            self
        }

        /// Sets the directory in which the command runs.
        #[must_use]
        pub fn working_dir(mut self, directory: impl Into<String>) -> Self {
            self.changes.working_dir = Some(directory.into());
            self
        }

        /// Sets the signal that stops a container, such as `SIGINT`.
        #[must_use]
        pub fn stop_signal(mut self, signal: impl Into<String>) -> Self {
            self.changes.stop_signal = Some(signal.into());
            self
        }

        /// Sets a label.
        #[must_use]
        pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.changes.labels.insert(name.into(), value.into());
            self
        }

        /// Adds a port, `PORT[/PROTOCOL]`.
        #[must_use]
        pub fn expose(mut self, port: impl Into<String>) -> Self {
            self.changes.exposed_ports.insert(port.into());
            self
        }

        /// Adds a directory whose content belongs to the container, not to the image.
        #[must_use]
        pub fn volume(mut self, path: impl Into<String>) -> Self {
            self.changes.volumes.insert(path.into());
            self
        }
    };
}
pub(crate) use config_setters;

/// Makes an image from layers that are in the store: writes its config and manifest, and its record as image programs
/// expect it. Podman, Buildah, Skopeo and CRI-O use the result like an image of their own.
///
/// ```no_run
/// # async fn demo(store: graphroot::Store, blob: tokio::fs::File) -> graphroot::Result<()> {
/// use graphroot::{ImageBuilder, LayerOptions};
///
/// let layer = store.put_layer(None, LayerOptions::default(), blob).await?.layer;
/// let image = ImageBuilder::new()
///     .top_layer(layer.id())
///     .name("localhost/app:1")
///     .env("PATH", "/usr/bin:/bin")
///     .entrypoint(["/usr/bin/app"])
///     .cmd(["--serve"])
///     .build(&store)
///     .await?;
/// println!("{}", image.id());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct ImageBuilder {
    pub(crate) base: Option<String>,
    pub(crate) top_layer: Option<String>,
    pub(crate) names: Vec<String>,
    pub(crate) created: Option<SystemTime>,
    pub(crate) history: Vec<History>,
    pub(crate) changes: ConfigChanges,
}

/// An image on which another is built.
pub(crate) struct Base {
    pub(crate) image: Image,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<Layer>,
}

impl Base {
    /// Reads an image, which has to describe its layers.
    pub(crate) async fn read(store: &Store, id: &str) -> Result<Self> {
        let image = store.image(id).await?;
        let manifest = store.manifest_of(&image).await?;
        let config = store.config_of(&image, &manifest).await?;
        let layers = store.layers_up_to(image.top_layer()).await?;
        let steps = config.history.iter().filter(|step| !step.empty_layer).count();
        let fits = config.diff_ids.len() == layers.len()
            && layers.iter().zip(&config.diff_ids).all(|(layer, diff_id)| {
                layer
                    .uncompressed_digest()
                    .is_none_or(|digest| digest == *diff_id)
            })
            && (config.history.is_empty() || steps == layers.len());
        if !fits {
            let what = format!(
                "the config of image {:?} does not describe its layers",
                image.id()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        Ok(Self {
            image,
            manifest,
            config,
            layers,
        })
    }
}

impl ImageBuilder {
    /// An image of nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    config_setters!();

    /// Starts from an image (an ID, name or ID prefix): from its config, history and layers. A
    /// [`ImageBuilder::top_layer`] then has to lie on its top layer.
    #[must_use]
    pub fn base(mut self, image: impl Into<String>) -> Self {
        self.base = Some(image.into());
        self
    }

    /// Sets the image's top layer (an ID, name or ID prefix); those below it are in the image too.
    #[must_use]
    pub fn top_layer(mut self, layer: impl Into<String>) -> Self {
        self.top_layer = Some(layer.into());
        self
    }

    /// Adds a name, which is taken from an image that has it. Image programs expect `HOST/PATH:TAG`; those without a
    /// registry are under `localhost`.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Sets when the image was made; the default is the moment of [`ImageBuilder::build`]. The same layers, config,
    /// history and time give the same ID and digests.
    #[must_use]
    pub fn created(mut self, created: SystemTime) -> Self {
        self.created = Some(created);
        self
    }

    /// Adds a step to the history, in order. There is one for each layer that the base image does not have; for those
    /// that are not told, plain steps are added.
    #[must_use]
    pub fn history(mut self, step: History) -> Self {
        self.history.push(step);
        self
    }

    /// Writes the image.
    ///
    /// Takes the image lock exclusively for one step, in which everything becomes visible. For layers without a
    /// recorded digest their diffs are read first. If the store has an image with the same config already, that one
    /// gets the names.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`] (the base), [`ErrorKind::LayerUnknown`]; [`ErrorKind::InvalidInput`] if the layers
    /// do not lie on the base's, if the base's config does not describe its layers, if the history has more steps than
    /// there are layers, or for a name that image programs cannot read; those of [`Store::image_config`] for the base.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn build(self, store: &Store) -> Result<Image> {
        let base = match &self.base {
            Some(id) => Some(Base::read(store, id).await?),
            None => None,
        };
        self.build_on(store, base).await
    }

    pub(crate) async fn build_on(self, store: &Store, base: Option<Base>) -> Result<Image> {
        image_name::check_all(&self.names)?;
        let base_top = base.as_ref().and_then(|base| base.image.top_layer());
        let top = match &self.top_layer {
            Some(layer) => Some(store.layer(layer).await?.id().to_owned()),
            None => base_top.map(str::to_owned),
        };
        let layers = store.layers_up_to(top.as_deref()).await?;
        let below = base.as_ref().map_or(0, |base| base.layers.len());
        let on_base = base_top
            .is_none_or(|id| below > 0 && layers.get(below - 1).is_some_and(|layer| layer.id() == id));
        if !on_base {
            let what = format!(
                "layer {:?} does not lie on the top layer {:?} of the base image",
                top.unwrap_or_default(),
                base_top.unwrap_or_default()
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        let mut blobs: Vec<Descriptor> = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            // The base's config says it, also for a layer whose record does not.
            let known = base.as_ref().and_then(|base| base.config.diff_ids.get(index));
            let blob = store.plain_blob(layer, OCI_LAYER).await?;
            // Of a layer that is known by its table of contents, the tar stream that can be given counts.
            let is_by_toc = layer.uncompressed_digest().is_none() && layer.toc_digest().is_some();
            if !is_by_toc && known.is_some_and(|known| *known != blob.digest) {
                let what = format!(
                    "layer {:?} is not what the config of the base image says",
                    layer.id()
                );
                return Err(ErrorKind::InvalidInput.err(what));
            }
            blobs.push(blob);
        }
        let created = self.created.unwrap_or_else(SystemTime::now);
        let mut config = match &base {
            Some(base) => base.config.clone(),
            None => ImageConfig::empty("linux", architecture()),
        };
        config.run.drop_container_fields();
        config.created = Some(created);
        config.diff_ids = blobs.iter().map(|blob| blob.digest.clone()).collect();
        self.changes.apply(&mut config);
        if config.history.is_empty() {
            // A base image without a history gets one, or the steps would not be those of the layers.
            config.history = vec![History::default(); below];
        }
        config
            .history
            .extend(steps(self.history, layers.len() - below, created)?);
        config.write()?;

        let annotations = annotations(base.as_ref(), created);
        let size = config.bytes.len() as u64;
        let descriptor = Descriptor::new(OCI_CONFIG, config.digest.clone(), size);
        let manifest = ImageManifest::new(descriptor, blobs, &annotations)?;
        let document = (manifest.digest, manifest.bytes);
        let new = NewImage {
            id: config.digest.encoded().to_owned(),
            layer: top,
            names: self.names,
            created: Some(created),
            config: (config.digest, config.bytes),
            top: document.clone(),
            instance: document,
            signatures: Vec::new(),
        };
        image_record::write(store, new).await
    }
}

/// The steps of a history for this many new layers.
fn steps(mut told: Vec<History>, layers: usize, created: SystemTime) -> Result<Vec<History>> {
    let full = told.iter().filter(|step| !step.empty_layer).count();
    if full > layers {
        let what = format!("a history of {full} steps that made layers, for {layers} new layers");
        return Err(ErrorKind::InvalidInput.err(what));
    }
    told.extend(std::iter::repeat_n(History::default(), layers - full));
    if told.is_empty() {
        // Only the config is another one.
        told.push(History::default().empty_layer());
    }
    for step in &mut told {
        step.created = step.created.or(Some(created));
    }
    Ok(told)
}

/// What the manifest says about the image and its base, as newest Buildah writes it.
fn annotations(base: Option<&Base>, created: SystemTime) -> BTreeMap<&'static str, String> {
    let mut annotations = BTreeMap::from([("org.opencontainers.image.created", write_time(created))]);
    if let Some(base) = base {
        let digest: &Digest = &base.manifest.digest;
        annotations.insert("org.opencontainers.image.base.digest", digest.to_string());
        if let Some(name) = base.image.names().first() {
            annotations.insert("org.opencontainers.image.base.name", name.clone());
        }
    }
    annotations
}

/// This machine's processor architecture, in the words of Go.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_new_layer_has_a_step_and_no_step_is_without_a_layer() {
        let now = SystemTime::UNIX_EPOCH;
        let names = |told: &[History], layers| {
            let steps = steps(told.to_vec(), layers, now)?;
            assert!(steps.iter().all(|step| step.created.is_some()));
            Ok(steps
                .iter()
                .map(|step| (step.created_by.clone(), step.empty_layer))
                .collect::<Vec<_>>())
        };
        let step = |name: &str| History::new(name);
        let plain = || (String::new(), false);
        assert_eq!(names(&[], 2).unwrap(), [plain(), plain()]);
        assert_eq!(names(&[], 0).unwrap(), [(String::new(), true)]);
        let told = [step("env").empty_layer(), step("copy")];
        let expected = [("env".to_owned(), true), ("copy".to_owned(), false), plain()];
        assert_eq!(names(&told, 2).unwrap(), expected);
        let error: crate::error::Error = names(&told, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn an_entrypoint_replaces_the_command_of_the_base() {
        let mut config = ImageConfig::empty("linux", "amd64");
        config.run.cmd = vec!["old".into()];
        let entry = |changes: ConfigChanges| {
            let mut config = config.clone();
            changes.apply(&mut config);
            config.run.command()
        };
        let changes = ImageBuilder::new().entrypoint(["new"]).changes;
        assert_eq!(entry(changes), ["new"]);
        let changes = ImageBuilder::new().cmd(["argument"]).entrypoint(["new"]).changes;
        assert_eq!(entry(changes), ["new", "argument"]);
        assert_eq!(entry(ConfigChanges::default()), ["old"]);
    }
}
