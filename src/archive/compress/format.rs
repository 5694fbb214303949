//! What the compression of blocks asks of a format, and the tools that the blocks of its streams share.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::bridge::{Producer, Progress};
use crate::error::Result;

/// More processors than that are never kept busy by one reader of files.
pub(super) const MAX_THREADS: usize = 8;

/// Tools that are kept for the next block, of all streams of one format.
const MAX_TOOLS: usize = 2 * MAX_THREADS;

/// A way to compress of which the parts of a stream can be made apart.
pub(crate) trait Format: Sized + Send + Sync + 'static {
    /// Bytes that are compressed at a time, or about so many.
    const BLOCK: usize;
    /// What a stream starts with.
    const HEAD: &'static [u8];
    /// The level of streams for which none is asked.
    const LEVEL: i32;
    /// What compresses one block after the other.
    type Encoder: Send;
    /// A block before it is compressed.
    type Input: Input;
    /// A compressed block.
    type Block: Send;
    /// What is known of the stream as a whole when its last block was cut.
    type Rest: Send + Sync;

    /// Starts an encoder.
    fn encoder(level: i32) -> io::Result<Self::Encoder>;

    /// Where the tools of this format are found.
    fn tools() -> &'static Tools<Self>;

    /// Compresses one block, which is never empty and not used again.
    fn compress(encoder: &mut Self::Encoder, input: &mut Self::Input) -> io::Result<Self::Block>;

    /// Takes note of a block that follows those so far; returns its bytes.
    fn follow(&mut self, block: Self::Block) -> Vec<u8>;

    /// What comes after the last block. Blocking.
    fn finish(self, rest: Self::Rest) -> Result<Vec<u8>>;
}

/// A block before it is compressed, reused for its allocations.
pub(crate) trait Input: Default + Send + Sync {
    fn is_empty(&self) -> bool;
    fn clear(&mut self);
}

impl Input for Vec<u8> {
    fn is_empty(&self) -> bool {
        self.is_empty()
    }

    fn clear(&mut self) {
        self.clear();
    }
}

/// Cuts a stream into blocks. Blocking.
pub(crate) trait Cutter: Send + Sync + 'static {
    type Input: Input;
    type Rest: Send + Sync;

    /// One step towards a block, in which some bounded amount of work is done. `block` is empty and stays so unless the
    /// block is complete. No step is called after the end or an error.
    fn fill(&mut self, block: &mut Self::Input) -> Result<Filled>;

    /// After the end: closes what the stream was read from.
    fn finish(self) -> Result<Self::Rest>;
}

/// What a step towards a block came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filled {
    /// More steps are needed.
    Partly,
    /// The block is complete.
    Full,
    /// It is the last one, and may be empty.
    End,
}

/// Cuts what a producer makes into blocks of one size.
pub(crate) struct EvenCutter<P> {
    producer: P,
    size: usize,
    /// The part of a block that a step could not fill.
    partial: Vec<u8>,
}

impl<P: Producer> EvenCutter<P> {
    pub(super) fn new(producer: P, size: usize) -> Self {
        Self {
            producer,
            size,
            partial: Vec::new(),
        }
    }
}

impl<P: Producer> Cutter for EvenCutter<P> {
    type Input = Vec<u8>;
    type Rest = ();

    fn fill(&mut self, block: &mut Vec<u8>) -> Result<Filled> {
        if !self.partial.is_empty() {
            *block = std::mem::take(&mut self.partial);
        }
        block.reserve_exact(self.size - block.len());
        match self.producer.step(block, self.size - block.len())? {
            Progress::End => Ok(Filled::End),
            Progress::More if block.len() < self.size => {
                if !block.is_empty() {
                    self.partial = std::mem::take(block);
                }
                Ok(Filled::Partly)
            }
            Progress::More => Ok(Filled::Full),
        }
    }

    fn finish(self) -> Result<()> {
        Ok(())
    }
}

/// What a step needs to compress a block.
pub(super) struct Tool<F: Format> {
    pub(super) encoder: F::Encoder,
    level: i32,
    /// The block, empty between the steps.
    pub(super) block: F::Input,
}

/// The tools that are not in use, as long as there is a stream that was read from.
pub(crate) struct Tools<F: Format>(Mutex<Weak<ToolBox<F>>>);

pub(super) struct ToolBox<F: Format>(Mutex<Vec<Tool<F>>>);

impl<F: Format> Tools<F> {
    /// None.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Weak::new()))
    }

    pub(super) fn get(&self) -> Arc<ToolBox<F>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.upgrade().unwrap_or_else(|| {
            let new = Arc::new(ToolBox(Mutex::default()));
            *known = Arc::downgrade(&new);
            new
        })
    }
}

impl<F: Format> ToolBox<F> {
    pub(super) fn take(&self, level: i32) -> io::Result<Tool<F>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = kept.iter().rposition(|tool| tool.level == level);
        match fitting.map(|index| kept.swap_remove(index)) {
            Some(tool) => Ok(tool),
            None => {
                drop(kept);
                Ok(Tool {
                    encoder: F::encoder(level)?,
                    level,
                    block: F::Input::default(),
                })
            }
        }
    }

    pub(super) fn put(&self, mut tool: Tool<F>) {
        tool.block.clear();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < MAX_TOOLS {
            kept.push(tool);
        }
    }
}
