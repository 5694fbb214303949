//! The assembled tar stream for the async side: steps on the blocking pool, and bytes of the blob that arrive meanwhile.

use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, Either, select};
use futures::stream::try_unfold;
use tokio::io::AsyncReadExt as _;

use super::super::source::BlobSource;
use super::assembler::{Assembler, Step};
use crate::archive::apply::pipeline::TarChunks;
use crate::archive::compress::buffers::Buffers;
use crate::bridge::{self, CHUNK};
use crate::error::{Error, Result};
use crate::options::BoxReader;

/// Compressed bytes that may wait for the next step.
const AHEAD: usize = 512 * 1024;

/// The stream that `assembler` makes, with the bytes of the blob from `source`. Nothing is asked for before it is read.
pub(crate) fn stream(assembler: Assembler, source: Arc<dyn BlobSource>) -> TarChunks<'static> {
    let fetch = Fetch {
        state: match assembler.requests() {
            [] => State::Ended,
            _ => State::Waiting,
        },
        buffer: BytesMut::new(),
        error: None,
    };
    let assembly = Assembly {
        assembler: Some(Box::new(assembler)),
        source,
        fetch,
        input: BytesMut::new(),
        buffers: Buffers::new(CHUNK),
    };
    Box::pin(try_unfold(assembly, |mut assembly| async move {
        let chunk = assembly.next().await?;
        Ok(chunk.map(|chunk| (chunk, assembly)))
    }))
}

struct Assembly {
    /// `None` within a step and after the end.
    assembler: Option<Box<Assembler>>,
    source: Arc<dyn BlobSource>,
    fetch: Fetch,
    input: BytesMut,
    buffers: Arc<Buffers>,
}

impl Assembly {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(mut assembler) = self.assembler.take() {
            if let State::Waiting = self.fetch.state {
                let (source, ranges) = (Arc::clone(&self.source), assembler.requests().to_vec());
                let opening = async move { source.read(ranges).await };
                self.fetch.state = State::Opening(Box::pin(opening));
            }
            let mut input = std::mem::take(&mut self.input);
            // What the step leaves of it comes on top.
            let room = AHEAD.saturating_sub(input.len());
            let mut out = self.buffers.take();
            let step = bridge::run(move || {
                let step = assembler.step(&mut input, &mut out, CHUNK)?;
                Ok((assembler, input, out, step))
            });
            let stepped = {
                let (step, fill) = (pin!(step), pin!(self.fetch.fill(room)));
                match select(step, fill).await {
                    Either::Left((stepped, _fill)) => stepped?,
                    Either::Right(((), step)) => step.await?,
                }
            };
            let (assembler, left, out, step) = stepped;
            self.input = left;
            match step {
                // Its files are closed on the pool.
                Step::End => drop(bridge::Detached::new(assembler)),
                Step::More => self.assembler = Some(assembler),
                Step::NeedInput => {
                    self.assembler = Some(assembler);
                    self.fetch.wait().await?;
                }
            }
            self.fetch.give(&mut self.input);
            // Without bytes it goes back to the others.
            let chunk = self.buffers.share(out);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
        Ok(None)
    }
}

/// The bytes of the blob, a bounded number of them ahead of the steps.
struct Fetch {
    state: State,
    buffer: BytesMut,
    /// Why there are no more; told when they are needed.
    error: Option<Error>,
}

enum State {
    /// Nothing was asked for.
    Waiting,
    Opening(BoxFuture<'static, Result<BoxReader>>),
    Open(BoxReader),
    Ended,
}

impl Fetch {
    /// Reads until there are so many bytes, or no more. Dropped, it has lost nothing.
    async fn fill(&mut self, enough: usize) {
        while self.buffer.len() < enough && self.more().await {}
    }

    /// Reads once; `false` at the end.
    async fn more(&mut self) -> bool {
        let result = match &mut self.state {
            State::Waiting | State::Ended => return false,
            State::Opening(opening) => match opening.await {
                Ok(reader) => {
                    self.state = State::Open(reader);
                    return true;
                }
                Err(error) => Err(error),
            },
            State::Open(reader) => {
                self.buffer.reserve(AHEAD / 4);
                let read = reader.read_buf(&mut self.buffer).await;
                read.map_err(|error| Error::io("reading the blob", error))
            }
        };
        match result {
            Ok(count) if count > 0 => return true,
            Ok(_end) => self.error = Some(Error::io("reading the blob", io::ErrorKind::UnexpectedEof)),
            Err(error) => self.error = Some(error),
        }
        self.state = State::Ended;
        false
    }

    /// Waits until there is something.
    async fn wait(&mut self) -> Result<()> {
        while self.buffer.is_empty() {
            if !self.more().await {
                let ended = || Error::io("reading the blob", io::ErrorKind::UnexpectedEof);
                return Err(self.error.take().unwrap_or_else(ended));
            }
        }
        Ok(())
    }

    /// Moves what was read behind what is there.
    fn give(&mut self, input: &mut BytesMut) {
        match input.is_empty() {
            true => std::mem::swap(input, &mut self.buffer),
            false => {
                input.extend_from_slice(&self.buffer);
                self.buffer.clear();
            }
        }
    }
}
