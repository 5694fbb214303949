//! Where everything of a store lies.

use std::path::{Path, PathBuf};

use crate::driver::Driver;
use crate::error::{ErrorKind, Result};
use crate::record::{TAR_SPLIT, TMP};

/// Where a layer's record lies, as an index into the layer records' locations.
pub(crate) mod layer_location {
    /// Survives a reboot, in the graph root.
    pub(crate) const STABLE: usize = 0;
    /// May be lost.
    pub(crate) const VOLATILE: usize = 1;
    /// In the separate image store.
    pub(crate) const IMAGE_STORE: usize = 2;
}

/// Where a container's record lies, as an index into the container records' locations.
pub(crate) mod container_location {
    /// Survives a reboot.
    pub(crate) const STABLE: usize = 0;
    /// May be lost.
    pub(crate) const VOLATILE: usize = 1;
}

/// The file of records of containers that may be lost.
pub(crate) const VOLATILE_CONTAINERS: &str = "volatile-containers.json";

/// The file of records of layers that may be lost.
pub(crate) const VOLATILE_LAYERS: &str = "volatile-layers.json";

/// The directories of one store.
#[derive(Clone, Debug)]
pub(crate) struct Dirs {
    pub(crate) driver_name: &'static str,
    pub(crate) graph_root: PathBuf,
    pub(crate) run_root: PathBuf,
    pub(crate) image_store: Option<PathBuf>,
}

impl Dirs {
    pub(crate) fn sub(&self, root: &Path, what: &str) -> PathBuf {
        root.join(format!("{}-{what}", self.driver_name))
    }

    pub(crate) fn layers(&self) -> PathBuf {
        self.sub(&self.graph_root, "layers")
    }

    pub(crate) fn run_layers(&self) -> PathBuf {
        self.sub(&self.run_root, "layers")
    }

    /// Runtime files of layers of additional stores.
    pub(crate) fn run_additional_layers(&self) -> PathBuf {
        self.run_layers().join("additional")
    }

    /// Where image records are written.
    pub(crate) fn images(&self) -> PathBuf {
        self.sub(self.image_store.as_ref().unwrap_or(&self.graph_root), "images")
    }

    /// `userdata` of images lies here also when image records lie elsewhere.
    pub(crate) fn graph_images(&self) -> PathBuf {
        self.sub(&self.graph_root, "images")
    }

    pub(crate) fn run_images(&self) -> PathBuf {
        self.sub(&self.run_root, "images")
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.sub(&self.graph_root, "containers")
    }

    pub(crate) fn run_containers(&self) -> PathBuf {
        self.sub(&self.run_root, "containers")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.sub(&self.run_root, "locks")
    }

    pub(crate) fn tar_split(&self, id: &str) -> Result<PathBuf> {
        crate::driver::check_id(id)?;
        Ok(self.layers().join(format!("{id}{TAR_SPLIT}")))
    }

    pub(crate) fn layer_data(&self, id: &str) -> Result<PathBuf> {
        item_dir(self.layers(), id)
    }

    pub(crate) fn layers_tmp(&self) -> PathBuf {
        self.layers().join(TMP)
    }
}

/// Refuses layer IDs that are no single file name, and names that the store or its driver needs itself.
///
/// # Errors
/// [`ErrorKind::UnsafePath`].
pub(crate) fn check_layer_id(driver: &dyn Driver, id: &str) -> Result<()> {
    if id == TMP {
        return Err(ErrorKind::UnsafePath.err(format!("ID {id:?}, a directory of the store")));
    }
    driver.check_id(id)
}

/// The directory of one item of a store. An ID that is no single file name (records may be damaged, or come from
/// elsewhere) would lead out of it.
pub(crate) fn item_dir(dir: PathBuf, id: &str) -> Result<PathBuf> {
    crate::driver::check_id(id)?;
    Ok(dir.join(id))
}
