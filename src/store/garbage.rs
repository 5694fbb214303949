//! Garbage collection: removes files and layers without a record, which killed processes leave behind, and which a
//! reboot leaves behind in transient mode.

use std::collections::HashSet;
use std::path::Path;

use crate::error::{Error, IoContext as _, Result};
use crate::record::big_data::{self, Items as _};
use crate::store::Store;
use crate::store::dirs::item_dir;

/// The IDs (64 hexadecimal digits) among the names in `dir` that end in `suffix`; none if `dir` is missing.
fn ids_in(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.at("listing", dir)?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        let name = entry.at("listing", dir)?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.strip_suffix(suffix)) else {
            continue;
        };
        if id.len() == 64
            && id
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            ids.push(id.to_owned());
        }
    }
    Ok(ids)
}

/// Removes the directories in `dir` whose names are IDs that are not `known`.
fn sweep(dir: &Path, known: impl Fn(&str) -> bool) -> Result<()> {
    for id in ids_in(dir, "")?.into_iter().filter(|id| !known(id)) {
        let path = dir.join(&id);
        tracing::info!(path = %path.display(), "removing a directory without a record");
        crate::sys::tree::remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))?;
    }
    Ok(())
}

/// # Garbage
impl Store {
    /// Removes directories and layers of the driver that have no record, and stale temporary files of killed
    /// processes.
    ///
    /// Takes the container, image and layer locks exclusively, one after the other.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io), [`ErrorKind::LockTimeout`](crate::ErrorKind::LockTimeout) and others. A
    /// failure with one kind of item does not keep the others from being collected; the first error is returned.
    ///
    /// # Cancellation
    /// Kinds of items that were not reached are not collected. A running step completes in the background.
    pub async fn garbage_collect(&self) -> Result<()> {
        let dirs = self.inner.dirs.clone();
        let containers = self
            .write_to_container_store(move |containers| {
                containers.remove_stale()?;
                for row in containers.rows() {
                    row.remove_stale_items(&item_dir(dirs.containers(), &row.id)?)?;
                }
                sweep(&dirs.containers(), |id| containers.get(id).is_some())
            })
            .await;
        let dirs = self.inner.dirs.clone();
        let images = self
            .write_to_image_store(move |images| {
                images.remove_stale()?;
                for row in images.rows() {
                    row.remove_stale_items(&item_dir(dirs.images(), &row.id)?)?;
                }
                sweep(&dirs.images(), |id| images.get(id).is_some())
            })
            .await;
        let layers = self
            .write_to_layer_store(|layers| {
                let dirs = layers.inner.dirs.clone();
                layers.remove_stale()?;
                layers.inner.mounts.lock_blocking()?.remove_stale()?;
                layers.inner.recover()?;
                layers.driver.remove_strays()?;
                for row in layers.table().rows() {
                    big_data::remove_stale(&dirs.layer_data(&row.id)?, std::iter::empty())?;
                }
                let mut unrecorded: HashSet<String> = layers.driver.list_layers()?.into_iter().collect();
                unrecorded.extend(ids_in(&dirs.layers(), "")?);
                unrecorded.extend(ids_in(&dirs.layers(), ".tar-split.gz")?);
                unrecorded.retain(|id| layers.table().get(id).is_none());
                for id in unrecorded {
                    tracing::info!(layer = id, "removing a layer without a record");
                    layers.move_away(&id)?;
                }
                Ok(())
            })
            .await;
        containers.and(images).and(layers)
    }
}
