//! The locks that a step needs.

/// How a lock is held. The order is that of what it excludes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    /// Not.
    #[default]
    None,
    /// With others that only read.
    Shared,
    /// Alone.
    Exclusive,
}

/// The locks that a step needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// The graph lock, exclusively, with a driver that is running.
    pub(super) graph: bool,
    pub(super) layers: Level,
    pub(super) images: Level,
    /// The image store of the graph root beside a separate one, exclusively.
    pub(super) graph_images: bool,
    /// The containers, exclusively.
    pub(super) containers: bool,
    /// The additional stores of each kind that is held, shared.
    pub(super) additional: bool,
}

impl Needs {
    /// The layers, exclusively.
    pub(crate) const LAYERS: Self = Self {
        graph: false,
        layers: Level::Exclusive,
        images: Level::None,
        graph_images: false,
        containers: false,
        additional: false,
    };
    /// The primary image store, exclusively.
    pub(crate) const IMAGES: Self = Self {
        layers: Level::None,
        images: Level::Exclusive,
        ..Self::LAYERS
    };
    /// As [`Needs::IMAGES`], on layers that stay.
    pub(crate) const IMAGES_ON_LAYERS: Self = Self {
        layers: Level::Shared,
        additional: true,
        ..Self::IMAGES
    };
    /// The containers, exclusively.
    pub(crate) const CONTAINERS: Self = Self {
        layers: Level::None,
        containers: true,
        ..Self::LAYERS
    };
    /// Everything that can be written, exclusively.
    pub(crate) const ALL: Self = Self {
        images: Level::Exclusive,
        graph_images: true,
        containers: true,
        ..Self::LAYERS
    };
    /// The layers, exclusively, with the additional layer stores.
    pub(crate) const LAYERS_OF_ALL_STORES: Self = Self {
        additional: true,
        ..Self::LAYERS
    };
    /// A layer and a container on an image that stays.
    pub(crate) const CONTAINER_ON_IMAGE: Self = Self {
        images: Level::Shared,
        containers: true,
        additional: true,
        ..Self::LAYERS
    };

    /// These, with the graph lock.
    pub(crate) const fn with_graph(self) -> Self {
        Self { graph: true, ..self }
    }

    /// These, with the images as they are, in all stores.
    pub(crate) const fn with_images(self) -> Self {
        Self {
            images: Level::Shared,
            additional: true,
            ..self
        }
    }

    /// These, with the primary image store exclusively.
    pub(crate) const fn with_images_to_change(self) -> Self {
        Self {
            images: Level::Exclusive,
            ..self
        }
    }

    /// Whether a step with these needs can run where `other` is held.
    pub(super) fn is_covered_by(self, other: Self) -> bool {
        self.union(other) == other
    }

    /// What covers both.
    pub(super) fn union(self, other: Self) -> Self {
        Self {
            graph: self.graph || other.graph,
            layers: self.layers.max(other.layers),
            images: self.images.max(other.images),
            graph_images: self.graph_images || other.graph_images,
            containers: self.containers || other.containers,
            additional: self.additional || other.additional,
        }
    }
}
