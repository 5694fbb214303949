//! Applying a diff to a layer that is there.
//!
//! The diff was unpacked beside the layer. A copy of the layer's own tree gets it and takes the layer's place by one exchange;
//! that decides what the layer has ([`pending_diff`](crate::record::pending_diff)). A tree that a mount shows, of the layer or of one
//! above it, is changed in place: another one in its place would not be seen there, and the files of the mount would be
//! removed.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::archive::apply::pipeline::Applied;
use crate::chunked::cache::{CACHE_KEY, FORMAT_KEY, TOC_KEY};
use crate::driver::{Copied, LayerCopy, LayerTree, MountState, Staged};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::record::pending_diff::PendingDiff;
use crate::record::record_trait::Record as _;
use crate::store::layer_store::counts::Counts;
use crate::store::layer_store::fit::merge_into;
use crate::store::layer_store::locked::{LayerStore, files_of};
use crate::store::layer_store::new_layer::{StagedItem, Unpacked, record_applied};
use crate::store::layer_store::received::{Received, Receiving};
use crate::sys::presence::stat_if_there;
use crate::sys::tree;

/// Where a tar-split waits for its layer's tree, in the directory of the layer's big data. It is named as waiting items
/// are: if no record speaks of it, garbage collection removes it.
const WAITING: &str = ".new-tar-split.gz";

/// Big data items that tell of a layer's content, and go with it unless the new content brings them.
const OF_CONTENT: [&str; 3] = [TOC_KEY, FORMAT_KEY, CACHE_KEY];

/// Where the big data item of this number waits likewise.
fn waiting_item(dir: &Path, number: usize) -> PathBuf {
    dir.join(format!(".new-item-{number}"))
}

/// What has become of a diff that was being applied.
enum Found {
    /// The layer has its old tree.
    Old,
    /// The layer has the new tree.
    New,
    /// It cannot be told.
    Neither,
}

/// Removes a file, or what else is in its place.
fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            tree::remove_tree(path).map_err(|error| Error::io_at("removing", path, error))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).at("removing", path),
        _ => Ok(()),
    }
}

/// A layer that is ready for a diff.
#[derive(Debug)]
struct Applying {
    /// What gets the diff.
    tree: LayerTree,
    /// The copy in which that is, with the numbers of the layer's tree and of its own; `None` if it is the layer's tree.
    copy: Option<(LayerCopy, (u64, u64))>,
}

impl LayerStore {
    /// Moves a diff that has arrived into its layer; returns the bytes in the files that it brought. On failure the layer is
    /// as before, unless its tree was being changed in place.
    pub(crate) fn apply(&mut self, received: Received) -> Result<u64> {
        let checked = self.check_received(&received);
        let Received { place, mut applied } = received;
        let Receiving {
            staged,
            tar_split,
            tree,
            row: _,
        } = place;
        // Not every driver can exchange a tree in which something is open.
        drop(tree);
        self.trash.push(tar_split.temp);
        let ended = checked.and_then(|row| self.apply_to(&row, &*staged, &tar_split.path, &mut applied));
        self.discarded.push(staged);
        ended.map(|()| applied.content_size)
    }

    /// Gives the layer `row` what was unpacked instead of its own content. On failure it is as before.
    pub(crate) fn replace(&mut self, row: &LayerRow, unpacked: Unpacked) -> Result<Arc<LayerRow>> {
        let ended = self.replace_content(row, &unpacked);
        self.discard(unpacked);
        ended.context(|| format!("replacing the content of layer {:?}", row.id))?;
        self.get(&row.id)
    }

    fn replace_content(&mut self, row: &LayerRow, unpacked: &Unpacked) -> Result<()> {
        if self.is_shown(&row.id)? {
            return Err(Error::io("a mount shows the layer", Errno::BUSY));
        }
        let copy = files_of(&row.id, self.driver.copy_layer(&row.id, Copied::Root))?;
        let copy = copy.ok_or_else(|| {
            ErrorKind::NotSupported.err("exchanging directories on the file system of the layers")
        })?;
        let mut tree = files_of(&row.id, self.driver.layer_tree(&row.id))?;
        tree.dir = copy.dir().try_clone().during("duplicating a directory handle")?;
        let trees = (self.driver.tree_number(&row.id)?, copy.number()?);
        let mut applied = unpacked.applied.clone();
        merge_into(self, row, &tree, &*unpacked.staged, &mut applied, false)?;
        drop(tree);
        let mut said = row.clone();
        unpacked.record(&mut said);
        let path = &unpacked.tar_split.path;
        let tar_split = unpacked.has_tar_split().then_some(path.as_path());
        let mut diff = PendingDiff::of_row(&said, Some(trees));
        let items = unpacked.items();
        diff.items = items.iter().map(|item| item.key.clone()).collect();
        let stale = OF_CONTENT
            .iter()
            .filter(|key| items.iter().all(|item| item.key != **key));
        diff.stale_items = stale.map(ToString::to_string).collect();
        self.exchange(&row.id, copy, tar_split, items, &diff)
    }

    fn apply_to(
        &mut self,
        row: &LayerRow,
        staged: &dyn Staged,
        tar_split: &Path,
        applied: &mut Applied,
    ) -> Result<()> {
        let merged = self.begin_diff(row).and_then(|applying| {
            let in_place = applying.copy.is_none();
            merge_into(self, row, &applying.tree, staged, applied, in_place)?;
            Ok(applying)
        });
        let merged = merged.map(|Applying { tree: _, copy }| copy);
        let ended = merged.and_then(|copy| match copy {
            Some((copy, trees)) => {
                let mut said = row.clone();
                record_applied(&mut said, applied);
                let diff = PendingDiff::of_row(&said, Some(trees));
                self.exchange(&row.id, copy, Some(tar_split), &[], &diff)
            }
            None => self.record_diff(&row.id, tar_split, applied),
        });
        if ended.is_err()
            && let Err(error) = self.finish_diff(&row.id)
        {
            tracing::warn!(layer = %row.id, error = %error.chain(), "cannot finish a diff that failed");
        }
        ended.context(|| format!("applying a diff to layer {:?}", row.id))
    }

    fn begin_diff(&mut self, row: &LayerRow) -> Result<Applying> {
        let copy = match self.is_shown(&row.id)? {
            true => None,
            false => {
                let durable = self.inner.sync_content();
                match files_of(&row.id, self.driver.copy_layer(&row.id, Copied::Tree { durable })) {
                    Err(error) if error.is_busy() => {
                        tracing::debug!(layer = %row.id, error = %error.chain(), "changing a layer in place");
                        None
                    }
                    copy => copy.context(|| format!("copying layer {:?}", row.id))?,
                }
            }
        };
        let mut tree = files_of(&row.id, self.driver.layer_tree(&row.id))?;
        let copy = match copy {
            Some(copy) => {
                tree.dir = copy.dir().try_clone().during("duplicating a directory handle")?;
                let trees = (self.driver.tree_number(&row.id)?, copy.number()?);
                Some((copy, trees))
            }
            None => {
                // Whoever finds this knows nothing of the layer's content.
                let unknown = PendingDiff::default();
                self.table_mut().update(&row.id, |row| unknown.mark(row))?;
                self.save()?;
                None
            }
        };
        Ok(Applying { tree, copy })
    }

    /// Makes `copy` the tree of the layer, and `diff` what its record says. If that fails, the layer is as before.
    pub(super) fn exchange(
        &mut self,
        id: &str,
        copy: LayerCopy,
        tar_split: Option<&Path>,
        items: &[StagedItem],
        diff: &PendingDiff,
    ) -> Result<()> {
        let Err(error) = self.try_exchange(id, copy, tar_split, items, diff) else {
            return Ok(());
        };
        match self.finish_diff(id) {
            Ok(Found::New) => {
                tracing::debug!(layer = id, error = %error.chain(), "the layer has its new content although a call failed");
                Ok(())
            }
            Ok(Found::Old | Found::Neither) => Err(error),
            Err(again) => {
                tracing::warn!(layer = id, error = %again.chain(), "cannot take a new content back");
                Err(error)
            }
        }
    }

    /// Exchanges the trees; on failure the diff is to be [finished](LayerStore::finish_diff).
    fn try_exchange(
        &mut self,
        id: &str,
        copy: LayerCopy,
        tar_split: Option<&Path>,
        items: &[StagedItem],
        diff: &PendingDiff,
    ) -> Result<()> {
        let data = self.inner.dirs.layer_data(id)?;
        big_data::make_dir(&data)?;
        // Saved below; whoever finishes what has failed before removes what waits.
        self.table_mut().update(id, |row| diff.mark(row))?;
        let waiting = data.join(WAITING);
        match tar_split {
            Some(tar_split) => std::fs::rename(tar_split, &waiting).at("moving tar-split to", &waiting)?,
            // Without bytes it stands for none.
            None => drop(std::fs::File::create(&waiting).at("creating", &waiting)?),
        }
        for (number, item) in items.iter().enumerate() {
            let waiting = waiting_item(&data, number);
            std::fs::rename(&item.path, &waiting).at("moving a big data item to", &waiting)?;
        }
        self.rely_on_data(data);
        self.save()?;
        let old = copy.take_place()?;
        self.trash.push(old);
        match self.finish_diff(id)? {
            Found::New => Ok(()),
            Found::Old | Found::Neither => Err(Error::io(
                "looking for the tree that the layer was given",
                Errno::NOENT,
            )),
        }
    }

    fn record_diff(&mut self, id: &str, tar_split: &Path, applied: &Applied) -> Result<()> {
        let path = self.inner.dirs.tar_split(id)?;
        std::fs::rename(tar_split, &path).at("moving tar-split to", path)?;
        self.table_mut().update(id, |row| {
            record_applied(row, applied);
            row.set_intent("");
        })?;
        self.rely_on_layer(id)?;
        self.save_content()
    }

    /// Whether a mount shows the layer's tree. Mounts that nobody is counted for, which killed processes have left, end.
    pub(super) fn is_shown(&mut self, id: &str) -> Result<bool> {
        let mounts = self.counts.lock(&self.inner, Counts::Primary)?;
        let rows = mounts.rows();
        let mounts: HashMap<String, PathBuf> = rows
            .map(|row| (row.id.clone(), PathBuf::from(&row.path)))
            .collect();
        let stacked = self.driver.capabilities().stages_apart;
        let mut showing = HashSet::from([id]);
        // Later layers have earlier ones as parents.
        for row in self.table().rows() {
            if stacked && showing.contains(row.parent.as_str()) {
                showing.insert(&row.id);
            }
        }
        for layer in showing {
            let counted = mounts.get(layer);
            let counted = counted.map(|path| self.driver.mount_state(path)).transpose()?;
            if counted.is_some_and(|state| state != MountState::Nowhere) {
                return Ok(true);
            }
            if matches!(self.driver.own_mount_state(layer), Ok(MountState::Here)) {
                self.driver
                    .unmount_all(layer)
                    .context(|| format!("unmounting layer {layer:?}"))?;
            }
        }
        Ok(false)
    }

    /// Completes diffs that killed processes were applying, or takes them back.
    pub(super) fn finish_diffs(&mut self) -> Result<()> {
        for id in self.guard.incomplete() {
            let pending = self
                .table()
                .get(&id)
                .is_some_and(|row| PendingDiff::of_intent(row.intent()).is_some());
            if !pending {
                continue;
            }
            tracing::warn!(layer = id, "finishing a diff that a killed process was applying");
            if let Err(error) = self.finish_diff(&id) {
                // What says nothing of the layer: the next one who takes the lock tries again.
                if error.may_pass() {
                    return Err(error.context(format!("finishing a diff of layer {id:?}")));
                }
                // The store stays usable.
                tracing::warn!(layer = id, error = %error.chain(), "cannot finish a diff");
                self.table_mut().update(&id, forget_content)?;
                self.save()?;
            }
        }
        Ok(())
    }

    /// Makes tar-split and record agree with the tree that the layer has, and tells which one that is; the old one if no diff
    /// is to be finished.
    fn finish_diff(&mut self, id: &str) -> Result<Found> {
        let row = self.get(id)?;
        let Some(diff) = PendingDiff::of_intent(row.intent()) else {
            return Ok(Found::Old);
        };
        let found = match (diff.trees, self.driver.tree_number(id)) {
            (Some((_old, new)), Ok(number)) if number == new => Found::New,
            (Some((old, _new)), Ok(number)) if number == old => Found::Old,
            // The question can be asked again.
            (Some(_), Err(error)) if error.kind() != ErrorKind::LayerUnknown => return Err(error),
            _ => Found::Neither,
        };
        let data = self.inner.dirs.layer_data(id)?;
        let tar_split = self.inner.dirs.tar_split(id)?;
        match found {
            Found::New => {
                move_to_places(&data, &tar_split, &diff)?;
                self.table_mut().update(id, |row| {
                    diff.record(row);
                    row.set_intent("");
                })?;
            }
            Found::Old => {
                remove_waiting(&data, &diff)?;
                self.table_mut().update(id, |row| row.set_intent(""))?;
            }
            Found::Neither => {
                self.driver.remove_half_moved(id)?;
                remove_waiting(&data, &diff)?;
                remove_file(&tar_split)?;
                self.table_mut().update(id, forget_content)?;
            }
        }
        remove_if_empty(&data);
        self.rely_on_data(data);
        // What the driver does not find has no names.
        drop(self.rely_on_layer(id));
        self.save_content()?;
        Ok(found)
    }
}

/// Gives a layer with the new tree the tar-split and the items that wait in the directory `data`. What is done is not done
/// again by who finds that a killed process has begun.
fn move_to_places(data: &Path, tar_split: &Path, diff: &PendingDiff) -> Result<()> {
    let move_there = |from: &Path, to: &Path| match std::fs::rename(from, to) {
        // It was moved before.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            remove_file(to)?;
            std::fs::rename(from, to).at("moving what waits to", to)
        }
        moved => moved.at("moving what waits to", to),
    };
    let waiting = data.join(WAITING);
    if stat_if_there(&waiting)?.is_some_and(|waiting| waiting.st_size == 0) {
        // In this order: without it nobody knows that there is to be none.
        remove_file(tar_split)?;
        remove_file(&waiting)?;
    } else {
        move_there(&waiting, tar_split)?;
    }
    for (number, key) in diff.items.iter().enumerate() {
        let place = data.join(&*big_data::file_name(key)?);
        move_there(&waiting_item(data, number), &place)?;
    }
    for key in &diff.stale_items {
        remove_file(&data.join(&*big_data::file_name(key)?))?;
    }
    Ok(())
}

/// Removes what waits in the directory `data` for a tree that the layer does not get.
fn remove_waiting(data: &Path, diff: &PendingDiff) -> Result<()> {
    remove_file(&data.join(WAITING))?;
    for number in 0..diff.items.len() {
        remove_file(&waiting_item(data, number))?;
    }
    Ok(())
}

/// The record no longer says where the content comes from.
fn forget_content(row: &mut LayerRow) {
    PendingDiff::default().record(row);
    row.set_intent("");
}

/// Without big data items a layer has no directory for them.
fn remove_if_empty(dir: &Path) {
    if let Err(error) = rustix::fs::rmdir(dir) {
        tracing::debug!(dir = %dir.display(), %error, "the directory of a layer's items stays");
    }
}
