//! Counts the bytes of a transfer for its events.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::progress::{BlobState, Progress};
use crate::digest::Digest;

/// How many bytes go between two events about one transfer.
const STEP: u64 = 256 * 1024;

/// Counts the bytes of one transfer and reports the sums at intervals and in the end. Cheap to clone; the clones count
/// together.
#[derive(Clone, Debug)]
pub(crate) struct Meter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    progress: Progress,
    digest: Digest,
    total: u64,
    counts: Mutex<Counts>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.tell(&mut self.counts());
    }
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports the sums, if they are new; in the lock, so that no smaller sum follows a larger one.
    fn tell(&self, counts: &mut Counts) {
        if let Some(bytes) = counts.transferred.report() {
            self.progress
                .blob(&self.digest, || BlobState::Transferred { bytes });
        }
        if let Some(bytes) = counts.reused.report() {
            self.progress
                .blob(&self.digest, || BlobState::PartlyReused { bytes });
        }
    }
}

#[derive(Debug)]
struct Counts {
    transferred: Count,
    reused: Count,
}

#[derive(Debug)]
struct Count {
    bytes: u64,
    reported: u64,
}

impl Count {
    fn of(bytes: u64) -> Self {
        Self {
            bytes,
            reported: bytes,
        }
    }

    fn add(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// The sum, if it is new.
    fn report(&mut self) -> Option<u64> {
        let is_new = self.bytes > self.reported;
        self.reported = self.bytes;
        is_new.then_some(self.bytes)
    }

    fn is_due(&self) -> bool {
        self.bytes - self.reported >= STEP
    }
}

impl Meter {
    /// Begins a transfer of `total` bytes of which `kept` are there.
    pub(crate) fn start(progress: &Progress, digest: &Digest, total: u64, kept: u64) -> Self {
        progress.blob(digest, || BlobState::Started { total, kept });
        let counts = Counts {
            transferred: Count::of(kept),
            reused: Count::of(0),
        };
        Self {
            shared: Arc::new(Shared {
                progress: progress.clone(),
                digest: digest.clone(),
                total,
                counts: Mutex::new(counts),
            }),
        }
    }

    /// Adds bytes that were transferred.
    pub(crate) fn add(&self, bytes: u64) {
        let mut counts = self.shared.counts();
        counts.transferred.add(bytes);
        if counts.transferred.is_due() || counts.transferred.bytes == self.shared.total {
            self.shared.tell(&mut counts);
        }
    }

    /// Adds bytes of the blob that need not be transferred.
    pub(crate) fn reuse(&self, bytes: u64) {
        let mut counts = self.shared.counts();
        counts.reused.add(bytes);
        if counts.reused.is_due() {
            self.shared.tell(&mut counts);
        }
    }

    /// Reports that the transfer broke off.
    pub(crate) fn retrying(&self, wait: Duration, reason: String) {
        self.report();
        self.shared
            .progress
            .blob(&self.shared.digest, || BlobState::Retrying { wait, reason });
    }

    /// Reports the sums, if they are new.
    pub(crate) fn report(&self) {
        self.shared.tell(&mut self.shared.counts());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::progress::Event;

    #[test]
    fn transfers_are_reported_at_intervals_and_to_the_last_byte() {
        let (sender, events) = std::sync::mpsc::channel();
        let progress = Progress::new(move |event| sender.send(event).unwrap());
        let digest = Digest::sha256(b"x");
        let meter = Meter::start(&progress, &digest, 3 * STEP + 5, 5);
        for _ in 0..3 * STEP / 1024 {
            meter.add(1024);
        }
        drop((progress, meter));
        let reported: Vec<BlobState> = events
            .into_iter()
            .map(|event| match event {
                Event::Blob { state, .. } => state,
                event => panic!("{event:?}"),
            })
            .collect();
        let at = |bytes| BlobState::Transferred { bytes };
        let begin = BlobState::Started {
            total: 3 * STEP + 5,
            kept: 5,
        };
        assert_eq!(
            reported,
            [begin, at(STEP + 5), at(2 * STEP + 5), at(3 * STEP + 5)]
        );
    }

    #[tokio::test]
    async fn transferred_and_reused_bytes_are_counted_apart() {
        let (progress, mut events) = Progress::channel();
        let digest = Digest::sha256(b"x");
        let meter = Meter::start(&progress, &digest, 10 * STEP, 0);
        let same = meter.clone();
        for _ in 0..4 {
            meter.add(STEP);
            same.reuse(STEP);
        }
        same.reuse(5);
        drop((progress, meter, same));
        let mut states = Vec::new();
        while let Some(event) = events.next().await {
            if let Event::Blob { state, .. } = event {
                states.push(state);
            }
        }
        // Each sum replaces the unread one before it.
        let expected = [
            BlobState::Started {
                total: 10 * STEP,
                kept: 0,
            },
            BlobState::Transferred { bytes: 4 * STEP },
            BlobState::PartlyReused { bytes: 4 * STEP + 5 },
        ];
        assert_eq!(states, expected);
    }
}
