//! What is healed, and from where.

use std::fmt;
use std::sync::Arc;

use crate::store::check::report::CheckReport;
use crate::store::heal::source::HealSource;

/// What [`Store::heal`](crate::Store::heal) makes anew, and where it takes that from.
///
/// ```
/// # async fn demo(store: graphroot::Store, healthy: graphroot::Store) {
/// use graphroot::HealOptions;
/// let options = HealOptions::default().item("localhost/demo:1").source(healthy);
/// # drop((store, options));
/// # }
/// ```
#[non_exhaustive]
#[derive(Clone, Default)]
pub struct HealOptions {
    /// Layers and images, by ID, name or beginning of an ID. An image stands for all of its layers. If there are none, all of
    /// the store.
    pub items: Vec<String>,
    /// Where content is taken from, beside the store itself and its additional stores. They are asked in this order.
    pub sources: Vec<Arc<dyn HealSource>>,
    /// What a check has found; without, the items are checked first.
    pub found: Option<CheckReport>,
    progress: Option<Progress>,
}

/// A function that is told of progress.
type Progress = Arc<dyn Fn(HealEvent) + Send + Sync>;

/// How far it is.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealEvent {
    /// The damaged layers are known. Sent again if more are found.
    Started {
        /// How many.
        layers: usize,
    },
    /// The content of a layer is read from a source.
    Reading {
        /// The layer's ID.
        layer: String,
        /// The source.
        source: String,
    },
    /// A part of it has been read.
    Read {
        /// The layer's ID.
        layer: String,
        /// Bytes since the last event of this layer, as the source has them, perhaps compressed.
        bytes: u64,
    },
    /// A layer is whole again.
    Healed {
        /// The layer's ID.
        layer: String,
    },
}

impl HealOptions {
    /// Adds one to [`HealOptions::items`].
    #[must_use]
    pub fn item(mut self, item: impl Into<String>) -> Self {
        self.items.push(item.into());
        self
    }

    /// Adds some to [`HealOptions::items`].
    #[must_use]
    pub fn items(mut self, items: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.items.extend(items.into_iter().map(Into::into));
        self
    }

    /// Adds one to [`HealOptions::sources`].
    #[must_use]
    pub fn source(mut self, source: impl HealSource + 'static) -> Self {
        self.sources.push(Arc::new(source));
        self
    }

    /// Sets [`HealOptions::found`].
    #[must_use]
    pub fn found(mut self, report: CheckReport) -> Self {
        self.found = Some(report);
        self
    }

    /// Has `tell` be called with what is done. It is called on the tasks that do it and must not block.
    #[must_use]
    pub fn progress(mut self, tell: impl Fn(HealEvent) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(tell));
        self
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> HealEvent) {
        if let Some(progress) = &self.progress {
            progress(event());
        }
    }

    /// What has to be told of progress.
    pub(crate) fn teller(&self) -> Option<Progress> {
        self.progress.clone()
    }
}

impl fmt::Debug for HealOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealOptions")
            .field("items", &self.items)
            .field("sources", &self.sources)
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}
