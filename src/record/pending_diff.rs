//! A diff that is being applied to a layer that is there: an intent of the layer's record, as others
//! ([`intent`](crate::record::intent)).
//!
//! ```text
//! tar-split and items wait beside the old ones → intent → the layer's tree is exchanged → they go to their places → record
//! ```
//!
//! The exchange of the trees decides: a writer that finds the intent and the new tree completes the rest, one that finds
//! the old tree takes the intent back. Where neither is found, or the tree had to be changed in place, nobody knows
//! what the layer has, and its record no longer says where the content comes from.

use serde::{Deserialize, Serialize};

use crate::record::intent::DIFF;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;

/// What the record of a layer is going to say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingDiff {
    /// The numbers by which the driver tells the layer's old tree and the new one apart; `None` if the tree is changed in
    /// place.
    pub(crate) trees: Option<(u64, u64)>,
    compressed_digest: String,
    compressed_size: i64,
    diff_digest: String,
    #[serde(default)]
    toc_digest: String,
    diff_size: i64,
    compression: i64,
    uids: Vec<u32>,
    gids: Vec<u32>,
    /// The keys of the big data items that come with the diff.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) items: Vec<String>,
    /// The keys of those that go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) stale_items: Vec<String>,
}

impl PendingDiff {
    /// What `row` says of its content.
    pub(crate) fn of_row(row: &LayerRow, trees: Option<(u64, u64)>) -> Self {
        Self {
            trees,
            compressed_digest: row.compressed_digest.as_str().to_owned(),
            compressed_size: row.compressed_size,
            diff_digest: row.diff_digest.as_str().to_owned(),
            toc_digest: row.toc_digest.as_str().to_owned(),
            diff_size: row.diff_size,
            compression: row.compression,
            uids: row.uids.clone(),
            gids: row.gids.clone(),
            items: Vec::new(),
            stale_items: Vec::new(),
        }
    }

    /// The diff that an intent names; after [`DIFF`] it is JSON. What cannot be read is one of which nothing is known.
    pub(crate) fn of_intent(intent: &str) -> Option<Self> {
        let text = intent.strip_prefix(DIFF)?;
        Some(serde_json::from_str(text).unwrap_or_default())
    }

    /// Makes this the intent of a record.
    pub(crate) fn mark(&self, row: &mut LayerRow) {
        let text = serde_json::to_string(self).unwrap_or_default();
        row.set_intent(&format!("{DIFF}{text}"));
    }

    /// Makes the record say it.
    pub(crate) fn record(self, row: &mut LayerRow) {
        row.compressed_digest = self.compressed_digest.as_str().into();
        row.compressed_size = self.compressed_size;
        row.diff_digest = self.diff_digest.as_str().into();
        row.toc_digest = self.toc_digest.as_str().into();
        row.diff_size = self.diff_size;
        row.compression = self.compression;
        row.uids = self.uids;
        row.gids = self.gids;
        row.big_data_names.retain(|key| !self.stale_items.contains(key));
        for key in self.items {
            if !row.big_data_names.contains(&key) {
                row.big_data_names.push(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::intent;

    #[test]
    fn an_intent_says_what_the_record_will() {
        let mut row = LayerRow {
            compressed_digest: "sha256:1".into(),
            compressed_size: 5,
            diff_digest: "sha256:2".into(),
            toc_digest: "sha256:3".into(),
            diff_size: -1,
            compression: 2,
            uids: vec![0, 7],
            gids: vec![8],
            big_data_names: vec!["kept".into(), "new".into()],
            ..LayerRow::default()
        };
        let mut diff = PendingDiff::of_row(&row, Some((3, u64::MAX)));
        diff.items = vec!["kept".into(), "new".into()];
        diff.stale_items = vec!["stale".into()];
        diff.mark(&mut row);
        assert!(row.companion().is_none());
        assert_eq!(PendingDiff::of_intent(row.intent()), Some(diff.clone()));
        let mut other = LayerRow {
            big_data_names: vec!["stale".into(), "kept".into()],
            ..LayerRow::default()
        };
        diff.record(&mut other);
        row.set_intent("");
        assert_eq!(other, row);
    }

    #[test]
    fn what_cannot_be_read_is_a_diff_of_which_nothing_is_known() {
        assert_eq!(PendingDiff::of_intent("diff {"), Some(PendingDiff::default()));
        for intent in ["", intent::NAMES, "with image x"] {
            assert_eq!(PendingDiff::of_intent(intent), None);
        }
    }
}
