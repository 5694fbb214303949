//! What a pull tells while it is at work.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::digest::Digest;

/// Something that happened in a pull or push. Cheap to clone and to throw away.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Event {
    /// About an image.
    Image {
        /// Its reference as text.
        image: Arc<str>,
        /// What happened.
        state: ImageState,
    },
    /// About a layer's blob. Several images may have it in common; it is told once.
    Blob {
        /// The blob's digest.
        digest: Digest,
        /// What happened.
        state: BlobState,
    },
}

/// What happens to an image.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum ImageState {
    /// Its manifest was read.
    Resolved {
        /// Digest of the manifest for the platform.
        manifest: Digest,
        /// Digests and sizes in bytes of its layers' blobs, lowest first.
        blobs: Vec<(Digest, u64)>,
    },
    /// It is in its place with everything that belongs to it.
    Done {
        /// Its ID.
        id: String,
    },
    /// It was given up.
    Failed {
        /// All levels of the error in one line.
        error: String,
    },
}

/// What happens to a blob.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// The transfer begins.
    Started {
        /// Its size in bytes.
        total: u64,
        /// How many of them are here already, from an interrupted transfer.
        kept: u64,
    },
    /// Bytes that have come so far, those that were kept included. Told now and then, never decreasing.
    Transferred {
        /// Bytes.
        bytes: u64,
    },
    /// The transfer broke off and will go on.
    Retrying {
        /// In how long.
        wait: Duration,
        /// Why.
        reason: String,
    },
    /// All is unpacked and verified, and waits for the layers below.
    Unpacked,
    /// The layer is in the store.
    Committed {
        /// The layer's ID.
        layer: String,
    },
    /// Nothing had to be transferred: the layer, or the blob, was there already.
    Reused {
        /// The layer's ID, or the digest of the blob at the destination.
        item: String,
    },
}

/// Where events go. Cheap to clone; the default throws them away.
#[derive(Clone, Default)]
pub struct Progress {
    sink: Option<Arc<dyn Fn(Event) + Send + Sync>>,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.sink.is_some()).finish()
    }
}

impl Progress {
    /// Calls `sink` for every event, from any task: it must be quick.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            sink: Some(Arc::new(sink)),
        }
    }

    /// Sends every event to a stream. Events of transfers are told at intervals, so a reader that is slow for a while
    /// makes the queue grow by little; one that is gone costs nothing.
    pub fn channel() -> (Self, Events) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let progress = Self::new(move |event| {
            // Nobody needs to know if nobody listens any more.
            drop(sender.send(event));
        });
        (progress, Events { receiver })
    }

    pub(crate) fn image(&self, image: &Arc<str>, state: impl FnOnce() -> ImageState) {
        if let Some(sink) = &self.sink {
            sink(Event::Image {
                image: Arc::clone(image),
                state: state(),
            });
        }
    }

    pub(crate) fn blob(&self, digest: &Digest, state: impl FnOnce() -> BlobState) {
        if let Some(sink) = &self.sink {
            sink(Event::Blob {
                digest: digest.clone(),
                state: state(),
            });
        }
    }
}

/// The events of a [`Progress::channel`].
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::UnboundedReceiver<Event>,
}

impl Events {
    /// The next event; `None` when all clones of the [`Progress`] are gone, so when everything has ended.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}

impl futures::Stream for Events {
    type Item = Event;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Event>> {
        self.receiver.poll_recv(cx)
    }
}

/// How many bytes go between two events about one transfer.
const STEP: u64 = 256 * 1024;

/// Counts the bytes of one transfer and tells now and then.
#[derive(Debug)]
pub(crate) struct Meter {
    progress: Progress,
    digest: Digest,
    count: u64,
    told: u64,
}

impl Meter {
    /// Begins a transfer of `total` bytes of which `kept` are there.
    pub(crate) fn start(progress: &Progress, digest: &Digest, total: u64, kept: u64) -> Self {
        progress.blob(digest, || BlobState::Started { total, kept });
        Self {
            progress: progress.clone(),
            digest: digest.clone(),
            count: kept,
            told: kept,
        }
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, bytes: u64) {
        self.count += bytes;
        if self.count - self.told >= STEP {
            self.tell();
        }
    }

    /// Tells that the transfer broke off.
    pub(crate) fn retrying(&mut self, wait: Duration, reason: String) {
        self.tell();
        self.progress
            .blob(&self.digest, || BlobState::Retrying { wait, reason });
    }

    /// Tells the sum, if it is new.
    pub(crate) fn tell(&mut self) {
        if self.count > self.told {
            self.told = self.count;
            let bytes = self.count;
            self.progress
                .blob(&self.digest, || BlobState::Transferred { bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn transfers_are_told_at_intervals_and_to_the_last_byte() {
        let (progress, mut events) = Progress::channel();
        let digest = Digest::sha256(b"x");
        let mut meter = Meter::start(&progress, &digest, 3 * STEP + 5, 5);
        for _ in 0..3 * STEP / 1024 {
            meter.add(1024);
        }
        meter.tell();
        drop((progress, meter));
        let mut told = Vec::new();
        while let Some(event) = events.next().await {
            let Event::Blob { state, .. } = event else {
                panic!("{event:?}")
            };
            told.push(state);
        }
        let at = |bytes| BlobState::Transferred { bytes };
        let begin = BlobState::Started {
            total: 3 * STEP + 5,
            kept: 5,
        };
        assert_eq!(told, [begin, at(STEP + 5), at(2 * STEP + 5), at(3 * STEP + 5)]);
    }
}
