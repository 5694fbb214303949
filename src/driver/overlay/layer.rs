//! Making and removing layer directories.
//!
//! A layer with content is built whole inside a locked temporary directory, and takes its place by one rename; then
//! its short name is made. A crash leaves a temporary directory, or a whole layer that no record names. An empty layer
//! is made in place: the store's record says that it is incomplete until that is done.
//!
//! Modes do not depend on the process's umask.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::driver::overlay::Overlay;
use crate::driver::overlay::layout::{self, LINKS, TEMP_DIRS};
use crate::driver::overlay::repair;
use crate::driver::overlay::stores::{self, exists, read_link_name, read_lower};
use crate::driver::{CreateOptions, MountOptions, Staged, check_id, chown};
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::{IdMappings, Owner};
use crate::lock::temp_dir::TempDir;
use crate::sys::{at, privilege, tree, xattr};
use crate::whiteout::{FUSE_OVERRIDE_STAT, OVERRIDE_STAT};

/// What a layer's root directory is, beside what it may look like on disk.
#[derive(Clone, Copy)]
struct Root {
    mode: u32,
    owner: Owner,
}

/// Mode of the root directory of a layer that stands on no other.
const BASE_MODE: u32 = 0o555;

/// What a child takes from its parent.
struct Parent {
    /// The child's `lower` file.
    lower: String,
    /// The child's root directory.
    root: Root,
}

/// A layer directory that is complete but for its short name.
struct Built {
    /// The layer's own tree.
    diff: OwnedFd,
    link: String,
    lower: String,
}

impl Overlay {
    /// The error for a parent, with its kind if the parent is gone.
    fn gone_or(&self, id: &str, error: Error) -> Error {
        match self.stores.locate(id) {
            Ok(None) => stores::unknown(id),
            _ => error,
        }
    }

    /// The short name of a layer, put back if it was lost.
    fn link_name(&self, id: &str, dir: &Path) -> Result<String> {
        if let Some(name) = read_link_name(dir)? {
            return Ok(name);
        }
        if let Some(home) = dir.parent().filter(|_| dir.is_dir()) {
            repair::repair(home)?;
        }
        let again = read_link_name(dir)?;
        again.ok_or_else(|| ErrorKind::CorruptMetadata.err(format!("layer {id:?} has lost its short name")))
    }

    fn parent(&self, id: &str) -> Result<Parent> {
        let dir = self.stores.require(id)?.dir;
        let read = || -> Result<Parent> {
            let lower = layout::format_lower(&self.link_name(id, &dir)?, &read_lower(&dir)?)?;
            let diff = dir.join("diff");
            let stat = rustix::fs::stat(&diff).at("looking at", &diff)?;
            // Left by stores that keep the real owner and mode in an attribute.
            let mut value = [0; 128];
            let kept = match rustix::fs::getxattr(&diff, OVERRIDE_STAT, &mut value[..]) {
                Ok(length) => value.get(..length).and_then(layout::parse_override_stat),
                Err(_absent) => None,
            };
            let (uid, gid, mode) = kept.unwrap_or((stat.st_uid, stat.st_gid, stat.st_mode));
            let root = Root {
                mode: mode & 0o777,
                owner: Owner { uid, gid },
            };
            Ok(Parent { lower, root })
        };
        read()
            .map_err(|error| self.gone_or(id, error))
            .context(|| format!("reading parent layer {id:?}"))
    }

    /// How a root directory looks on disk.
    fn on_disk(&self, root: Root, container_root: Owner) -> Root {
        match self.options.force_mask {
            Some(mode) => Root {
                mode,
                owner: container_root,
            },
            None => root,
        }
    }

    /// Keeps in an attribute what a forced mode hides. `upper`: the directory will be written to through a mount.
    fn keep_real(&self, diff: &OwnedFd, root: Root, upper: bool) -> rustix::io::Result<()> {
        if self.options.force_mask.is_none() {
            return Ok(());
        }
        let Owner { uid, gid } = root.owner;
        let value = layout::format_override_stat(uid, gid, root.mode);
        xattr::fset(diff.as_fd(), OVERRIDE_STAT.as_bytes(), value.as_bytes())?;
        if !upper {
            return Ok(());
        }
        // fuse-overlayfs 1.10 looks for its own attribute in a tree that it writes to, and would make one of what the
        // directory looks like.
        let value = format!("{uid}:{gid}:{:o}", 0o040_000 | root.mode);
        xattr::fset(diff.as_fd(), FUSE_OVERRIDE_STAT.as_bytes(), value.as_bytes())
    }

    fn check_options(&self, options: &CreateOptions) -> Result<()> {
        if self.options.force_mask.is_some() && options.read_write && self.program.is_none() {
            return Err(ErrorKind::NotSupported
                .err("layer to be written to with overlay.force_mask and without overlay.mount_program"));
        }
        match options.storage_opt.keys().next() {
            None => Ok(()),
            Some(key) if !options.read_write => Err(ErrorKind::InvalidInput.err(format!(
                "storage option {key:?} of a layer that is not a container's"
            ))),
            Some(key) => {
                Err(ErrorKind::NotSupported.err(format!("storage option {key:?} without project quotas")))
            }
        }
    }

    /// Makes a layer directory at `dir`, which must not exist.
    fn build(&self, dir: &Path, parent: Option<&str>, options: &CreateOptions) -> Result<Built> {
        self.check_options(options)?;
        let container_root = options.mappings.root()?;
        let (lower, root) = match parent {
            Some(id) => {
                let parent = self.parent(id)?;
                (parent.lower, parent.root)
            }
            None => {
                let root = Root {
                    mode: BASE_MODE,
                    owner: container_root,
                };
                (String::new(), root)
            }
        };
        let Root { mode, owner } = self.on_disk(root, container_root);
        let link = layout::new_link()?;
        rustix::fs::mkdir(dir, Mode::RWXU).at("creating layer directory", dir)?;
        let make = || -> rustix::io::Result<OwnedFd> {
            let layer = rustix::fs::openat(CWD, dir, tree::DIR_FLAGS, Mode::empty())?;
            let me = privilege::effective_owner();
            if container_root != me {
                rustix::fs::fchown(
                    &layer,
                    Some(Uid::from_raw(container_root.uid)),
                    Some(Gid::from_raw(container_root.gid)),
                )?;
            }
            let diff = make_dir(&layer, "diff", mode, owner, me)?;
            self.keep_real(&diff, root, options.read_write)?;
            for name in ["work", "merged"]
                .into_iter()
                .chain(parent.is_none().then_some("empty"))
            {
                make_plain_dir(&layer, name, owner, me)?;
            }
            write_new(&layer, "link", &link, options.durable)?;
            if parent.is_some() {
                write_new(&layer, "lower", &lower, options.durable)?;
            }
            Ok(diff)
        };
        let diff = make().at("filling layer directory", dir)?;
        Ok(Built { diff, link, lower })
    }

    /// Makes an empty layer in place.
    pub(super) fn create_layer(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        check_id(id)?;
        let home = self.stores.base(options.read_write);
        let dir = home.join(id);
        let mut built = self.build(&dir, parent, options);
        if let Err(error) = &built
            && error.io_kind() == Some(io::ErrorKind::AlreadyExists)
        {
            tracing::warn!(
                layer = id,
                "replacing what a creation that was never recorded has left"
            );
            self.clear_place(home, id)?.remove()?;
            built = self.build(&dir, parent, options);
        }
        let linked = built.and_then(|built| make_link(home, &built.link, id));
        if linked.is_err()
            && let Err(error) = tree::remove_tree(&dir)
        {
            tracing::warn!(layer = id, %error, "cannot remove an incomplete layer directory");
        }
        linked
    }

    /// Moves a layer directory, and its short name, out of the way.
    fn clear_place(&self, home: &Path, id: &str) -> Result<TempDir> {
        let mut temp = TempDir::create(&home.join(TEMP_DIRS))?;
        move_away(home, id, &mut temp)?;
        Ok(temp)
    }

    /// Builds a layer in a temporary directory.
    pub(super) fn stage_layer(&self, parent: Option<&str>, options: &CreateOptions) -> Result<Staged> {
        let mut temp = TempDir::create(&self.stores.base(options.read_write).join(TEMP_DIRS))?;
        let dir = temp.addition();
        let built = self.build(&dir, parent, options)?;
        Ok(Staged {
            content: self.content_of(built.diff),
            path: dir.join("diff"),
            temp,
            link: built.link,
            lower: built.lower,
        })
    }

    /// Gives a staged layer its place.
    pub(super) fn commit_layer(
        &self,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
        mut staged: Staged,
    ) -> Result<()> {
        check_id(id)?;
        let source = staged.path.parent().unwrap_or(&staged.path).to_owned();
        self.put_on(parent, options, &source, &staged)?;
        let home = self.stores.base(options.read_write);
        let target = home.join(id);
        let mut renamed = rustix::fs::rename(&source, &target);
        if let Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) = renamed {
            tracing::warn!(
                layer = id,
                "replacing what a creation that was never recorded has left"
            );
            move_away(home, id, &mut staged.temp)?;
            renamed = rustix::fs::rename(&source, &target);
        }
        renamed.at("moving a layer to its place", &target)?;
        let linked = make_link(home, &staged.link, id);
        if linked.is_err() {
            staged.temp.stage_deletion(&target)?;
        }
        linked
    }

    /// Makes a staged layer a child of `parent`, if it is not yet.
    fn put_on(
        &self,
        parent: Option<&str>,
        options: &CreateOptions,
        dir: &Path,
        staged: &Staged,
    ) -> Result<()> {
        let Some(parent) = parent else {
            if staged.lower.is_empty() {
                return Ok(());
            }
            return Err(
                ErrorKind::InvalidInput.err("committing a layer without the parent that it was staged on")
            );
        };
        // The same ID can by now be another layer: the short name tells.
        let place = self.stores.require(parent)?;
        let link = self
            .link_name(parent, &place.dir)
            .map_err(|error| self.gone_or(parent, error))?;
        let rest = staged
            .lower
            .strip_prefix(LINKS)
            .and_then(|rest| rest.strip_prefix('/')?.strip_prefix(&*link));
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(':')) {
            return Ok(());
        }
        let new = self.parent(parent)?;
        let container_root = options.mappings.root()?;
        let write = || -> rustix::io::Result<()> {
            let layer = rustix::fs::openat(CWD, dir, tree::DIR_FLAGS, Mode::empty())?;
            for (name, flags) in [
                ("lower", rustix::fs::AtFlags::empty()),
                ("empty", rustix::fs::AtFlags::REMOVEDIR),
            ] {
                match rustix::fs::unlinkat(&layer, name, flags) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            write_new(&layer, "lower", &new.lower, options.durable)?;
            let Root { mode, owner } = self.on_disk(new.root, container_root);
            let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
            let stat = rustix::fs::fstat(&staged.content.dir)?;
            if (stat.st_uid, stat.st_gid) != (owner.uid, owner.gid) {
                rustix::fs::fchown(&staged.content.dir, Some(uid), Some(gid))?;
                for name in ["work", "merged"] {
                    rustix::fs::chownat(
                        &layer,
                        name,
                        Some(uid),
                        Some(gid),
                        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                    )?;
                }
            }
            self.keep_real(&staged.content.dir, new.root, options.read_write)?;
            rustix::fs::fchmod(&staged.content.dir, Mode::from_raw_mode(mode))
        };
        self.check_options(options)?;
        write().at("putting a staged layer on its parent in", dir)
    }

    /// Moves a layer to where it can be deleted without a lock. Layers of additional stores are not touched.
    pub(super) fn remove_layer(&self, id: &str) -> Result<Option<TempDir>> {
        check_id(id)?;
        for home in self.stores.writable() {
            if home.join(id).symlink_metadata().is_ok() {
                return self.clear_place(home, id).map(Some);
            }
        }
        Ok(None)
    }

    /// Re-owns what a layer shows of the layers below: their files are copied up with new owners, and the result
    /// becomes an older generation, so that it is no part of the layer's own changes.
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
            disable_shifting: true,
            ..MountOptions::default()
        };
        let merged = self.mount_layer_for_owners(id, &options)?;
        let changed = at::open_dir(&merged)
            .at("opening mounted layer", &merged)
            .and_then(|tree| chown::change_owners(tree.as_fd(), from, to, self.program.is_some()));
        let unmounted = self.put_layer(id);
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
    // What the kernel keeps in there refers to the old upper directory.
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

/// Makes a directory with exactly this mode and owner, and opens it. `me` is whom it belongs to at first.
fn make_dir(parent: &OwnedFd, name: &str, mode: u32, owner: Owner, me: Owner) -> rustix::io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    let dir = rustix::fs::openat(parent, name, tree::DIR_FLAGS, Mode::empty())?;
    if owner != me {
        rustix::fs::fchown(
            &dir,
            Some(Uid::from_raw(owner.uid)),
            Some(Gid::from_raw(owner.gid)),
        )?;
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode))?;
    Ok(dir)
}

/// Makes a directory for the kernel or for mounts, 0700.
fn make_plain_dir(parent: &OwnedFd, name: &str, owner: Owner, me: Owner) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(parent, name, Mode::RWXU)?;
    if owner == me {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::chownat(
        parent,
        name,
        Some(uid),
        Some(gid),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// Writes a new small file, 0644; `durable` waits until its content is on disk.
fn write_new(parent: &OwnedFd, name: &str, content: &str, durable: bool) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(parent, name, flags, mode)?;
    let mut rest = content.as_bytes();
    while !rest.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = rest.get(count..).unwrap_or_default();
    }
    rustix::fs::fchmod(&file, mode)?;
    // Names of other layers that a power cut empties would be layers that are lost.
    if durable {
        rustix::fs::fdatasync(&file)
    } else {
        Ok(())
    }
}

/// Makes the short name of a layer.
fn make_link(home: &Path, link: &str, id: &str) -> Result<()> {
    let path = home.join(LINKS).join(link);
    let mut made = rustix::fs::symlink(layout::link_target(id), &path);
    if let Err(Errno::NOENT) = made {
        let links = home.join(LINKS);
        std::fs::create_dir(&links).at("creating", &links)?;
        made = rustix::fs::symlink(layout::link_target(id), &path);
    }
    made.at("creating the short name of a layer,", path)
}

/// Moves what is at a layer's place, and its short name, into a temporary directory of the same home.
fn move_away(home: &Path, id: &str, temp: &mut TempDir) -> Result<()> {
    let dir: PathBuf = home.join(id);
    match read_link_name(&dir) {
        Ok(Some(name)) => drop(temp.stage_deletion(&home.join(LINKS).join(name))?),
        Ok(None) => {}
        // A damaged layer can be removed too; what its short name was is lost.
        Err(error) => tracing::warn!(layer = id, "{}", error.chain()),
    }
    temp.stage_deletion(&dir)?;
    Ok(())
}
