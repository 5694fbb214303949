//! What a check of the store looks at, and what a repair removes.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// How old a layer must be at least before it is reported that nothing refers to it: a day.
pub(crate) const UNREFERENCED_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// What [`Store::check`](crate::Store::check) looks at. The default is [`CheckOptions::most`].
///
/// ```
/// use graphroot::CheckOptions;
/// use std::time::Duration;
///
/// let options = CheckOptions::everything().layer_unreferenced_maximum_age(Duration::ZERO);
/// assert!(options.layer_contents && !CheckOptions::most().layer_contents);
/// ```
#[non_exhaustive]
#[derive(Clone)]
pub struct CheckOptions {
    /// How old a layer to which nothing refers must be before it is reported. A day unless set.
    pub layer_unreferenced_maximum_age: Duration,
    /// Whether the stream that each layer of an image came from can be made again, with the digest, size and checksums of
    /// files that were recorded. All content is read.
    pub layer_digests: bool,
    /// Whether each layer can be mounted. The mounts are private and last a moment.
    pub layer_mountable: bool,
    /// Whether the trees of layers are as their streams describe them: nothing missing, nothing added, no other metadata.
    /// Needs [`CheckOptions::layer_digests`].
    ///
    /// Not compared are the root directory and the times of directories, which using a store changes; which names are hard
    /// links of one file, since copies of a store and deduplication change that; and added attributes other than `user.`
    /// ones, file capabilities and those of overlayfs, since the host sets them.
    pub layer_contents: bool,
    /// Whether big data items of layers can be read.
    pub layer_data: bool,
    /// Whether big data items of images can be read, and have the size and digest that were recorded.
    pub image_data: bool,
    /// Likewise for containers.
    pub container_data: bool,
    /// The layers whose contents are looked at; `None` for all.
    pub(crate) only: Option<Arc<HashSet<String>>>,
    pub(crate) progress: Option<Progress>,
}

/// A function that is told of progress.
#[derive(Clone)]
pub(crate) struct Progress(Arc<dyn Fn(CheckEvent) + Send + Sync>);

impl Progress {
    pub(crate) fn tell(&self, event: CheckEvent) {
        (self.0)(event);
    }
}

/// How far a check is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckEvent {
    /// The records have been read, and the checks of layers begin.
    Started {
        /// How many layers there are.
        layers: usize,
        /// Bytes of their streams, as far as they are recorded.
        bytes: u64,
    },
    /// A part of a layer's stream has been read.
    Read {
        /// The layer's ID.
        layer: String,
        /// Bytes since the last event of this layer.
        bytes: u64,
    },
    /// All checks of a layer are done.
    Done {
        /// The layer's ID.
        layer: String,
        /// How much was found to be wrong with it.
        findings: usize,
    },
}

impl CheckOptions {
    /// Everything but the comparison of trees ([`CheckOptions::layer_contents`]), as the Go library without options.
    pub const fn most() -> Self {
        Self {
            layer_unreferenced_maximum_age: UNREFERENCED_AGE,
            layer_digests: true,
            layer_mountable: true,
            layer_contents: false,
            layer_data: true,
            image_data: true,
            container_data: true,
            only: None,
            progress: None,
        }
    }

    /// Everything.
    pub fn everything() -> Self {
        Self {
            layer_contents: true,
            ..Self::most()
        }
    }

    /// The records alone: what refers to what, and what the driver has. Reads no content.
    pub fn records() -> Self {
        Self {
            layer_digests: false,
            layer_mountable: false,
            layer_data: false,
            image_data: false,
            container_data: false,
            ..Self::most()
        }
    }

    /// Sets [`CheckOptions::layer_unreferenced_maximum_age`].
    #[must_use]
    pub fn layer_unreferenced_maximum_age(mut self, age: Duration) -> Self {
        self.layer_unreferenced_maximum_age = age;
        self
    }

    /// Sets [`CheckOptions::layer_digests`].
    #[must_use]
    pub fn layer_digests(mut self, check: bool) -> Self {
        self.layer_digests = check;
        self
    }

    /// Sets [`CheckOptions::layer_mountable`].
    #[must_use]
    pub fn layer_mountable(mut self, check: bool) -> Self {
        self.layer_mountable = check;
        self
    }

    /// Sets [`CheckOptions::layer_contents`].
    #[must_use]
    pub fn layer_contents(mut self, check: bool) -> Self {
        self.layer_contents = check;
        self
    }

    /// Sets [`CheckOptions::layer_data`].
    #[must_use]
    pub fn layer_data(mut self, check: bool) -> Self {
        self.layer_data = check;
        self
    }

    /// Sets [`CheckOptions::image_data`].
    #[must_use]
    pub fn image_data(mut self, check: bool) -> Self {
        self.image_data = check;
        self
    }

    /// Sets [`CheckOptions::container_data`].
    #[must_use]
    pub fn container_data(mut self, check: bool) -> Self {
        self.container_data = check;
        self
    }

    /// Has `tell` be called with what the check does. It is called on the tasks of the check and must not block.
    #[must_use]
    pub fn progress(mut self, tell: impl Fn(CheckEvent) + Send + Sync + 'static) -> Self {
        self.progress = Some(Progress(Arc::new(tell)));
        self
    }

    /// Whether the content of a layer is to be looked at.
    pub(crate) fn includes(&self, layer: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(layer))
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> CheckEvent) {
        if let Some(progress) = &self.progress {
            progress.tell(event());
        }
    }
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self::most()
    }
}

impl fmt::Debug for CheckOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CheckOptions")
            .field(
                "layer_unreferenced_maximum_age",
                &self.layer_unreferenced_maximum_age,
            )
            .field("layer_digests", &self.layer_digests)
            .field("layer_mountable", &self.layer_mountable)
            .field("layer_contents", &self.layer_contents)
            .field("layer_data", &self.layer_data)
            .field("image_data", &self.image_data)
            .field("container_data", &self.container_data)
            .finish_non_exhaustive()
    }
}

/// What [`Store::repair`](crate::Store::repair) may do. The default is [`RepairOptions::everything`], as in the Go library.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepairOptions {
    /// Damaged containers, and those on damaged images, are deleted. Without, they and what they stand on stay.
    pub remove_containers: bool,
    /// Files of records that are damaged are written anew, from what can be read of them and what the disk tells. Nothing
    /// is lost by it: the damaged file is kept beside the new one. Then nothing else is done; another check tells what is.
    pub rebuild_records: bool,
    /// Layers that are in none of the stores are lost, and what stands on them is removed. Without, that stays if nothing else
    /// is wrong with it: they may be in an additional store that the store was not opened with.
    pub missing_layers_are_lost: bool,
    /// Nothing is changed; the result says what would be. What is hidden by damage that would be mended, or by records that would be
    /// written anew, only a check after that can find.
    pub dry_run: bool,
}

impl RepairOptions {
    /// Whatever is damaged is removed, containers too, and what stands on layers that are in none of the stores.
    pub const fn everything() -> Self {
        Self {
            remove_containers: true,
            missing_layers_are_lost: true,
            rebuild_records: true,
            dry_run: false,
        }
    }

    /// Containers stay, with what they stand on, and so does what stands on layers that are in none of the stores.
    pub const fn keeping_containers() -> Self {
        Self {
            remove_containers: false,
            missing_layers_are_lost: false,
            rebuild_records: true,
            dry_run: false,
        }
    }

    /// Sets [`RepairOptions::remove_containers`].
    #[must_use]
    pub fn remove_containers(mut self, remove: bool) -> Self {
        self.remove_containers = remove;
        self
    }

    /// Sets [`RepairOptions::rebuild_records`].
    #[must_use]
    pub fn rebuild_records(mut self, rebuild: bool) -> Self {
        self.rebuild_records = rebuild;
        self
    }

    /// Sets [`RepairOptions::missing_layers_are_lost`].
    #[must_use]
    pub fn missing_layers_are_lost(mut self, lost: bool) -> Self {
        self.missing_layers_are_lost = lost;
        self
    }

    /// Sets [`RepairOptions::dry_run`].
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

impl Default for RepairOptions {
    fn default() -> Self {
        Self::everything()
    }
}
