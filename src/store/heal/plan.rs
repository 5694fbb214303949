//! Which layers and items of images are to be made anew, by what a check has found.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::check::finding::{CheckedItem, Finding, ItemKind, Problem};
use crate::store::heal::files::DamagedFiles;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Layers whose content is not theirs, and whether that cannot come from a layer below.
    pub(super) contents: BTreeMap<CheckedItem, bool>,
    /// What is wrong with single files of these, if it is nothing else.
    pub(super) files: BTreeMap<CheckedItem, DamagedFiles>,
    /// Layers whose driver files do not agree with the records.
    pub(super) driver_data: BTreeSet<CheckedItem>,
    /// Layers that others, or images, refer to and that have no record.
    pub(super) missing: BTreeSet<String>,
    /// Items of images, and of layers, that are not as recorded: the keys.
    pub(super) data: BTreeMap<CheckedItem, BTreeSet<String>>,
    /// Layers that cannot be mounted. If nothing else is wrong, the driver may have lost them.
    pub(super) not_mountable: BTreeSet<CheckedItem>,
}

impl Plan {
    pub(super) fn of(findings: &[Finding]) -> Self {
        let mut plan = Self::default();
        for finding in findings {
            plan.add(&finding.item, &finding.problem);
        }
        for item in plan.contents.keys() {
            let of_item = findings.iter().filter(|finding| finding.item == *item);
            if let Some(files) = DamagedFiles::of(of_item.map(|finding| &finding.problem)) {
                plan.files.insert(item.clone(), files);
            }
        }
        plan
    }

    fn add(&mut self, item: &CheckedItem, problem: &Problem) {
        match (item.kind, problem) {
            (
                ItemKind::Layer,
                Problem::InvalidDigest { .. }
                | Problem::TarSplitMissing
                | Problem::FileModified { .. }
                | Problem::IncorrectDigest { .. }
                | Problem::IncorrectSize { .. },
            ) => drop(self.contents.insert(item.clone(), true)),
            // A layer that has lost its directory, and whole trees, make those above look damaged.
            (
                ItemKind::Layer,
                Problem::DiffUnreadable { .. } | Problem::ContentModified(_) | Problem::MoreModified { .. },
            ) => drop(self.contents.entry(item.clone()).or_default()),
            (ItemKind::Layer, Problem::NotMountable { .. }) => drop(self.not_mountable.insert(item.clone())),
            (ItemKind::Layer, Problem::DriverData { .. }) => drop(self.driver_data.insert(item.clone())),
            (_, Problem::ParentMissing { parent }) => drop(self.missing.insert(parent.clone())),
            (ItemKind::Image, Problem::LayerMissing { layer }) => drop(self.missing.insert(layer.clone())),
            (ItemKind::Image | ItemKind::Layer, Problem::Data { key, .. }) => {
                self.data.entry(item.clone()).or_default().insert(key.clone());
            }
            _ => {}
        }
    }
}
