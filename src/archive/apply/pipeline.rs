//! Applying a layer: from the stream as it is sent to files below a directory, in one pass.
//!
//! Two halves run at the same time. The async half, in the caller's task, reads and decodes the stream; chunks go
//! through a bounded channel to the blocking half, which frames them, unpacks the entries and tapes the tar-split data.
//! The digests of the stream as sent and as decoded are computed by whichever half would wait for the other one, so two
//! cores are busy, and memory stays at a few MiB whatever the layer's size.
//!
//! If the blocking half fails, its error is the result and nothing more is read. If the source fails, the blocking
//! half sees that error and fails with it. If the future is dropped, the blocking half sees an error, stops, and drops
//! the guard that it was given: never is a layer that was cut off taken for a whole one.
//!
//! The stream is read to its very end, also after the end of the archive: digests and tar-split data cover that too.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Bytes;
use futures::future::Either;
use tokio::io::AsyncRead;
use tokio::sync::oneshot;

use crate::archive::apply::extract::{Extractor, Setup};
use crate::archive::apply::metadata::{self, Rules};
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::{self, ChunkConsumer};
use crate::archive::compress::hash_queue::HashQueue;
use crate::archive::path::{clean, show, split};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::bridge::{self, CHUNK, ChunkReader, ChunkSender};
use crate::compression::Compression;
use crate::digest::{Digest, Hasher};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::sys::writeback;
use crate::whiteout::{self, WhiteoutFormat};

/// Where a layer goes, and how.
#[derive(Debug)]
pub(crate) struct Target {
    /// The directory, open for reading before anything was written below it.
    pub(crate) dir: OwnedFd,
    /// What deletions become.
    pub(crate) form: WhiteoutFormat,
    /// Whether the entry `./` changes the directory itself.
    pub(crate) root_entry: bool,
    /// Owners.
    pub(crate) mappings: IdMappings,
    /// The owner (inside the container) of every entry, whatever the archive says.
    pub(crate) owner: Option<Owner>,
    /// Go on when an owner cannot be set.
    pub(crate) ignore_chown_errors: bool,
    /// Mode for everything; owner, mode and type go into an attribute.
    pub(crate) force_mask: Option<u32>,
    /// Devices cannot be made and are left out.
    pub(crate) in_user_namespace: bool,
}

/// What else is wanted, and what is known already.
#[derive(Debug, Default)]
pub(crate) struct ApplyOptions {
    /// An empty file, open for writing, for the tar-split data.
    pub(crate) tar_split: Option<File>,
    /// Digest of the stream as sent (or of the blob that it comes from); believed unless `verify`.
    pub(crate) original_digest: Option<Digest>,
    /// Size of that blob; counts only together with `original_digest`.
    pub(crate) original_size: Option<u64>,
    /// Digest of the decoded stream; believed unless `verify`.
    pub(crate) uncompressed_digest: Option<Digest>,
    /// Whether given digests are checked.
    pub(crate) verify: bool,
    /// Whether everything is on disk before [`apply`] returns.
    pub(crate) sync: bool,
}

/// What a layer's record says after it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Applied {
    /// How the stream was compressed.
    pub(crate) compression: Compression,
    /// Digest of the stream as sent, or the one given for it.
    pub(crate) compressed_digest: Digest,
    /// Its size, or the one given for it.
    pub(crate) compressed_size: u64,
    /// Digest of the decoded stream, or the one given for it.
    pub(crate) diff_digest: Digest,
    /// Size of the decoded stream.
    pub(crate) diff_size: u64,
    /// User IDs in the headers (inside the container), sorted.
    pub(crate) uids: Vec<u32>,
    /// Group IDs in the headers, sorted.
    pub(crate) gids: Vec<u32>,
    /// Bytes in files: for a complete tree what all headers declare, else what lies in files and symbolic links.
    pub(crate) content_size: u64,
    /// How many entries the archive had.
    pub(crate) entries: u64,
}

/// What the async half found out.
struct Received {
    compression: Compression,
    /// Bytes received.
    size: u64,
    /// Bytes decoded.
    diff_size: u64,
}

/// What is to be hashed of the stream as sent and as decoded.
#[derive(Clone, Default)]
struct Lines {
    sent: Arc<HashQueue>,
    decoded: Arc<HashQueue>,
}

impl Lines {
    /// Hashes a chunk if there is one.
    fn help(&self) -> bool {
        self.decoded.help() || self.sent.help()
    }
}

/// Which digests have to be computed where one was given or not: always one in sha256, which records need.
fn hashers(given: Option<&Digest>, verify: bool) -> Vec<Hasher> {
    match given {
        Some(digest) if digest.algorithm() == "sha256" => verify.then(Hasher::sha256).into_iter().collect(),
        Some(digest) if verify => vec![Hasher::sha256(), Hasher::like(digest)],
        _ => vec![Hasher::sha256()],
    }
}

/// The digest for the record, out of the given one and the computed ones.
fn settle(given: Option<&Digest>, computed: &[Digest], verify: bool, what: &str) -> Result<Digest> {
    let with = |algorithm: &str| computed.iter().find(|digest| digest.algorithm() == algorithm);
    if let Some(given) = given {
        if verify {
            match with(given.algorithm()) {
                Some(digest) if digest == given => {}
                Some(digest) => {
                    return Err(ErrorKind::DigestMismatch
                        .err(format!("{what} has digest {digest}, expected {given}")));
                }
                None => {
                    return Err(
                        ErrorKind::DigestMismatch.err(format!("{what} was not checked against {given}"))
                    );
                }
            }
        }
        if given.algorithm() == "sha256" {
            return Ok(given.clone());
        }
    }
    with("sha256")
        .cloned()
        .ok_or_else(|| ErrorKind::DigestUnknown.err(what.to_owned()))
}

/// Unpacks the layer in `source` below `target`, and hands `guard` back when all is done.
///
/// Until the blocking half has ended, also when this future was dropped, it owns `guard`.
///
/// # Errors
/// [`ErrorKind::InvalidArchive`] for a stream that cannot be decoded or unpacked, [`ErrorKind::DigestMismatch`] if
/// asked to check; the target is partly filled then.
pub(crate) async fn apply<G: Send + 'static>(
    source: Pin<Box<dyn AsyncRead + Send>>,
    target: Target,
    options: ApplyOptions,
    guard: G,
) -> Result<(Applied, G)> {
    let (sender, reader) = bridge::chunks_in();
    let (report, received) = oneshot::channel();
    let wanted = Wanted {
        sent: hashers(options.original_digest.as_ref(), options.verify),
        decoded: hashers(options.uncompressed_digest.as_ref(), options.verify),
    };
    let lines = Lines::default();
    let reader = Helper {
        reader,
        lines: lines.clone(),
    };
    let work = bridge::run(move || {
        let result = unpack(reader, target, options, received);
        match result {
            Ok(applied) => Ok((applied, guard)),
            Err(error) => {
                // Here and not in the async half: it may remove a whole tree.
                drop(guard);
                Err(error)
            }
        }
    });
    let work = pin!(work);
    let feed = pin!(feed(source, wanted, sender, lines, report));
    match futures::future::select(feed, work).await {
        Either::Left(((), work)) => work.await,
        Either::Right((result, _feed)) => result,
    }
}

/// Hashers for the stream as sent and decoded.
struct Wanted {
    sent: Vec<Hasher>,
    decoded: Vec<Hasher>,
}

/// Decoded chunks on their way to the blocking half, counted and put in line for hashing.
struct Feeder {
    sender: ChunkSender,
    gone: bool,
    size: u64,
    lines: Lines,
}

impl ChunkConsumer for Feeder {
    async fn take(&mut self, chunk: Bytes) -> bool {
        self.size += chunk.len() as u64;
        self.lines.decoded.push(chunk.clone());
        while self.sender.is_full() && self.lines.help() {}
        self.gone = !self.sender.send(chunk).await;
        !self.gone
    }
}

/// The async half. Failures reach the caller through the blocking half.
async fn feed(
    source: Pin<Box<dyn AsyncRead + Send>>,
    wanted: Wanted,
    sender: ChunkSender,
    lines: Lines,
    report: oneshot::Sender<Received>,
) {
    let mut stream = BlobReader::new(source);
    let mut feeder = Feeder {
        sender,
        gone: false,
        size: 0,
        lines,
    };
    let result = decode(&mut stream, wanted, &mut feeder).await;
    if feeder.gone {
        return;
    }
    match result {
        Ok(compression) => {
            let received = Received {
                compression,
                size: stream.count(),
                diff_size: feeder.size,
            };
            // Nobody is there to be told if the blocking half has gone.
            drop(report.send(received));
            feeder.sender.finish().await;
            while feeder.lines.help() {}
        }
        Err(error) => {
            feeder.sender.fail(error.into_io()).await;
        }
    }
}

async fn decode(
    stream: &mut BlobReader<Pin<Box<dyn AsyncRead + Send>>>,
    wanted: Wanted,
    feeder: &mut Feeder,
) -> Result<Compression> {
    let compression = stream
        .detect()
        .await
        .map_err(|error| Error::io("unpacking", error))?;
    let Wanted { sent, mut decoded } = wanted;
    if compression == Compression::None {
        // Both streams are the same: each algorithm once.
        let missing = sent
            .into_iter()
            .filter(|wanted| !decoded.iter().any(|have| have.is_like(wanted)));
        let missing: Vec<_> = missing.collect();
        decoded.extend(missing);
    } else {
        feeder.lines.sent.expect(sent);
        stream.hash_with(Arc::clone(&feeder.lines.sent));
    }
    feeder.lines.decoded.expect(decoded);
    decode::decode(stream, compression, CHUNK, feeder).await?;
    Ok(compression)
}

/// Decoded chunks as they arrive at the blocking half, which hashes while it waits for them.
struct Helper {
    reader: ChunkReader,
    lines: Lines,
}

impl ChunkSource for Helper {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        while self.reader.is_starved() && self.lines.help() {}
        self.reader
            .next_chunk()
            .map_err(|error| Error::io("receiving the layer", error))
    }
}

/// User and group IDs of an archive. Most entries have the IDs of the one before.
#[derive(Default)]
struct Ids {
    last: Option<(i64, i64)>,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

impl Ids {
    fn add(&mut self, entry: &Entry, scratch: &mut Vec<u8>) -> Result<()> {
        if self.last == Some((entry.uid, entry.gid)) {
            return Ok(());
        }
        clean(&entry.name, scratch);
        if split(scratch).1.starts_with(whiteout::PREFIX) {
            return Ok(());
        }
        self.last = Some((entry.uid, entry.gid));
        self.uids.insert(metadata::id(entry.uid)?);
        self.gids.insert(metadata::id(entry.gid)?);
        Ok(())
    }
}

/// The blocking half.
fn unpack(
    reader: Helper,
    target: Target,
    options: ApplyOptions,
    mut received: oneshot::Receiver<Received>,
) -> Result<Applied> {
    let ApplyOptions {
        tar_split,
        original_digest,
        original_size,
        uncompressed_digest,
        verify,
        sync,
    } = options;
    let mut recorder = TarSplitRecorder::new(tar_split);
    // The extractor owns the directory; the recorder needs it to the end.
    let dir = target
        .dir
        .try_clone()
        .during("keeping the layer's directory open")?;
    let plain = target.form == WhiteoutFormat::Apply;
    let rules = Rules {
        mappings: target.mappings,
        owner: target.owner,
        ignore_chown_errors: target.ignore_chown_errors,
        in_user_namespace: target.in_user_namespace,
        force_mask: target.force_mask,
    };
    let setup = Setup {
        form: target.form,
        root_entry: target.root_entry,
        rules,
        sync,
    };
    let mut extractor = Extractor::new(target.dir, setup)?;
    let lines = reader.lines.clone();
    let mut reader = TarReader::new(reader);
    let mut entry = Entry::default();
    let mut ids = Ids::default();
    let mut scratch = Vec::new();
    let (mut entries, mut declared) = (0, 0u64);
    while reader.next(&mut entry, &mut |raw| recorder.raw(raw))? {
        entries += 1;
        declared = declared.saturating_add(u64::try_from(entry.declared_size).unwrap_or(0));
        ids.add(&entry, &mut scratch)
            .context(|| format!("unpacking {}", show(&entry.name)))?;
        extractor.place(&entry, &mut reader, &mut recorder)?;
    }
    reader.drain(&mut |raw| recorder.raw(raw))?;
    let Ok(received) = received.try_recv() else {
        return Err(ErrorKind::Cancelled.err("the layer stream was dropped before its end"));
    };
    let diff_digests = lines.decoded.finish();
    let digests = match received.compression {
        Compression::None => diff_digests.clone(),
        _ => lines.sent.finish(),
    };
    let compressed_digest = settle(original_digest.as_ref(), &digests, verify, "the layer as sent")?;
    let diff_digest = settle(
        uncompressed_digest.as_ref(),
        &diff_digests,
        verify,
        "the uncompressed layer",
    )?;
    let recorder = recorder.finish(dir.as_fd())?.filter(|_| sync);
    if let Some(recorder) = &recorder {
        writeback::start(recorder.as_fd());
    }
    let state = extractor.finish()?;
    if let Some(recorder) = &recorder {
        recorder.sync_all().during("syncing tar-split data")?;
    }
    Ok(Applied {
        compression: received.compression,
        compressed_digest,
        compressed_size: original_size
            .filter(|_| original_digest.is_some())
            .unwrap_or(received.size),
        diff_digest,
        diff_size: received.diff_size,
        uids: ids.uids.into_iter().collect(),
        gids: ids.gids.into_iter().collect(),
        content_size: if plain { declared } else { state.size },
        entries,
    })
}
