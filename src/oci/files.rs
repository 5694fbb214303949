//! Reading parts of files as streams.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::bridge::{self, CHUNK, ChunkStream};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// A stream of `size` bytes of a file from `offset` on. A file that ends before makes it fail.
pub(crate) fn stream(mut file: File, offset: u64, size: u64) -> ChunkStream {
    let (mut writer, stream) = bridge::chunks_out();
    bridge::spawn_detached(move || {
        let mut copy = || {
            file.seek(SeekFrom::Start(offset))?;
            let mut left = size;
            while left > 0 {
                let got = writer.fill_with(|buffer| {
                    let room = (buffer.capacity() - buffer.len()).min(CHUNK);
                    file.by_ref().take(left.min(room as u64)).read_to_end(buffer)
                })?;
                if got.is_empty() {
                    let what = format!("a file that ends {left} bytes early");
                    return Err(ErrorKind::InvalidInput.err(what).into());
                }
                left = left.saturating_sub(got.len() as u64);
            }
            Ok(())
        };
        let result: io::Result<()> = copy();
        writer.finish(result);
    });
    stream
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) async fn read_small(path: PathBuf, limit: u64) -> Result<Vec<u8>> {
    bridge::run(move || {
        let file = open_regular(&path)?;
        read_part(&file, 0, limit.saturating_add(1), &path).and_then(|bytes| {
            match bytes.len() as u64 > limit {
                true => Err(too_long(&path, limit)),
                false => Ok(bytes),
            }
        })
    })
    .await
}

/// The error for a document beyond all reason.
pub(crate) fn too_long(path: &Path, limit: u64) -> Error {
    ErrorKind::InvalidInput.err(format!("{} is longer than {limit} bytes", path.display()))
}

/// Reads at most `size` bytes from `offset` on.
pub(crate) fn read_part(file: &File, offset: u64, size: u64, path: &Path) -> Result<Vec<u8>> {
    let mut file = file;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset)).at("reading", path)?;
    file.take(size).read_to_end(&mut bytes).at("reading", path)?;
    Ok(bytes)
}

/// Opens a regular file; a pipe or a device would make its reader wait.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
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
