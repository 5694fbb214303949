//! A row of `containers.json` and `volatile-containers.json`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::ErrorKind;
use crate::idmap::IdMap;
use crate::record::big_data::Items;
use crate::record::inline_id::InlineId;
use crate::record::intent;
use crate::record::raw_digest::RawDigest;
use crate::record::record_trait::Record;
use crate::record::row::row;
use crate::time::Time;

row! {
    /// What is recorded of a container.
    ContainerRow {
        /// ID, unique in the store.
        id: InlineId = "id" always,
        /// Names, unique in the store.
        names: Vec<String> = "names" omit,
        /// ID of the image; empty if there is none.
        image: InlineId = "image" always,
        /// ID of the container's own layer.
        layer: InlineId = "layer" always,
        /// Text of the container's creator.
        metadata: String = "metadata" omit,
        /// Keys of the big data items, in the order in which they were first set.
        big_data_names: Vec<String> = "big-data-names" omit,
        /// Bytes of each item.
        big_data_sizes: BTreeMap<String, i64> = "big-data-sizes" omit,
        /// Digest of each item.
        big_data_digests: BTreeMap<String, RawDigest> = "big-data-digests" omit,
        /// When the container was created.
        created: Time = "created" always,
        /// User ID mapping that was asked for.
        uid_map: Vec<IdMap> = "uidmap" omit,
        /// Group ID mapping that was asked for.
        gid_map: Vec<IdMap> = "gidmap" omit,
        /// The creator's flags and those of the library (`ProcessLabel`, `MountLabel`, `MountOpts`, `Volatile`).
        flags: BTreeMap<String, Value> = "flags" omit,
    }
}

/// The flag with the SELinux label of a container's processes.
pub(crate) const PROCESS_LABEL: &str = "ProcessLabel";

/// The flag with the SELinux label of a container's files.
pub(crate) const MOUNT_LABEL: &str = "MountLabel";

impl ContainerRow {
    /// The label in one of the two flags.
    pub(crate) fn label(&self, flag: &str) -> Option<&str> {
        let label = self.flags.get(flag)?.as_str()?;
        Some(label).filter(|label| !label.is_empty())
    }
}

impl Record for ContainerRow {
    const NOUN: &'static str = "container";
    const UNKNOWN: ErrorKind = ErrorKind::ContainerUnknown;
    const AMBIGUOUS_NAMES: ErrorKind = ErrorKind::DuplicateName;

    fn id(&self) -> &str {
        &self.id
    }

    fn names(&self) -> &[String] {
        &self.names
    }

    fn names_mut(&mut self) -> &mut Vec<String> {
        &mut self.names
    }

    fn layer(&self) -> Option<&str> {
        Some(&self.layer)
    }

    fn each_base(&self, visit: &mut dyn FnMut(&str)) {
        visit(&self.image);
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
}

impl Items for ContainerRow {
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
