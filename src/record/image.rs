//! A row of `images.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::digest::Digest;
use crate::error::ErrorKind;
use crate::record::big_data::Items;
use crate::record::inline_id::InlineId;
use crate::record::intent;
use crate::record::raw_digest::RawDigest;
use crate::record::record_trait::{DigestKind, Record};
use crate::record::row::row;
use crate::time::Time;

/// What the keys of big data items begin with that are manifests.
const MANIFEST: &str = "manifest";

row! {
    /// What is recorded of an image.
    ImageRow {
        /// ID, unique in the store.
        id: InlineId = "id" always,
        /// Digest given by the creator, or else of the first manifest.
        digest: RawDigest = "digest" omit,
        /// Names, unique in the store.
        names: Vec<String> = "names" omit,
        /// Names that the image has had, newest first.
        names_history: Vec<String> = "names-history" omit,
        /// ID of the top layer.
        layer: InlineId = "layer" omit,
        /// IDs of copies of the top layer with other ID mappings.
        mapped_layers: Vec<String> = "mapped-layers" omit,
        /// Text of the image's creator.
        metadata: String = "metadata" omit,
        /// Keys of the big data items, in the order in which they were first set.
        big_data_names: Vec<String> = "big-data-names" omit,
        /// Bytes of each item.
        big_data_sizes: BTreeMap<String, i64> = "big-data-sizes" omit,
        /// Digest of each item.
        big_data_digests: BTreeMap<String, RawDigest> = "big-data-digests" omit,
        /// When the image was created.
        created: Time = "created" always,
        /// The creator's flags.
        flags: BTreeMap<String, Value> = "flags" omit,
    }
}

impl ImageRow {
    /// The top layer (empty if there is none), then its copies with other ID mappings.
    pub(crate) fn top_layers(&self) -> impl Iterator<Item = &str> {
        let copies = self.mapped_layers.iter().map(String::as_str);
        std::iter::once(self.layer.as_str()).chain(copies)
    }

    /// The digests under which the image is found: its own, then those of its manifests in the order of
    /// `big_data_names`. No duplicates; text that is no digest is passed over.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let mut digests: Vec<Digest> = Vec::new();
        let named = self
            .big_data_names
            .iter()
            .filter_map(|key| self.big_data_digests.get_key_value(key));
        let manifests = named
            .chain(&self.big_data_digests)
            .filter(|(key, _)| key.starts_with(MANIFEST));
        for digest in std::iter::once(&self.digest).chain(manifests.map(|(_, digest)| digest)) {
            if let Some(digest) = digest.valid()
                && !digests.contains(digest)
            {
                digests.push(digest.clone());
            }
        }
        digests
    }
}

impl Record for ImageRow {
    const NOUN: &'static str = "image";
    const UNKNOWN: ErrorKind = ErrorKind::ImageUnknown;
    const AMBIGUOUS_NAMES: ErrorKind = ErrorKind::DuplicateImageNames;
    const KEEPS_DUPLICATE_IDS: bool = true;

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn names_mut(&mut self) -> &mut Vec<String> {
        &mut self.names
    }

    fn remember_names(&mut self) {
        // Each name in turn moves to the front, so the last one ends first.
        let mut history: Vec<String> = self.names.iter().rev().cloned().collect();
        history.append(&mut self.names_history);
        super::names::dedupe(&mut history);
        self.names_history = history;
    }

    fn normalise(&mut self) -> bool {
        if !self.digest.is_empty() || self.big_data_digests.is_empty() {
            return false;
        }
        self.digest = self.digests().into_iter().next().into();
        !self.digest.is_empty()
    }

    fn is_incomplete(&self) -> bool {
        self.intent() == intent::DATA
    }

    fn intent(&self) -> &str {
        intent::of(&self.flags)
    }

    fn set_intent(&mut self, intent: &str) {
        intent::set(&mut self.flags, intent);
    }

    fn each_base(&self, visit: &mut dyn FnMut(&str)) {
        self.top_layers().for_each(visit);
    }

    fn each_digest(&self, visit: &mut dyn FnMut(DigestKind, &Digest)) {
        for digest in self.digests() {
            visit(DigestKind::Image, &digest);
        }
    }
}

impl Items for ImageRow {
    fn items(&self) -> (&[String], &BTreeMap<String, i64>, &BTreeMap<String, RawDigest>) {
        (&self.big_data_names, &self.big_data_sizes, &self.big_data_digests)
    }

    fn items_mut(
        &mut self,
    ) -> (
        &mut Vec<String>,
        &mut BTreeMap<String, i64>,
        &mut BTreeMap<String, RawDigest>,
    ) {
        (
            &mut self.big_data_names,
            &mut self.big_data_sizes,
            &mut self.big_data_digests,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_own_one_and_those_of_manifests() {
        let digest = |text: &str| Digest::sha256(text);
        let mut row = ImageRow {
            big_data_names: vec!["manifest-b".into(), "config".into(), "manifest".into()],
            ..ImageRow::default()
        };
        for (key, value) in [
            ("manifest", "m"),
            ("manifest-b", "b"),
            ("config", "c"),
            ("manifest-x", "m"),
        ] {
            row.big_data_digests.insert(key.into(), digest(value).into());
        }
        row.big_data_digests.insert("manifest-bad".into(), "md5:x".into());
        assert_eq!(row.digests(), [digest("b"), digest("m")]);
        assert!(row.normalise() && !row.normalise());
        assert_eq!(row.digest, digest("b").into());
        row.digest = digest("own").into();
        assert_eq!(row.digests(), [digest("own"), digest("b"), digest("m")]);
        assert!(!ImageRow::default().normalise());
    }

    #[test]
    fn each_name_moves_to_the_front_of_the_history_in_turn() {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut row = ImageRow {
            names: list(&["img2", "img3", "img1", "img1b"]),
            ..ImageRow::default()
        };
        row.names_history = list(&["old", "img3"]);
        row.remember_names();
        assert_eq!(row.names_history, list(&["img1b", "img1", "img3", "img2", "old"]));
    }
}
