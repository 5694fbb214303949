//! Async streams of what blocking code produces, in finite steps.
//!
//! A [`Producer`] is a resumable state machine. [`StepStream`] runs one step of it on tokio's blocking pool whenever a
//! poll finds no bytes. When a chunk is handed out the next step starts, so that producing and consuming overlap, and
//! no other step follows before that one's chunk is asked for. A stream that nobody polls is its state: no thread
//! waits for the reader, and before the first poll nothing has been read or allocated.
//!
//! Chunks begin small and double up to [`MAX_CHUNK`], so that many streams that were hardly read need little memory.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use tokio::io::{AsyncRead, ReadBuf};

use crate::bridge::pool::{Pool, Running, spawn_detached};
use crate::error::{Error, ErrorKind, Result};

/// Bytes in the first chunk of a stream.
const FIRST_CHUNK: usize = 64 * 1024;

/// Bytes in a chunk at the most: enough that the hops between threads take a few per cent of the time of a diff.
const MAX_CHUNK: usize = 1024 * 1024;

/// Whether there is more to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Another step is needed.
    More,
    /// That was the last one.
    End,
}

/// A stream of bytes in the making, as a state machine whose steps may run on different threads.
pub(crate) trait Producer: Send + Sync + 'static {
    /// Appends at most `room` bytes to `out`, which has the capacity for them.
    ///
    /// Returns when `room` is used up, at the end, or when some bounded amount of work has brought no bytes. What was
    /// appended before an error is part of the stream. No step is called after the end or an error.
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress>;
}

impl Producer for Box<dyn Producer> {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        (**self).step(out, room)
    }
}

/// A source of chunks for a [`ByteStream`].
pub(crate) trait PollChunks: Send + Sync {
    /// The next chunk, which is not empty; `None` at the end. `spent` is a buffer to be used again.
    ///
    /// Not called again after `None` or an error.
    fn poll_chunk(&mut self, cx: &mut Context<'_>, spent: &mut Vec<u8>) -> Poll<Option<io::Result<Vec<u8>>>>;
}

/// A producer as a source of chunks. See the module's head.
pub(crate) struct StepStream<P: Producer> {
    pool: Pool,
    state: State<P>,
    room: usize,
}

enum State<P: Producer> {
    Idle(Box<P>),
    Running(Running<Stepped<P>>),
    /// The last chunk is out; then comes the end, or this error.
    Over(Option<Error>),
}

/// What a step leaves.
struct Stepped<P: Producer> {
    chunk: Vec<u8>,
    next: Result<Option<Box<P>>>,
}

impl<P: Producer> StepStream<P> {
    /// A stream of what `producer` makes.
    pub(crate) fn new(producer: P) -> Self {
        Self {
            pool: Pool::here(),
            state: State::Idle(Box::new(producer)),
            room: FIRST_CHUNK,
        }
    }

    fn start(&mut self, mut producer: Box<P>, spent: &mut Vec<u8>) {
        let room = self.room;
        self.room = (room * 2).min(MAX_CHUNK);
        let mut chunk = std::mem::take(spent);
        let step = move || {
            chunk.clear();
            chunk.reserve_exact(room);
            let next = producer.step(&mut chunk, room);
            // At the end its files and mounts are closed here, before the reader sees the end.
            let next = next.map(|progress| (progress == Progress::More).then_some(producer));
            Stepped { chunk, next }
        };
        self.state = State::Running(self.pool.start(step));
    }
}

impl<P: Producer> PollChunks for StepStream<P> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>, spent: &mut Vec<u8>) -> Poll<Option<io::Result<Vec<u8>>>> {
        loop {
            match &mut self.state {
                State::Idle(_) => {
                    if let State::Idle(producer) = std::mem::replace(&mut self.state, State::Over(None)) {
                        self.start(producer, spent);
                    }
                }
                State::Running(step) => {
                    let stepped = ready!(Pin::new(step).poll(cx));
                    self.state = State::Over(None);
                    let Stepped { chunk, next } = match stepped {
                        Ok(stepped) => stepped,
                        Err(error) => return Poll::Ready(Some(Err(error.into()))),
                    };
                    match next {
                        Ok(Some(producer)) => self.start(producer, spent),
                        Ok(None) => {}
                        Err(error) => self.state = State::Over(Some(error)),
                    }
                    if !chunk.is_empty() {
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                }
                State::Over(error) => {
                    return Poll::Ready(error.take().map(|error| Err(error.into())));
                }
            }
        }
    }
}

impl<P: Producer> Drop for StepStream<P> {
    fn drop(&mut self) {
        // Closing may unmount, which does not belong on the thread of an async task.
        if let State::Idle(producer) = std::mem::replace(&mut self.state, State::Over(None)) {
            spawn_detached(move || drop(producer));
        }
    }
}

/// A stream of bytes from a source of chunks, for readers of bytes and of chunks.
pub(crate) struct ByteStream {
    /// `None` after the end and after an error.
    source: Option<Box<dyn PollChunks>>,
    failed: bool,
    /// Bytes of the source that are passed over.
    skip: u64,
    /// Bytes that may still come after them; the source is closed then. `None`: all.
    limit: Option<u64>,
    chunk: Vec<u8>,
    /// Where in `chunk` the bytes begin that are still to be read.
    position: usize,
}

impl ByteStream {
    /// A stream of what `producer` makes.
    pub(crate) fn of(producer: impl Producer) -> Self {
        Self::new(StepStream::new(producer))
    }

    /// A stream of the chunks of `source`.
    pub(crate) fn new(source: impl PollChunks + 'static) -> Self {
        Self {
            source: Some(Box::new(source)),
            failed: false,
            skip: 0,
            limit: None,
            chunk: Vec::new(),
            position: 0,
        }
    }

    /// The same without its first `count` bytes. A stream that has fewer of them fails.
    pub(crate) fn skipping(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// The same, cut off after `limit` bytes.
    pub(crate) fn limited(mut self, limit: Option<u64>) -> Self {
        self.limit = limit;
        self
    }

    /// Makes sure that there are bytes in `chunk`; `false` at the end.
    fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        while self.position >= self.chunk.len() {
            if self.limit == Some(0) {
                self.source = None;
            }
            let Some(source) = &mut self.source else {
                return Poll::Ready(Ok(false));
            };
            let next = match ready!(source.poll_chunk(cx, &mut self.chunk)) {
                Some(Ok(chunk)) => Ok(Some(chunk)),
                None if self.skip > 0 => {
                    let what = format!(
                        "an offset that lies {} bytes beyond the end of a stream",
                        self.skip
                    );
                    Err(ErrorKind::InvalidInput.err(what).into())
                }
                None => Ok(None),
                Some(Err(error)) => Err(error),
            };
            match next {
                Ok(Some(chunk)) => {
                    let passed = usize::try_from(self.skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
                    self.skip = self.skip.saturating_sub(passed as u64);
                    self.chunk = chunk;
                    self.position = passed;
                    if let Some(limit) = &mut self.limit {
                        let end =
                            usize::try_from(*limit).map_or(usize::MAX, |limit| passed.saturating_add(limit));
                        self.chunk.truncate(end);
                        *limit = limit.saturating_sub((self.chunk.len() - passed) as u64);
                    }
                }
                end_or_error => {
                    self.failed = end_or_error.is_err();
                    self.source = None;
                    self.chunk = Vec::new();
                    self.position = 0;
                    return Poll::Ready(end_or_error.map(|_none| false));
                }
            }
        }
        Poll::Ready(Ok(true))
    }
}

impl fmt::Debug for ByteStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByteStream")
            .field("open", &self.source.is_some())
            .field("buffered", &self.chunk.len().saturating_sub(self.position))
            .finish_non_exhaustive()
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.failed {
            // An end here would make the bytes before the error look whole.
            return Poll::Ready(Err(io::Error::other("reading a stream that has failed before")));
        }
        if buffer.remaining() > 0 && ready!(self.poll_bytes(cx))? {
            let rest = self.chunk.get(self.position..).unwrap_or_default();
            let part = rest.get(..buffer.remaining()).unwrap_or(rest);
            buffer.put_slice(part);
            self.position += part.len();
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for ByteStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match ready!(self.poll_bytes(cx)) {
            Ok(true) => {
                let mut bytes = Bytes::from(std::mem::take(&mut self.chunk));
                let rest = bytes.split_off(std::mem::take(&mut self.position));
                Poll::Ready(Some(Ok(rest)))
            }
            Ok(false) => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(error))),
        }
    }
}

/// Runs a producer to its end on this thread, in steps of `room` bytes; what was made before an error is in `out`.
#[cfg(test)]
pub(crate) fn run_to_end(mut producer: impl Producer, room: usize, out: &mut Vec<u8>) -> Result<()> {
    loop {
        let start = out.len();
        out.reserve(room);
        let progress = producer.step(out, room);
        assert!(out.len() - start <= room, "a step made more than it had room for");
        if progress? == Progress::End {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use futures::StreamExt as _;
    use tokio::io::AsyncReadExt as _;

    /// Counts bytes up to a length, with a step without any now and then, and how often it was asked.
    struct Counter {
        next: usize,
        end: usize,
        fails: bool,
        steps: Arc<AtomicUsize>,
        _alive: Arc<()>,
    }

    impl Producer for Counter {
        fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
            if self.steps.fetch_add(1, Ordering::SeqCst) % 3 == 1 {
                return Ok(Progress::More);
            }
            let count = room.min(self.end - self.next);
            out.extend((self.next..self.next + count).map(|number| (number % 251).to_le_bytes()[0]));
            self.next += count;
            match self.next == self.end {
                true if self.fails => Err(ErrorKind::InvalidArchive.err("boom")),
                true => Ok(Progress::End),
                false => Ok(Progress::More),
            }
        }
    }

    fn counter(end: usize, fails: bool) -> (Counter, Arc<AtomicUsize>, Arc<()>) {
        let (steps, alive) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let counter = Counter {
            next: 0,
            end,
            fails,
            steps: Arc::clone(&steps),
            _alive: Arc::clone(&alive),
        };
        (counter, steps, alive)
    }

    fn expected(range: std::ops::Range<usize>) -> Vec<u8> {
        range.map(|number| (number % 251).to_le_bytes()[0]).collect()
    }

    #[tokio::test]
    async fn bytes_and_chunks_are_the_same_stream() {
        for end in [0, 1, FIRST_CHUNK, 3 * MAX_CHUNK + 5] {
            let mut bytes = Vec::new();
            let mut stream = ByteStream::of(counter(end, false).0);
            stream.read_to_end(&mut bytes).await.unwrap();
            assert!(bytes == expected(0..end));
            // A few bytes read singly, the rest in chunks.
            let mut stream = ByteStream::of(counter(end, false).0);
            let mut start = vec![0; end.min(10)];
            stream.read_exact(&mut start).await.unwrap();
            while let Some(chunk) = stream.next().await {
                let chunk = chunk.unwrap();
                assert!(!chunk.is_empty() && chunk.len() <= MAX_CHUNK);
                start.extend_from_slice(&chunk);
            }
            assert!(start == expected(0..end));
            assert!(stream.next().await.is_none());
        }
    }

    #[tokio::test]
    async fn an_offset_cuts_off_the_start() {
        let end = 2 * MAX_CHUNK;
        for offset in [0, 1, FIRST_CHUNK, FIRST_CHUNK + 1, end - 1, end] {
            let mut bytes = Vec::new();
            let mut stream = ByteStream::of(counter(end, false).0).skipping(offset as u64);
            stream.read_to_end(&mut bytes).await.unwrap();
            assert!(bytes == expected(offset..end), "{offset}");
        }
        for (offset, limit) in [
            (0, 0),
            (0, 1),
            (5, FIRST_CHUNK),
            (FIRST_CHUNK + 1, MAX_CHUNK),
            (end - 3, 9),
            (0, end),
        ] {
            let mut bytes = Vec::new();
            let (producer, _, alive) = counter(end, false);
            let mut stream = ByteStream::of(producer)
                .skipping(offset as u64)
                .limited(Some(limit as u64));
            stream.read_to_end(&mut bytes).await.unwrap();
            assert!(
                bytes == expected(offset..end.min(offset + limit)),
                "{offset} {limit}"
            );
            // What the rest would be made of is closed.
            while Arc::strong_count(&alive) > 1 {
                tokio::task::yield_now().await;
            }
        }
        let mut stream = ByteStream::of(counter(end, false).0).skipping(end as u64 + 7);
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("7 bytes beyond"), "{error}");
    }

    #[tokio::test]
    async fn an_error_comes_after_the_bytes_before_it_and_stays() {
        let mut stream = ByteStream::of(counter(1000, true).0);
        let mut bytes = Vec::new();
        let error = stream.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(Error::io("reading", error).kind(), ErrorKind::InvalidArchive);
        assert_eq!(bytes, expected(0..1000));
        assert!(stream.read_to_end(&mut bytes).await.is_err());
        assert!(stream.next().await.is_none());
    }

    /// One chunk is handed out and one step is made ahead; then nothing until the reader comes back.
    #[tokio::test]
    async fn no_step_before_the_first_poll_and_one_ahead_of_the_reader() {
        let (producer, steps, alive) = counter(100 * MAX_CHUNK, false);
        let mut stream = ByteStream::of(producer);
        // A pool task that was queued now would run before this one ends.
        crate::bridge::pool::run(|| Ok(())).await.unwrap();
        assert_eq!(steps.load(Ordering::SeqCst), 0);
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        while steps.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        stream.read_exact(&mut byte).await.unwrap();
        crate::bridge::pool::run(|| Ok(())).await.unwrap();
        assert_eq!(steps.load(Ordering::SeqCst), 2);
        drop(stream);
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn a_stream_outlives_its_runtime_and_fails_then() {
        for polled in [false, true] {
            for workers in [0, 2] {
                let mut builder = match workers {
                    0 => tokio::runtime::Builder::new_current_thread(),
                    _ => tokio::runtime::Builder::new_multi_thread(),
                };
                let runtime = builder.max_blocking_threads(1).build().unwrap();
                let (producer, _, alive) = counter(100 * MAX_CHUNK, false);
                let mut stream = runtime.block_on(async { ByteStream::of(producer) });
                if polled {
                    runtime.block_on(async { stream.read_u8().await }).unwrap();
                }
                drop(runtime);
                let rest = futures::executor::block_on(stream.read_to_end(&mut Vec::new()));
                let error = Error::io("reading", rest.unwrap_err());
                assert_eq!(error.kind(), ErrorKind::Cancelled);
                assert_eq!(Arc::strong_count(&alive), 1);
            }
        }
    }

    #[test]
    fn without_any_runtime_there_is_an_error() {
        let mut stream = ByteStream::of(counter(1000, false).0);
        let error = futures::executor::block_on(stream.read_to_end(&mut Vec::new())).unwrap_err();
        assert_eq!(Error::io("reading", error).kind(), ErrorKind::Cancelled);
        // In a runtime it could be read: that is where it is polled that counts.
        let mut stream = ByteStream::of(counter(1000, false).0);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut bytes = Vec::new();
        runtime.block_on(stream.read_to_end(&mut bytes)).unwrap();
        assert_eq!(bytes.len(), 1000);
    }
}
