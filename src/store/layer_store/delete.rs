//! Deleting layers.

use std::path::PathBuf;

use crate::error::{Error, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::store::dirs::{Dirs, check_layer_id};
use crate::store::layer_store::locked::LayerStore;
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
        let unmounted = self.unmount_doomed(&doomed).and_then(|()| self.save_counts());
        let removed = unmounted.and_then(|()| self.remove_doomed(&doomed));
        self.save()?;
        removed
    }

    /// Begins to delete layers: sets the flag `incomplete` in all records. When that is saved, a crash completes the deletion,
    /// and [`LayerStore::unmount_doomed`] goes on.
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

    /// Unmounts the layers. The counts are to be saved before the files move: none is of a layer that is not there. What this
    /// does after an error is to be saved too.
    pub(crate) fn unmount_doomed(&mut self, doomed: &Doomed) -> Result<()> {
        for id in &doomed.ids {
            if let Err(error) = self.unmount_counted(id) {
                // Nothing is lost yet, and the next user of the lock would fail in the same way.
                self.mark_incomplete(&doomed.marked, false)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Renames the files of the layers away, and removes the records of those for which that has worked; which is to be saved
    /// also after an error.
    pub(crate) fn remove_doomed(&mut self, doomed: &Doomed) -> Result<()> {
        let mut result = Ok(());
        for id in &doomed.ids {
            let removed = self.move_away(id).context(|| format!("deleting layer {id:?}"));
            match removed {
                Ok(()) => drop(self.guard.table_mut().remove(id)),
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

    /// Renames a layer's content and files into temporary directories that are removed after the lock is released. Where the
    /// disk is full they are removed at once: there may be no room for a directory.
    pub(crate) fn move_away(&mut self, id: &str) -> Result<()> {
        // What the driver does not find has no names.
        drop(self.rely_on_layer(id));
        match self.driver.defer_remove(id) {
            Ok(temp) => self.trash.extend(temp),
            Err(error) if error.is_full() => self.driver.remove_in_place(id)?,
            Err(error) => return Err(error),
        }
        let dirs = &self.inner.dirs;
        let files = [dirs.tar_split(id)?, dirs.layer_data(id)?];
        match move_files(dirs, &files) {
            Ok(temp) => self.trash.extend(temp),
            Err(error) if error.is_full() => {
                for path in files {
                    remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))?;
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
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
