//! Changing the owners of the files that a layer shows from below.

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{CWD, Mode};

use crate::driver::chown;
use crate::driver::contract::MountOptions;
use crate::driver::overlay::build::{make_dir, make_plain_dir};
use crate::driver::overlay::layout;
use crate::driver::overlay::link_files::exists;
use crate::driver::overlay::state::Overlay;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, privilege, tree, xattr};
use crate::whiteout::OVERRIDE_STAT;

impl Overlay {
    /// Changes the owners of the files that a layer shows of the layers below: they are copied up with new owners, and
    /// the result becomes an older generation, so that it is no part of the layer's own changes.
    pub(super) fn map_owners(&self, id: &str, from: &IdMappings, to: &IdMappings, label: &str) -> Result<()> {
        let place = self.stores.require(id)?;
        let home = place
            .dir
            .parent()
            .filter(|home| self.stores.writable().any(|writable| writable == *home));
        if home.is_none() {
            return Err(ErrorKind::StoreIsReadOnly.err(format!("changing owners in layer {id:?}")));
        }
        let options = MountOptions {
            mount_label: label.to_owned(),
            ..MountOptions::default()
        };
        let merged = self
            .mount_for_owners(id, &options)
            .context(|| format!("mounting layer {id:?}"))?;
        let changed = at::open_dir(&merged)
            .at("opening mounted layer", &merged)
            .and_then(|tree| chown::change_owners(tree.as_fd(), from, to, self.program.is_some()));
        let unmounted = self.unmount_layer(id);
        changed.context(|| format!("changing owners in layer {id:?}"))?;
        unmounted?;
        rotate(&place.dir, to.root()?)
    }
}

/// Makes the generations of a layer one older each and `diff` empty.
fn rotate(dir: &Path, owner: Owner) -> Result<()> {
    let mut count = 1;
    while exists(&dir.join(format!("diff{count}")))? {
        count += 1;
    }
    for number in (1..count).rev() {
        let (old, new) = (
            dir.join(format!("diff{number}")),
            dir.join(format!("diff{}", number + 1)),
        );
        rustix::fs::rename(&old, new).at("renaming", old)?;
    }
    let diff = dir.join("diff");
    let old = at::open_dir(&diff).at("opening", &diff)?;
    let mode = rustix::fs::fstat(&old).at("looking at", &diff)?.st_mode;
    let real = xattr::fget(old.as_fd(), OVERRIDE_STAT).at("reading attributes of", &diff)?;
    rustix::fs::rename(&diff, dir.join("diff1")).at("renaming", &diff)?;
    // Its content refers to the old upper directory.
    let work = dir.join("work");
    tree::remove_tree(&work).at("removing", work)?;
    let make = || -> rustix::io::Result<()> {
        let layer = rustix::fs::openat(CWD, dir, tree::DIR_FLAGS, Mode::empty())?;
        let me = privilege::effective_owner();
        make_plain_dir(&layer, "work", owner, me)?;
        let diff = make_dir(&layer, "diff", mode & 0o7777, owner, me)?;
        if let Some((.., mode)) = real.as_deref().and_then(layout::parse_override_stat) {
            let value = layout::format_override_stat(owner.uid, owner.gid, mode);
            xattr::fset(diff.as_fd(), OVERRIDE_STAT.as_bytes(), value.as_bytes())?;
        }
        Ok(())
    };
    make().at("starting a new generation of a layer in", dir)
}
