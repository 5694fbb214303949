//! Building a layer directory, whole but for the symbolic link that makes its link ID known.
//!
//! Modes do not depend on the process's umask.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use crate::driver::contract::{CreateOptions, Driver as _};
use crate::driver::overlay::layout;
use crate::driver::overlay::layout::{LOWER, LOWER_LAYERS};
use crate::driver::overlay::link_files::{read_link_name, read_lower};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::stores;
use crate::driver::quota::Quota;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::Owner;
use crate::sys::{privilege, tree, xattr};
use crate::whiteout::{FUSE_OVERRIDE_STAT, OVERRIDE_STAT};

/// Mode and owner of a layer's root directory, as a mount shows them.
#[derive(Clone, Copy)]
pub(super) struct Root {
    pub(super) mode: u32,
    pub(super) owner: Owner,
}

/// Mode of the root directory of a layer without a parent.
const BASE_MODE: u32 = 0o555;

/// What a child takes from its parent.
pub(super) struct Parent {
    /// The child's lists of layers below.
    pub(super) below: Below,
    /// The child's root directory.
    pub(super) root: Root,
}

/// The lists of layers below a layer, as its files have them.
#[derive(Debug)]
pub(super) struct Below {
    /// The link ID of its parent.
    pub(super) parent_link: String,
    lower: String,
    /// `None` if an ID below cannot be written in it: then `lower` decides.
    lower_layers: Option<String>,
}

impl Below {
    /// Writes the files into the directory of a layer that has none.
    pub(super) fn write(&self, layer: &OwnedFd, durable: bool) -> rustix::io::Result<()> {
        write_new(layer, LOWER, &self.lower, durable)?;
        match &self.lower_layers {
            Some(content) => write_new(layer, LOWER_LAYERS, content, durable),
            None => Ok(()),
        }
    }
}

/// A layer directory that is complete, without the symbolic link in `l/`.
pub(super) struct Built {
    /// The directory of the layer's own files.
    pub(super) diff: OwnedFd,
    /// The layer's link ID.
    pub(super) link: String,
    /// The link ID of its parent.
    pub(super) parent_link: Option<String>,
}

impl Overlay {
    /// The error for a parent: that it is unknown if it is gone by now, else `error`.
    pub(super) fn gone_or(&self, id: &str, error: Error) -> Error {
        match self.stores.locate(id) {
            Ok(None) => stores::unknown(id),
            _ => error,
        }
    }

    /// The link ID of a layer, repaired if it was lost.
    pub(super) fn link_name(&self, id: &str, dir: &Path) -> Result<String> {
        if let Some(name) = read_link_name(dir)? {
            return Ok(name);
        }
        let survey = self.stores.repair()?;
        let home = survey
            .homes
            .iter()
            .position(|home| Some(&*home.dir) == dir.parent());
        let found = home.and_then(|home| survey.link_of(home, id));
        let lost = || ErrorKind::CorruptMetadata.err(format!("layer {id:?} has lost its link ID"));
        found.map(str::to_owned).ok_or_else(lost)
    }

    /// The link IDs of the layers below the layer in `dir`, for programs that do not know `lower-layers`.
    fn lower_links(&self, dir: &Path, ids: &[String]) -> Result<Vec<String>> {
        let read = read_lower(dir).and_then(|content| {
            let parsed = content.as_deref().map(layout::parse_lower).transpose()?;
            Ok(parsed.map(|links| links.into_iter().map(str::to_owned).collect::<Vec<_>>()))
        });
        match read {
            Ok(Some(links)) => Ok(links),
            Ok(None) if ids.is_empty() => Ok(Vec::new()),
            read => {
                if let Err(error) = read {
                    tracing::warn!("{}", error.chain());
                }
                let link = |id: &String| self.link_name(id, &self.stores.require(id)?.dir);
                ids.iter().map(link).collect()
            }
        }
    }

    /// What a child of layer `id` takes from it.
    pub(super) fn parent(&self, id: &str) -> Result<Parent> {
        let dir = self.stores.require(id)?.dir;
        let read = || -> Result<Parent> {
            let ids = self.stores.lower_ids(id, &dir)?;
            let parent_link = self.link_name(id, &dir)?;
            let links = self.lower_links(&dir, &ids)?;
            let below = Below {
                lower: layout::format_lower(&parent_link, links.iter().map(String::as_str))?,
                lower_layers: layout::format_lower_layers(id, &ids)?,
                parent_link,
            };
            let diff = self.stores.tree(&dir)?;
            let stat = rustix::fs::stat(&diff).at("looking at", &diff)?;
            // With a forced mode the real owner and mode are in an attribute.
            let mut value = [0; 128];
            let kept = match rustix::fs::getxattr(&diff, OVERRIDE_STAT, &mut value[..]) {
                Ok(length) => value.get(..length).and_then(layout::parse_override_stat),
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => None,
                Err(error) => return Err(error).at("reading an attribute of", &diff),
            };
            let (uid, gid, mode) = kept.unwrap_or((stat.st_uid, stat.st_gid, stat.st_mode));
            let root = Root {
                mode: mode & 0o777,
                owner: Owner { uid, gid },
            };
            Ok(Parent { below, root })
        };
        read()
            .map_err(|error| self.gone_or(id, error))
            .context(|| format!("reading parent layer {id:?}"))
    }

    /// Mode and owner that a root directory has on disk.
    pub(super) fn on_disk(&self, root: Root, container_root: Owner) -> Root {
        match self.options.force_mask {
            Some(mode) => Root {
                mode,
                owner: container_root,
            },
            None => root,
        }
    }

    /// Writes the real mode and owner into an attribute if a mode is forced. `upper`: the directory will be written to
    /// through a mount.
    pub(super) fn keep_real(&self, diff: &OwnedFd, root: Root, upper: bool) -> rustix::io::Result<()> {
        if self.options.force_mask.is_none() {
            return Ok(());
        }
        let Owner { uid, gid } = root.owner;
        let value = layout::format_override_stat(uid, gid, root.mode);
        xattr::fset(diff.as_fd(), OVERRIDE_STAT.as_bytes(), value.as_bytes())?;
        if !upper {
            return Ok(());
        }
        // fuse-overlayfs 1.10 reads its own attribute in the upper directory; if it is missing it makes one from the mode
        // and owner on disk.
        let value = format!("{uid}:{gid}:{:o}", 0o040_000 | root.mode);
        xattr::fset(diff.as_fd(), FUSE_OVERRIDE_STAT.as_bytes(), value.as_bytes())
    }

    /// Refuses options that cannot be carried out, and returns the limits that the layer gets; `None` if it cannot have any.
    pub(super) fn check_options(&self, options: &CreateOptions) -> Result<Option<Quota>> {
        if self.options.force_mask.is_some() && options.read_write && self.program.is_none() {
            return Err(ErrorKind::NotSupported
                .err("layer of a container with overlay.force_mask and without overlay.mount_program"));
        }
        let quota = Quota::parse(&options.storage_opt)?;
        if quota.is_some() && !options.read_write {
            let names: Vec<&str> = options.storage_opt.keys().map(String::as_str).collect();
            let what = format!(
                "--storage-opt {} is only supported for ReadWrite Layers",
                names.join(", ")
            );
            return Err(ErrorKind::InvalidInput.err(what));
        }
        if quota.is_some() && !self.capabilities().quota {
            let what = "--storage-opt is supported only for overlay over xfs with 'pquota' mount option";
            return Err(ErrorKind::NotSupported.err(what));
        }
        let is_limited = options.read_write && self.quotas.is_some();
        Ok(is_limited.then(|| quota.unwrap_or_default().or(self.options.quota())))
    }

    /// Makes a layer directory at `dir`, which must not exist, with the limits that [`Overlay::check_options`] has returned.
    pub(super) fn build(
        &self,
        dir: &Path,
        parent: Option<&str>,
        options: &CreateOptions,
        quota: Option<Quota>,
    ) -> Result<Built> {
        let container_root = options.mappings.root()?;
        let (below, root) = match parent {
            Some(id) => {
                let parent = self.parent(id)?;
                (Some(parent.below), parent.root)
            }
            None => {
                let root = Root {
                    mode: BASE_MODE,
                    owner: container_root,
                };
                (None, root)
            }
        };
        let Root { mode, owner } = self.on_disk(root, container_root);
        let link = layout::new_link()?;
        rustix::fs::mkdir(dir, Mode::RWXU).at("creating layer directory", dir)?;
        if let (Some(quotas), Some(quota)) = (&self.quotas, quota) {
            // Before anything is in it: what is made there belongs to the project.
            quotas.limit(dir, &quota)?;
        }
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
            // Before the directory or file that shows a repair that the layer has a link ID.
            write_new(&layer, "link", &link, options.durable)?;
            for name in ["work", "merged"] {
                make_plain_dir(&layer, name, owner, me)?;
            }
            match &below {
                Some(below) => below.write(&layer, options.durable)?,
                None => make_plain_dir(&layer, "empty", owner, me)?,
            }
            Ok(diff)
        };
        let diff = make().at("filling layer directory", dir)?;
        Ok(Built {
            diff,
            link,
            parent_link: below.map(|below| below.parent_link),
        })
    }
}

/// Makes a directory with exactly this mode and owner, and opens it. `me` is the owner that new files have.
pub(super) fn make_dir(
    parent: &OwnedFd,
    name: &str,
    mode: u32,
    owner: Owner,
    me: Owner,
) -> rustix::io::Result<OwnedFd> {
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
pub(super) fn make_plain_dir(
    parent: &OwnedFd,
    name: &str,
    owner: Owner,
    me: Owner,
) -> rustix::io::Result<()> {
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
pub(super) fn write_new(
    parent: &OwnedFd,
    name: &str,
    content: &str,
    durable: bool,
) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(parent, name, flags, mode)?;
    let mut rest = content.as_bytes();
    while !rest.is_empty() {
        let count = rustix::io::retry_on_intr(|| rustix::io::write(&file, rest))?;
        rest = rest.get(count..).unwrap_or_default();
    }
    rustix::fs::fchmod(&file, mode)?;
    // A power cut that empties the file would cut the layer off from the layers below.
    if durable {
        rustix::fs::fdatasync(&file)
    } else {
        Ok(())
    }
}
