//! The store's moving parts one by one, for `benches/pieces.rs`. Only with the feature `bench`; not part of the API.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::archive::apply::pipeline::{ApplyOptions, Content, Target, apply};
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::archive::tar_split::replay::Replay;
use crate::bridge::{CHUNK, Producer as _, Progress};
use crate::digest::Digest;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::record_lock::{LockFile, LockMode};
use crate::record::layer::LayerRow;
use crate::record::{Location, Records, RecordsConfig};
use crate::sys::at;
use crate::sys::name_sync::NameSync;
use crate::time::Time;

/// Decodes a blob as [`Store::put_layer`](crate::Store::put_layer) does, without digests; returns the bytes that come
/// out.
///
/// # Errors
/// As there.
pub async fn decode(blob: &Path) -> Result<u64> {
    let file = tokio_file(blob)?;
    let mut stream = BlobReader::new(file);
    let compression = stream.detect().await.at("reading", blob)?;
    let mut decoder = Decoder::new(stream, compression, CHUNK);
    let mut count = 0;
    while let Some(chunk) = decoder.next_chunk().await? {
        count += chunk.len() as u64;
    }
    Ok(count)
}

/// A file that is read on this thread: hops between threads are not what is measured.
fn tokio_file(path: &Path) -> Result<impl tokio::io::AsyncRead + Send + Unpin + 'static> {
    struct Blocking(File);
    impl tokio::io::AsyncRead for Blocking {
        fn poll_read(
            self: std::pin::Pin<&mut Self>,
            _cx: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            let count = io::Read::read(&mut self.get_mut().0, buffer.initialize_unfilled())?;
            buffer.advance(count);
            std::task::Poll::Ready(Ok(()))
        }
    }
    Ok(Blocking(File::open(path).at("opening", path)?))
}

/// A tar in memory, in chunks.
struct Memory(Bytes);

impl ChunkSource for Memory {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        let count = self.0.len().min(CHUNK);
        Ok((count > 0).then(|| self.0.split_to(count)))
    }
}

/// Frames a plain tar and writes its recorder to `recorder`; returns the number of entries.
///
/// # Errors
/// [`ErrorKind::InvalidArchive`], [`ErrorKind::Io`].
pub fn frame(tar: Bytes, recorder: &Path) -> Result<u64> {
    let dir = at::open_dir(recorder.parent().unwrap_or(recorder)).at("opening the directory of", recorder)?;
    let mut recorder = TarSplitRecorder::new(Some(File::create(recorder).at("creating", recorder)?));
    let mut reader = TarReader::new(Memory(tar));
    let (mut entry, mut crc, mut entries) = (Entry::default(), Crc::new(), 0);
    while reader.next(&mut entry, &mut |raw| recorder.raw(raw))? {
        entries += 1;
        while let Some(piece) = reader.payload()? {
            crc.update(&piece);
        }
        recorder.file(&entry.name, entry.size, crc.take())?;
    }
    reader.drain(&mut |raw| recorder.raw(raw))?;
    drop(recorder.finish(dir.as_fd())?);
    Ok(entries)
}

/// Unpacks a blob into the empty directory `dir`, with a recorder if one is wanted; returns the number of entries.
///
/// # Errors
/// As [`Store::put_layer`](crate::Store::put_layer).
pub async fn extract(blob: &Path, dir: &Path, recorder: Option<&Path>) -> Result<u64> {
    let target = Target {
        dir: at::open_dir(dir).at("opening", dir)?,
        content: Content::Layer,
        root_entry: true,
        mappings: IdMappings::default(),
        owner: None,
        ignore_chown_errors: false,
        force_mask: None,
        in_user_namespace: false,
        present: None,
    };
    let options = ApplyOptions {
        tar_split: recorder
            .map(File::create)
            .transpose()
            .during("creating a recorder")?,
        ..ApplyOptions::default()
    };
    let (applied, ()) = apply(Box::pin(tokio_file(blob)?), target, options, ()).await?;
    Ok(applied.entries)
}

/// Replays `recorder` from the files in `dir`; returns the size of the stream.
///
/// # Errors
/// [`ErrorKind::LayerContentModified`], [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
pub fn replay(recorder: &Path, dir: &Path) -> Result<u64> {
    let recorder = File::open(recorder).at("opening", recorder)?;
    let tree = at::open_dir(dir).at("opening", dir)?;
    let mut replay = Replay::new(recorder, vec![tree], 0);
    let (mut chunk, mut size) = (Vec::with_capacity(CHUNK), 0);
    loop {
        chunk.clear();
        let progress = replay.step(&mut chunk, CHUNK)?;
        size += chunk.len() as u64;
        if progress == Progress::End {
            return Ok(size);
        }
    }
}

/// A lock file of the store's kind.
#[derive(Clone, Debug)]
pub struct Lock(Arc<LockFile>);

impl Lock {
    /// Opens it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        LockFile::open(path, LockMode::ReadWrite).map(Self)
    }

    /// Takes it shared, and gives it back.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub async fn shared(&self) -> Result<()> {
        self.0.shared(None).await.map(drop)
    }

    /// Takes it alone, and gives it back.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub async fn exclusive(&self) -> Result<()> {
        self.0.exclusive(None).await.map(drop)
    }
}

/// Layer records in a directory of their own, as many as wanted.
#[derive(Debug)]
pub struct Rows {
    records: Records<LayerRow>,
    changes: usize,
}

fn row(number: usize) -> LayerRow {
    let digest = Digest::sha256(number.to_string().as_bytes());
    LayerRow {
        id: digest.encoded().into(),
        names: vec![Rows::name(number)],
        created: Time::now(),
        compressed_digest: Digest::sha256(digest.encoded().as_bytes()).into(),
        compressed_size: 30_000_000,
        diff_digest: digest.into(),
        diff_size: 80_000_000,
        compression: 2,
        uids: vec![0, 101],
        gids: vec![0, 42, 101],
        ..LayerRow::default()
    }
}

impl Rows {
    /// Makes `count` records in `dir` and saves them. `sync`: every save waits for the disk.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn create(dir: &Path, count: usize, sync: bool) -> Result<Self> {
        let rows = Self::open(dir, sync)?;
        let mut guard = rows.records.write_blocking()?;
        for number in 0..count {
            drop(guard.table_mut().insert(row(number), 0)?);
        }
        guard.save()?;
        drop(guard);
        Ok(rows)
    }

    /// The records in `dir`, as another process has them: nothing is read yet.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn open(dir: &Path, sync: bool) -> Result<Self> {
        let records = Records::open(RecordsConfig {
            lock_files: vec![dir.join("layers.lock")],
            locations: vec![Location {
                path: Self::file(dir),
                sync,
                items: None,
            }],
            check_mtimes: true,
            lock_timeout: None,
            names: NameSync::Off,
        })?;
        Ok(Self { records, changes: 0 })
    }

    /// Reads what others have changed. Returns whether there was something.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn reload(&self) -> Result<bool> {
        Ok(self.records.write_blocking()?.reloaded())
    }

    /// The file of records in `dir`.
    pub fn file(dir: &Path) -> PathBuf {
        dir.join("layers.json")
    }

    /// The name of a record.
    pub fn name(number: usize) -> String {
        format!("localhost/bench-{number}:latest")
    }

    /// Changes one record and saves.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn save(&mut self) -> Result<()> {
        self.changes += 1;
        let mut guard = self.records.write_blocking()?;
        let id = row(0).id;
        let text = self.changes.to_string();
        if !guard.table_mut().update(&id, |row| row.metadata = text)? {
            return Err(ErrorKind::LayerUnknown.err(id.to_string()));
        }
        guard.save()
    }

    /// Looks a record up by its name.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub async fn find(&self, name: &str) -> Result<bool> {
        Ok(self.records.unlocked_snapshot().await?.find(name).is_some())
    }
}
