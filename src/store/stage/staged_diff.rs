//! A diff that is unpacked and waits for its place in the store.

use crate::bridge;
use crate::digest::Digest;
use crate::idmap::IdMappings;
use crate::store::layer_store::new_layer::Unpacked;

/// A layer that is unpacked and has no place in the store yet. Dropped, it is removed.
#[derive(Debug)]
pub(crate) struct StagedDiff {
    /// `None` once it has become a layer.
    pub(crate) unpacked: Option<Box<Unpacked>>,
    pub(crate) mappings: IdMappings,
}

impl StagedDiff {
    /// Digest of the uncompressed diff.
    pub(crate) fn diff_digest(&self) -> Option<Digest> {
        self.unpacked
            .as_ref()
            .map(|unpacked| unpacked.applied.diff_digest.clone())
    }
}

impl Drop for StagedDiff {
    fn drop(&mut self) {
        if let Some(unpacked) = self.unpacked.take() {
            // It may be a large tree.
            bridge::spawn_detached(move || drop(unpacked));
        }
    }
}
