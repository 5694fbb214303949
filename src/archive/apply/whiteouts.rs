//! Whiteouts and opaque markers of a layer, in the three forms of [`WhiteoutFormat`].
//!
//! They speak of the layers below, so the order of entries in an archive means nothing: what came from the same
//! archive stays, whether it stands before or after. Owners of whiteouts are never a reason to fail.
//!
//! What differs from the Go library, whose results are broken there: a directory that takes the place of a whiteout
//! is opaque, a whiteout of something that the layer itself brings does not fail, implied directories survive an
//! opaque marker.

use std::os::fd::AsFd as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, Uid};
use rustix::io::Errno;

use crate::archive::apply::metadata::{kind, mark_opaque};
use crate::archive::apply::parents::{Found, Parent};
use crate::archive::apply::tree::Tree;
use crate::archive::tar::reader::Entry;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, IoContext as _, Result};
use crate::sys::at;
use crate::whiteout::{Namespace, WhiteoutFormat};

/// `.wh..wh..opq` in the directory at `path`.
pub(crate) fn opaque(tree: &mut Tree, path: &[u8], recorder: &mut TarSplitRecorder) -> Result<()> {
    let dir = match tree.form {
        WhiteoutFormat::Overlay(namespace) => {
            let dir = tree.ensure(path, recorder)?;
            mark_opaque(dir.fd(), namespace)?;
            dir
        }
        _ => match tree.parents.find(path)? {
            Found::Directory(dir) => dir,
            // Nothing below, so nothing to hide.
            Found::Missing | Found::Blocked => return Ok(()),
        },
    };
    let fd = at::open_dir_at(dir.fd(), b".").during("opening a directory")?;
    tree.deferred_modes.open_up(fd.as_fd(), dir.real())?;
    tree.clear_old(fd, dir.real(), recorder)
}

/// `.wh.NAME` in the directory at `path`.
pub(crate) fn deleted(
    tree: &mut Tree,
    path: &[u8],
    name: &[u8],
    entry: &Entry,
    recorder: &mut TarSplitRecorder,
) -> Result<()> {
    match tree.form {
        WhiteoutFormat::Overlay(namespace) => {
            let Some(dir) = whiteout_parent(tree, path, recorder)? else {
                return Ok(());
            };
            make_whiteout(tree, &dir, name, namespace, entry, recorder)
        }
        _ => match tree.parents.find(path)? {
            Found::Directory(dir) => remove_old(tree, &dir, name, recorder).map(drop),
            Found::Missing | Found::Blocked => Ok(()),
        },
    }
}

/// The directory for a whiteout; `None` if a whiteout of this layer is in the way, which hides everything already.
fn whiteout_parent(
    tree: &mut Tree,
    path: &[u8],
    recorder: &mut TarSplitRecorder,
) -> Result<Option<Rc<Parent>>> {
    if matches!(tree.parents.find(path)?, Found::Blocked) {
        for end in (0..=path.len()).filter(|end| *end == path.len() || path.get(*end) == Some(&b'/')) {
            let prefix = path.get(..end).unwrap_or_default();
            let stat = at::lstat_in_root(tree.parents.root().fd(), prefix).during("reading the status")?;
            if stat.is_some_and(|stat| tree.whiteout_of(&stat).is_some()) {
                return Ok(None);
            }
        }
    }
    tree.ensure(path, recorder).map(Some)
}

fn make_whiteout(
    tree: &mut Tree,
    dir: &Rc<Parent>,
    name: &[u8],
    namespace: Namespace,
    entry: &Entry,
    recorder: &mut TarSplitRecorder,
) -> Result<()> {
    let make = || rustix::fs::mknodat(dir.fd(), name, FileType::CharacterDevice, Mode::empty(), 0);
    match make() {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = at::lstat_at(dir.fd(), name).during("reading the status")?;
            if there.is_some_and(|stat| tree.whiteout_of(&stat).is_some()) {
                return Ok(());
            }
            if remove_old(tree, dir, name, recorder)? {
                // It is this layer's own: a directory must still hide what lies below it.
                if there.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                    let own = at::open_dir_at(dir.fd(), name).during("opening a directory")?;
                    mark_opaque(own.as_fd(), namespace)?;
                }
                return Ok(());
            }
            make().during("making a whiteout")?;
        }
        Err(error) => return Err(Error::io("making a whiteout", error)),
    }
    if let Ok(owner) = tree.rules.owner(entry)
        && (owner.uid, owner.gid) != (0, 0)
    {
        let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
        let result = rustix::fs::chownat(dir.fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        if let Err(error) = result {
            tracing::debug!(%error, "owner of a whiteout not set");
        }
    }
    Ok(())
}

/// Removes `name` unless it is this archive's own; of an own directory removes what was there before. Whether
/// something is left.
fn remove_old(
    tree: &mut Tree,
    dir: &Rc<Parent>,
    name: &[u8],
    recorder: &mut TarSplitRecorder,
) -> Result<bool> {
    let Some(stat) = at::lstat_at(dir.fd(), name).during("reading the status")? else {
        return Ok(false);
    };
    let mut real = Vec::new();
    dir.child(name, &mut real);
    if !tree.state.seen.touched(&real) {
        tree.displace(dir, name, recorder)?;
        return Ok(false);
    }
    if kind(&stat) == FileType::Directory {
        let own = at::open_dir_at(dir.fd(), name).during("opening a directory")?;
        tree.clear_old(own, &real, recorder)?;
    }
    Ok(true)
}
