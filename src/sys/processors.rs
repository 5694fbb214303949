//! The number of processors.

use std::sync::LazyLock;
use std::thread::available_parallelism;

/// How many threads can run at the same time. Looked up once: it takes reading several files.
pub(crate) fn processors() -> usize {
    static PROCESSORS: LazyLock<usize> = LazyLock::new(|| available_parallelism().map_or(1, usize::from));
    *PROCESSORS
}
