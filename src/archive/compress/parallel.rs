//! Compresses on all processors: the stream is cut into blocks of one size that are compressed apart and put together
//! again in their order. So the result is the same on any number of threads.
//!
//! One step on tokio's blocking pool reads one block, hands the producer back, and compresses what it has read: while
//! it does the latter the next step reads the next block. Steps start in polls only, so a stream that is not read
//! comes to a halt, with a few compressed blocks at hand and no thread. A stream may always have one step under way;
//! for more of them there are as many permits as processors, for all streams of the process.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::sync::oneshot;

use crate::archive::compress::format::{
    Cutter, EvenCutter, Filled, Format, Input as _, MAX_THREADS, ToolBox,
};
use crate::bridge::{self, PollChunks, Pool, Producer, Running};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// Bytes that may wait for the reader beside one block for each processor; at least one block, and not more than one
/// for each processor.
const WAITING: usize = 4 << 20;

/// Steps under way that are not the only one of their stream.
static EXTRA_STEPS: AtomicUsize = AtomicUsize::new(0);

/// The right to one of them.
struct ExtraStep;

impl ExtraStep {
    fn get(limit: usize) -> Option<Self> {
        let taken = EXTRA_STEPS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |steps| {
            (steps < limit).then_some(steps + 1)
        });
        taken.ok().map(|_steps_before| Self)
    }
}

impl Drop for ExtraStep {
    fn drop(&mut self) {
        EXTRA_STEPS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A compressed stream of what a cutter reads. See the module's head.
pub(crate) struct ParallelStream<F: Format, C: Cutter<Input = F::Input, Rest = F::Rest>> {
    pool: Pool,
    /// `None` from the end on.
    format: Option<F>,
    level: i32,
    /// How many processors are used.
    threads: usize,
    source: Source<C>,
    /// `None` until the first step.
    tools: Option<Arc<ToolBox<F>>>,
    /// Steps, in the order of their blocks.
    steps: VecDeque<Running<Result<Option<F::Block>>>>,
    begun: bool,
    /// The step that makes what comes after the last block.
    last: Option<Running<Result<Vec<u8>>>>,
}

/// Where the cutter is.
enum Source<C: Cutter> {
    /// Here.
    Here(Box<C>),
    /// With the step that was started last.
    Away(oneshot::Receiver<Self>),
    /// At its end.
    Ended(C::Rest),
    Failed(Error),
    /// At its end, and what it knew is used.
    Over,
}

impl<F: Format<Input = Vec<u8>, Rest = ()> + Default, P: Producer> ParallelStream<F, EvenCutter<P>> {
    /// A stream of what `producer` makes, at the usual level if none is given.
    pub(crate) fn of(producer: P, level: Option<i32>) -> Self {
        Self::new(F::default(), EvenCutter::new(producer, F::BLOCK), level)
    }
}

impl<F: Format, C: Cutter<Input = F::Input, Rest = F::Rest>> ParallelStream<F, C> {
    /// A stream of what `cutter` reads, at the usual level if none is given.
    pub(crate) fn new(format: F, cutter: C, level: Option<i32>) -> Self {
        Self::with_threads(format, cutter, level, crate::sys::processors().min(MAX_THREADS))
    }

    /// The same on this number of processors at the most.
    pub(crate) fn with_threads(format: F, cutter: C, level: Option<i32>, threads: usize) -> Self {
        Self {
            pool: Pool::here(),
            format: Some(format),
            level: level.unwrap_or(F::LEVEL),
            threads,
            source: Source::Here(Box::new(cutter)),
            tools: None,
            steps: VecDeque::new(),
            begun: false,
            last: None,
        }
    }

    /// Starts as many steps as can be under way now.
    fn start_steps(&mut self, cx: &mut Context<'_>) {
        loop {
            if let Source::Away(back) = &mut self.source {
                self.source = match Pin::new(back).poll(cx) {
                    Poll::Pending => return,
                    Poll::Ready(Ok(source)) => source,
                    Poll::Ready(Err(_dropped)) => {
                        Source::Failed(ErrorKind::Cancelled.err("the runtime is shutting down"))
                    }
                };
            }
            let waiting = (WAITING / F::BLOCK).clamp(1, self.threads.max(1));
            if !matches!(self.source, Source::Here(_)) || self.steps.len() >= self.threads + waiting {
                return;
            }
            let permit = match self.steps.is_empty() {
                true => None,
                false => match ExtraStep::get(self.threads) {
                    None => return,
                    permit => permit,
                },
            };
            let (sender, back) = oneshot::channel();
            let Source::Here(cutter) = std::mem::replace(&mut self.source, Source::Away(back)) else {
                return;
            };
            let tools = Arc::clone(self.tools.get_or_insert_with(|| F::tools().get()));
            let level = self.level;
            self.steps.push_back(self.pool.start(move || {
                let _permit = permit;
                let mut tool = tools.take(level).during("starting to compress")?;
                let (source, full) = read_block(cutter, &mut tool.block);
                // A stream that was given up does not want it any more.
                drop(sender.send(source));
                let mut compressed = Ok(None);
                if full {
                    let block = F::compress(&mut tool.encoder, &mut tool.block);
                    compressed = block.map(Some).during("compressing the layer stream");
                }
                tools.put(tool);
                compressed
            }));
        }
    }

    /// Bytes as they go out, with what comes before the first.
    fn chunk(&mut self, mut chunk: Vec<u8>) -> Vec<u8> {
        if !std::mem::replace(&mut self.begun, true) {
            chunk.splice(0..0, F::HEAD.iter().copied());
        }
        chunk
    }
}

/// Reads one block. Returns where the cutter is then, and whether the block is to be compressed.
fn read_block<C: Cutter>(mut cutter: Box<C>, block: &mut C::Input) -> (Source<C>, bool) {
    match cutter.fill(block) {
        Ok(Filled::Partly) => (Source::Here(cutter), false),
        Ok(Filled::Full) => (Source::Here(cutter), true),
        // Files and mounts are closed before the reader sees the end.
        Ok(Filled::End) => match cutter.finish() {
            Ok(rest) => (Source::Ended(rest), !block.is_empty()),
            Err(error) => (Source::Failed(error), false),
        },
        Err(error) => (Source::Failed(error), false),
    }
}

impl<F: Format, C: Cutter<Input = F::Input, Rest = F::Rest>> PollChunks for ParallelStream<F, C> {
    fn poll_chunk(
        &mut self,
        cx: &mut Context<'_>,
        _spent: &mut Vec<u8>,
    ) -> Poll<Option<io::Result<Vec<u8>>>> {
        loop {
            self.start_steps(cx);
            if let Some(oldest) = self.steps.front_mut() {
                let result = ready!(Pin::new(oldest).poll(cx));
                drop(self.steps.pop_front());
                match result.and_then(|block| block) {
                    Ok(None) => continue,
                    Ok(Some(block)) => {
                        // Work goes on while the reader has this block.
                        self.start_steps(cx);
                        let chunk = self.format.as_mut().map(|format| format.follow(block));
                        let chunk = self.chunk(chunk.unwrap_or_default());
                        return Poll::Ready(Some(Ok(chunk)));
                    }
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                }
            }
            if let Some(last) = &mut self.last {
                let result = ready!(Pin::new(last).poll(cx));
                self.last = None;
                let chunk = match result.and_then(|tail| tail) {
                    Ok(tail) => self.chunk(tail),
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                };
                if !chunk.is_empty() {
                    return Poll::Ready(Some(Ok(chunk)));
                }
            }
            match std::mem::replace(&mut self.source, Source::Over) {
                Source::Failed(error) => return Poll::Ready(Some(Err(error.into()))),
                Source::Ended(rest) => {
                    let Some(format) = self.format.take() else {
                        return Poll::Ready(None);
                    };
                    self.last = Some(self.pool.start(move || format.finish(rest)));
                }
                Source::Over => return Poll::Ready(None),
                Source::Here(cutter) => self.source = Source::Here(cutter),
                Source::Away(back) => {
                    // The step is over, but the runtime wants other tasks to run before it says so.
                    self.source = Source::Away(back);
                    return Poll::Pending;
                }
            }
        }
    }
}

impl<F: Format, C: Cutter<Input = F::Input, Rest = F::Rest>> Drop for ParallelStream<F, C> {
    fn drop(&mut self) {
        let source = match std::mem::replace(&mut self.source, Source::Over) {
            Source::Away(mut back) => {
                back.close();
                back.try_recv().ok()
            }
            source => Some(source),
        };
        // Closing may unmount, which does not belong on the thread of an async task.
        if let Some(source @ Source::Here(_)) = source {
            bridge::spawn_detached(move || drop(source));
        }
    }
}

#[cfg(test)]
pub(in crate::archive) mod tests {
    use super::*;
    use crate::archive::compress::format::Tools;
    use crate::bridge::{ByteStream, Progress};
    use std::io::Write as _;
    use std::process::{Command, Stdio};
    use tokio::io::AsyncReadExt as _;

    /// Pieces of a stream, one for each step, then maybe an error.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        fails: bool,
        alive: Arc<()>,
    }

    impl Producer for Pieces {
        fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
            if let Some(mut piece) = self.pieces.pop_front() {
                if piece.len() > room {
                    self.pieces.push_front(piece.split_off(room));
                }
                out.extend(piece);
            }
            match self.pieces.is_empty() {
                true if self.fails => Err(ErrorKind::LayerContentModified.err("piece")),
                true => Ok(Progress::End),
                false => Ok(Progress::More),
            }
        }
    }

    fn pieces(pieces: &[&[u8]]) -> Pieces {
        Pieces {
            pieces: pieces.iter().map(|piece| piece.to_vec()).collect(),
            fails: false,
            alive: Arc::default(),
        }
    }

    fn runtime(pool: usize) -> tokio::runtime::Runtime {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.max_blocking_threads(pool.max(1)).build().unwrap()
    }

    fn on_threads<F, P>(producer: P, threads: usize) -> ParallelStream<F, EvenCutter<P>>
    where
        F: Format<Input = Vec<u8>, Rest = ()> + Default,
        P: Producer,
    {
        let cutter = EvenCutter::new(producer, F::BLOCK);
        ParallelStream::with_threads(F::default(), cutter, None, threads)
    }

    /// What `F` makes of the pieces with a pool of so many threads, and with as many processors.
    pub(in crate::archive) fn compressed<F>(parts: &[&[u8]], threads: usize) -> Vec<u8>
    where
        F: Format<Input = Vec<u8>, Rest = ()> + Default,
    {
        let stream = on_threads::<F, _>(pieces(parts), threads);
        let mut out = Vec::new();
        let read = async { ByteStream::new(stream).read_to_end(&mut out).await };
        runtime(threads).block_on(read).unwrap();
        out
    }

    /// Text that gets smaller, and bytes that do not, by turns of `block` bytes.
    pub(in crate::archive) fn sample(size: usize, block: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut data = Vec::with_capacity(size + 100);
        while data.len() < size {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if data.len() % (3 * block) < block {
                data.extend_from_slice(&state.to_le_bytes()[1..]);
            } else {
                data.extend_from_slice(format!("line {} of the sample\n", state % 1000).as_bytes());
            }
        }
        data.truncate(size);
        data
    }

    /// Streams of all sizes come back whole and are the same however they were made.
    pub(in crate::archive) fn check_sizes<F: Format<Input = Vec<u8>, Rest = ()> + Default>(
        read: fn(&[u8]) -> Vec<u8>,
    ) {
        for size in [
            0,
            1,
            2,
            3,
            4096,
            F::BLOCK - 1,
            F::BLOCK,
            F::BLOCK + 1,
            2 * F::BLOCK,
            5 * F::BLOCK + 77,
        ] {
            let data = sample(size, F::BLOCK);
            let alone = compressed::<F>(&[&data], 0);
            assert!(read(&alone) == data, "{size} bytes");
            for threads in [1, 3] {
                assert!(
                    compressed::<F>(&[&data], threads) == alone,
                    "{size} bytes on {threads} threads"
                );
                let pieces: Vec<&[u8]> = data.chunks(100_003).collect();
                assert!(
                    compressed::<F>(&pieces, threads) == alone,
                    "cut otherwise: {size}"
                );
            }
        }
    }

    /// Whether `program` finds the stream on its standard input to be in order.
    pub(in crate::archive) fn check_program(program: &str, stream: &[u8]) {
        let child = Command::new(program).arg("--test").stdin(Stdio::piped()).spawn();
        match child {
            Ok(mut child) => {
                // Dropped at once, so that the program sees the end.
                child.stdin.take().unwrap().write_all(stream).unwrap();
                assert!(child.wait().unwrap().success());
            }
            Err(error) => crate::skip::skip(&format!("{program}: {error}")),
        }
    }

    /// Upper case, with a sum; blocks with an exclamation mark fail.
    #[derive(Default)]
    struct Upper(usize);

    impl Format for Upper {
        const BLOCK: usize = 1000;
        const HEAD: &'static [u8] = b"<";
        const LEVEL: i32 = 0;
        type Encoder = ();
        type Input = Vec<u8>;
        type Block = Vec<u8>;
        type Rest = ();

        fn encoder(_level: i32) -> io::Result<()> {
            Ok(())
        }

        fn tools() -> &'static Tools<Self> {
            static TOOLS: Tools<Upper> = Tools::new();
            &TOOLS
        }

        fn compress(_encoder: &mut (), data: &mut Vec<u8>) -> io::Result<Vec<u8>> {
            if data.contains(&b'!') {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(data.to_ascii_uppercase())
        }

        fn follow(&mut self, block: Vec<u8>) -> Vec<u8> {
            self.0 += block.len();
            block
        }

        fn finish(self, _rest: ()) -> Result<Vec<u8>> {
            Ok(format!(">{}", self.0).into())
        }
    }

    #[test]
    fn blocks_come_in_their_order() {
        let data: Vec<u8> = (b'a'..=b'u')
            .flat_map(|letter| vec![letter; 1000])
            .take(20_777)
            .collect();
        let expected = [b"<", &*data.to_ascii_uppercase(), b">20777"].concat();
        for threads in [0, 1, 2, 5] {
            assert!(compressed::<Upper>(&[&data], threads) == expected);
            assert_eq!(compressed::<Upper>(&[], threads), b"<>0");
            // Steps that fill no block, or nothing.
            let pieces: Vec<&[u8]> = data.chunks(77).flat_map(|chunk| [chunk, b""]).collect();
            assert!(compressed::<Upper>(&pieces, threads) == expected);
        }
    }

    /// Blocks before the one that fails come out.
    #[test]
    fn a_failure_ends_it() {
        let mut bad = vec![b'x'; 50_000];
        bad[7_000] = b'!';
        let good = vec![b'x'; 7_500];
        for (data, fails) in [(bad, false), (good, true)] {
            for threads in [0, 2] {
                let mut producer = pieces(&[&data]);
                producer.fails = fails;
                let mut out = Vec::new();
                let error = runtime(threads).block_on(async {
                    let stream = on_threads::<Upper, _>(producer, threads);
                    let mut stream = ByteStream::new(stream);
                    stream.read_to_end(&mut out).await.unwrap_err()
                });
                let error = Error::io("reading", error);
                match fails {
                    true => assert_eq!(error.kind(), ErrorKind::LayerContentModified),
                    false => assert_eq!(error.io_kind(), Some(io::ErrorKind::InvalidData)),
                }
                assert_eq!(out.len(), 7_001);
            }
        }
    }

    /// Wherever its producer is when the stream is dropped, or its runtime.
    #[test]
    fn a_stream_that_is_dropped_leaves_nothing() {
        for reads in 0..12 {
            for runtime_first in [false, true] {
                let producer = pieces(&[&vec![b'x'; 50_000]]);
                let alive = Arc::clone(&producer.alive);
                let runtime = runtime(2);
                let mut stream = ByteStream::new(on_threads::<Upper, _>(producer, 2));
                runtime.block_on(async {
                    for _ in 0..reads {
                        stream.read_exact(&mut [0; 701]).await.unwrap();
                    }
                });
                if runtime_first {
                    drop(runtime);
                    drop(stream);
                } else {
                    runtime.block_on(async move {
                        drop(stream);
                        while Arc::strong_count(&alive) > 1 {
                            tokio::task::yield_now().await;
                        }
                    });
                    continue;
                }
                assert_eq!(Arc::strong_count(&alive), 1);
            }
        }
    }
}
