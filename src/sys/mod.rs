//! Every system call that needs more than a line, and all unsafe code of the crate.

pub(crate) mod at;
pub(crate) mod atomic;
pub(crate) mod mount;
pub(crate) mod ofd;
pub(crate) mod privilege;
pub(crate) mod tree;
pub(crate) mod userns;
pub(crate) mod writeback;
pub(crate) mod xattr;

/// How many threads can run at the same time. Looked up once: it takes reading several files.
pub(crate) fn processors() -> usize {
    static PROCESSORS: std::sync::LazyLock<usize> =
        std::sync::LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *PROCESSORS
}

/// Makes a directory and its parents, 0700.
pub(crate) fn make_private_dir(path: &std::path::Path) -> crate::error::Result<()> {
    use crate::error::IoContext as _;
    use std::os::unix::fs::DirBuilderExt as _;
    // Mostly it is there: one call says so.
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("creating directory", path)
}
