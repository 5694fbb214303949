//! What tells an item that was checked from another one with the same ID, which has been made since.
//!
//! An image that is pulled again has the ID and the time of creation of the one before, but its files are others.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::error::Result;
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::store::dirs::{Dirs, item_dir};

/// See the module's head. Names and metadata may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// What does not change in a record.
    record: String,
    /// Device, inode and time of change of a file or directory of the item.
    files: Option<(u64, u64, i64, i64)>,
}

fn stamp(path: Result<std::path::PathBuf>) -> Option<(u64, u64, i64, i64)> {
    let status = |path: &Path| {
        let metadata = path.symlink_metadata().ok()?;
        let times = (metadata.mtime(), metadata.mtime_nsec());
        Some((metadata.dev(), metadata.ino(), times.0, times.1))
    };
    status(&path.ok()?)
}

impl Identity {
    /// By the content of a layer and its tar-split file. Blocking.
    pub(crate) fn of_layer(row: &LayerRow, dirs: &Dirs) -> Self {
        let digests = [&row.diff_digest, &row.toc_digest, &row.compressed_digest];
        Self {
            record: format!("{} {} {digests:?} {}", row.created, row.parent, row.diff_size),
            files: stamp(dirs.tar_split(&row.id)),
        }
    }

    /// By the layers and the data of an image. Blocking.
    pub(crate) fn of_image(row: &ImageRow, dirs: &Dirs) -> Self {
        let stores = [dirs.images(), dirs.graph_images()];
        let stamps = stores.map(|dir| stamp(item_dir(dir, &row.id)));
        Self {
            record: format!("{} {} {:?}", row.created, row.layer, row.big_data_digests),
            files: stamps.into_iter().flatten().next(),
        }
    }

    /// By the layer and the data of a container. Blocking.
    pub(crate) fn of_container(row: &ContainerRow, dirs: &Dirs) -> Self {
        Self {
            record: format!(
                "{} {} {} {:?}",
                row.created, row.layer, row.image, row.big_data_digests
            ),
            files: stamp(item_dir(dirs.containers(), &row.id)),
        }
    }
}
