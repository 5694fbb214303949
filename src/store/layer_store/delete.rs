//! Deleting layers.

use std::path::PathBuf;
use std::sync::Arc;

use crate::driver::Driver;
use crate::error::{Error, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::store::dirs::{Dirs, check_layer_id};
use crate::store::inner::Inner;
use crate::store::layer_store::locked::{LayerStore, MAX_TRASH};
use crate::store::layer_store::mount::LastUnmount;
use crate::sys::tree::remove_tree;

/// Layers that are being deleted.
#[derive(Debug)]
pub(crate) struct Doomed {
    ids: Vec<String>,
    /// Those that were complete.
    marked: Vec<String>,
}

impl LayerStore {
    /// Deletes layers and their records, whether or not they are used. See [`LayerStore::doom`].
    pub(crate) fn delete_all(&mut self, ids: &[String]) -> Result<()> {
        let doomed = self.doom(ids)?;
        self.save()?;
        let unmounted = self
            .plan_unmounts(&doomed)
            .and_then(|unmounts| self.count_unmounts(&doomed, unmounts.make()));
        let removed = unmounted.and_then(|()| self.save_counts()).and_then(|()| {
            let some = doomed.ids.chunks(MAX_TRASH);
            let removed = some.map(|ids| {
                let moved = self.removal(ids).make();
                self.count_removed(moved)
            });
            // Collected first, so that a failure does not stop the others.
            removed.collect::<Vec<_>>().into_iter().collect()
        });
        self.save()?;
        removed
    }

    /// Begins to delete layers: sets the flag `incomplete` in all records. When that is saved, a crash completes the deletion,
    /// and [`LayerStore::plan_unmounts`] goes on.
    pub(crate) fn doom(&mut self, ids: &[String]) -> Result<Doomed> {
        let (mut doomed, mut marked) = (Vec::with_capacity(ids.len()), Vec::new());
        for id in ids {
            let row = self.get(id)?;
            // Before the flag is set: a layer that cannot be deleted would keep it for ever.
            check_layer_id(&*self.driver, &row.id)?;
            if !row.is_incomplete() {
                marked.push(row.id.to_string());
            }
            doomed.push(row.id.to_string());
        }
        self.mark_incomplete(&marked, true)?;
        Ok(Doomed { ids: doomed, marked })
    }

    /// The unmounts of the layers that are counted as mounted. What this does if it fails is to be saved.
    pub(crate) fn plan_unmounts(&mut self, doomed: &Doomed) -> Result<Unmounts> {
        let plans = doomed.ids.iter().map(|id| self.plan_unmount_counted(id));
        match plans.collect::<Result<Vec<_>>>() {
            Ok(unmounts) => Ok(Unmounts(unmounts.into_iter().flatten().collect())),
            Err(error) => {
                // Nothing is lost yet, and the next user of the lock would fail in the same way.
                self.mark_incomplete(&doomed.marked, false)?;
                Err(error)
            }
        }
    }

    /// Counts the unmounts. The counts are to be saved before the files move: none is of a layer that is not there. What this
    /// does after an error is to be saved too.
    pub(crate) fn count_unmounts(&mut self, doomed: &Doomed, unmounted: Unmounted) -> Result<()> {
        let counted = unmounted
            .ended
            .iter()
            .try_for_each(|ended| self.count_unmounted(ended));
        let result = unmounted.result.and(counted);
        if result.is_err() {
            // As when they cannot be planned.
            self.mark_incomplete(&doomed.marked, false)?;
        }
        result
    }

    /// The removal of the files of the layers.
    pub(crate) fn removal(&self, ids: &[String]) -> Removal {
        // What the driver does not find has no names.
        let names = ids.iter().filter_map(|id| self.driver.names_to_sync(id).ok());
        let relied_on = names.flatten().chain([self.inner.dirs.layers()]).collect();
        Removal {
            relied_on,
            driver: Arc::clone(&self.driver),
            inner: Arc::clone(&self.inner),
            ids: ids.to_vec(),
        }
    }

    /// Removes the records of those layers whose files are gone; which is to be saved also after an error.
    pub(crate) fn count_removed(&mut self, removed: Removed) -> Result<()> {
        let mut result = Ok(());
        for dir in removed.relied_on {
            self.guard.rely_on(dir);
        }
        for (id, moved) in removed.each {
            self.throw_away(moved.trash);
            match moved.result.context(|| format!("deleting layer {id:?}")) {
                Ok(()) => drop(self.guard.table_mut().remove(&id)),
                // The record keeps the flag, so that the next user of the lock tries again.
                Err(error) if result.is_ok() => result = Err(error),
                Err(error) => tracing::warn!(layer = id, error = %error.chain(), "cannot delete layer"),
            }
        }
        result
    }

    fn mark_incomplete(&mut self, ids: &[String], incomplete: bool) -> Result<()> {
        for id in ids {
            let table = self.guard.table_mut();
            table.update(id, |row| row.set_incomplete(incomplete))?;
        }
        Ok(())
    }

    /// Renames a layer's content and files away, see [`Removal::make`].
    pub(crate) fn move_away(&mut self, id: &str) -> Result<()> {
        drop(self.rely_on_layer(id));
        let moved = Moved::away(&*self.driver, &self.inner.dirs, id);
        self.throw_away(moved.trash);
        moved.result
    }
}

/// Layers that the driver is to unmount.
pub(crate) struct Unmounts(Vec<LastUnmount>);

/// What unmounting several layers has come to.
pub(crate) struct Unmounted {
    ended: Vec<LastUnmount>,
    result: Result<()>,
}

impl Unmounts {
    /// Whether there is nothing to do.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Unmounts them, up to the first that fails.
    pub(crate) fn make(self) -> Unmounted {
        let mut ended = Vec::with_capacity(self.0.len());
        let mut result = Ok(());
        for unmount in self.0 {
            result = unmount.make();
            if result.is_err() {
                break;
            }
            ended.push(unmount);
        }
        Unmounted { ended, result }
    }
}

/// Layers whose files are to be removed.
pub(crate) struct Removal {
    driver: Arc<dyn Driver>,
    inner: Arc<Inner>,
    ids: Vec<String>,
    /// Directories whose names the save of the records relies on afterwards.
    relied_on: Vec<PathBuf>,
}

/// What removing the files of several layers has come to.
pub(crate) struct Removed {
    each: Vec<(String, Moved)>,
    relied_on: Vec<PathBuf>,
}

impl Removal {
    /// Renames the content and files of each layer into temporary directories that are removed after the lock is released.
    /// Where the disk is full they are removed at once: there may be no room for a directory.
    pub(crate) fn make(self) -> Removed {
        let Self {
            driver,
            inner,
            ids,
            relied_on,
        } = self;
        let moved = ids.into_iter().map(|id| {
            let moved = Moved::away(&*driver, &inner.dirs, &id);
            (id, moved)
        });
        Removed {
            each: moved.collect(),
            relied_on,
        }
    }
}

/// What removing the files of one layer has come to.
struct Moved {
    result: Result<()>,
    trash: Vec<TempDir>,
}

impl Moved {
    fn away(driver: &dyn Driver, dirs: &Dirs, id: &str) -> Self {
        let mut trash = Vec::new();
        let result = move_away(driver, dirs, id, &mut trash);
        Self { result, trash }
    }
}

fn move_away(driver: &dyn Driver, dirs: &Dirs, id: &str, trash: &mut Vec<TempDir>) -> Result<()> {
    match driver.defer_remove(id) {
        Ok(temp) => trash.extend(temp),
        Err(error) if error.is_full() => driver.remove_in_place(id)?,
        // An immutable directory cannot be moved; to remove it its flag is cleared.
        Err(error) if error.own_io_kind() == Some(std::io::ErrorKind::PermissionDenied) => {
            driver.remove_in_place(id)?;
        }
        Err(error) => return Err(error),
    }
    let files = [dirs.tar_split(id)?, dirs.layer_data(id)?];
    match move_files(dirs, &files) {
        Ok(temp) => trash.extend(temp),
        Err(error) if error.is_full() => {
            for path in files {
                remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))?;
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

fn move_files(dirs: &Dirs, files: &[PathBuf]) -> Result<Option<TempDir>> {
    let mut temp = None;
    for path in files {
        if exists(path)? {
            let temp = match &mut temp {
                Some(temp) => temp,
                None => temp.insert(TempDir::create(&dirs.layers_tmp())?),
            };
            temp.stage_deletion(path)?;
        }
    }
    Ok(temp)
}

fn exists(path: &std::path::Path) -> Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).at("looking at", path),
    }
}
