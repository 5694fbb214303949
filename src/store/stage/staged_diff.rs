//! A diff that is unpacked and waits for its place in the store.

use crate::bridge::Detached;
use crate::digest::Digest;
use crate::idmap::IdMappings;
use crate::store::layer_store::new_layer::Unpacked;

/// A layer that is unpacked and has no place in the store yet. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct StagedDiff {
    pub(crate) unpacked: Detached<Unpacked>,
    pub(crate) mappings: IdMappings,
}

impl StagedDiff {
    /// Digest of the uncompressed diff.
    pub(crate) fn uncompressed_digest(&self) -> Option<&Digest> {
        self.unpacked.uncompressed_digest()
    }
}
