//! Options of pulls and pushes.

use super::platform::Platform;
use super::policy::Policy;
use super::progress::Progress;
use super::registry_options::RegistryOptions;
use crate::compression::Compression;

/// How a [`Puller`](super::Puller) works.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// Which image of an index is meant; by default the one for this machine.
    pub platform: Platform,
    /// Blobs that are downloaded at the same time; 0 counts as 1.
    pub downloads: usize,
    /// Layers that are unpacked at the same time; 0 counts as 1. A blob is unpacked while it is downloaded, so fewer
    /// than [`PullOptions::downloads`] bound those too.
    pub unpackers: usize,
    /// Keep what was received of a blob when its download is interrupted, for the next attempt. It costs writing each
    /// blob to disk beside its layer's files.
    pub keep_partial: bool,
    /// Credentials, TLS, retries and time limits.
    pub registry: RegistryOptions,
    /// Which images may be pulled; by default all.
    pub policy: Policy,
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
            registry: RegistryOptions::default(),
            policy: Policy::default(),
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

    /// Sets [`PullOptions::registry`].
    #[must_use]
    pub fn registry(mut self, registry: RegistryOptions) -> Self {
        self.registry = registry;
        self
    }

    /// Sets [`PullOptions::policy`].
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Sets [`PullOptions::progress`].
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}

/// How an image is pushed.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// Compression of layers that the destination does not have. A `docker-archive:` holds uncompressed layers whatever
    /// this says. Images whose layers become zstd:chunked get a manifest in the format of OCI, where the annotations go
    /// that partial pulls need.
    pub compression: Compression,
    /// Level of the compression, as in [`DiffOptions::level`](crate::DiffOptions::level).
    pub level: Option<i32>,
    /// Layers that are compressed and sent at the same time; 0 counts as 1.
    pub uploads: usize,
    /// Credentials, TLS, retries and time limits.
    pub registry: RegistryOptions,
    /// Where events go.
    pub progress: Progress,
}

impl Default for PushOptions {
    fn default() -> Self {
        Self {
            compression: Compression::Gzip,
            level: None,
            uploads: 4,
            registry: RegistryOptions::default(),
            progress: Progress::default(),
        }
    }
}

impl PushOptions {
    /// Sets [`PushOptions::compression`].
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets [`PushOptions::level`].
    #[must_use]
    pub fn level(mut self, level: impl Into<Option<i32>>) -> Self {
        self.level = level.into();
        self
    }

    /// Sets [`PushOptions::uploads`].
    #[must_use]
    pub fn uploads(mut self, uploads: usize) -> Self {
        self.uploads = uploads;
        self
    }

    /// Sets [`PushOptions::registry`].
    #[must_use]
    pub fn registry(mut self, registry: RegistryOptions) -> Self {
        self.registry = registry;
        self
    }

    /// Sets [`PushOptions::progress`].
    #[must_use]
    pub fn progress(mut self, progress: Progress) -> Self {
        self.progress = progress;
        self
    }
}
