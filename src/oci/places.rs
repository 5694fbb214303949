//! The places that an image in a registry is pulled from, as `registries.conf` says: mirrors, and the registry itself at the
//! end. Whoever fails is passed over, in the middle of a blob, too.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::OnceCell;

use super::reference::RegistryRef;
use super::registries_conf::PullSource;
use super::repository::{Access, Registries, Repository};
use crate::error::{Error, ErrorKind, Result};

/// How often a request is repeated that another place may answer.
const RETRIES_BEFORE_LAST: u32 = 1;

/// The places of one image.
pub(crate) struct Places {
    registries: Arc<Registries>,
    all: Vec<(PullSource, OnceCell<Arc<Repository>>)>,
    /// The first one that is asked: those before it do not have the image, or cannot be reached.
    first: AtomicUsize,
}

impl fmt::Debug for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.all.iter().map(|(source, _)| source))
            .finish()
    }
}

impl Places {
    /// Those of an image. Nothing is connected to yet.
    pub(crate) fn new(registries: &Arc<Registries>, image: &RegistryRef) -> Result<Self> {
        let sources = registries.options.registries_conf.sources(image)?;
        Ok(Self {
            registries: Arc::clone(registries),
            all: sources
                .into_iter()
                .map(|source| (source, OnceCell::new()))
                .collect(),
            first: AtomicUsize::new(0),
        })
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The number of the place to be asked first.
    pub(crate) fn first(&self) -> usize {
        self.first.load(Ordering::Relaxed)
    }

    /// Whether there is one behind it.
    fn is_last(&self, place: usize) -> bool {
        place + 1 >= self.all.len()
    }

    /// The place to go on at where `place` has failed.
    ///
    /// # Errors
    /// Its `error`, if there is none.
    pub(crate) fn after(&self, place: usize, error: Error) -> Result<usize> {
        if self.is_last(place) {
            return Err(error);
        }
        tracing::debug!(error = %error.chain(), ?self, place, "pulling from the next place");
        // One that lacks one blob may have the others.
        if error.kind() != ErrorKind::NotFound {
            self.first.fetch_max(place + 1, Ordering::Relaxed);
        }
        Ok(place + 1)
    }

    /// The repository at a place.
    pub(crate) async fn open(&self, place: usize) -> Result<Arc<Repository>> {
        let (source, repository) = self
            .all
            .get(place)
            .ok_or_else(|| ErrorKind::NotFound.err("nowhere to pull from"))?;
        let made = repository.get_or_try_init(|| async {
            let most = if self.is_last(place) {
                u32::MAX
            } else {
                RETRIES_BEFORE_LAST
            };
            let retry = self.registries.retry(most);
            let opened = self
                .registries
                .repository(&source.image, Access::Pull, source.insecure, retry);
            Ok(Arc::new(opened.await?))
        });
        made.await.map(Arc::clone)
    }

    /// The repository that the manifest came from.
    #[cfg(feature = "signatures")]
    pub(crate) async fn current(&self) -> Result<Arc<Repository>> {
        self.open(self.first()).await
    }

    /// Asks one place after the other until one answers, and all others after that one from there on.
    pub(crate) async fn ask_all<T, F>(&self, ask: impl Fn(Arc<Repository>) -> F + Send + Sync) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let (place, answer) = self.ask_from(ask).await?;
        self.first.fetch_max(place, Ordering::Relaxed);
        Ok(answer)
    }

    /// Asks one place after the other until one answers.
    pub(crate) async fn ask<T, F>(&self, ask: impl Fn(Arc<Repository>) -> F + Send + Sync) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        Ok(self.ask_from(ask).await?.1)
    }

    async fn ask_from<T, F>(&self, ask: impl Fn(Arc<Repository>) -> F + Send + Sync) -> Result<(usize, T)>
    where
        F: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let mut place = self.first();
        let mut failed: Vec<String> = Vec::new();
        loop {
            let answer = match self.open(place).await {
                Ok(repository) => ask(repository).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(answer) => return Ok((place, answer)),
                Err(error) => {
                    let told = match self.all.get(place) {
                        Some((source, _)) => format!("[{}: {}]", source.image, error.chain()),
                        None => error.chain(),
                    };
                    place = self
                        .after(place, error)
                        .map_err(|error| match failed.is_empty() {
                            true => error,
                            false => error.context(format!("(Mirrors also failed: {})", failed.join("\n"))),
                        })?;
                    failed.push(told);
                }
            }
        }
    }
}
