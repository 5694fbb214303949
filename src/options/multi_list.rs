//! What is listed together.

use serde::{Deserialize, Serialize};

/// Which kinds [`Store::multi_list`](crate::Store::multi_list) lists.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiListOptions {
    /// Images.
    pub images: bool,
    /// Layers.
    pub layers: bool,
    /// Containers.
    pub containers: bool,
}

impl MultiListOptions {
    /// All three kinds.
    pub const ALL: Self = Self {
        images: true,
        layers: true,
        containers: true,
    };

    /// Sets [`MultiListOptions::images`].
    #[must_use]
    pub fn images(mut self, images: bool) -> Self {
        self.images = images;
        self
    }

    /// Sets [`MultiListOptions::layers`].
    #[must_use]
    pub fn layers(mut self, layers: bool) -> Self {
        self.layers = layers;
        self
    }

    /// Sets [`MultiListOptions::containers`].
    #[must_use]
    pub fn containers(mut self, containers: bool) -> Self {
        self.containers = containers;
        self
    }
}
