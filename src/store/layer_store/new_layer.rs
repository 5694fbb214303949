//! What a new layer is made of, before it has a record.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::apply::pipeline::Applied;
use crate::digest::Digest;
use crate::driver::{Driver, LayerUse, Staged};
use crate::error::{IoContext as _, Result};
use crate::idmap::{IdMappings, Owner};
use crate::lock::temp_dir::TempDir;
use crate::options::{Flag, LayerBigData};
use crate::record::intent::Companion;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;

/// A tar-split file that waits in a locked temporary directory for its layer.
#[derive(Debug)]
pub(crate) struct StagedTarSplit {
    pub(crate) path: PathBuf,
    /// Owns the directory; kept until the file has been renamed out of it.
    pub(crate) temp: TempDir,
}

/// What a new layer starts with.
#[derive(Debug)]
pub(crate) enum Start {
    /// Nothing.
    Empty,
    /// The content (and the recorded digests) of another layer.
    Template(Arc<LayerRow>),
    /// An unpacked diff.
    Unpacked(Box<Unpacked>),
    /// The files of a layer in an additional layer store, and what that says of it.
    Additional { used: LayerUse, info: Arc<LayerRow> },
}

/// A diff that was unpacked outside the lock.
#[derive(Debug)]
pub(crate) struct Unpacked {
    pub(crate) staged: Box<dyn Staged>,
    pub(crate) tar_split: StagedTarSplit,
    pub(crate) applied: Applied,
    /// The tree of the parent that the content was fitted to, if it depends on it (`Unpacked::fit`).
    pub(crate) fitted_to: Option<OwnedFd>,
    /// What a differ says of it, in place of what unpacking found out.
    pub(crate) from_differ: Option<FromDiffer>,
}

/// What a differ says of content that it has put together.
#[derive(Debug)]
pub(crate) struct FromDiffer {
    pub(crate) uncompressed_digest: Option<Digest>,
    /// Bytes of the uncompressed diff.
    pub(crate) size: Option<u64>,
    pub(crate) compressed_digest: Option<Digest>,
    pub(crate) toc_digest: Option<Digest>,
    /// Whether tar-split data was recorded that goes with the diff.
    pub(crate) has_tar_split: bool,
    pub(crate) items: Vec<StagedItem>,
    /// The record of the layer in another store of which this one is a copy: what it says, this one's says too.
    pub(crate) copy_of: Option<Box<LayerRow>>,
}

/// A big data item that waits for its layer, in the directory of its tar-split.
#[derive(Debug)]
pub(crate) struct StagedItem {
    pub(crate) key: String,
    pub(crate) path: PathBuf,
}

impl Unpacked {
    /// Whether there is tar-split data.
    pub(crate) fn has_tar_split(&self) -> bool {
        self.from_differ
            .as_ref()
            .is_none_or(|differ| differ.has_tar_split)
    }

    /// Big data items that go with it.
    pub(crate) fn items(&self) -> &[StagedItem] {
        self.from_differ.as_ref().map_or(&[], |differ| &differ.items)
    }

    /// Digest of the uncompressed diff, if it is known.
    pub(crate) fn uncompressed_digest(&self) -> Option<&Digest> {
        match &self.from_differ {
            Some(differ) => differ.uncompressed_digest.as_ref(),
            None => Some(&self.applied.diff_digest),
        }
    }

    /// Has the record of the layer say what that of its original in another store does.
    pub(crate) fn become_copy_of(&mut self, original: LayerRow) {
        if let Some(differ) = &mut self.from_differ {
            differ.copy_of = Some(Box::new(original));
        }
    }

    /// Writes into a record where the content comes from.
    pub(crate) fn record(&self, row: &mut LayerRow) {
        record_applied(row, &self.applied);
        let Some(differ) = &self.from_differ else { return };
        if let Some(original) = &differ.copy_of {
            // The owners on disk are the driver's affair.
            let (uid_map, gid_map) = (std::mem::take(&mut row.uid_map), std::mem::take(&mut row.gid_map));
            *row = LayerRow {
                uid_map,
                gid_map,
                ..LayerRow::clone(original)
            };
            row.set_intent("");
            return;
        }
        row.diff_digest = differ.uncompressed_digest.clone().into();
        row.diff_size = differ
            .size
            .and_then(|size| i64::try_from(size).ok())
            .unwrap_or(-1);
        row.compressed_digest = differ.compressed_digest.clone().into();
        row.compressed_size = 0;
        row.compression = 0;
        row.toc_digest = differ.toc_digest.clone().into();
        for item in &differ.items {
            if !row.big_data_names.contains(&item.key) {
                row.big_data_names.push(item.key.clone());
            }
        }
    }
}

/// Everything about a new layer.
#[derive(Debug)]
pub(crate) struct NewLayer {
    /// Empty: a random one.
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) parent: Option<Arc<LayerRow>>,
    pub(crate) start: Start,
    pub(crate) mount_label: String,
    pub(crate) writeable: bool,
    /// Mappings in the record.
    pub(crate) mappings: IdMappings,
    /// A container's layer whose owners are mapped when it is mounted: its files are not given other owners now.
    pub(crate) mapped_by_mount: bool,
    pub(crate) metadata: String,
    pub(crate) flags: BTreeMap<String, Flag>,
    pub(crate) big_data: Vec<LayerBigData>,
    pub(crate) storage_opt: BTreeMap<String, String>,
    pub(crate) volatile: bool,
    /// The item that will refer to the layer. Until the mark is taken off ([`LayerStore::mark`]) the layer is deleted
    /// again if there is none.
    ///
    /// [`LayerStore::mark`]: crate::store::layer_store::locked::LayerStore::mark
    pub(crate) companion: Option<Companion>,
}

/// The mappings in the record of a layer: those of its files on disk. A container's layer whose owners are mapped when it
/// is mounted has files only from such a mount.
pub(crate) fn mappings_of(row: &LayerRow) -> IdMappings {
    IdMappings {
        uids: row.uid_map.clone(),
        gids: row.gid_map.clone(),
    }
}

/// The mappings of the files of `below`, if they are others than those of a layer that is made of it.
pub(crate) fn other_mappings(below: Option<&LayerRow>, mappings: &IdMappings) -> Option<IdMappings> {
    below.map(mappings_of).filter(|below| below != mappings)
}

/// The mappings of the files of a layer on disk, whose root directory is `root`.
pub(crate) fn mappings_on_disk(
    driver: &dyn Driver,
    row: &LayerRow,
    root: BorrowedFd<'_>,
) -> Result<IdMappings> {
    let mappings = mappings_of(row);
    if mappings.is_identity() || !driver.shifts_new_files() {
        return Ok(mappings);
    }
    // The record does not say whether the owners were changed or are mapped by a mount.
    let stat = rustix::fs::fstat(root).during(format!("looking at layer {:?}", row.id))?;
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    match mappings.to_container(Owner { uid, gid }) {
        Ok(_changed) => Ok(mappings),
        Err(_unmapped) => Ok(IdMappings::default()),
    }
}

/// JSON of the caller's flags.
pub(crate) fn flags_json(flags: BTreeMap<String, Flag>) -> BTreeMap<String, serde_json::Value> {
    let convert = |flag| match flag {
        Flag::Bool(truth) => serde_json::Value::Bool(truth),
        Flag::Text(text) => serde_json::Value::String(text),
        Flag::List(items) => items.into_iter().map(serde_json::Value::String).collect(),
    };
    flags
        .into_iter()
        .map(|(name, flag)| (name, convert(flag)))
        .collect()
}

/// Writes what unpacking found out into a record. No table of contents is known of what was unpacked.
pub(crate) fn record_applied(row: &mut LayerRow, applied: &Applied) {
    row.compressed_digest = applied.compressed_digest.clone().into();
    row.compressed_size = i64::try_from(applied.compressed_size).unwrap_or(-1);
    row.diff_digest = applied.diff_digest.clone().into();
    row.diff_size = i64::try_from(applied.diff_size).unwrap_or(-1);
    row.compression = applied.compression.as_i64();
    row.toc_digest = None::<Digest>.into();
    row.uids.clone_from(&applied.uids);
    row.gids.clone_from(&applied.gids);
}
