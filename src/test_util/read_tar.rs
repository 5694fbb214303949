//! Tar archives taken apart, for tests that look into a layer's diff.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use tokio::io::AsyncRead;

use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::bridge::CHUNK;
use crate::error::{Error, ErrorKind, Result};

/// An entry that [`read_tar`] found. Extended headers are applied.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadEntry {
    /// The type, as for [`TarEntry::new`](super::TarEntry::new): `b'0'` for a file, `b'5'` for a directory.
    pub kind: u8,
    /// The name as it stands in the archive; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// The target of a link, likewise.
    pub link: String,
    /// Permissions, set-user-ID, set-group-ID and sticky bit.
    pub mode: u32,
    /// User ID.
    pub uid: i64,
    /// Group ID.
    pub gid: i64,
    /// Modification time in whole seconds since 1970.
    pub mtime: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The content of a file.
    pub content: Bytes,
}

impl ReadEntry {
    /// The content as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

/// Reads a tar stream, compressed or not, into memory: a [`DiffStream`](crate::DiffStream), or a
/// [`Cursor`](std::io::Cursor) of bytes.
///
/// # Errors
/// [`ErrorKind::InvalidArchive`]; what `stream` reports, of its kind if it is an [`Error`], else [`ErrorKind::Io`].
///
/// # Cancellation
/// No effect.
///
/// ```
/// use graphroot::DiffOptions;
/// use graphroot::test_util::{TarBuilder, TempStore, read_tar};
///
/// # async fn demo() -> graphroot::Result<()> {
/// let store = TempStore::new().await?;
/// let tar = TarBuilder::new().dir("etc").file("etc/name", "test").build();
/// let layer = store.put_image_layer(None, std::io::Cursor::new(tar)).await?;
/// let entries = read_tar(store.diff(None, layer.id(), DiffOptions::default()).await?).await?;
/// assert_eq!(entries[0].name, "etc");
/// assert_eq!((entries[1].name.as_str(), entries[1].text().as_str()), ("etc/name", "test"));
/// # store.close().await
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
/// ```
pub async fn read_tar(stream: impl AsyncRead + Send) -> Result<Vec<ReadEntry>> {
    let mut blob = BlobReader::new(Box::pin(stream));
    let detected = blob.detect().await;
    let compression = detected.map_err(|error| Error::io("reading a tar stream", error))?;
    let mut decoder = Decoder::new(blob, compression, CHUNK);
    let mut chunks = VecDeque::new();
    while let Some(chunk) = decoder.next_chunk().await? {
        chunks.push_back(chunk);
    }
    let mut reader = TarReader::new(Memory(chunks));
    let (mut entry, mut found) = (Entry::default(), Vec::new());
    while reader.next(&mut entry, &mut |_headers| Ok(()))? {
        let mut payload = Vec::new();
        while let Some(piece) = reader.payload()? {
            payload.extend_from_slice(&piece);
        }
        found.push(read_entry(&entry, payload)?);
    }
    Ok(found)
}

/// The decoded archive.
struct Memory(VecDeque<Bytes>);

impl ChunkSource for Memory {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        Ok(self.0.pop_front())
    }
}

fn read_entry(entry: &Entry, payload: Vec<u8>) -> Result<ReadEntry> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if entry.sparse.is_some() {
        let what = format!("reading the sparse file {:?} in a test", text(&entry.name));
        return Err(ErrorKind::NotSupported.err(what));
    }
    let xattrs = entry.records.xattrs();
    Ok(ReadEntry {
        kind: entry.kind,
        name: text(&entry.name),
        link: text(&entry.link),
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime.secs,
        xattrs: xattrs.map(|(name, value)| (text(name), value.to_vec())).collect(),
        content: payload.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_util::{TarBuilder, TarEntry};

    #[tokio::test]
    async fn what_was_built_is_read_again() {
        let long = "n".repeat(150);
        let built = || {
            TarBuilder::new()
                .dir("d/")
                .entry(
                    TarEntry::file("d/f", "content")
                        .mode(0o4755)
                        .owner(7, 3_000_000)
                        .mtime(12)
                        .xattr("user.a", "1"),
                )
                .symlink(&long, "d/f")
                .hard_link("hard", "d/f")
                .whiteout("gone")
        };
        for bytes in [built().build(), built().build_gzip(), built().build_zstd()] {
            let entries = read_tar(std::io::Cursor::new(bytes)).await.unwrap();
            let told: Vec<_> = entries
                .iter()
                .map(|entry| (entry.kind, &*entry.name, &*entry.link))
                .collect();
            let expected = [
                (b'5', "d/", ""),
                (b'0', "d/f", ""),
                (b'2', &*long, "d/f"),
                (b'1', "hard", "d/f"),
                (b'0', ".wh.gone", ""),
            ];
            assert_eq!(told, expected);
            let file = &entries[1];
            assert_eq!(
                (file.mode, file.uid, file.gid, file.mtime),
                (0o4755, 7, 3_000_000, 12)
            );
            assert_eq!(
                (file.text().as_str(), &file.xattrs["user.a"][..]),
                ("content", &b"1"[..])
            );
        }
        let mut cut = built().build();
        cut.truncate(1030);
        let error = read_tar(std::io::Cursor::new(cut)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArchive);
    }
}
