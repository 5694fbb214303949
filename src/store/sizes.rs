//! Sizes of layers, images and containers, and the owners of the directories above a mount.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::IdMap;
use crate::record::layer::LayerRow;
use crate::store::access::hit;
use crate::store::dirs::item_dir;
use crate::store::{Store, images};
use crate::sys::{at, tree};

/// Owners of the directories above a mount that the ID mapping of the layer does not contain.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParentOwners {
    /// User IDs on the host, sorted.
    pub uids: Vec<u32>,
    /// Group IDs on the host, sorted.
    pub gids: Vec<u32>,
}

/// The recorded size of a layer's uncompressed diff; `None` if the layer has no recorded diff.
fn recorded_size(row: &LayerRow) -> Option<u64> {
    if row.diff_digest.is_empty() && row.toc_digest.is_empty() {
        return None;
    }
    u64::try_from(row.diff_size).ok()
}

/// The sum of two sizes. Records can say any size, and so can files with holes: the sum may exceed 64 bits.
fn add(total: u64, more: u64) -> Result<u64> {
    total
        .checked_add(more)
        .ok_or_else(|| ErrorKind::CorruptMetadata.err("the sizes together exceed 64 bits"))
}

fn is_mapped(ranges: &[IdMap], id: u32) -> bool {
    ranges
        .iter()
        .any(|range| range.host_ids().contains(&u64::from(id)))
}

impl Store {
    /// The recorded size in bytes of the uncompressed diff of a layer (an ID, name or ID prefix); `None` if the layer
    /// was not made from a diff. Nothing is computed.
    ///
    /// Takes the layer locks shared.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    pub async fn layer_size(&self, id: &str) -> Result<Option<u64>> {
        let found = self
            .read_all_layer_stores(|_, table| Ok(hit(table.find(id).map(|row| recorded_size(row)))))
            .await?;
        found.ok_or_else(|| ErrorKind::LayerUnknown.err(format!("locating layer with ID {id:?}")))
    }

    /// The size in bytes of an image (an ID, name or ID prefix): its layers, each counted once, and its big data. The
    /// size of a layer is the recorded one, or else measured.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::LayerUnknown`] if one of its layers is missing, [`ErrorKind::Io`].
    pub async fn image_size(&self, id: &str) -> Result<u64> {
        let found = self
            .read_all_image_stores(|origin, table| {
                Ok(hit(table.find(id).map(|row| (Arc::clone(row), origin))))
            })
            .await?;
        let (image, origin) = found.ok_or_else(|| images::unknown(id))?;
        let mut layers: Vec<Arc<LayerRow>> = Vec::new();
        let mut seen: HashSet<String> = HashSet::new();
        let mut todo: Vec<String> = image
            .top_layers()
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect();
        while let Some(next) = todo.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let row = self
                .read_all_layer_stores(|_, table| Ok(hit(table.get(&next).map(Arc::clone))))
                .await?;
            let missing =
                || ErrorKind::LayerUnknown.err(format!("locating layer {next:?} of image {:?}", image.id));
            let row = row.ok_or_else(missing)?;
            if !row.parent.is_empty() {
                todo.push(row.parent.to_string());
            }
            layers.push(row);
        }
        let mut size = 0;
        for row in layers {
            let more = match recorded_size(&row) {
                Some(size) => size,
                None => self.diff_size(None, &row.id).await?,
            };
            size = add(size, more)?;
        }
        for key in &image.big_data_names {
            let recorded = image
                .big_data_sizes
                .get(key)
                .and_then(|size| u64::try_from(*size).ok());
            let more = match recorded {
                Some(size) => size,
                None => self.read_image_item(&image, origin, key).await?.len() as u64,
            };
            size = add(size, more)?;
        }
        Ok(size)
    }

    /// The size in bytes of a container (an ID, name or ID prefix): the diff of its layer, its big data, and the files
    /// in its two directories. Reads the whole tree of the layer.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    pub async fn container_size(&self, id: &str) -> Result<u64> {
        let container = self.container(id).await?;
        let mut size = self.diff_size(None, container.layer_id()).await?;
        for key in container.big_data_names() {
            size = add(size, self.container_big_data_size(container.id(), key).await?)?;
        }
        let dirs: [PathBuf; 2] = [
            item_dir(self.inner.dirs.containers(), container.id())?.join("userdata"),
            item_dir(self.inner.dirs.run_containers(), container.id())?.join("userdata"),
        ];
        let sum = move || {
            dirs.iter()
                .try_fold(size, |size, dir| add(size, directory_size(dir)?))
        };
        bridge::run(sum).await
    }

    /// The owners of the directories above the mount point of a mounted layer (an ID, name or ID prefix) that its ID
    /// mapping does not contain. Empty for a layer without an ID mapping.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::LayerNotMounted`], [`ErrorKind::Io`].
    pub async fn layer_parent_owners(&self, id: &str) -> Result<ParentOwners> {
        let layer = self.layer(id).await?;
        if layer.uid_map().is_empty() && layer.gid_map().is_empty() {
            return Ok(ParentOwners::default());
        }
        let Some(path) = layer.mount_point().map(Path::to_owned) else {
            return Err(ErrorKind::LayerNotMounted.err(format!("reading the parent owners of layer {id:?}")));
        };
        let (uid_map, gid_map) = (layer.uid_map().to_vec(), layer.gid_map().to_vec());
        let id = id.to_owned();
        bridge::run(move || {
            // Unmounted since the counts were read, or at a reboot.
            if path
                .symlink_metadata()
                .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
            {
                return Err(
                    ErrorKind::LayerNotMounted.err(format!("reading the parent owners of layer {id:?}"))
                );
            }
            let (mut uids, mut gids) = (BTreeSet::new(), BTreeSet::new());
            for above in path.ancestors().skip(1) {
                let meta = above.symlink_metadata().at("reading the owner of", above)?;
                uids.insert(meta.uid());
                gids.insert(meta.gid());
            }
            uids.retain(|id| !is_mapped(&uid_map, *id));
            gids.retain(|id| !is_mapped(&gid_map, *id));
            Ok(ParentOwners {
                uids: uids.into_iter().collect(),
                gids: gids.into_iter().collect(),
            })
        })
        .await
    }

    /// As [`Store::layer_parent_owners`], for the layer of a container (an ID, name or ID prefix).
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::LayerNotMounted`],
    /// [`ErrorKind::Io`].
    pub async fn container_parent_owners(&self, id: &str) -> Result<ParentOwners> {
        let container = self.container(id).await?;
        self.layer_parent_owners(container.layer_id()).await
    }
}

/// The size in bytes of the files in a directory; 0 if it is missing.
fn directory_size(dir: &Path) -> Result<u64> {
    match at::open_dir(dir) {
        Err(rustix::io::Errno::NOENT) => Ok(0),
        opened => Ok(tree::usage(opened.at("opening", dir)?.as_fd())
            .at("measuring", dir)?
            .size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{ContainerOptions, ImageOptions, StoreOptions};

    #[tokio::test]
    async fn recorded_sizes_beyond_all_bounds_are_an_error() {
        let tmp = tempfile::tempdir().unwrap();
        let options = StoreOptions::new(tmp.path().join("graph"), tmp.path().join("run")).driver("vfs");
        let store = Store::open(options).await.unwrap();
        let mut options = ImageOptions::default().id("image");
        for key in ["a", "b", "c"] {
            options = options.big_data(key, "content");
        }
        store.create_image(None, options).await.unwrap();
        assert_eq!(store.image_size("image").await.unwrap(), 21);

        let path = tmp.path().join("graph/vfs-images/images.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let largest = text.replace(":7", &format!(":{}", i64::MAX));
        assert_ne!(text, largest);
        std::fs::write(&path, &largest).unwrap();
        // The token in the lock file says that there is something new.
        std::fs::write(tmp.path().join("graph/vfs-images/images.lock"), "changed").unwrap();
        let error = store.image_size("image").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{error:?}");
    }

    #[tokio::test]
    async fn files_with_holes_beyond_all_bounds_are_an_error() {
        // Files can be that large only in memory and on few other file systems.
        let tmp = tempfile::tempdir_in("/dev/shm").unwrap();
        let options = StoreOptions::new(tmp.path().join("graph"), tmp.path().join("run")).driver("vfs");
        let store = Store::open(options).await.unwrap();
        let container = ContainerOptions::default().id("c");
        store.create_container(None, container).await.unwrap();
        for dir in [
            store.container_directory("c").await.unwrap(),
            store.container_run_directory("c").await.unwrap(),
        ] {
            for name in ["a", "b", "c"] {
                let file = std::fs::File::create(dir.join(name)).unwrap();
                file.set_len(i64::MAX.unsigned_abs()).unwrap();
            }
        }
        let error = store.container_size("c").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptMetadata, "{error:?}");
    }
}
