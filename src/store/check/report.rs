//! The result of a check.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::store::check::finding::{CheckedItem, Finding, ItemKind};
use crate::store::check::identity::Identity;
use crate::store::check::rebuild::damage::RecordDamage;
use crate::store::check::strays::Stray;

/// What is wrong with a store as a whole.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreProblem {
    /// A file of records is missing or says nothing, although there is what belongs to its rows.
    RecordsLost {
        /// The file.
        path: PathBuf,
    },
    /// A file of records, or something in it, is damaged. As long as programs cannot load it, the contents of layers, images
    /// and containers are not checked.
    RecordsDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        damage: RecordDamage,
    },
    /// An additional store is not there, perhaps not mounted, and layers are missing.
    AdditionalStoreMissing {
        /// Its directory of layer records.
        path: PathBuf,
    },
}

impl fmt::Display for StoreProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RecordsLost { path } => write!(f, "{}: the records are lost", path.display()),
            Self::RecordsDamaged { path, damage } => write!(f, "{}: {damage}", path.display()),
            Self::AdditionalStoreMissing { path } => {
                write!(
                    f,
                    "{}: the additional store is missing; is it mounted?",
                    path.display()
                )
            }
        }
    }
}

/// What [`Store::check`](crate::Store::check) has found.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What is wrong, ordered by item: layers, images, containers.
    pub findings: Vec<Finding>,
    /// What is wrong with the store as a whole. As long as there is such a thing, [`Store::repair`](crate::Store::repair)
    /// removes nothing that may be whole in truth.
    pub store_problems: Vec<StoreProblem>,
    /// Whether contents were left out, because there are damaged files of records that cannot be loaded:
    /// [`StoreProblem::RecordsDamaged`].
    pub records_alone: bool,
    /// Files and directories that belong to no item. They do no harm; [`Store::garbage_collect`](crate::Store::garbage_collect)
    /// removes them.
    pub strays: Vec<Stray>,
    /// What each item was that could be removed.
    #[serde(skip)]
    pub(crate) identities: BTreeMap<CheckedItem, Identity>,
}

impl CheckReport {
    /// Whether nothing is wrong. Strays do not count.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.store_problems.is_empty()
    }

    /// Whether files of records are lost or damaged.
    pub(crate) fn has_damaged_records(&self) -> bool {
        let is_about_records = |problem: &StoreProblem| {
            matches!(
                problem,
                StoreProblem::RecordsLost { .. } | StoreProblem::RecordsDamaged { .. }
            )
        };
        self.store_problems.iter().any(is_about_records)
    }

    /// The damaged items of a kind, with what is wrong with each.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::{CheckOptions, ItemKind};
    /// let report = store.check(CheckOptions::everything()).await?;
    /// for (image, findings) in report.damaged(ItemKind::Image, false) {
    ///     println!("image {image}: {} problems, the first: {}", findings.len(), findings[0]);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn damaged(&self, kind: ItemKind, read_only: bool) -> BTreeMap<&str, Vec<&Finding>> {
        let mut damaged: BTreeMap<&str, Vec<&Finding>> = BTreeMap::new();
        let of_kind = |item: &CheckedItem| item.kind == kind && item.read_only == read_only;
        for finding in self.findings.iter().filter(|finding| of_kind(&finding.item)) {
            damaged.entry(&finding.item.id).or_default().push(finding);
        }
        damaged
    }
}
