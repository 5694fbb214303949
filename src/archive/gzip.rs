//! Writes gzip on all processors: the stream is cut into blocks that are compressed apart and put together again.
//!
//! The result is one ordinary gzip member, the same on any number of threads. libdeflate does the work, which is a good
//! deal faster than zlib is and needs no window from one block to the next to be as small. It writes whole streams
//! only; their ends are opened ([`deflate_blocks`]) so that they can follow each other. The checksums of the blocks are
//! combined.
//!
//! Blocks go to threads of their own and not to the runtime's blocking pool: whoever writes here sits in that pool
//! and waits for them, and a pool full of writers would wait for ever. The threads end with the stream. Memory is
//! bounded by the blocks under way, two for each thread.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use flate2::Crc;
use libdeflater::{CompressionLvl, Compressor};

use super::deflate_blocks;
use super::sink::{Sink, read_spare};

/// Bytes that are handed to a thread at a time. They become two streams, whose ends are looked for together; longer ones
/// would gain a few thousandths, and have more to look through.
const BLOCK: usize = 384 * 1024;

/// Three quarters of the work of zlib's level 3, which gives about as many bytes: within a hundredth of what the Go
/// library's default makes.
const LEVEL: i32 = 2;

/// More threads than that are never kept busy by one reader of files.
const MAX_THREADS: usize = 8;

/// Identification, deflate, no flags, no time, no hint, unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// An empty final block.
const END: [u8; 2] = [3, 0];

/// One piece of work.
struct Job {
    data: Bytes,
    done: SyncSender<io::Result<Block>>,
}

/// A compressed block.
struct Block {
    bytes: Vec<u8>,
    crc: Crc,
}

/// A gzip stream being written. See the module's head.
pub(crate) struct Gzip<'a, W> {
    out: &'a mut W,
    /// Where threads fetch work; `None` if there are no threads.
    jobs: Option<mpsc::Sender<Job>>,
    /// How many blocks may be under way.
    limit: usize,
    running: VecDeque<Receiver<io::Result<Block>>>,
    /// The block being gathered.
    block: Vec<u8>,
    crc: Crc,
    /// Without threads the work is done here.
    own: Option<Encoder>,
}

impl<'a, W: Write> Gzip<'a, W> {
    /// Starts a stream on `out` and as many threads as there are processors.
    pub(crate) fn new(out: &'a mut W) -> io::Result<Self> {
        Self::with_threads(out, crate::sys::processors().min(MAX_THREADS))
    }

    fn with_threads(out: &'a mut W, threads: usize) -> io::Result<Self> {
        out.write_all(&HEADER)?;
        let (jobs, work) = mpsc::channel();
        let work = Arc::new(Mutex::new(work));
        let mut started = 0;
        for _ in 0..threads {
            let work = Arc::clone(&work);
            let spawned = std::thread::Builder::new()
                .name("graphroot-gzip".into())
                .spawn(move || serve(&work));
            match spawned {
                Ok(_ends_with_the_jobs) => started += 1,
                Err(error) => {
                    tracing::debug!(%error, "compressing on fewer threads");
                    break;
                }
            }
        }
        Ok(Self {
            out,
            jobs: (started > 0).then_some(jobs),
            limit: 2 * started,
            running: VecDeque::new(),
            block: Vec::new(),
            crc: Crc::new(),
            own: None,
        })
    }

    /// Writes everything that is still to come, and the end. Dropped without, the stream stays cut off.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.push()?;
        while self.collect()? {}
        self.out.write_all(&END)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        // The format has the size modulo 2^32, which is what the checksum counts.
        self.out.write_all(&self.crc.amount().to_le_bytes())
    }

    /// Sends the gathered block on its way.
    fn push(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let data = Bytes::from(std::mem::take(&mut self.block));
        let Some(jobs) = &self.jobs else {
            let own = match &mut self.own {
                Some(own) => own,
                own => own.insert(Encoder::new()?),
            };
            let block = own.compress(&data)?;
            return self.emit(&block);
        };
        let (done, result) = mpsc::sync_channel(1);
        jobs.send(Job { data, done }).map_err(|_reason| ended())?;
        self.running.push_back(result);
        if self.running.len() >= self.limit {
            self.collect()?;
        }
        Ok(())
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

    fn emit(&mut self, block: &Block) -> io::Result<()> {
        self.crc.combine(&block.crc);
        self.out.write_all(&block.bytes)
    }

    /// Makes room for at least one byte in the block.
    fn make_room(&mut self) -> io::Result<()> {
        if self.block.len() >= BLOCK {
            self.push()?;
        }
        if self.block.capacity() == 0 {
            self.block.reserve_exact(BLOCK);
        }
        Ok(())
    }
}

impl<W: Write> Write for Gzip<'_, W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if data.is_empty() {
            return Ok(0);
        }
        self.make_room()?;
        let count = data.len().min(BLOCK - self.block.len());
        self.block
            .extend_from_slice(data.get(..count).unwrap_or_default());
        Ok(count)
    }

    /// Nothing: what has been written comes out with later data or at the end.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Sink for Gzip<'_, W> {
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

/// A thread's life: work until no more can come.
fn serve(work: &Mutex<Receiver<Job>>) {
    let mut encoder = Encoder::new();
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { data, done }) = next else {
            return;
        };
        let block = match &mut encoder {
            Ok(encoder) => encoder.compress(&data),
            Err(error) => Err(io::Error::other(error.to_string())),
        };
        // A stream that was given up does not want it any more.
        drop(done.send(block));
    }
}

/// What compresses blocks, with room for the result.
struct Encoder {
    compressor: Compressor,
    room: Vec<u8>,
}

impl Encoder {
    fn new() -> io::Result<Self> {
        let level = CompressionLvl::new(LEVEL)
            .map_err(|_reason| io::Error::other(format!("no compression level {LEVEL}")))?;
        Ok(Self {
            compressor: Compressor::new(level),
            room: Vec::new(),
        })
    }

    fn compress(&mut self, data: &[u8]) -> io::Result<Block> {
        let mut crc = Crc::new();
        crc.update(data);
        let (first, second) = data.split_at(data.len() / 2);
        let mut streams = [self.stream(first)?, self.stream(second)?];
        let [one, other] = &mut streams;
        let bytes = match deflate_blocks::open_ends([one, other]) {
            Some(()) => streams.concat(),
            None => stored(data),
        };
        Ok(Block { bytes, crc })
    }

    /// A whole deflate stream.
    fn stream(&mut self, data: &[u8]) -> io::Result<Vec<u8>> {
        let bound = self.compressor.deflate_compress_bound(data.len());
        if self.room.len() < bound {
            self.room.resize(bound, 0);
        }
        let size = self
            .compressor
            .deflate_compress(data, &mut self.room)
            .map_err(|error| io::Error::other(format!("compressing: {error}")))?;
        Ok(self.room.get(..size).unwrap_or_default().to_vec())
    }
}

/// A part of a deflate stream that has the data as they are: what is left where their stream has no end that can be
/// opened. It never has been needed.
fn stored(data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(data.len() + data.len() / 1000 + 5);
    for chunk in data.chunks(usize::from(u16::MAX)) {
        let length = u16::try_from(chunk.len()).unwrap_or(u16::MAX);
        bytes.push(0);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&(!length).to_le_bytes());
        bytes.extend_from_slice(chunk);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    fn gzip(pieces: &[&[u8]], threads: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut gzip = Gzip::with_threads(&mut out, threads).unwrap();
        for piece in pieces {
            gzip.write_all(piece).unwrap();
            gzip.flush().unwrap();
        }
        gzip.finish().unwrap();
        out
    }

    /// Reads one member only, as some readers do.
    fn gunzip(bytes: &[u8]) -> Vec<u8> {
        let mut decoder = flate2::bufread::GzDecoder::new(bytes);
        let mut out = Vec::new();
        decoder.read_to_end(&mut out).unwrap();
        assert!(decoder.into_inner().is_empty(), "something after the member");
        out
    }

    /// Text that gets smaller, and bytes that do not.
    fn sample(size: usize) -> Vec<u8> {
        let mut state = 1u32;
        let mut data = Vec::with_capacity(size + 100);
        while data.len() < size {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if data.len() % (3 * BLOCK) < BLOCK {
                data.extend_from_slice(&state.to_le_bytes()[1..]);
            } else {
                data.extend_from_slice(format!("line {} of the sample\n", state % 1000).as_bytes());
            }
        }
        data.truncate(size);
        data
    }

    #[test]
    fn one_member_with_everything_whatever_the_sizes() {
        for size in [
            0,
            1,
            2,
            3,
            4096,
            BLOCK - 1,
            BLOCK,
            BLOCK + 1,
            2 * BLOCK,
            9 * BLOCK + 77,
        ] {
            let data = sample(size);
            for threads in [0, 1, 3] {
                let compressed = gzip(&[&data], threads);
                assert!(gunzip(&compressed) == data, "{size} bytes on {threads} threads");
                let pieces: Vec<&[u8]> = data.chunks(100_003).collect();
                assert!(gzip(&pieces, threads) == compressed, "cut otherwise: {size}");
            }
        }
    }

    #[test]
    fn seams_cost_little() {
        let text: Vec<u8> = sample(12 * BLOCK)
            .chunks(BLOCK)
            .enumerate()
            .filter(|(index, _)| index % 3 != 0)
            .flat_map(|(_, chunk)| chunk.to_vec())
            .collect();
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(3));
        whole.write_all(&text).unwrap();
        let whole = whole.finish().unwrap().len();
        let cut = gzip(&[&text], 2).len();
        assert!(cut * 100 < whole * 102, "{cut} bytes instead of {whole}");
    }

    #[test]
    fn real_files_come_back_and_get_small() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let program = program.get(..6 * BLOCK + 1).unwrap_or(&program);
        let compressed = gzip(&[program], 2);
        assert!(gunzip(&compressed) == program);
        assert!(
            compressed.len() * 10 < program.len() * 9,
            "{} bytes",
            compressed.len()
        );
    }

    #[test]
    fn what_is_stored_is_a_stream_too() {
        for size in [0, 1, 65_535, 65_536, 200_000] {
            let data = sample(size);
            let stream = [stored(&data), END.to_vec()].concat();
            let mut out = Vec::new();
            flate2::read::DeflateDecoder::new(&*stream)
                .read_to_end(&mut out)
                .unwrap();
            assert!(out == data, "{size}");
        }
    }

    #[test]
    fn files_are_taken_as_they_are() {
        use std::io::{Seek as _, SeekFrom};
        use std::os::fd::AsFd as _;
        let data = sample(3 * BLOCK + 5);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&data).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut out = Vec::new();
        let mut gzip = Gzip::with_threads(&mut out, 2).unwrap();
        gzip.write_all(b"head").unwrap();
        loop {
            let part = gzip.fill(file.as_fd(), 70_001).unwrap();
            assert!(part.len() <= 70_001);
            if part.is_empty() {
                break;
            }
        }
        gzip.finish().unwrap();
        assert!(gunzip(&out) == [b"head", &*data].concat());
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
        let mut out = Full(BLOCK);
        let mut gzip = Gzip::with_threads(&mut out, 2).unwrap();
        let error = gzip.write_all(&sample(40 * BLOCK)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn the_gzip_program_finds_it_in_order() {
        let Ok(mut child) = Command::new("gzip").arg("-t").stdin(Stdio::piped()).spawn() else {
            return;
        };
        let mut input = child.stdin.take().unwrap();
        input.write_all(&gzip(&[&sample(5 * BLOCK)], 2)).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_bytes_come_back(
            data in prop::collection::vec(any::<u8>(), 0..3000),
            times in 0usize..400,
            threads in 0usize..3,
        ) {
            let pieces: Vec<&[u8]> = std::iter::repeat_n(&*data, times).collect();
            prop_assert!(gunzip(&gzip(&pieces, threads)) == pieces.concat());
        }
    }
}
