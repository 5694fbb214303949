//! ID-mapped views of lower layers: the same files with other owners, for the length of one mount call.
//!
//! One view is made of each overlay directory that lowers are in, and attached at `mapped/<n>`; a lower is then the
//! same path below it, links included. The upper directory is not mapped: new files are written with the host's IDs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use crate::driver::MountOptions;
use crate::driver::overlay::Overlay;
use crate::driver::overlay::program;
use crate::driver::overlay::stores::Lower;
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::sys::mount::{attach, clone_id_mapped, unmount_lazily};
use crate::sys::userns;

/// How many user namespaces are kept open for the next mount with the same mappings.
const MAX_KEPT: usize = 16;

/// User namespaces by their mappings.
pub(super) type Namespaces = std::sync::Mutex<Vec<(IdMappings, Arc<OwnedFd>)>>;

impl Overlay {
    /// Whether a mount can show other owners: by views of the lowers, or because a mount program sees to it.
    pub(super) fn can_shift(&self, mappings: &IdMappings) -> bool {
        // Compat: the Go library looks for exactly this value.
        if std::env::var_os("_CONTAINERS_OVERLAY_DISABLE_IDMAP").is_some_and(|value| value == "yes") {
            return false;
        }
        match self.program {
            Some(_) => program::can_map(mappings),
            None => self.probe().id_mapped_lowers(),
        }
    }

    /// A user namespace with the mappings of a mount.
    pub(super) fn user_namespace(&self, options: &MountOptions) -> Result<Arc<OwnedFd>> {
        let mut kept = self.namespaces.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, namespace)) = kept.iter().find(|(mappings, _)| *mappings == options.mappings) {
            return Ok(Arc::clone(namespace));
        }
        let namespace =
            Arc::new(userns::create(&options.mappings).during("making a user namespace with ID mappings")?);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push((options.mappings.clone(), Arc::clone(&namespace)));
        Ok(namespace)
    }
}

/// Views that are mounted; unmounted when dropped.
#[derive(Debug)]
pub(super) struct MappedLowers {
    dir: PathBuf,
    /// The lowers, mapped.
    pub(super) paths: Vec<PathBuf>,
}

impl MappedLowers {
    /// Makes views of `lowers` at numbered directories in `dir`.
    pub(super) fn make(dir: &Path, lowers: &[Lower], namespace: &OwnedFd) -> Result<Self> {
        let mut made = Self {
            dir: dir.to_owned(),
            paths: Vec::with_capacity(lowers.len()),
        };
        let mut homes: Vec<&Path> = Vec::new();
        for lower in lowers {
            let known = homes.iter().position(|home| *home == lower.home);
            let number = known.unwrap_or(homes.len());
            let view = dir.join(number.to_string());
            if known.is_none() {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&view)
                    .at("creating", &view)?;
                let tree = clone_id_mapped(&lower.home, namespace.as_fd())
                    .at("mapping owners below", &lower.home)?;
                attach(tree.as_fd(), &view).at("attaching a mount with mapped owners at", &view)?;
                homes.push(&lower.home);
            }
            made.paths.push(view.join(&lower.path));
        }
        Ok(made)
    }

    /// Unmounts and removes views that a killed process left.
    pub(super) fn sweep(dir: &Path) {
        let Ok(entries) = std::fs::read_dir(dir) else {
            return;
        };
        for entry in entries.flatten() {
            let view = entry.path();
            let gone = unmount_lazily(&view).and_then(|()| Ok(rustix::fs::rmdir(&view)?));
            if let Err(error) = gone {
                tracing::warn!(path = %view.display(), %error, "cannot remove a view with mapped owners");
            }
        }
        if let Err(error) = rustix::fs::rmdir(dir) {
            tracing::debug!(path = %dir.display(), %error, "directory of views stays");
        }
    }
}

impl Drop for MappedLowers {
    fn drop(&mut self) {
        Self::sweep(&self.dir);
    }
}
