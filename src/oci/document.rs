//! A manifest, index or config as a source delivers it, before it is parsed.

use bytes::Bytes;

use crate::digest::Digest;
use crate::error::Result;

/// A manifest or index with the digest of its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    /// The media type that the source claims.
    pub(crate) media_type: Option<String>,
}

/// Verifies the digest of a whole document; `what` names it in the error.
pub(crate) fn check(bytes: &[u8], digest: &Digest, what: &str) -> Result<()> {
    digest.check(bytes, what)
}
