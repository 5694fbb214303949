//! The blocking side of the pipeline, on an unpack thread: from chunks to files below a directory.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::oneshot;

use crate::archive::apply::digests::HashQueues;
use crate::archive::apply::extract::{Extractor, Setup};
use crate::archive::apply::metadata::{self, Rules};
use crate::archive::apply::target::{Applied, ApplyOptions, Content, Target};
use crate::archive::compress::blob_reader::BlobReader;
use crate::archive::compress::decode::Decoder;
use crate::archive::path::{clean, show, split};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::bridge::{CHUNK, ChunkReader, give};
use crate::compression::Compression;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::sys::{privilege, writeback};
use crate::whiteout;

/// Chunks as they arrive from the async side; hashes while it would wait for them.
pub(crate) struct Incoming {
    reader: ChunkReader,
    queues: HashQueues,
}

impl Incoming {
    pub(crate) fn new(reader: ChunkReader, queues: HashQueues) -> Self {
        Self { reader, queues }
    }

    fn next_chunk(&mut self) -> std::io::Result<Option<Bytes>> {
        while self.reader.is_starved() && self.queues.help() {}
        self.reader.next_chunk()
    }
}

/// Where the decoded stream comes from.
enum Decoded {
    /// The async side decodes.
    Incoming(Incoming),
    /// It sends the blob as it is.
    Decoder(Decoder<Blob>, HashQueues),
}

impl Decoded {
    fn new(incoming: Incoming, decode: Option<Compression>) -> Self {
        let Some(compression) = decode else {
            return Self::Incoming(incoming);
        };
        let queues = incoming.queues.clone();
        let blob = BlobReader::new(Blob {
            incoming,
            current: Bytes::new(),
        });
        Self::Decoder(Decoder::new(blob, compression, CHUNK), queues)
    }
}

impl ChunkSource for Decoded {
    fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Incoming(incoming) => incoming
                .next_chunk()
                .map_err(|error| Error::io("receiving the layer", error)),
            Self::Decoder(decoder, queues) => {
                // Its reads block instead of being pending.
                let chunk = futures::executor::block_on(decoder.next_chunk())?;
                if let Some(chunk) = &chunk {
                    queues.decoded.push(chunk.clone());
                }
                Ok(chunk)
            }
        }
    }
}

/// The blob for a decoder on this thread: its reads block.
struct Blob {
    incoming: Incoming,
    current: Bytes,
}

impl AsyncRead for Blob {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if !self.current.has_remaining() {
            self.current = self.incoming.next_chunk()?.unwrap_or_default();
        }
        give(&mut self.current, out);
        Poll::Ready(Ok(()))
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

/// What the unpacking needs of the async side.
pub(crate) struct Job {
    pub(crate) incoming: Incoming,
    pub(crate) compression: Compression,
    /// Whether the chunks are still to be decoded.
    pub(crate) decode: bool,
    /// The size of the blob; there before the last chunk is.
    pub(crate) blob_size: oneshot::Receiver<u64>,
}

/// Unpacks a layer below `target`.
pub(crate) fn unpack(job: Job, target: Target, mut options: ApplyOptions) -> Result<Applied> {
    let Job {
        incoming,
        compression,
        decode,
        mut blob_size,
    } = job;
    let queues = incoming.queues.clone();
    let mut recorder = TarSplitRecorder::new(options.tar_split.take());
    // The extractor owns the directory; the recorder needs it to the end.
    let dir = target
        .dir
        .try_clone()
        .during("keeping the layer's directory open")?;
    let rules = Rules {
        mappings: target.mappings,
        owner: target.owner,
        ignore_chown_errors: target.ignore_chown_errors,
        in_user_namespace: target.in_user_namespace,
        force_mask: target.force_mask,
        checked: !privilege::overrides_modes(),
    };
    let setup = Setup {
        content: target.content,
        root_entry: target.root_entry,
        rules,
        present: target.present,
        sync: options.sync,
        origins: options.origins.take(),
        inspect: options.inspect.take(),
    };
    let mut extractor = Extractor::new(target.dir, setup)?;
    let mut reader = TarReader::new(Decoded::new(incoming, decode.then_some(compression)));
    let mut entry = Entry::default();
    let mut ids = Ids::default();
    let mut scratch = Vec::new();
    let (mut entries, mut declared) = (0, 0u64);
    while reader.next(&mut entry, &mut |raw| recorder.raw(raw))? {
        entries += 1;
        declared = declared.saturating_add(u64::try_from(entry.declared_size).unwrap_or(0));
        ids.add(&entry, &mut scratch)
            .context(|| format!("unpacking {}", show(&entry.name)))?;
        if options.selection.as_mut().is_some_and(|some| !some.takes(&entry)) {
            continue;
        }
        extractor.place(&entry, &mut reader, &mut recorder)?;
    }
    extractor.end_of_entries()?;
    reader.drain(&mut |raw| recorder.raw(raw))?;
    let Ok(blob_size) = blob_size.try_recv() else {
        return Err(ErrorKind::Cancelled.err("the layer stream was dropped before its end"));
    };
    let (compressed_digest, diff_digest) = queues.finish(&options)?;
    let recorder = recorder.finish(dir.as_fd())?.filter(|_| options.sync);
    if let Some(recorder) = &recorder {
        writeback::start(recorder.as_fd());
    }
    let (state, marks) = extractor.finish()?;
    if let Some(recorder) = &recorder {
        recorder.sync_all().during("syncing tar-split data")?;
    }
    Ok(Applied {
        compression,
        compressed_digest,
        compressed_size: options
            .original_size
            .filter(|_| options.original_digest.is_some())
            .unwrap_or(blob_size),
        diff_digest,
        diff_size: reader.offset(),
        uids: ids.uids.into_iter().collect(),
        gids: ids.gids.into_iter().collect(),
        content_size: if target.content == Content::TreeLayer {
            declared
        } else {
            state.size
        },
        entries,
        marks,
        shared: state.shared,
    })
}
