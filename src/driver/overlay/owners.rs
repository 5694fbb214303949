//! New owners for the files that a layer shows from below.
//!
//! They are copied with their new owners into `diff1` of the layer, an older generation: it hides what the layers below
//! have, and is no part of the layer's own changes. Nothing is mounted where others see it, and the directory of the layer
//! is not complete before; a process that is killed meanwhile leaves what is removed as a whole.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, Uid};

use crate::driver::contract::{CreateOptions, Driver as _};
use crate::driver::copy::{self, CopyOptions, Shown};
use crate::driver::new_owners::NewOwners;
use crate::driver::overlay::build::make_dir;
use crate::driver::overlay::state::Overlay;
use crate::error::{IoContext as _, Result, ResultExt as _};
use crate::idmap::Owner;
use crate::sys::{privilege, tree};

impl Overlay {
    /// Gives what the layer in `dir` shows of `parent` new owners. The layer has no older generation yet; `diff` is its own
    /// tree. Returns the tree with the new owners.
    pub(super) fn give_owners(
        &self,
        dir: &Path,
        diff: &OwnedFd,
        parent: &str,
        owners: NewOwners<'_>,
        options: &CreateOptions,
    ) -> Result<OwnedFd> {
        // Found out first, so that a mapping that cannot be is refused quickly.
        let container_root = owners.to.root()?;
        let root = self.parent(parent)?.root;
        let new_root = owners.of_root(root.owner)?;
        let shown = self.open_private(parent)?;
        let contents = match self.program {
            // It may keep contents in a form of its own.
            Some(_) => Vec::new(),
            None => self.file_trees(parent)?,
        };
        let shown = Shown {
            tree: shown.as_fd(),
            contents: &contents,
            counts_names: self.program.is_none(),
        };
        let set = CopyOptions {
            ignore_owners: self.options.ignore_chown_errors,
            durable: options.durable,
            owners: Some(owners),
        };
        // Without a program a mount shows the forced mode, and the attribute is copied as it is.
        let forced_mode = self.options.force_mask.filter(|_| self.program.is_some());
        let layer = rustix::fs::openat(CWD, dir, tree::DIR_FLAGS, Mode::empty()).at("opening", dir)?;
        let me = privilege::effective_owner();
        let mode = self.on_disk(root, container_root).mode;
        let older = make_dir(&layer, "diff1", mode, me, me).at("making an older generation in", dir)?;
        self.keep_real(&older, root, false)
            .at("making an older generation in", dir)?;
        copy::copy_owned(&shown, older.as_fd(), set, forced_mode)
            .context(|| format!("changing the owners of what layer {parent:?} shows"))?;
        let new = super::build::Root {
            owner: new_root,
            ..root
        };
        let Owner { uid, gid } = self.on_disk(new, container_root).owner;
        let own = || -> rustix::io::Result<()> {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(diff, uid, gid)?;
            let work = rustix::fs::openat(&layer, "work", tree::DIR_FLAGS, Mode::empty())?;
            rustix::fs::fchown(work, uid, gid)?;
            self.keep_real(diff, new, options.read_write)
        };
        own().at("changing the owner of the root of a layer in", dir)?;
        Ok(older)
    }
}
