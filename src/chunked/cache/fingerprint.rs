//! Which files are the same in everything but their times: those can be hard links to each other.

use sha2::{Digest as _, Sha256};

/// The fingerprint of a file: the sum of its digest (`sha256:…`), owner, mode as in the table of contents, and attributes,
/// sorted by name, with their values in base64.
pub(crate) fn fingerprint<'a>(
    digest: &[u8],
    (uid, gid): (u64, u64),
    mode: u64,
    xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(digest);
    hasher.update(format!("{uid}:{gid}:{mode:o}"));
    for (name, value) in xattrs {
        hasher.update(name);
        hasher.update(value);
    }
    hasher.finalize().into()
}
