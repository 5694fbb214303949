//! Which layer IDs can be file names.

use crate::error::{ErrorKind, Result};

/// Longest ID: file names made of it (`<ID>.tar-split.gz`, names of big data) stay below the limit of 255 bytes.
const MAX_LENGTH: usize = 200;

/// Refuses IDs that are no single file name.
///
/// # Errors
/// [`ErrorKind::UnsafePath`].
pub(crate) fn check_id(id: &str) -> Result<()> {
    if id.len() > MAX_LENGTH {
        return Err(ErrorKind::UnsafePath.err(format!("ID {id:?}: file name too long")));
    }
    let bad = matches!(id, "" | "." | "..") || id.bytes().any(|b| b == b'/' || b == 0);
    if bad {
        return Err(ErrorKind::UnsafePath.err(format!("ID {id:?}")));
    }
    Ok(())
}
