//! What the compression of blocks asks of a format, and the tools that the blocks of its streams share.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// More processors than that are never kept busy by one reader of files.
pub(super) const MAX_THREADS: usize = 8;

/// Tools that are kept for the next block, of all streams of one format.
const MAX_TOOLS: usize = 2 * MAX_THREADS;

/// A way to compress of which the parts of a stream can be made apart.
pub(crate) trait Format: Default + Send + Sync + 'static {
    /// Bytes that are compressed at a time.
    const BLOCK: usize;
    /// What a stream starts with.
    const HEAD: &'static [u8];
    /// What compresses one block after the other.
    type Encoder: Send;
    /// A compressed block.
    type Block: Into<Vec<u8>> + Send;

    /// Starts an encoder.
    fn encoder() -> io::Result<Self::Encoder>;

    /// Where the tools of this format are found.
    fn tools() -> &'static Tools<Self>;

    /// Compresses one block, which is never empty.
    fn compress(encoder: &mut Self::Encoder, data: &[u8]) -> io::Result<Self::Block>;

    /// Takes note of a block that follows those so far.
    fn follow(&mut self, block: &Self::Block);

    /// What comes after the last block.
    fn tail(&self) -> Vec<u8>;
}

/// What a step needs to compress a block.
pub(super) struct Tool<F: Format> {
    pub(super) encoder: F::Encoder,
    /// The block, empty between the steps.
    pub(super) block: Vec<u8>,
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
    pub(super) fn take(&self) -> io::Result<Tool<F>> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        match kept {
            Some(tool) => Ok(tool),
            None => Ok(Tool {
                encoder: F::encoder()?,
                block: Vec::new(),
            }),
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
