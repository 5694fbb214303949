//! What is copied to another store, and what is told of it.

use std::fmt;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::store::check::finding::ItemKind;

/// What [`Store::copy_to`](crate::Store::copy_to) copies. By default that is everything.
///
/// ```
/// # async fn demo(store: graphroot::Store, other: graphroot::Store) -> graphroot::Result<()> {
/// use graphroot::CopyOptions;
/// let options = CopyOptions::new().image("localhost/app:1").container("app");
/// store.copy_to(&other, options).await?;
/// # Ok(())
/// # }
/// ```
#[non_exhaustive]
#[derive(Clone, Default)]
pub struct CopyOptions {
    /// Images, by ID, name or beginning of an ID. If there are neither images nor containers here, everything is copied that the
    /// store can change.
    pub images: Vec<String>,
    /// Containers, by ID, name or beginning of an ID. Their images come with them.
    pub containers: Vec<String>,
    /// Leave out containers where everything is copied.
    pub without_containers: bool,
    /// Replace containers of the other store that are not what they are in this one now.
    pub refresh: bool,
    /// Only find out what would be copied.
    pub dry_run: bool,
    progress: Option<Progress>,
}

/// A function that is told of progress.
type Progress = Arc<dyn Fn(CopyEvent) + Send + Sync>;

/// How far it is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEvent {
    /// It is known what is missing in the other store.
    Started {
        /// How many layers are copied, those of containers included.
        layers: usize,
        /// How many images.
        images: usize,
        /// How many containers.
        containers: usize,
    },
    /// A container, or a layer without a digest, that is there already is being compared.
    Comparing {
        /// Its ID.
        id: String,
    },
    /// An item is being copied.
    Copying {
        /// What it is.
        kind: ItemKind,
        /// Its ID.
        id: String,
    },
    /// A part of a layer's stream has been read.
    Read {
        /// The layer's ID.
        layer: String,
        /// Bytes since the last event of this layer.
        bytes: u64,
    },
    /// An item is in the other store.
    Copied {
        /// What it is.
        kind: ItemKind,
        /// Its ID.
        id: String,
    },
}

impl CopyOptions {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one to [`CopyOptions::images`].
    #[must_use]
    pub fn image(mut self, image: impl Into<String>) -> Self {
        self.images.push(image.into());
        self
    }

    /// Adds some to [`CopyOptions::images`].
    #[must_use]
    pub fn images(mut self, images: impl IntoIterator<Item: Into<String>>) -> Self {
        self.images.extend(images.into_iter().map(Into::into));
        self
    }

    /// Adds one to [`CopyOptions::containers`].
    #[must_use]
    pub fn container(mut self, container: impl Into<String>) -> Self {
        self.containers.push(container.into());
        self
    }

    /// Adds some to [`CopyOptions::containers`].
    #[must_use]
    pub fn containers(mut self, containers: impl IntoIterator<Item: Into<String>>) -> Self {
        self.containers.extend(containers.into_iter().map(Into::into));
        self
    }

    /// Sets [`CopyOptions::without_containers`].
    #[must_use]
    pub fn without_containers(mut self, without_containers: bool) -> Self {
        self.without_containers = without_containers;
        self
    }

    /// Sets [`CopyOptions::refresh`].
    #[must_use]
    pub fn refresh(mut self, refresh: bool) -> Self {
        self.refresh = refresh;
        self
    }

    /// Sets [`CopyOptions::dry_run`].
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Has `tell` be called with what is done. It is called on the tasks that do it and must not block.
    #[must_use]
    pub fn progress(mut self, tell: impl Fn(CopyEvent) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(tell));
        self
    }

    pub(super) fn tell(&self, event: impl FnOnce() -> CopyEvent) {
        if let Some(progress) = &self.progress {
            progress(event());
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        match self.without_containers && !self.containers.is_empty() {
            true => Err(ErrorKind::InvalidInput.err("containers are named, and to be left out")),
            false => Ok(()),
        }
    }

    /// Whether only what is named is copied.
    pub(super) fn is_selection(&self) -> bool {
        !(self.images.is_empty() && self.containers.is_empty())
    }
}

impl fmt::Debug for CopyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CopyOptions")
            .field("images", &self.images)
            .field("containers", &self.containers)
            .field("without_containers", &self.without_containers)
            .field("refresh", &self.refresh)
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}
