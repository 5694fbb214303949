//! Reading files and parts of files in finite steps.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{Stream, try_unfold};

use crate::bridge;
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Bytes that one step reads.
const STEP: u64 = 512 * 1024;

/// `size` bytes of a file from `offset` on. Fails if the file ends before. Nothing is read before it is asked for.
pub(crate) fn chunks(
    file: Arc<File>,
    path: Arc<Path>,
    offset: u64,
    size: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    try_unfold((offset, size), move |(offset, left)| {
        let (file, path) = (Arc::clone(&file), Arc::clone(&path));
        async move {
            if left == 0 {
                return Ok(None);
            }
            let step = bridge::run(move || read_part(&file, offset, left.min(STEP), &path));
            let bytes = step.await.map_err(io::Error::from)?;
            let count = bytes.len() as u64;
            Ok(Some((
                bytes.into(),
                (offset.saturating_add(count), left.saturating_sub(count)),
            )))
        }
    })
}

/// Reads exactly `size` bytes from `offset` on.
pub(crate) fn read_part(file: &File, offset: u64, size: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = read_up_to(file, offset, size, path)?;
    if bytes.len() as u64 != size {
        let what = format!("the file ends {} bytes early", size - bytes.len() as u64);
        return Err(ErrorKind::InvalidInput.err(what).at(path));
    }
    bytes.shrink_to_fit();
    Ok(bytes)
}

/// Reads at most `size` bytes from `offset` on: fewer only at the end of the file.
pub(crate) fn read_up_to(file: &File, offset: u64, size: u64, path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut part = At { file, offset }.take(size);
    part.read_to_end(&mut bytes).at("reading", path)?;
    Ok(bytes)
}

/// A file from a place on, without moving the position that all handles of it share.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl io::Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset = self.offset.saturating_add(count as u64);
        Ok(count)
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) async fn read_small(path: PathBuf, limit: u64) -> Result<Vec<u8>> {
    bridge::run(move || read_small_now(&path, limit)).await
}

/// As [`read_small`]; blocking.
pub(crate) fn read_small_now(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let bytes = read_up_to(&file, 0, limit.saturating_add(1), path)?;
    match bytes.len() as u64 > limit {
        true => Err(too_long(path, limit)),
        false => Ok(bytes),
    }
}

/// The error for a document that is too long to be one.
pub(crate) fn too_long(path: &Path, limit: u64) -> Error {
    ErrorKind::InvalidInput.err(format!("{} is longer than {limit} bytes", path.display()))
}

/// Opens a regular file; reading a pipe or a device could wait for ever.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let nonblock = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .at("opening", path)?;
    if !file.metadata().at("looking at", path)?.is_file() {
        return Err(ErrorKind::InvalidInput.err(format!("{} is no regular file", path.display())));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio_util::io::StreamReader;

    use super::*;

    #[tokio::test]
    async fn parts_are_read_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path: Arc<Path> = dir.path().join("file").into();
        let size = 2 * STEP + 5;
        std::fs::write(&path, vec![7; usize::try_from(size).unwrap()]).unwrap();
        let file = Arc::new(open_regular(&path).unwrap());
        for (offset, count, whole) in [
            (0, size, true),
            (5, STEP, true),
            (size, 0, true),
            (5, size, false),
            (u64::MAX, 1, false),
        ] {
            let mut read = Vec::new();
            let part = chunks(Arc::clone(&file), Arc::clone(&path), offset, count);
            let mut part = StreamReader::new(Box::pin(part));
            let result = part.read_to_end(&mut read).await;
            assert_eq!(result.is_ok(), whole, "{offset} {count}: {result:?}");
            assert!(!whole || read.len() as u64 == count);
        }
        assert!(open_regular(dir.path()).is_err());
        assert!(read_small_now(&path, size).is_ok() && read_small_now(&path, size - 1).is_err());
    }
}
