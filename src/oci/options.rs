//! Options of pulls and pushes.

use std::path::PathBuf;
use std::time::Duration;

use super::platform::Platform;
use super::progress::Progress;
use super::registry::RegistryOptions;

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
