//! A row of `layers.json` and `volatile-layers.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::idmap::IdMap;
use crate::record::inline_id::InlineId;
use crate::record::intent::{self, Companion};
use crate::record::raw_digest::RawDigest;
use crate::record::record_trait::{DigestKind, Record};
use crate::record::row::row;
use crate::time::Time;

/// The flag of a layer whose content is not complete: the next process that opens the store for writing deletes it.
const INCOMPLETE: &str = "incomplete";

row! {
    /// What is recorded of a layer.
    LayerRow {
        /// ID, unique in the store.
        id: InlineId = "id" always,
        /// Names, unique in the store.
        names: Vec<String> = "names" omit,
        /// ID of the layer below, which may be in a read-only store; empty for a base layer.
        parent: InlineId = "parent" omit,
        /// Text of the layer's creator.
        metadata: String = "metadata" omit,
        /// SELinux label of mounts.
        mount_label: String = "mountlabel" omit,
        /// When the layer was created.
        created: Time = "created" always,
        /// Digest of the blob that the layer came from, as given.
        compressed_digest: RawDigest = "compressed-diff-digest" omit,
        /// Bytes of that blob.
        compressed_size: i64 = "compressed-size" omit,
        /// Digest of the uncompressed tar (the diff ID).
        diff_digest: RawDigest = "diff-digest" omit,
        /// Digest of the table of contents, for layers that were fetched in part.
        toc_digest: RawDigest = "toc-digest" omit,
        /// Bytes of the uncompressed tar; −1 if it was never seen as a whole.
        diff_size: i64 = "diff-size" omit,
        /// How the blob was compressed: 0 not, 1 bzip2, 2 gzip, 3 xz, 4 zstd; other numbers are kept.
        compression: i64 = "compression" omit,
        /// Sorted owners of the layer's files.
        uids: Vec<u32> = "uidset" omit,
        /// Sorted groups of the layer's files.
        gids: Vec<u32> = "gidset" omit,
        /// The creator's flags, and `incomplete`.
        flags: BTreeMap<String, Value> = "flags" omit,
        /// User ID mapping that the owners of the files contain.
        uid_map: Vec<IdMap> = "uidmap" omit,
        /// Group ID mapping that the groups of the files contain.
        gid_map: Vec<IdMap> = "gidmap" omit,
        /// Keys of the big data items, in the order in which they were first set.
        big_data_names: Vec<String> = "big-data-names" omit,
    }
}

/// What the Go library appends to the name of a container for the name of its layer.
const OF_CONTAINER: &str = "-layer";

impl LayerRow {
    /// The ID of the layer below; `None` for a base layer.
    pub(crate) fn parent_id(&self) -> Option<&str> {
        Some(self.parent.as_str()).filter(|parent| !parent.is_empty())
    }

    /// Whether the content is not complete. Only the boolean counts, as in Go.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.flags.get(INCOMPLETE) == Some(&Value::Bool(true))
    }

    /// The item together with which it was being made or deleted by a writer that was killed.
    pub(crate) fn companion(&self) -> Option<Companion> {
        Companion::of(intent::of(&self.flags))
    }

    /// Whether this can be the layer of a container that is not being made or deleted: such a layer is made without metadata,
    /// and without names or, by the Go library, with one that follows from the container's.
    pub(crate) fn may_be_of_container(&self) -> bool {
        let is_of_container = |name: &String| name.ends_with(OF_CONTAINER);
        self.names.iter().all(is_of_container) && self.metadata.is_empty() && self.intent().is_empty()
    }

    /// The name of the container whose layer this is, where the Go library has made it.
    pub(crate) fn container_name(&self) -> Option<&str> {
        self.names.iter().find_map(|name| name.strip_suffix(OF_CONTAINER))
    }

    /// Whether a diff was unpacked into it.
    pub(crate) fn has_diff(&self) -> bool {
        let digests = [&self.compressed_digest, &self.diff_digest, &self.toc_digest];
        digests.iter().any(|digest| !digest.is_empty())
    }

    /// Sets or clears the flag of incomplete content.
    pub(crate) fn set_incomplete(&mut self, incomplete: bool) {
        if incomplete {
            self.flags.insert(INCOMPLETE.to_owned(), Value::Bool(true));
        } else {
            self.flags.remove(INCOMPLETE);
        }
    }
}

impl Record for LayerRow {
    const NOUN: &'static str = "layer";
    const UNKNOWN: ErrorKind = ErrorKind::LayerUnknown;
    const AMBIGUOUS_NAMES: ErrorKind = ErrorKind::DuplicateLayerNames;

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn names_mut(&mut self) -> &mut Vec<String> {
        &mut self.names
    }

    fn is_incomplete(&self) -> bool {
        Self::is_incomplete(self) || self.companion().is_some() || intent::is_diff(&self.flags)
    }

    fn is_hidden(&self) -> bool {
        Self::is_incomplete(self)
    }

    fn intent(&self) -> &str {
        intent::of(&self.flags)
    }

    fn set_intent(&mut self, intent: &str) {
        intent::set(&mut self.flags, intent);
    }

    fn each_base(&self, visit: &mut dyn FnMut(&str)) {
        visit(&self.parent);
    }

    fn each_digest(&self, visit: &mut dyn FnMut(DigestKind, &Digest)) {
        for (kind, digest) in [
            (DigestKind::Compressed, &self.compressed_digest),
            (DigestKind::Uncompressed, &self.diff_digest),
            (DigestKind::Toc, &self.toc_digest),
        ] {
            if let Some(digest) = digest.valid() {
                visit(kind, digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_boolean_flag_makes_a_layer_incomplete() {
        let mut row = LayerRow::default();
        for (value, expected) in [
            (Value::from("true"), false),
            (Value::from(1), false),
            (Value::from(false), false),
            (Value::from(true), true),
        ] {
            row.flags.insert(INCOMPLETE.into(), value);
            assert_eq!(row.is_incomplete(), expected);
        }
        row.set_incomplete(false);
        assert!(row.flags.is_empty() && !row.is_incomplete());
        row.set_incomplete(true);
        assert!(row.is_incomplete());
    }
}
