//! Sizes of layers, images and containers, and the owners of the directories above a mount.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::IdMap;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::dirs::item_dir;
use crate::store::inner::StoreOrigin;
use crate::store::views::Image;
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

/// A layer of an image whose size is asked for.
struct SizedLayer {
    row: Arc<LayerRow>,
    /// Recorded or measured.
    size: Option<u64>,
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

/// Whether a container with these ranges has a host's ID. Without ranges it has all of them.
fn is_mapped(ranges: &[IdMap], id: u32) -> bool {
    ranges.is_empty()
        || ranges
            .iter()
            .any(|range| range.host_ids().contains(&u64::from(id)))
}

/// # Sizes, in bytes
impl Store {
    /// The recorded size in bytes of the uncompressed tar stream that a layer (an ID, name or ID prefix) was made from, as
    /// [`Layer::uncompressed_size`](crate::Layer::uncompressed_size), also for partially pulled layers; `None` if it was
    /// not made from one. Nothing is computed. What lies in the layer now is measured by [`Store::diff_size`].
    ///
    /// Takes the layer locks shared.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_size(&self, id: &str) -> Result<Option<u64>> {
        let found = self
            .read_all_layer_stores(|_, table| Ok(hit(table.find(id).map(|row| recorded_size(row)))))
            .await?;
        found.ok_or_else(|| LayerRow::unknown(id))
    }

    /// The size in bytes of an image (an ID, name or ID prefix): its layers, each counted once, and its big data. The
    /// size of a layer is that of [`Store::layer_size`], or else measured as by [`Store::diff_size`].
    /// [`Store::image_sizes`] tells those of all images.
    ///
    /// Takes the image lock and the layer lock shared for a moment each. A layer that has to be measured takes locks as [`Store::diff_size`].
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::LayerUnknown`] if one of its layers is missing, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn image_size(&self, id: &str) -> Result<u64> {
        let found = self
            .read_all_image_stores(|origin, table| {
                Ok(hit(table.find(id).map(|row| (Arc::clone(row), origin))))
            })
            .await?;
        let (image, origin) = found.ok_or_else(|| ImageRow::unknown(id))?;
        let mut layers = self.read_image_layers([&*image]).await?;
        self.size_of_image(&image, origin, &mut layers).await
    }

    /// All images, those of additional stores last, and the size of each as [`Store::image_size`] says it. An image
    /// that is damaged has an error for a size.
    ///
    /// The records are read once for all of them, and a layer whose size is not recorded is measured once, however many
    /// images share it.
    ///
    /// Locks as [`Store::image_size`].
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`]; those of [`Store::image_size`] for one image.
    ///
    /// # Cancellation
    /// No effect.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// for (image, size) in store.image_sizes().await? {
    ///     println!("{} {} bytes", image.short_id(), size?);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn image_sizes(&self) -> Result<Vec<(Image, Result<u64>)>> {
        let mut images = Vec::new();
        let _none: Option<()> = self
            .read_all_image_stores(|origin, table| {
                images.extend(table.rows().map(|row| (Arc::clone(row), origin)));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        let rows = images.iter().map(|(row, _)| &**row);
        let mut layers = self.read_image_layers(rows).await?;
        let mut sizes = Vec::with_capacity(images.len());
        for (row, origin) in images {
            let size = self.size_of_image(&row, origin, &mut layers).await;
            sizes.push((Image::new(&row, origin.read_only()), size));
        }
        Ok(sizes)
    }

    /// The layers of images. Those that are missing are left out.
    async fn read_image_layers<'a>(
        &self,
        images: impl IntoIterator<Item = &'a ImageRow> + Send,
    ) -> Result<HashMap<String, SizedLayer>> {
        let tops = images.into_iter().flat_map(ImageRow::top_layers);
        let mut wanted: Vec<String> = tops.filter(|id| !id.is_empty()).map(str::to_owned).collect();
        let mut found: HashMap<String, SizedLayer> = HashMap::new();
        loop {
            let before = found.len();
            let _none: Option<()> = self
                .read_all_layer_stores(|_, table| {
                    let mut elsewhere = Vec::new();
                    while let Some(id) = wanted.pop() {
                        if found.contains_key(&id) {
                            continue;
                        }
                        let Some(row) = table.get(&id) else {
                            elsewhere.push(id);
                            continue;
                        };
                        if !row.parent.is_empty() {
                            wanted.push(row.parent.to_string());
                        }
                        let (row, size) = (Arc::clone(row), recorded_size(row));
                        found.insert(id, SizedLayer { row, size });
                    }
                    wanted = elsewhere;
                    Ok(ControlFlow::Continue(()))
                })
                .await?;
            // Only with several stores is there something to look for again.
            if wanted.is_empty() || found.len() == before {
                return Ok(found);
            }
        }
    }

    /// The size of an image; `layers` has its layers, and gets the sizes that were measured.
    async fn size_of_image(
        &self,
        image: &ImageRow,
        origin: StoreOrigin,
        layers: &mut HashMap<String, SizedLayer>,
    ) -> Result<u64> {
        let mut seen: HashSet<String> = HashSet::new();
        let mut todo: Vec<String> = image
            .top_layers()
            .filter(|id| !id.is_empty())
            .map(str::to_owned)
            .collect();
        let mut size = 0;
        while let Some(next) = todo.pop() {
            if !seen.insert(next.clone()) {
                continue;
            }
            let missing =
                || ErrorKind::LayerUnknown.err(format!("locating layer {next:?} of image {:?}", image.id));
            let layer = layers.get_mut(&next).ok_or_else(missing)?;
            if !layer.row.parent.is_empty() {
                todo.push(layer.row.parent.to_string());
            }
            let own = match layer.size {
                Some(size) => size,
                None => self.diff_size(None, &next).await?,
            };
            layer.size = Some(own);
            size = add(size, own)?;
        }
        for key in &image.big_data_names {
            let recorded = image
                .big_data_sizes
                .get(key)
                .and_then(|size| u64::try_from(*size).ok());
            let more = match recorded {
                Some(size) => size,
                None => self.read_image_item(image, origin, key).await?.len() as u64,
            };
            size = add(size, more)?;
        }
        Ok(size)
    }

    /// The size in bytes of a container (an ID, name or ID prefix): the diff of its layer, its big data, and the files
    /// in its two directories. Reads the whole tree of the layer.
    ///
    /// Takes the container lock shared for a moment, and locks as [`Store::diff_size`].
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
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
    /// mapping does not contain. Empty for a layer without an ID mapping. The root of the file system is not counted.
    ///
    /// Takes the layer lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::LayerNotMounted`], [`ErrorKind::InvalidMappings`] if there is no container
    /// root, [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn layer_parent_owners(&self, id: &str) -> Result<ParentOwners> {
        let layer = self.layer(id).await?;
        let mappings = self.mappings_of_layer(layer.row()).await?;
        if mappings.uids.is_empty() && mappings.gids.is_empty() {
            return Ok(ParentOwners::default());
        }
        let Some(path) = layer.mount_point().map(Path::to_owned) else {
            return Err(ErrorKind::LayerNotMounted.err(format!("reading the parent owners of layer {id:?}")));
        };
        mappings
            .root()
            .context(|| format!("reading root ID values for layer {:?}", layer.id()))?;
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
            // The root of the file system is there in every container.
            for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
                // Of a link the owner of what it leads to, too.
                for meta in [above.symlink_metadata(), above.metadata()] {
                    let meta = meta.at("reading the owner of", above)?;
                    uids.insert(meta.uid());
                    gids.insert(meta.gid());
                }
            }
            uids.retain(|id| !is_mapped(&mappings.uids, *id));
            gids.retain(|id| !is_mapped(&mappings.gids, *id));
            Ok(ParentOwners {
                uids: uids.into_iter().collect(),
                gids: gids.into_iter().collect(),
            })
        })
        .await
    }

    /// As [`Store::layer_parent_owners`], for the layer of a container (an ID, name or ID prefix).
    ///
    /// Takes the container lock and the layer lock shared for a moment each.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`], [`ErrorKind::LayerUnknown`], [`ErrorKind::LayerNotMounted`],
    /// [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
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
