//! The assembled tar stream for the async side: steps on the blocking pool, and bytes of the blob that arrive meanwhile.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use bytes::{BufMut as _, Bytes};
use futures::future::{BoxFuture, Either, select};
use futures::stream::try_unfold;
use tokio::io::AsyncReadExt as _;

use super::super::source::BlobSource;
use super::assembler::{Assembler, Step};
use super::input::Input;
use crate::archive::apply::pipeline::TarChunks;
use crate::archive::compress::buffers::Buffers;
use crate::bridge::{CHUNK, Detached, Pool, Running};
use crate::error::{Error, Result};
use crate::options::BoxReader;

/// Compressed bytes that may wait for the next step.
const AHEAD: usize = 512 * 1024;

/// Compressed bytes in one buffer.
const PIECE: usize = 128 * 1024;

/// The stream that `assembler` makes, with the bytes of the blob from `source`. Nothing is asked for before it is read; then it
/// is one step ahead of its reader.
pub(crate) fn stream(assembler: Assembler, source: Arc<dyn BlobSource>) -> TarChunks<'static> {
    let fetch = Fetch {
        state: match assembler.requests() {
            [] => State::Ended,
            _ => State::Waiting,
        },
        current: Vec::new(),
        buffers: Buffers::new(PIECE),
        ready: VecDeque::new(),
        count: 0,
        error: None,
    };
    let assembly = Assembly {
        pool: Pool::here(),
        work: Work::Idle(Box::new(assembler)),
        needs_input: false,
        source,
        fetch,
        input: Input::default(),
        given: 0,
        buffers: Buffers::new(CHUNK),
    };
    Box::pin(try_unfold(assembly, |mut assembly| async move {
        let chunk = assembly.next().await?;
        Ok(chunk.map(|chunk| (chunk, assembly)))
    }))
}

struct Assembly {
    pool: Pool,
    work: Work,
    /// Whether the next step has nothing to do before more bytes of the blob are there.
    needs_input: bool,
    source: Arc<dyn BlobSource>,
    fetch: Fetch,
    /// What the next step gets.
    input: Input,
    /// Bytes that the running step has got. It may leave all of them.
    given: usize,
    buffers: Arc<Buffers>,
}

/// Where the assembler is.
enum Work {
    Idle(Box<Assembler>),
    Running(Running<Result<Stepped>>),
    Over,
}

/// What a step leaves.
struct Stepped {
    /// `None` after the last one.
    assembler: Option<Box<Assembler>>,
    input: Input,
    out: Vec<u8>,
    needs_input: bool,
}

impl Assembly {
    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if std::mem::take(&mut self.needs_input) {
                self.fetch.wait().await?;
                self.fetch.give(&mut self.input);
            }
            self.begin();
            let Work::Running(step) = &mut self.work else {
                return Ok(None);
            };
            let room = AHEAD.saturating_sub(self.given);
            let stepped = match select(step, pin!(self.fetch.fill(room))).await {
                Either::Left((stepped, _fill)) => stepped,
                Either::Right(((), step)) => step.await,
            };
            self.work = Work::Over;
            let Stepped {
                assembler,
                input,
                out,
                needs_input,
            } = stepped??;
            self.input = input;
            self.needs_input = needs_input && !self.fetch.has_some();
            self.fetch.give(&mut self.input);
            if let Some(assembler) = assembler {
                self.work = Work::Idle(assembler);
            }
            if !self.needs_input {
                self.begin();
            }
            // Without bytes it goes back to the others.
            let chunk = self.buffers.share(out);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// Starts the next step, if the assembler is there and waits for none.
    fn begin(&mut self) {
        let mut assembler = match std::mem::replace(&mut self.work, Work::Over) {
            Work::Idle(assembler) => assembler,
            other => {
                self.work = other;
                return;
            }
        };
        if let State::Waiting = self.fetch.state {
            let (source, ranges) = (Arc::clone(&self.source), assembler.requests().to_vec());
            let opening = async move { source.read(ranges).await };
            self.fetch.state = State::Opening(Box::pin(opening));
        }
        self.given = self.input.len();
        let mut input = std::mem::take(&mut self.input);
        let mut out = self.buffers.take();
        let span = tracing::Span::current();
        let step = move || {
            let step = span.in_scope(|| assembler.step(&mut input, &mut out, CHUNK))?;
            Ok(Stepped {
                // At the end its files are closed here.
                assembler: (step != Step::End).then_some(assembler),
                input,
                out,
                needs_input: step == Step::NeedInput,
            })
        };
        self.work = Work::Running(self.pool.start(step));
    }
}

impl Drop for Assembly {
    fn drop(&mut self) {
        if let Work::Idle(assembler) = std::mem::replace(&mut self.work, Work::Over) {
            drop(Detached::new(assembler));
        }
    }
}

/// The bytes of the blob, a bounded number of them ahead of the steps.
struct Fetch {
    state: State,
    /// What is being filled; one of `buffers`, or without capacity.
    current: Vec<u8>,
    buffers: Arc<Buffers>,
    /// What was filled.
    ready: VecDeque<Bytes>,
    /// Bytes of both.
    count: usize,
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
        while self.count < enough && self.more().await {}
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
                if self.current.capacity() == 0 {
                    self.current = self.buffers.take();
                }
                let room = self.current.capacity() - self.current.len();
                let read = reader.read_buf(&mut (&mut self.current).limit(room)).await;
                read.map_err(|error| Error::io("reading the blob", error))
            }
        };
        match result {
            Ok(count) if count > 0 => {
                self.count += count;
                if self.current.len() == self.current.capacity() {
                    self.put_aside();
                }
                return true;
            }
            Ok(_end) => self.error = Some(Error::io("reading the blob", io::ErrorKind::UnexpectedEof)),
            Err(error) => self.error = Some(error),
        }
        self.state = State::Ended;
        false
    }

    /// Waits until there is something.
    async fn wait(&mut self) -> Result<()> {
        while !self.has_some() {
            if !self.more().await {
                let ended = || Error::io("reading the blob", io::ErrorKind::UnexpectedEof);
                return Err(self.error.take().unwrap_or_else(ended));
            }
        }
        Ok(())
    }

    fn has_some(&self) -> bool {
        self.count > 0
    }

    fn put_aside(&mut self) {
        if !self.current.is_empty() {
            let filled = std::mem::take(&mut self.current);
            self.ready.push_back(self.buffers.share(filled));
        }
    }

    /// Moves what was read behind what is there.
    fn give(&mut self, input: &mut Input) {
        // A buffer with little in it is filled up while there is something else to do.
        if self.current.len() >= PIECE / 2 || (self.ready.is_empty() && input.is_empty()) {
            self.put_aside();
        }
        for chunk in self.ready.drain(..) {
            self.count -= chunk.len();
            input.push(chunk);
        }
    }
}
