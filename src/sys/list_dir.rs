//! Listing a directory that may be missing.

use std::fs::DirEntry;
use std::io;
use std::path::Path;

use crate::error::{IoContext as _, Result};

/// The entries of a directory; none if it is missing. Blocking.
pub(crate) fn list_dir_if_there(dir: &Path) -> Result<impl Iterator<Item = Result<DirEntry>>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.at("listing", dir)?),
    };
    let entries = entries.into_iter().flatten();
    Ok(entries.map(move |entry| entry.at("listing", dir)))
}
