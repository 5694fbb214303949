//! Events of pulls and pushes.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::digest::Digest;

/// Something that happened in a pull or push. Cheap to clone.
///
/// Serialized as one flat object with the field `event`:
///
/// ```
/// use graphroot::Digest;
/// use graphroot::oci::{BlobState, Event};
/// let event = Event::Blob { digest: Digest::sha256(b""), state: BlobState::Transferred { bytes: 7 } };
/// let json = serde_json::to_value(&event).unwrap();
/// assert_eq!((&json["event"], &json["bytes"]), (&"transferred".into(), &7.into()));
/// ```
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Event {
    /// About an image.
    Image {
        /// Its reference as text.
        #[serde(with = "shared_text")]
        image: Arc<str>,
        /// What happened.
        #[serde(flatten)]
        state: ImageState,
    },
    /// About a layer's blob. If several images of one puller share it, the event comes once.
    Blob {
        /// The blob's digest.
        #[serde(rename = "blob")]
        digest: Digest,
        /// What happened.
        #[serde(flatten)]
        state: BlobState,
    },
}

/// What happens to an image.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ImageState {
    /// Its manifest was read.
    Resolved {
        /// Digest of the manifest for the platform.
        manifest: Digest,
        /// Digests and sizes in bytes of its layers' blobs, lowest first.
        #[serde(with = "sized_blobs")]
        blobs: Vec<(Digest, u64)>,
    },
    /// The pull or push has succeeded.
    Done {
        /// ID of the pulled image, or digest of the pushed manifest.
        id: String,
    },
    /// The pull or push has failed.
    Failed {
        /// All levels of the error in one line.
        error: String,
    },
}

/// What happens to a blob.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum BlobState {
    /// The transfer begins.
    Started {
        /// Its size in bytes.
        total: u64,
        /// How many of them are here already, from an interrupted transfer.
        kept: u64,
    },
    /// Bytes received or sent so far, those that were kept included. Comes at intervals and at the last byte.
    Transferred {
        /// Bytes.
        bytes: u64,
    },
    /// Bytes of the blob so far that are not transferred, since the store has the files that they hold. Comes at
    /// intervals in the pull of a layer that is fetched in parts; the rest of such a blob may be needed for nothing.
    PartlyReused {
        /// Bytes.
        bytes: u64,
    },
    /// The transfer broke off and will be resumed.
    Retrying {
        /// When, from now. Serialized in milliseconds.
        #[serde(rename = "wait_ms", with = "milliseconds")]
        wait: Duration,
        /// Why.
        reason: String,
    },
    /// The layer is unpacked and verified, and waits for the layers below.
    Unpacked,
    /// The layer is in the store, or the blob at the destination.
    Committed {
        /// The layer's ID.
        layer: String,
    },
    /// Nothing was transferred: the layer, or the blob, was there already.
    Reused {
        /// The layer's ID, or the digest of the blob at the destination.
        item: String,
    },
}

mod shared_text {
    use std::sync::Arc;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<str>, D::Error> {
        String::deserialize(deserializer).map(Into::into)
    }
}

mod milliseconds {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(time.as_secs_f64() * 1e3)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let milliseconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(milliseconds / 1e3).map_err(D::Error::custom)
    }
}

mod sized_blobs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::digest::Digest;

    #[derive(Serialize, Deserialize)]
    struct Blob {
        digest: Digest,
        size: u64,
    }

    pub(super) fn serialize<S: Serializer>(
        blobs: &[(Digest, u64)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(blobs.iter().map(|(digest, size)| Blob {
            digest: digest.clone(),
            size: *size,
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(Digest, u64)>, D::Error> {
        let blobs = Vec::<Blob>::deserialize(deserializer)?;
        Ok(blobs.into_iter().map(|blob| (blob.digest, blob.size)).collect())
    }
}

/// Where events go. Cheap to clone; the default discards them.
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
    /// Events that [`Progress::channel`] holds for a reader.
    pub const CAPACITY: usize = 1024;

    /// Calls `sink` for every event, from any task: it must return quickly.
    pub fn new(sink: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self {
            sink: Some(Arc::new(sink)),
        }
    }

    /// A stream of the events, bounded to [`Progress::CAPACITY`] events. A transfer never waits for the reader:
    ///
    /// * [`BlobState::Transferred`] and [`BlobState::PartlyReused`] replace an unread one of the same blob;
    /// * when the queue is full, the oldest unread one of these is dropped, else the oldest event. [`Events::dropped`]
    ///   counts them.
    pub fn channel() -> (Self, Events) {
        let (wake, woken) = mpsc::channel(1);
        let queue = Arc::new(Mutex::new(Queue::default()));
        let shared = Arc::clone(&queue);
        let progress = Self::new(move |event| {
            if wake.is_closed() {
                return;
            }
            shared.lock().unwrap_or_else(PoisonError::into_inner).push(event);
            match wake.try_send(()) {
                // A full channel wakes the reader as well.
                Ok(()) | Err(_) => {}
            }
        });
        (progress, Events { queue, woken })
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

/// Unread events.
#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    dropped: u64,
}

/// The blob of an event that the next one of its kind replaces: a sum of bytes. The flag tells the two sums apart.
fn sum(event: &Event) -> Option<(&Digest, bool)> {
    match event {
        Event::Blob { digest, state } => match state {
            BlobState::Transferred { .. } => Some((digest, false)),
            BlobState::PartlyReused { .. } => Some((digest, true)),
            _ => None,
        },
        Event::Image { .. } => None,
    }
}

impl Queue {
    fn push(&mut self, event: Event) {
        if let Some(kind) = sum(&event)
            && let Some(index) = self.events.iter().rposition(|known| sum(known) == Some(kind))
        {
            self.events.remove(index);
        }
        if self.events.len() >= Progress::CAPACITY {
            let index = self.events.iter().position(|known| sum(known).is_some());
            self.events.remove(index.unwrap_or(0));
            self.dropped += 1;
        }
        self.events.push_back(event);
    }
}

/// The events of a [`Progress::channel`].
#[derive(Debug)]
pub struct Events {
    queue: Arc<Mutex<Queue>>,
    woken: mpsc::Receiver<()>,
}

impl Events {
    /// The next event; `None` when all clones of the [`Progress`] are dropped, so when everything has ended.
    ///
    /// # Errors
    /// None.
    ///
    /// # Cancellation
    /// No event is lost.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// How many events were dropped so far because the reader was too slow.
    pub fn dropped(&self) -> u64 {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).dropped
    }

    fn pop(&self) -> Option<Event> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.events.pop_front()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            if let Some(event) = self.pop() {
                return Poll::Ready(Some(event));
            }
            match self.woken.poll_recv(cx) {
                Poll::Ready(Some(())) => {}
                // An event may have come between the look at the queue and the end.
                Poll::Ready(None) => return Poll::Ready(self.pop()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl futures::Stream for Events {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_reader_that_does_not_read_costs_bounded_memory_and_sees_the_end() {
        let (progress, mut events) = Progress::channel();
        let blobs: Vec<Digest> = (0..2000_u32)
            .map(|index| Digest::sha256(index.to_le_bytes()))
            .collect();
        for bytes in 0..1_000_000_u64 {
            let blob = &blobs[usize::try_from(bytes % 10).unwrap()];
            progress.blob(blob, || BlobState::Transferred { bytes });
        }
        let unread = events.queue.lock().unwrap().events.len();
        assert_eq!((unread, events.dropped()), (10, 0), "merged");
        for blob in &blobs {
            progress.blob(blob, || BlobState::Unpacked);
        }
        progress.image(&"image".into(), || ImageState::Done { id: "id".into() });
        drop(progress);
        assert_eq!(events.dropped(), 10 + 2001 - Progress::CAPACITY as u64);
        let mut read = Vec::new();
        while let Some(event) = events.next().await {
            read.push(event);
        }
        assert_eq!(read.len(), Progress::CAPACITY);
        assert!(
            matches!(read.last(), Some(Event::Image { .. })),
            "the last events stay"
        );
        assert!(!read.iter().any(|event| sum(event).is_some()), "they go first");
    }

    #[tokio::test]
    async fn a_waiting_reader_is_woken_and_a_dropped_one_is_no_burden() {
        let (progress, mut events) = Progress::channel();
        let reader = tokio::spawn(async move {
            let first = events.next().await;
            (first, events)
        });
        tokio::task::yield_now().await;
        progress.image(&"image".into(), || ImageState::Done { id: "id".into() });
        let (first, events) = reader.await.unwrap();
        assert!(first.is_some());
        let queue = Arc::clone(&events.queue);
        drop(events);
        progress.image(&"image".into(), || ImageState::Done { id: "id".into() });
        assert!(queue.lock().unwrap().events.is_empty());
    }

    #[test]
    fn events_are_flat_objects_and_can_be_read_again() {
        let digest = Digest::sha256(b"x");
        let blob = |state| Event::Blob {
            digest: digest.clone(),
            state,
        };
        let image = |state| Event::Image {
            image: "oci:dir".into(),
            state,
        };
        let wait = Duration::from_millis(1500);
        let events = [
            (blob(BlobState::Started { total: 2, kept: 1 }), "started"),
            (blob(BlobState::Unpacked), "unpacked"),
            (
                blob(BlobState::Retrying {
                    wait,
                    reason: "r".into(),
                }),
                "retrying",
            ),
            (image(ImageState::Done { id: "id".into() }), "done"),
            (
                image(ImageState::Resolved {
                    manifest: digest.clone(),
                    blobs: vec![(digest.clone(), 5)],
                }),
                "resolved",
            ),
        ];
        for (event, name) in events {
            let json = serde_json::to_value(&event).unwrap();
            assert_eq!(json["event"], name);
            assert!(json.get("blob").is_some() || json["image"] == "oci:dir", "{json}");
            assert!(name != "retrying" || json["wait_ms"] == 1500.0, "{json}");
            assert!(name != "resolved" || json["blobs"][0]["size"] == 5, "{json}");
            assert_eq!(serde_json::from_value::<Event>(json).unwrap(), event);
        }
    }
}
