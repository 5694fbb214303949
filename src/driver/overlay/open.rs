//! Starting the overlay driver: checks of the system, and the choice between the kernel and a mount program.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use rustix::fs::{CWD, Mode};
use rustix::io::Errno;

use crate::driver::config::DriverConfig;
use crate::driver::filesystem_type::FilesystemType;
use crate::driver::home_state::HomeState;
use crate::driver::options::OverlayOptions;
use crate::driver::overlay::id_mapped::UserNamespaces;
use crate::driver::overlay::layout::{LINKS, MOUNT_PROGRAM_FLAG, NAME, TEMP_DIRS};
use crate::driver::overlay::link_files::{exists, read_flag};
use crate::driver::overlay::program;
use crate::driver::overlay::program_traces::has_mount_program_traces;
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores::Stores;
use crate::driver::project_quotas::ProjectQuotas;
use crate::driver::quota::Quota;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::mount::may_mount;
use crate::sys::{atomic, make_private_dir, privilege};
use crate::whiteout::Namespace;

/// Compat: what the Go library says where nothing mounts overlay.
const NO_MOUNTER: &str = "native overlay not supported and fuse-overlayfs not found: backing file system is unsupported for \
                          this graph driver";

impl Overlay {
    /// Starts the driver, creating its home. [`ErrorKind::NotSupported`] if overlay does not work here; then a home that
    /// did not exist is removed again.
    pub(crate) fn open(config: &DriverConfig) -> Result<Self> {
        let options = OverlayOptions::parse(&config.options)?;
        let (home, run_home) = (config.root.join(NAME), config.run_root.join(NAME));
        if !privilege::is_root() {
            let what = "overlay without being root, at least in a user namespace (podman unshare, unshare --map-auto -rm)";
            return Err(ErrorKind::NotSupported.err(what));
        }
        make_private_dir(&config.root)?;
        let filesystem = FilesystemType::of(&config.root)?;
        let rootless = privilege::is_rootless();
        // Checked before the probes: they would record that overlay does not work here.
        if rootless && !may_mount(&config.root) {
            let what =
                "overlay in a mount namespace that belongs to another user namespace (unshare --mount)";
            return Err(ErrorKind::NotSupported.err(what));
        }
        if options.use_composefs && rootless {
            return Err(ErrorKind::NotSupported.err("composefs is not supported in user namespaces"));
        }
        check_quota(filesystem, &options)?;
        let fresh = !exists(&home)?;
        make_home(&home)?;
        make_private_dir(&run_home)?;
        let image_store = config.image_store.as_ref().map(|root| root.join(NAME));
        if let Some(store) = &image_store {
            make_home(store)?;
        }
        let mut driver = Self {
            stores: Stores::new(
                home,
                image_store,
                options.image_stores.iter().map(|root| root.join(NAME)).collect(),
                options
                    .layer_stores
                    .iter()
                    .map(|store| store.path.clone())
                    .collect(),
            ),
            shared: HomeState::of(&config.root.join(NAME), &run_home),
            run_home,
            program: options.mount_program.clone(),
            options,
            filesystem_type: filesystem.name(),
            namespace: if rootless {
                Namespace::User
            } else {
                Namespace::Trusted
            },
            metacopy: false,
            quotas: None,
            is_private: AtomicBool::new(false),
            namespaces: UserNamespaces::default(),
        };
        let found = driver.find_quotas(filesystem);
        match found.and_then(|()| driver.choose_mounter(config, filesystem, fresh)) {
            Ok(()) => Ok(driver),
            Err(error) => {
                if fresh {
                    driver.remove_fresh_home();
                }
                Err(error)
            }
        }
    }

    /// Finds out whether containers' layers can have limits. If they have to, [`ErrorKind::NotSupported`] if not.
    fn find_quotas(&mut self, filesystem: FilesystemType) -> Result<()> {
        // A user namespace has no say in projects.
        if !has_quotas(filesystem) || privilege::is_rootless() {
            return self.check_no_defaults(None);
        }
        let home = &self.stores.home;
        match ProjectQuotas::open(home, home.join(TEMP_DIRS)) {
            Ok(quotas) => self.quotas = Some(quotas),
            Err(error) => {
                tracing::debug!(reason = %error.chain(), "no limits on containers' layers");
                self.check_no_defaults(Some(error))?;
            }
        }
        Ok(())
    }

    fn check_no_defaults(&self, reason: Option<Error>) -> Result<()> {
        if self.options.quota() == Quota::default() {
            return Ok(());
        }
        let what = "storage options overlay.size and overlay.inodes not supported";
        Err(reason.map_or_else(
            || ErrorKind::NotSupported.err(what),
            |reason| reason.context(what),
        ))
    }

    /// Chooses between the kernel and a mount program, and writes the choice into the home.
    fn choose_mounter(
        &mut self,
        config: &DriverConfig,
        filesystem: FilesystemType,
        fresh: bool,
    ) -> Result<()> {
        let flag = self.stores.home.join(MOUNT_PROGRAM_FLAG);
        let written = if fresh { None } else { read_flag(&flag)? };
        let known = match written.as_deref().map(str::trim) {
            Some("true") => Some(true),
            Some("false") => Some(false),
            _ => None,
        };
        if self.program.is_none() {
            let marked = match known {
                Some(known) => known,
                None if fresh => false,
                None => has_mount_program_traces(&self.stores.home)?,
            };
            let search = || {
                let path = config.search_path.clone().or_else(|| std::env::var_os("PATH"));
                crate::driver::program::find(program::DEFAULT, &path.unwrap_or_default())
            };
            if marked {
                // The kernel would show the whiteouts of this store as files.
                self.program = Some(search().ok_or_else(|| program::missing(&self.stores.home))?);
            } else {
                match self.check_kernel(filesystem) {
                    // Compat: the Go library, which may open the store next, does the same.
                    Err(error) if error.kind() == ErrorKind::NotSupported => match search() {
                        Some(program) => {
                            tracing::info!(
                                program = %program.display(), reason = %error.chain(),
                                "mounting through a program"
                            );
                            self.program = Some(program);
                        }
                        None => return Err(error.context(NO_MOUNTER)),
                    },
                    result => result?,
                }
            }
        }
        if self.program.is_some()
            && self.options.force_mask.is_none()
            && self.namespace == Namespace::User
            && filesystem.is_network()
        {
            tracing::warn!("owners cannot be set on a network file system: using overlay.force_mask=700");
            self.options.force_mask = Some(0o700);
        }
        let uses_program = self.program.is_some();
        if known != Some(uses_program) {
            // Compat: without the flag the Go library reads every directory of the store when it opens it.
            let mark: &[u8] = if uses_program { b"true" } else { b"false" };
            atomic::write_file(&flag, mark, 0o600, false)?;
        }
        Ok(())
    }

    /// Whether the kernel's overlay works here; [`ErrorKind::NotSupported`] if not.
    fn check_kernel(&mut self, filesystem: FilesystemType) -> Result<()> {
        if filesystem.refuses_overlay() || (self.namespace == Namespace::User && filesystem.is_network()) {
            return Err(ErrorKind::NotSupported.err(format!(
                "overlay over {} without a mount program",
                filesystem.name()
            )));
        }
        self.probe().overlay()?;
        self.metacopy = self.probe().metacopy()?;
        Ok(())
    }

    /// Removes the directories that [`Overlay::open`] has created: an existing home makes the driver selection choose
    /// overlay.
    fn remove_fresh_home(&self) {
        for dir in [LINKS, TEMP_DIRS, ""] {
            if let Err(error) = rustix::fs::rmdir(self.stores.home.join(dir))
                && error != Errno::NOENT
            {
                tracing::debug!(%error, dir, "part of a new overlay home stays");
            }
        }
    }
}

/// Refuses default quotas on file systems that have none.
fn check_quota(filesystem: FilesystemType, options: &OverlayOptions) -> Result<()> {
    if options.quota() == Quota::default() || has_quotas(filesystem) {
        return Ok(());
    }
    Err(ErrorKind::InvalidInput.err(format!(
        "storage option overlay.size and overlay.inodes only supported for backingFS XFS. Found {}",
        filesystem.name()
    )))
}

/// Whether a file system may have project quotas. The Go library has them on XFS only.
fn has_quotas(filesystem: FilesystemType) -> bool {
    matches!(filesystem.name(), "xfs" | "extfs")
}

/// Makes an overlay directory and its directory of link IDs, 0755 whatever the umask.
fn make_home(home: &Path) -> Result<()> {
    if let Some(root) = home.parent() {
        make_private_dir(root)?;
    }
    for dir in [home, &home.join(LINKS)] {
        let mode = Mode::from_raw_mode(0o755);
        match rustix::fs::mkdir(dir, mode) {
            Ok(()) => rustix::fs::chmodat(CWD, dir, mode, rustix::fs::AtFlags::empty())
                .at("changing the mode of", dir)?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error).at("creating", dir),
        }
    }
    Ok(())
}
