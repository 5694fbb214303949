//! Private mounts: read-only mounts of a layer that have no path, for reading the layer's files and nothing else.
//!
//! The kernel makes such a mount without attaching it. A mount program needs a mount point, and so does a kernel before
//! Linux 6.8: the mount is then made in a locked temporary directory below the run root, its root directory opened, and
//! the mount detached at once. From then on it lives as long as a file in it is open. The temporary directory is a mount
//! of its own that propagates nothing, so that the mount never shows in another mount namespace. If the process is killed
//! in between, [`Driver::prune`](crate::driver::contract::Driver::prune) of the next one detaches the mount and removes
//! the directory.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::driver::contract::MountOptions;
use crate::driver::mount_flags::{self, Sorted};
use crate::driver::overlay::layout::TEMP_DIRS;
use crate::driver::overlay::lower_stack::{AttachDirs, Trees};
use crate::driver::overlay::mount::{Contents, OverlayMount};
use crate::driver::overlay::mounting::OwnTree;
use crate::driver::overlay::program::{self, Extras};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores::{Located, Lower};
use crate::driver::temporary_mount;
use crate::error::{IoContext as _, Result, ResultExt as _};
use crate::sys::at;
use crate::sys::mount::{clone_mount, is_live_mount};

impl Overlay {
    /// Opens the root directory of a private mount of a layer.
    pub(super) fn open_private(&self, id: &str) -> Result<OwnedFd> {
        let place = self.stores.require(id)?;
        self.mount_detached(id, &place)
            .context(|| format!("mounting layer {id:?} for reading"))
    }

    fn mount_detached(&self, id: &str, place: &Located) -> Result<OwnedFd> {
        let read_only = MountOptions {
            options: vec!["ro".into()],
            ..MountOptions::default()
        };
        let options = self.sort_options(&read_only)?;
        let trees = self.trees_of(id, place, OwnTree::Present)?;
        if trees.has_image() {
            return self.mount_with_images(&trees, options);
        }
        let plan = OverlayMount {
            lowers: std::iter::once(trees.own)
                .chain(trees.lowers.iter().map(Lower::full))
                .collect(),
            contents: Contents::default(),
            upper: None,
            options,
            label: "",
        };
        let merged = self.merged(id, place);
        if let Some(program) = &self.program {
            write_back(&merged);
            return temporary_mount::open(&self.private_mounts(), |target| {
                let extras = Extras {
                    mappings: None,
                    masked: self.options.force_mask.is_some(),
                };
                program::mount(program, &self.stores.home, &plan, target, &extras)
            });
        }
        let made = match plan.detached() {
            Ok(Some(mount)) => open_root(&mount).at("opening a private mount of", &place.dir),
            Ok(None) => temporary_mount::open(&self.private_mounts(), |target| plan.mount_at(target)),
            Err(error) => Err(error),
        };
        match made {
            // With the option `index=on` a directory that is the upper one of another mount cannot be a lower one.
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::ResourceBusy) => {
                match clone_mount(&merged) {
                    Ok(mount) => open_root(&mount).at("opening a copy of the mount at", &merged),
                    Err(_not_mounted) => Err(error),
                }
            }
            made => made,
        }
    }

    /// Opens the tree of one layer that is in an image, with its contents and without its deletions. `dir` is the
    /// layer's directory.
    pub(super) fn open_contents(&self, dir: &Path, contents: PathBuf) -> Result<OwnedFd> {
        let trees = Trees {
            own: contents,
            own_image: Some(dir.to_owned()),
            changes: false,
            lowers: Vec::new(),
        };
        let mounted = mount_flags::sort(["ro"]).and_then(|options| self.mount_with_images(&trees, options));
        mounted.context(|| format!("mounting the image in {}", dir.display()))
    }

    /// A private mount of trees of which some are in images.
    fn mount_with_images(&self, trees: &Trees, mut options: Sorted) -> Result<OwnedFd> {
        temporary_mount::open(&self.private_mounts(), |target| {
            let dirs = AttachDirs::in_dir(target.parent().unwrap_or(target));
            // Kept until the mount is made.
            let (lowers, contents, _attached) = self.stack(trees, true, dirs, None, &mut options)?;
            let plan = OverlayMount {
                lowers,
                contents,
                upper: None,
                options,
                label: "",
            };
            plan.mount_at(target)
        })
    }

    /// Where the mount points of private mounts are.
    pub(super) fn private_mounts(&self) -> PathBuf {
        self.run_home.join(TEMP_DIRS)
    }
}

/// Opens the root directory of a mount for reading.
fn open_root(mount: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, c".", flags, Mode::empty())
}

/// Has the kernel hand changed pages of a mount that a program serves to the program: it is them that the private mount
/// reads from the program's directories. A layer that is not mounted has none.
fn write_back(merged: &Path) {
    match is_live_mount(merged) {
        Ok(true) => {}
        Ok(false) => return,
        Err(error) => {
            tracing::debug!(path = %merged.display(), %error, "no mount whose changes could be written back");
            return;
        }
    }
    let written = at::open_dir(merged).and_then(|root| match rustix::fs::syncfs(&root) {
        Err(Errno::NOSYS) => Ok(()),
        result => result,
    });
    if let Err(error) = written {
        tracing::debug!(path = %merged.display(), %error, "cannot write back the changes of a mount");
    }
}
