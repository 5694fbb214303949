//! The driver's state: starting it, and making layers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crate::driver::btrfs::home::{INTERNAL, LAYERS, clear_place, stage_deletion, subvolume};
use crate::driver::btrfs::limits::Limits;
use crate::driver::config::DriverConfig;
use crate::driver::contract::CreateOptions;
use crate::driver::filesystem_type::FilesystemType;
use crate::driver::options::BtrfsOptions;
use crate::driver::staged_tree::HomeHost;
use crate::driver::tree_home::TreeHome;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;
use crate::sys::presence;

/// The driver's name, and that of its directory.
pub(super) const NAME: &str = "btrfs";

/// The driver.
#[derive(Debug)]
pub(crate) struct Btrfs {
    pub(super) home: TreeHome,
    pub(super) limits: Limits,
    pub(super) image_stores: Vec<PathBuf>,
}

impl Btrfs {
    /// Starts the driver, creating its home. [`ErrorKind::NotSupported`] on another file system; nothing is created then.
    pub(crate) fn open(config: &DriverConfig) -> Result<Self> {
        let options = BtrfsOptions::parse(&config.options)?;
        let path = config.root.join(NAME);
        // The graph root may have to be made.
        let above = presence::first_above(&config.root)?;
        if FilesystemType::of(above)?.name() != NAME {
            let what = format!("{path:?} is not on a btrfs filesystem");
            let source = "prerequisites for driver not satisfied (wrong filesystem?)";
            return Err(ErrorKind::NotSupported.err(what).with_source(source));
        }
        let additional = options.image_stores.iter().map(|root| root.join(NAME)).collect();
        let home = TreeHome::make(path, LAYERS, INTERNAL, additional)?;
        let limits = Limits::new(&home.path, &options)?;
        Ok(Self {
            home,
            limits,
            image_stores: options.image_stores,
        })
    }

    /// Makes a layer at its place.
    pub(super) fn create_at(
        &self,
        place: &Path,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
        limit: Option<u64>,
    ) -> Result<()> {
        let mut temp = None;
        if options.new_owners().is_none() {
            clear_place(&self.home, place, &mut temp)?;
            let dir = subvolume(&self.home, place, parent, options)?;
            return self.limits.set(id, dir.as_fd(), limit);
        }
        // Nobody sees a layer of which some files have their new owners.
        let mut building = TempDir::create(&self.home.temp_dirs())?;
        let path = building.addition();
        let dir = subvolume(&self.home, &path, parent, options)?;
        clear_place(&self.home, place, &mut temp)?;
        self.limits.set(id, dir.as_fd(), limit)?;
        at::rename(&path, place).at("moving a layer's subvolume to", place)
    }
}

impl HomeHost for Btrfs {
    fn home(&self) -> &TreeHome {
        &self.home
    }

    fn before_place(&self, id: &str, _path: &Path, dir: OwnedFd, options: &CreateOptions) -> Result<()> {
        let limit = self.limits.wanted(&options.storage_opt, options.read_write)?;
        self.limits.set(id, dir.as_fd(), limit)
    }

    fn not_placed(&self, id: &str) -> Result<()> {
        self.limits.forget(id)
    }

    fn stage_deletion(&self, temp: &mut TempDir, path: &Path) -> Result<bool> {
        stage_deletion(temp, path)
    }
}
