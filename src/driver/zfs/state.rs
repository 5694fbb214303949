//! The driver's state: starting it, and making and removing layers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Gid, Mode, Uid};

use crate::driver::config::DriverConfig;
use crate::driver::contract::{CreateOptions, MountOptions};
use crate::driver::copy;
use crate::driver::home_state::HomeState;
use crate::driver::options::ZfsOptions;
use crate::driver::program;
use crate::driver::quota::Quota;
use crate::driver::zfs::command::Program;
use crate::driver::zfs::datasets::Datasets;
use crate::driver::zfs::mounting::{self, Access, Mounter, is_mounted, make_target, sort_options, target_in};
use crate::driver::zfs::names::{Root, Temporary, mark_of};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::temp_dir::TempDir;
use crate::sys::{make_private_dir, privilege};

/// The driver's name, and that of its directory.
pub(super) const NAME: &str = "zfs";

/// Where layers are mounted, in the home.
pub(super) const TARGETS: &str = "graph";
/// Locked temporary directories, in the home and below the run root.
pub(super) const TEMP_DIRS: &str = "tempdirs";

/// How often a parent is cloned anew that gets another tree meanwhile.
const MAX_RACES: u32 = 10;

/// The driver.
#[derive(Clone, Debug)]
pub(crate) struct Zfs {
    pub(super) home: PathBuf,
    /// `<run root>/zfs`.
    run_home: PathBuf,
    pub(super) datasets: Datasets,
    pub(super) mounter: Mounter,
    options: ZfsOptions,
    pub(super) shared: Arc<HomeState>,
}

impl Zfs {
    /// Starts the driver, creating its home. [`ErrorKind::NotSupported`] where there is no zfs, or the graph root is not in
    /// it; nothing is created then.
    pub(crate) fn open(config: &DriverConfig) -> Result<Self> {
        const UNMET: &str = "prerequisites for driver not satisfied (wrong filesystem?)";
        let options = ZfsOptions::parse(&config.options)?;
        let path = config.search_path.clone().or_else(|| std::env::var_os("PATH"));
        let Some(program) = program::find(NAME, &path.unwrap_or_default()) else {
            let what = "the 'zfs' command is not available";
            return Err(ErrorKind::NotSupported.err(what).with_source(UNMET));
        };
        if privilege::is_rootless() {
            let what = "the zfs driver without root in the initial user namespace";
            return Err(ErrorKind::NotSupported.err(what).with_source(UNMET));
        }
        let root = match options.dataset.as_str() {
            "" => Root::of(&config.root)?,
            name => Root::new(name)?,
        };
        let home = config.root.join(NAME);
        let datasets = Datasets {
            program: Program::new(program),
            root,
            mark: mark_of(&home),
        };
        datasets.check_root()?;
        make_private_dir(&home)?;
        let run_home = config.run_root.join(NAME);
        Ok(Self {
            shared: HomeState::of(&home, &run_home),
            home,
            run_home,
            datasets,
            mounter: Mounter::find()?,
            options,
        })
    }

    pub(super) fn temp_dirs(&self) -> PathBuf {
        self.home.join(TEMP_DIRS)
    }

    /// Temporary directories with nothing but mounts, which can be made also if the home's file system is full.
    pub(super) fn mount_dirs(&self) -> PathBuf {
        self.run_home.join(TEMP_DIRS)
    }

    /// A new temporary directory. What it gives its number to is made after it.
    pub(super) fn temp_dir(&self) -> Result<TempDir> {
        TempDir::create(&self.temp_dirs())
    }

    pub(super) fn target(&self, id: &str) -> PathBuf {
        target_in(&self.home, id)
    }

    /// The dataset of a layer that is there.
    pub(super) fn find(&self, id: &str) -> Result<String> {
        let name = self.datasets.root.layer(id)?;
        match self.datasets.look_up(&name)? {
            Some(found) if found.removed.is_none() => Ok(name),
            _ => Err(ErrorKind::LayerUnknown.err(format!("locating the dataset of layer {id:?}"))),
        }
    }

    /// Opens the root directory of a layer.
    pub(super) fn open_layer(&self, id: &str, access: Access) -> Result<OwnedFd> {
        let name = self.find(id)?;
        if self.mounter == Mounter::Kernel {
            return self.open_dataset(&name, &self.home, access);
        }
        let target = self.target(id);
        let mut mounts = self.shared.mounts(id);
        let is_new = mounts.count(&target, true)?.unwrap_or(0) == 0;
        let opened = self.open_dataset(&name, &target, access)?;
        if is_new {
            mounts.set_unused(target);
        }
        Ok(opened)
    }

    fn open_dataset(&self, name: &str, target: &Path, access: Access) -> Result<OwnedFd> {
        let mount_dirs = self.mount_dirs();
        if self.mounter == Mounter::Kernel {
            make_private_dir(&self.run_home)?;
        }
        let opened = self
            .mounter
            .open(&self.datasets, name, target, &mount_dirs, access);
        opened.context(|| format!("mounting {name} for reading"))
    }

    /// The properties of the dataset of a new layer that is to be mounted at `target`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an unknown option or a limit that cannot be.
    fn properties(&self, target: &Path, options: &CreateOptions) -> Result<Vec<String>> {
        Ok([self.mounter.properties(target)?, self.limits(options)?].concat())
    }

    /// The property by which the space of a new layer is limited.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an unknown option or a limit that cannot be.
    pub(super) fn limits(&self, options: &CreateOptions) -> Result<Vec<String>> {
        let asked = Quota::parse(&options.storage_opt)?.unwrap_or_default();
        if asked.inodes.is_some() {
            return Err(ErrorKind::InvalidInput.err("unknown option inodes with the zfs driver"));
        }
        let usual = options.read_write.then_some(self.options.size);
        // Compat: a limit of 0 is none.
        let limit = asked.size.or(usual).filter(|bytes| *bytes > 0);
        Ok(limit.map(|bytes| format!("quota={bytes}")).into_iter().collect())
    }

    /// Makes a layer at its place. What is there belongs to a layer that was never recorded.
    pub(super) fn create_layer(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        let (name, target) = (self.datasets.root.layer(id)?, self.target(id));
        let properties = self.properties(&target, options)?;
        let mut temp = self.temp_dir()?;
        self.make_dataset(&name, parent, &properties, &mut temp)?;
        if parent.is_some() && options.new_owners().is_none() {
            // zfs-fuse mounts a clone whatever its properties say.
            return self.unmount_whole(id);
        }
        let filled = self.open_layer(id, Access::Write).and_then(|dir| {
            let filled = self.fill(&dir, parent, options);
            drop(dir);
            filled
        });
        let ended = filled.and_then(|()| self.unmount_whole(id));
        if ended.is_err()
            && let Err(error) = self.datasets.destroy(&name)
        {
            tracing::warn!(layer = id, error = %error.chain(), "cannot remove what a failed creation has left");
        }
        ended
    }

    /// Makes a dataset that is a clone of that of `parent`, or empty.
    pub(super) fn make_dataset(
        &self,
        name: &str,
        parent: Option<&str>,
        properties: &[String],
        temp: &mut TempDir,
    ) -> Result<()> {
        let number = temp.number().to_owned();
        let find = || parent.map(|parent| self.find_unlocked(parent)).transpose();
        let make = || self.datasets.make(name, find()?.as_deref(), &number, properties);
        let mut made = make()?;
        for _ in 0..MAX_RACES {
            // Its parent may have got another tree meanwhile.
            if !made.as_ref().is_err_and(|refusal| refusal.is_missing()) {
                break;
            }
            made = make()?;
        }
        if made.as_ref().is_err_and(|refusal| refusal.is_there()) {
            self.clear(name, temp)?;
            made = make()?;
        }
        made.map_err(|refusal| {
            refusal
                .into_error()
                .context(format!("failed to create zfs dataset {name}"))
        })
    }

    /// Gives the root directory of a new layer what it has to have, and all files their owners.
    pub(super) fn fill(&self, dir: &OwnedFd, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        const DOING: &str = "setting permissions on zfs mount";
        if let Some(parent) = parent {
            return match options.new_owners() {
                Some(owners) => copy::own_tree(dir.as_fd(), owners, options.durable)
                    .context(|| format!("changing the owners of a clone of layer {parent:?}")),
                None => Ok(()),
            };
        }
        rustix::fs::fchmod(dir, Mode::from_raw_mode(0o555)).during(DOING)?;
        let root = options.mappings.root()?;
        if root == privilege::effective_owner() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(root.uid), Gid::from_raw(root.gid));
        rustix::fs::fchown(dir, Some(uid), Some(gid)).during("modifying zfs mountpoint ownership")
    }

    /// Destroys a dataset that is in the way; one that is in use is renamed, and destroyed later.
    pub(super) fn clear(&self, name: &str, temp: &mut TempDir) -> Result<()> {
        if let Some(id) = self.datasets.root.id_of(name) {
            self.unmount_whole(id)?;
            if self.is_in_use(id)? {
                return Err(in_use("destroying", name));
            }
        }
        let old = self.datasets.root.temporary(temp.number(), Temporary::Old);
        // Who finds the dataset with its new name has to know whose it is.
        self.datasets.set(name, &self.mark())?;
        match self.datasets.rename(name, &old)? {
            Ok(()) => {
                self.destroy_with(temp, old);
                Ok(())
            }
            Err(refusal) if refusal.is_missing() => Ok(()),
            Err(refusal) => Err(refusal
                .into_error()
                .context(format!("moving {name}, which is in the way"))),
        }
    }

    pub(super) fn mark(&self) -> String {
        format!("{}={}", super::datasets::HOME, self.datasets.mark)
    }

    /// Has a dataset destroyed when the temporary directory is removed.
    pub(super) fn destroy_with(&self, temp: &mut TempDir, name: String) {
        let datasets = self.datasets.clone();
        temp.set_companion(move || datasets.destroy(&name));
    }

    /// Removes a layer: renames its dataset, or marks it where it is in use and cannot be renamed. It is destroyed with the
    /// temporary directory.
    pub(super) fn remove_later(&self, id: &str) -> Result<Option<TempDir>> {
        let name = self.datasets.root.layer(id)?;
        match self.datasets.look_up(&name)? {
            Some(found) if found.removed.is_none() => {}
            _ => return Ok(None),
        }
        self.unmount_whole(id)?;
        let mut temp = self.temp_dir()?;
        let old = self.datasets.root.temporary(temp.number(), Temporary::Old);
        // Who finds the dataset with its new name has to know whose it is.
        self.datasets.set(&name, &self.mark())?;
        if self.is_in_use(id)? {
            self.destroy_unused(id, name, &mut temp)?;
            return Ok(Some(temp));
        }
        if let Err(error) = self.release_clones(&name, None) {
            // It goes when the last of them does.
            tracing::debug!(layer = id, error = %error.chain(), "a layer with clones stays until they are removed");
            self.destroy_unused(id, name, &mut temp)?;
            return Ok(Some(temp));
        }
        match self.datasets.rename(&name, &old)? {
            Ok(()) => self.destroy_with(&mut temp, old),
            Err(refusal) if refusal.is_missing() => return Ok(None),
            Err(refusal) if refusal.is_busy() => self.destroy_unused(id, name, &mut temp)?,
            Err(refusal) => return Err(refusal.into_error()),
        }
        Ok(Some(temp))
    }

    /// Makes the clones of a dataset independent of it before it is renamed, where that would unmount them.
    pub(super) fn release_clones(&self, name: &str, except: Option<&str>) -> Result<()> {
        match self.mounter {
            Mounter::Kernel => Ok(()),
            Mounter::Daemon => self.datasets.release_clones(name, except),
        }
    }

    /// Whether a mount by a daemon could not be ended. The program `zfs` is not asked to try that: it would not care what the
    /// daemon has read.
    pub(super) fn is_in_use(&self, id: &str) -> Result<bool> {
        Ok(self.mounter == Mounter::Daemon && is_mounted(&self.target(id))?)
    }

    /// Marks the dataset of a layer as removed, and has it destroyed with the temporary directory if nobody uses it then.
    fn destroy_unused(&self, id: &str, name: String, temp: &mut TempDir) -> Result<()> {
        let number = temp.number().to_owned();
        self.datasets.mark_removed(&name, &number)?;
        let (datasets, mounter, target) = (self.datasets.clone(), self.mounter, self.target(id));
        temp.set_companion(move || {
            let found = datasets.look_up(&name)?;
            // Another layer of this ID may be there by now.
            if found.is_none_or(|found| found.removed != Some(number)) {
                return Ok(());
            }
            match mounter.unmount(&target)? {
                true => datasets.destroy(&name),
                false => Err(in_use("destroying", &name)),
            }
        });
        Ok(())
    }

    /// Destroys the dataset of a layer at once.
    pub(super) fn remove_now(&self, id: &str) -> Result<()> {
        let name = self.datasets.root.layer(id)?;
        self.unmount_whole(id)?;
        match self.is_in_use(id)? {
            true => Err(in_use("destroying", &name)),
            false => self.datasets.destroy(&name),
        }
    }

    /// Mounts a layer, or counts one more use.
    pub(super) fn mount_layer(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        self.datasets.root.check_id(id)?;
        let target = self.target(id);
        let mut mounts = self.shared.mounts(id);
        let count = mounts.count(&target, true)?.unwrap_or(0);
        if count == 0 {
            let name = self.find(id)?;
            let sorted = sort_options(options, &self.options.mount_options)?;
            make_target(&target)?;
            let mounted = self
                .mounter
                .mount(&self.datasets, &name, &target, &sorted, &options.mount_label);
            if let Err(error) = mounted {
                self.end(id, &mut mounts);
                return Err(error);
            }
        }
        mounts.set(target.clone(), count + 1);
        Ok(target)
    }

    /// Ends one use; the end of the last use unmounts.
    pub(super) fn unmount_layer(&self, id: &str) -> Result<()> {
        self.datasets.root.check_id(id)?;
        let target = self.target(id);
        let mut mounts = self.shared.mounts(id);
        match mounts.count(&target, true)?.unwrap_or(0) {
            count @ 2.. => mounts.set(target, count - 1),
            _ => self.unmount_locked(&target, &mut mounts)?,
        }
        Ok(())
    }

    /// Ends every use, and unmounts.
    pub(super) fn unmount_whole(&self, id: &str) -> Result<()> {
        self.datasets.root.check_id(id)?;
        let mut mounts = self.shared.mounts(id);
        self.unmount_locked(&self.target(id), &mut mounts)
    }

    fn unmount_locked(
        &self,
        target: &Path,
        mounts: &mut crate::driver::home_state::Mounts<'_>,
    ) -> Result<()> {
        mounts.set(target.to_owned(), 0);
        // Mounts of several processes may lie on top of each other.
        while is_mounted(target)? {
            if !self.mounter.unmount(target)? {
                mounts.set_unused(target.to_owned());
                return Ok(());
            }
        }
        Mounter::remove_target(target);
        Ok(())
    }

    fn end(&self, id: &str, mounts: &mut crate::driver::home_state::Mounts<'_>) {
        if let Err(error) = self.unmount_locked(&self.target(id), mounts) {
            tracing::warn!(layer = id, error = %error.chain(), "cannot undo a mount that has failed");
        }
    }

    /// Unmounts a layer that has been looked at, unless it is in use.
    pub(super) fn leave(&self, id: &str) -> Result<()> {
        let target = self.target(id);
        let mut mounts = self.shared.mounts(id);
        match self.mounter == Mounter::Daemon && self.shared.unused().contains(&target) {
            true => self.unmount_locked(&target, &mut mounts),
            false => Ok(()),
        }
    }

    /// Unmounts everything that is mounted by this process and not in use.
    pub(super) fn leave_all(&self) -> Result<()> {
        for target in self.shared.unused() {
            if target.starts_with(&self.home)
                && let Some(id) = target.file_name().and_then(|id| id.to_str())
            {
                self.leave(id)?;
            }
        }
        Ok(())
    }

    /// The properties by which a layer that was made elsewhere is mounted at its target.
    pub(super) fn move_target(&self, name: &str, id: &str) -> Result<()> {
        match self.mounter {
            Mounter::Kernel => Ok(()),
            Mounter::Daemon => self.datasets.set(name, &mounting::mountpoint(&self.target(id))?),
        }
    }
}

/// The error for a dataset that has to stay as it is.
pub(super) fn in_use(doing: &str, dataset: &str) -> Error {
    let busy = std::io::Error::from(std::io::ErrorKind::ResourceBusy);
    Error::io(format!("{doing} {dataset}, in which files are open"), busy)
}
