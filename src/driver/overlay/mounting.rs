//! Mounting a layer at its mount target, and unmounting it. Uses are counted per process.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::fs::{CWD, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::driver::contract::MountOptions;
use crate::driver::home_state::Mounts;
use crate::driver::layer_use::check_type;
use crate::driver::mount_flags::{self, Sorted};
use crate::driver::overlay::composefs::Image;
use crate::driver::overlay::layout::check_id;
use crate::driver::overlay::link_files::exists;
use crate::driver::overlay::lower_mounts::sweep;
use crate::driver::overlay::lower_stack::{AttachDirs, Trees};
use crate::driver::overlay::mount::OverlayMount;
use crate::driver::overlay::program::{self, Extras};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores::{self, Located, Lower, generations};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::idmap::{IdMappings, Owner};
use crate::sys::mount::{make_private, unmount_lazily};
use crate::sys::presence::lstat_if_there;
use crate::sys::{make_private_subdir, privilege, tree};
use crate::whiteout::Namespace;

/// Mode of a layer's root directory that has to be made again and has no lower whose mode it could take.
const LOST_MODE: u32 = 0o555;

/// What becomes of a layer's own tree that is missing.
pub(super) enum OwnTree<'a> {
    /// It is made, and given to the root of the mappings.
    Made(Option<&'a IdMappings>),
    /// The layer cannot be mounted: who only looks changes nothing.
    Present,
}

/// Where a layer is, and where it is mounted.
struct MountTarget {
    place: Located,
    merged: PathBuf,
    /// How often it is in use; `None` if there is no mount point yet.
    count: Option<u64>,
}

impl Overlay {
    /// The mount target of a layer: beside its files if it is in the driver's home, else below the run root.
    pub(super) fn merged(&self, id: &str, place: &Located) -> PathBuf {
        let dir = if place.own {
            place.dir.clone()
        } else {
            self.run_home.join(id)
        };
        dir.join("merged")
    }

    /// Finds a layer and its mount target.
    fn find_target(&self, id: &str, mounts: &Mounts<'_>) -> Result<MountTarget> {
        check_id(id)?;
        let look = |place: Located| {
            let merged = self.merged(id, &place);
            let count = mounts.count(&merged, self.program.is_some())?;
            Ok(MountTarget { place, merged, count })
        };
        // In most cases it is a layer of the home that has a mount point: then one system call is enough.
        let own = look(Located {
            dir: self.stores.home.join(id),
            own: true,
        })?;
        if own.count.is_some() {
            return Ok(own);
        }
        look(self.stores.require(id)?)
    }

    /// Mounts a layer, or counts one more use.
    pub(super) fn mount_layer(&self, id: &str, options: &MountOptions) -> Result<PathBuf> {
        let mut mounts = self.shared.mounts(id);
        let found = self.find_target(id, &mounts)?;
        let count = found.count.unwrap_or(0);
        if count == 0 {
            self.mount_new(id, &found, options)?;
        }
        mounts.set(found.merged.clone(), count + 1);
        Ok(found.merged)
    }

    /// The options of a mount: the caller's, or without any the driver's. Options that the layers cannot be read without
    /// are added.
    pub(super) fn mount_options<'a>(&'a self, options: &'a MountOptions) -> Vec<&'a str> {
        let own = || {
            self.options
                .mount_options
                .split(',')
                .filter(|option| !option.is_empty())
        };
        let mut list: Vec<&str> = options.options.iter().map(String::as_str).collect();
        if list.is_empty() {
            list.extend(own());
        } else if own().any(|option| option == "metacopy=on") {
            // Files that were copied up without content are unreadable without it.
            list.push("metacopy=on");
        }
        if !self.metacopy {
            list.retain(|option| *option != "metacopy=on");
        }
        list
    }

    /// The options of a mount as flags and data, with what the kernel needs in a user namespace.
    pub(super) fn sort_options(&self, options: &MountOptions) -> Result<Sorted> {
        let mut sorted = mount_flags::sort(self.mount_options(options))?;
        if self.namespace == Namespace::User && self.program.is_none() {
            sorted.data.push("userxattr".into());
        }
        Ok(sorted)
    }

    fn mount_new(&self, id: &str, target: &MountTarget, options: &MountOptions) -> Result<()> {
        let MountTarget { place, merged, count } = target;
        let dir = &place.dir;
        let mut sorted = self.sort_options(options)?;
        let mappings = &options.mappings;
        let can_shift = self.can_shift(mappings);
        // A program maps new files as well: with it the owners on disk are the container's own.
        let by_program = self.program.is_some() && can_shift && !mappings.uids.is_empty();
        let by_kernel =
            self.program.is_none() && can_shift && !mappings.uids.is_empty() && !mappings.gids.is_empty();
        if by_program {
            // As with all other mounts, one without a root user is refused.
            mappings.root()?;
        }
        let owners = if by_program { None } else { Some(mappings) };
        let trees = self.trees_of(id, place, OwnTree::Made(owners))?;
        // A read-only mount has no upper directory.
        let read_only = sorted.flags.contains(rustix::mount::MountFlags::RDONLY);
        let read_write = place.own && trees.changes && !read_only;
        if read_write && trees.own_image.is_some() {
            return Err(ErrorKind::NotSupported.err("cannot mount a composefs layer as writeable"));
        }
        if options.volatile && read_write && self.volatile() {
            sorted.data.push("volatile".into());
        }

        if count.is_none() {
            self.prepare_target(merged, place.own)?;
        }
        // Once for each driver object: a process that undoes it announces a shutdown, and then a new driver is started.
        if !self.options.skip_mount_home && !self.is_private.load(Ordering::Acquire) {
            let _only_one = self.shared.lock_private();
            if !self.is_private.load(Ordering::Acquire) {
                make_private(&self.stores.home).at("making a private mount of", &self.stores.home)?;
                self.is_private.store(true, Ordering::Release);
            }
        }
        let namespace = match by_kernel {
            true => Some(self.namespaces.get(mappings)?),
            false => None,
        };
        let (namespace, attach) = (namespace.as_deref(), self.attach_dirs(id, place));
        // Kept until the mount is made.
        let (lowers, contents, _attached) =
            self.stack(&trees, !read_write, attach, namespace, &mut sorted)?;
        let plan = OverlayMount {
            lowers,
            contents,
            upper: read_write.then(|| (trees.own, dir.join("work"))),
            options: sorted,
            label: &options.mount_label,
        };
        let mount = || match &self.program {
            None => plan.mount_at(merged),
            Some(program) => {
                let extras = Extras {
                    mappings: by_program.then_some(mappings),
                    masked: self.options.force_mask.is_some(),
                };
                program::mount(program, &self.stores.home, &plan, merged, &extras)
            }
        };
        mount().or_else(|error| match &plan.upper {
            Some((_, work)) if remove_volatile_mark(work)? => mount(),
            _ => Err(error),
        })
    }

    /// The trees of a mount.
    pub(super) fn trees_of(&self, id: &str, place: &Located, own_tree: OwnTree<'_>) -> Result<Trees> {
        let Some(home) = place.dir.parent() else {
            return Err(stores::unknown(id));
        };
        let mut lowers = generations(home, id)?;
        lowers.extend(self.stores.lowers(id, &place.dir)?);
        let elsewhere = self.stores.elsewhere(&place.dir)?;
        let changes = elsewhere.is_none();
        let own = place.dir.join("diff");
        let own_image = Image::exists(&place.dir)?.then(|| place.dir.clone());
        match elsewhere {
            Some(tree) => check_type(&tree, FileType::Directory)?,
            None if own_image.is_some() => check_type(&own, FileType::Directory)?,
            None => match own_tree {
                OwnTree::Made(owners) => self.prepare_diff(&own, owners, place.own, lowers.first())?,
                OwnTree::Present => check_type(&own, FileType::Directory)?,
            },
        }
        if lowers.is_empty() {
            let path = format!("{id}/empty");
            ensure_dir(&home.join(&path), privilege::effective_owner())?;
            lowers.push(Lower::new(home, path));
        }
        Ok(Trees {
            own,
            own_image,
            changes,
            lowers,
        })
    }

    /// Where lowers are attached while a mount is made. Never in another store.
    fn attach_dirs(&self, id: &str, place: &Located) -> AttachDirs {
        if place.own {
            AttachDirs::in_dir(&place.dir)
        } else {
            AttachDirs::in_dir(&self.run_home.join(id))
        }
    }

    /// Makes the layer's own directory if it is missing. With mappings it is given to their root: a layer whose owners are
    /// mapped at mount time takes the owner of its parent's root directory when it is created.
    fn prepare_diff(
        &self,
        diff: &Path,
        mappings: Option<&IdMappings>,
        own: bool,
        below: Option<&Lower>,
    ) -> Result<()> {
        let stat = match rustix::fs::stat(diff) {
            Ok(stat) => stat,
            Err(Errno::NOENT) if own => {
                let mode = below.and_then(|below| rustix::fs::stat(below.full()).ok());
                let lost = self.options.force_mask.unwrap_or(LOST_MODE);
                let mode = mode.map_or(lost, |stat| stat.st_mode & 0o777);
                std::fs::DirBuilder::new()
                    .mode(mode)
                    .create(diff)
                    .at("creating", diff)?;
                rustix::fs::stat(diff).at("looking at", diff)?
            }
            Err(error) => return Err(error).at("looking at", diff),
        };
        let Some(mappings) = mappings.filter(|mappings| own && !mappings.is_identity()) else {
            return Ok(());
        };
        let root = mappings.root()?;
        if (stat.st_uid, stat.st_gid) == (root.uid, root.gid) {
            return Ok(());
        }
        rustix::fs::chown(diff, Some(Uid::from_raw(root.uid)), Some(Gid::from_raw(root.gid)))
            .at("changing the owner of", diff)
    }

    fn prepare_target(&self, merged: &Path, own: bool) -> Result<()> {
        if own {
            return ensure_dir(merged, privilege::effective_owner());
        }
        if let Some(parent) = merged.parent() {
            make_private_subdir(parent)?;
        }
        make_private_subdir(merged)
    }

    /// Ends one use; the end of the last use unmounts.
    pub(super) fn unmount_layer(&self, id: &str) -> Result<()> {
        let mut mounts = self.shared.mounts(id);
        let MountTarget { place, merged, count } = self.find_target(id, &mounts)?;
        let count = count.unwrap_or(0);
        if count > 1 {
            mounts.set(merged, count - 1);
            return Ok(());
        }
        mounts.set(merged.clone(), 0);
        self.unmount(id, &place, &merged)
    }

    /// Ends every use, and unmounts.
    pub(super) fn unmount_whole(&self, id: &str) -> Result<()> {
        let mut mounts = self.shared.mounts(id);
        let MountTarget { place, merged, .. } = self.find_target(id, &mounts)?;
        mounts.set(merged.clone(), 0);
        self.unmount(id, &place, &merged)
    }

    fn unmount(&self, id: &str, place: &Located, merged: &Path) -> Result<()> {
        let AttachDirs { images, mapped } = self.attach_dirs(id, place);
        sweep(&images);
        sweep(&mapped);
        match self.program {
            None => unmount_lazily(merged).at("unmounting", merged)?,
            Some(_) => program::unmount(merged)?,
        }
        if !place.own {
            let run = self.run_home.join(id);
            for dir in [merged, &run.join("mapped"), &run] {
                match rustix::fs::rmdir(dir) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    // In use by another mount, or not empty.
                    Err(error) => tracing::debug!(dir = %dir.display(), %error, "mount point stays"),
                }
            }
            return Ok(());
        }
        // The layer is unmounted, whatever becomes of the mount point: on a full disk no directory can be made, and files
        // in it, which a process has written while nothing was mounted, keep it from being replaced.
        let fresh = place.dir.join("merged.1");
        if let Err(error) = replace_target(merged, &fresh) {
            tracing::warn!("{}", error.chain());
            if let Err(error) = rustix::fs::rmdir(&fresh) {
                tracing::debug!(dir = %fresh.display(), %error, "no new mount point to remove");
            }
        }
        Ok(())
    }
}

/// Replaces a mount point by a new directory: other mount namespaces may still have the mount on the old one, and a layer
/// with a mount point in use cannot be removed.
fn replace_target(merged: &Path, fresh: &Path) -> Result<()> {
    let Some(stat) = lstat_if_there(merged)? else {
        return Ok(());
    };
    let (uid, gid) = (stat.st_uid, stat.st_gid);
    ensure_dir(fresh, Owner { uid, gid })?;
    rustix::fs::renameat(CWD, fresh, CWD, merged).at("replacing mount point", merged)
}

/// Removes the mark of a volatile mount: the kernel does not mount a layer with it again. Returns whether there was one.
fn remove_volatile_mark(work: &Path) -> Result<bool> {
    let mark = work.join("work/incompat/volatile");
    let marked = exists(&mark)?;
    if marked {
        tree::remove_tree(&mark).at("removing", mark)?;
    }
    Ok(marked)
}

/// Makes a directory, 0700, if it is not there.
fn ensure_dir(path: &Path, owner: Owner) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) if owner == privilege::effective_owner() => Ok(()),
        Ok(()) => rustix::fs::chown(
            path,
            Some(Uid::from_raw(owner.uid)),
            Some(Gid::from_raw(owner.gid)),
        )
        .at("changing the owner of", path),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error).at("creating", path),
    }
}
