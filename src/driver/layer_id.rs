//! Which layer IDs can be file names, and what IDs usually look like.

use crate::error::{ErrorKind, Result};

/// Longest ID: file names made of it (`<ID>.tar-split.gz`, names of big data) stay below the limit of 255 bytes.
const MAX_LENGTH: usize = 200;

/// Whether a name is an ID as programs give them: 64 hexadecimal digits, in lower case.
pub(crate) fn is_usual_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

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
