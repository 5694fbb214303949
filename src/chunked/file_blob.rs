//! A file as a source of ranges.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;

use super::source::BlobSource;
use crate::bridge::{self, ByteStream, Producer, Progress};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::BoxReader;

/// Ranges that one step reads at the most.
const MAX_READS: usize = 1024;

/// A blob in a file, or in a part of one, of which ranges can be read. Cheap to clone.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// use graphroot::chunked::{BlobSource as _, FileBlob};
/// use tokio::io::AsyncReadExt as _;
///
/// let blob = FileBlob::open("/var/tmp/layer.tar.zst").await?;
/// let mut bytes = Vec::new();
/// blob.read(vec![0..4, 100..200]).await?.read_to_end(&mut bytes).await?;
/// assert_eq!(bytes.len(), 104);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileBlob {
    file: Arc<File>,
    path: Arc<Path>,
    /// Where in the file the blob begins.
    offset: u64,
    size: u64,
}

impl FileBlob {
    /// The whole of a regular file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is no regular file; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// Nothing remains.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        bridge::run(move || {
            // Opening a pipe would wait for its writer.
            let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
            let mut options = std::fs::OpenOptions::new();
            let file = options.read(true).custom_flags(nonblock).open(&path);
            let file = file.at("opening", &path)?;
            let metadata = file.metadata().at("looking at", &path)?;
            if !metadata.is_file() {
                return Err(ErrorKind::InvalidInput.err(format!("{} is no regular file", path.display())));
            }
            Ok(Self::part(Arc::new(file), path.into(), 0, metadata.len()))
        })
        .await
    }

    /// The `size` bytes of a file from `offset` on; `path` is for messages.
    pub(crate) fn part(file: Arc<File>, path: Arc<Path>, offset: u64, size: u64) -> Self {
        Self {
            file,
            path,
            offset,
            size,
        }
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All of it as a stream. Nothing is read before it is asked for.
    #[cfg(feature = "pull")]
    pub(crate) fn reader(&self) -> BoxReader {
        self.ranges(std::iter::once(0..self.size).collect())
    }

    fn ranges(&self, ranges: VecDeque<Range<u64>>) -> BoxReader {
        let blob = self.clone();
        Box::pin(ByteStream::of(RangeReader { blob, ranges }))
    }
}

impl BlobSource for FileBlob {
    fn read(&self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, Result<BoxReader>> {
        Box::pin(async move {
            if let Some(range) = ranges
                .iter()
                .find(|range| range.start > range.end || range.end > self.size)
            {
                let what = format!("range {range:?} of a blob of {} bytes", self.size);
                return Err(ErrorKind::InvalidInput.err(what).at(&*self.path));
            }
            if ranges.is_empty() {
                return Ok(Box::pin(tokio::io::empty()) as BoxReader);
            }
            Ok(self.ranges(ranges.into()))
        })
    }
}

/// Reads ranges one after the other.
struct RangeReader {
    blob: FileBlob,
    ranges: VecDeque<Range<u64>>,
}

impl Producer for RangeReader {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        let FileBlob {
            file, path, offset, ..
        } = &self.blob;
        let mut room = room;
        for _ in 0..MAX_READS {
            let Some(range) = self.ranges.front_mut() else {
                return Ok(Progress::End);
            };
            let limit = usize::try_from(range.end - range.start).map_or(room, |length| length.min(room));
            let place = offset.saturating_add(range.start);
            let count = bridge::read_spare_at(file.as_fd(), out, limit, place).at("reading", path)?;
            if count == 0 && limit > 0 {
                let what = format!("the file ends before byte {place}");
                return Err(ErrorKind::InvalidInput.err(what).at(&**path));
            }
            room -= count;
            range.start += count as u64;
            if range.start >= range.end {
                self.ranges.pop_front();
            }
            if room == 0 {
                break;
            }
        }
        Ok(match self.ranges.is_empty() {
            true => Progress::End,
            false => Progress::More,
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    async fn read(blob: &FileBlob, ranges: &[Range<u64>]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut reader = blob.read(ranges.to_vec()).await?;
        reader
            .read_to_end(&mut bytes)
            .await
            .map_err(|error| crate::Error::io("reading", error))?;
        Ok(bytes)
    }

    #[tokio::test]
    async fn ranges_of_a_file_and_of_a_part_of_one() {
        let content: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("blob");
        std::fs::write(&path, &content).unwrap();
        let whole = FileBlob::open(&path).await.unwrap();
        assert_eq!(whole.size(), 4_000_000);
        let part = FileBlob::part(Arc::clone(&whole.file), Arc::clone(&whole.path), 1000, 3_000_000);
        let many: Vec<Range<u64>> = (0..5000).map(|at| at * 100..at * 100 + at % 90 + 1).collect();
        for (blob, offset) in [(&whole, 0), (&part, 1000)] {
            let last = blob.size();
            let ends = [0..1, 5..5, 1000..2_500_000, last - 1..last];
            for ranges in [&[], &ends[..], &many[..]] {
                let expected: Vec<u8> = ranges
                    .iter()
                    .flat_map(|range| {
                        let at = |place: u64| usize::try_from(place + offset).unwrap();
                        &content[at(range.start)..at(range.end)]
                    })
                    .copied()
                    .collect();
                assert!(read(blob, ranges).await.unwrap() == expected);
            }
            #[expect(clippy::single_range_in_vec_init, reason = "a range, not what it counts")]
            let beyond = [last..last + 1];
            assert_eq!(
                read(blob, &beyond).await.unwrap_err().kind(),
                ErrorKind::InvalidInput
            );
        }
        std::fs::write(&path, "short").unwrap();
        assert!(read(&whole, &many).await.is_err());
        assert!(FileBlob::open(dir.path()).await.is_err());
    }
}
