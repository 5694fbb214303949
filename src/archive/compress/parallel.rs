//! Compresses on all processors: the stream is cut into blocks of one size that are compressed apart and put together
//! again in their order. So the result is the same on any number of threads.
//!
//! Blocks go to threads of their own and not to the runtime's blocking pool: whoever writes here sits in that pool
//! and waits for them, and a pool full of writers would wait for ever. The threads start with the first block that
//! is full, so that a short stream needs none, and end with the stream. Memory is bounded by the blocks under way,
//! one for each thread and a few that wait.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::archive::stream_writer::{StreamWriter, read_spare};

/// More threads than that are never kept busy by one reader of files.
const MAX_THREADS: usize = 8;

/// Bytes that may wait until a thread is free; at least one block, and not more than one for each thread.
const WAITING: usize = 4 << 20;

/// A way to compress of which the parts of a stream can be made apart.
pub(crate) trait Format: Default {
    /// Bytes that are compressed at a time.
    const BLOCK: usize;
    /// What a stream starts with.
    const HEAD: &'static [u8];
    /// What compresses blocks, for each thread.
    type Encoder;
    /// A compressed block.
    type Block: AsRef<[u8]> + Send + 'static;

    /// Starts an encoder.
    fn encoder() -> io::Result<Self::Encoder>;

    /// Compresses one block, which is never empty.
    fn compress(encoder: &mut Self::Encoder, data: &[u8]) -> io::Result<Self::Block>;

    /// Takes note of a block that follows those so far.
    fn follow(&mut self, block: &Self::Block);

    /// What comes after the last block.
    fn tail(&self) -> Vec<u8>;
}

/// One piece of work.
struct Job<F: Format> {
    data: Bytes,
    done: SyncSender<io::Result<F::Block>>,
}

/// A compressed stream being written. See the module's head.
pub(crate) struct Parallel<'a, F: Format, W> {
    out: &'a mut W,
    format: F,
    /// How many threads there may be.
    threads: usize,
    /// Where the work is done; `None` until a block is full.
    bench: Option<WorkerPool<F>>,
    running: VecDeque<Receiver<io::Result<F::Block>>>,
    /// The block being gathered.
    block: Vec<u8>,
}

/// Where blocks are compressed.
enum WorkerPool<F: Format> {
    /// Threads fetch it here; no more than `limit` blocks are under way.
    Threads {
        jobs: mpsc::Sender<Job<F>>,
        limit: usize,
    },
    /// Here: there are no threads.
    Own(F::Encoder),
}

impl<'a, F: Format + 'static, W: Write> Parallel<'a, F, W> {
    /// Starts a stream on `out`, for as many threads as there are processors.
    pub(crate) fn new(out: &'a mut W) -> io::Result<Self> {
        Self::with_threads(out, crate::sys::processors().min(MAX_THREADS))
    }

    /// The same with this number of threads at the most.
    pub(super) fn with_threads(out: &'a mut W, threads: usize) -> io::Result<Self> {
        out.write_all(F::HEAD)?;
        Ok(Self {
            out,
            format: F::default(),
            threads,
            bench: None,
            running: VecDeque::new(),
            block: Vec::new(),
        })
    }

    /// Writes everything that is still to come, and the end. Dropped without, the stream stays cut off.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        if self.bench.is_none() {
            // Everything fits into one block: done before a thread has started.
            self.threads = 0;
        }
        self.push()?;
        while self.collect()? {}
        self.out.write_all(&self.format.tail())
    }

    /// Sends the gathered block on its way.
    fn push(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let data = Bytes::from(std::mem::take(&mut self.block));
        let bench = match &mut self.bench {
            Some(bench) => bench,
            none => none.insert(start(self.threads)?),
        };
        match bench {
            WorkerPool::Threads { jobs, limit } => {
                let (done, result) = mpsc::sync_channel(1);
                jobs.send(Job { data, done }).map_err(|_reason| ended())?;
                self.running.push_back(result);
                if self.running.len() >= *limit {
                    self.collect()?;
                }
                Ok(())
            }
            WorkerPool::Own(encoder) => {
                let block = F::compress(encoder, &data)?;
                self.emit(&block)
            }
        }
    }

    /// Waits for the oldest block and writes it; `false` if there is none.
    fn collect(&mut self) -> io::Result<bool> {
        let Some(oldest) = self.running.pop_front() else {
            return Ok(false);
        };
        let block = oldest.recv().map_err(|_reason| ended())??;
        self.emit(&block)?;
        Ok(true)
    }

    fn emit(&mut self, block: &F::Block) -> io::Result<()> {
        self.format.follow(block);
        self.out.write_all(block.as_ref())
    }

    /// Makes room for at least one byte in the block.
    fn make_room(&mut self) -> io::Result<()> {
        if self.block.len() >= F::BLOCK {
            self.push()?;
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(F::BLOCK);
        }
        Ok(())
    }
}

impl<F: Format + 'static, W: Write> Write for Parallel<'_, F, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        self.make_room()?;
        let count = data.len().min(F::BLOCK - self.block.len());
        self.block
            .extend_from_slice(data.get(..count).unwrap_or_default());
        Ok(count)
    }

    /// Nothing: what has been written comes out with later data or at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: Format + 'static, W: Write> StreamWriter for Parallel<'_, F, W> {
    fn fill(&mut self, file: BorrowedFd<'_>, limit: usize) -> io::Result<&[u8]> {
        self.make_room()?;
        let start = self.block.len();
        read_spare(file, &mut self.block, limit)?;
        Ok(self.block.get(start..).unwrap_or_default())
    }
}

fn ended() -> io::Error {
    io::Error::other("a compressing thread ended early")
}

/// Starts threads, as many of `wanted` as can be had.
fn start<F: Format + 'static>(wanted: usize) -> io::Result<WorkerPool<F>> {
    let (jobs, work) = mpsc::channel();
    let work = Arc::new(Mutex::new(work));
    let mut started = 0;
    for _ in 0..wanted {
        let work = Arc::clone(&work);
        let spawned = std::thread::Builder::new()
            .name("graphroot-press".into())
            .spawn(move || serve::<F>(&work));
        match spawned {
            Ok(_ends_with_the_jobs) => started += 1,
            Err(error) => {
                tracing::debug!(%error, "compressing on fewer threads");
                break;
            }
        }
    }
    Ok(match started {
        0 => WorkerPool::Own(F::encoder()?),
        _ => WorkerPool::Threads {
            jobs,
            limit: started + (WAITING / F::BLOCK).clamp(1, started),
        },
    })
}

/// A thread's life: work until no more can come.
fn serve<F: Format>(work: &Mutex<Receiver<Job<F>>>) {
    let mut encoder = F::encoder();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { data, done }) = next else {
            return;
        };
        let block = match &mut encoder {
            Ok(encoder) => F::compress(encoder, &data),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        // A stream that was given up does not want it any more.
        drop(done.send(block));
    }
}

#[cfg(test)]
pub(in crate::archive) mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What `F` makes of the pieces.
    pub(in crate::archive) fn compressed<F: Format + 'static>(pieces: &[&[u8]], threads: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut stream = Parallel::<F, _>::with_threads(&mut out, threads).unwrap();
        for piece in pieces {
            stream.write_all(piece).unwrap();
            stream.flush().unwrap();
        }
        stream.finish().unwrap();
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
    pub(in crate::archive) fn check_sizes<F: Format + 'static>(read: fn(&[u8]) -> Vec<u8>) {
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

    /// Shouting, with a sum.
    #[derive(Default)]
    struct Loud(usize);

    impl Format for Loud {
        const BLOCK: usize = 1000;
        const HEAD: &'static [u8] = b"<";
        type Encoder = ();
        type Block = Vec<u8>;

        fn encoder() -> io::Result<()> {
            Ok(())
        }

        fn compress(_encoder: &mut (), data: &[u8]) -> io::Result<Vec<u8>> {
            if data.contains(&b'!') {
                return Err(io::ErrorKind::InvalidData.into());
            }
            Ok(data.to_ascii_uppercase())
        }

        fn follow(&mut self, block: &Vec<u8>) {
            self.0 += block.len();
        }

        fn tail(&self) -> Vec<u8> {
            format!(">{}", self.0).into()
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
            assert!(compressed::<Loud>(&[&data], threads) == expected);
            assert_eq!(compressed::<Loud>(&[], threads), b"<>0");
        }
    }

    #[test]
    fn files_are_taken_as_they_are() {
        use std::io::{Seek as _, SeekFrom};
        use std::os::fd::AsFd as _;
        let data = b"abcdefg".repeat(1_234);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut out = Vec::new();
        let mut stream = Parallel::<Loud, _>::with_threads(&mut out, 2).unwrap();
        stream.write_all(b"head").unwrap();
        loop {
            let part = stream.fill(file.as_fd(), 701).unwrap();
            assert!(part.len() <= 701);
            if part.is_empty() {
                break;
            }
        }
        stream.finish().unwrap();
        assert!(out == [b"<HEAD", &*data.to_ascii_uppercase(), b">8642"].concat());
    }

    #[test]
    fn a_block_that_fails_ends_it() {
        let mut data = vec![b'x'; 50_000];
        data[7_000] = b'!';
        for threads in [0, 2] {
            let mut out = Vec::new();
            let mut stream = Parallel::<Loud, _>::with_threads(&mut out, threads).unwrap();
            let error = stream.write_all(&data).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert_eq!(out.len(), 7_001);
        }
    }

    #[test]
    fn an_output_that_fails_ends_it() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(data.len()).ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut out = Full(5_000);
        let mut stream = Parallel::<Loud, _>::with_threads(&mut out, 2).unwrap();
        let error = stream.write_all(&[b'x'; 40_000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
