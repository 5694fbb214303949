//! Directories that only their owner may enter.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use crate::error::{IoContext as _, Result};

/// Makes a directory and its parents, 0700.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    // Mostly it is there: one call says so.
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .at("creating directory", path)
}
