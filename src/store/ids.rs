//! IDs of new items.

use crate::error::{ErrorKind, Result};
use crate::sys::random;

/// An ID for a new layer, image or container: 64 hexadecimal digits of which the first twelve are not all decimal
/// (so that a shortened ID never looks like a number).
pub(crate) fn random_id(taken: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..64 {
        let id = crate::digest::hex(&random::bytes::<32>()?);
        if !id.as_bytes()[..12].iter().all(u8::is_ascii_digit) && !taken(&id) {
            return Ok(id);
        }
    }
    Err(ErrorKind::DuplicateId.err("drawing a random ID"))
}
