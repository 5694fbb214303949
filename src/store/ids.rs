//! IDs of new items.

use crate::error::{Error, ErrorKind, Result};

/// An ID for a new layer, image or container: 64 hexadecimal digits of which the first twelve are not all decimal
/// (so that a shortened ID never looks like a number).
pub(crate) fn random_id(taken: impl Fn(&str) -> bool) -> Result<String> {
    for _ in 0..64 {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| Error::io("drawing a random ID", std::io::Error::from(error)))?;
        let id = crate::digest::hex(&bytes);
        if !id.as_bytes()[..12].iter().all(u8::is_ascii_digit) && !taken(&id) {
            return Ok(id);
        }
    }
    Err(ErrorKind::DuplicateId.err("drawing a random ID"))
}
