//! Creating an empty layer, and removing one.
//!
//! An empty layer is made in place: the store's record says that it is incomplete until that is done.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::driver::contract::CreateOptions;
use crate::driver::layer_use::tell_end;
use crate::driver::overlay::layout::{self, LINKS, TEMP_DIRS, check_id};
use crate::driver::overlay::link_files::{read_additional_layer, read_link_name};
use crate::driver::overlay::state::Overlay;
use crate::driver::overlay::survey::read_links;
use crate::error::{Error, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::presence::lstat_if_there;
use crate::sys::tree;

impl Overlay {
    /// Makes an empty layer in place.
    pub(super) fn create_layer(&self, id: &str, parent: Option<&str>, options: &CreateOptions) -> Result<()> {
        self.create_with(id, parent, options, |_dir| Ok(()))
    }

    /// Makes an empty layer in place; `finish` is called with its directory before its link ID becomes known.
    pub(super) fn create_with(
        &self,
        id: &str,
        parent: Option<&str>,
        options: &CreateOptions,
        finish: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        check_id(id)?;
        let quota = self.check_options(options)?;
        let home = self.stores.base(options.read_write);
        let dir = home.join(id);
        let mut built = self.build(&dir, parent, options, quota);
        if let Err(error) = &built
            && error.io_kind() == Some(io::ErrorKind::AlreadyExists)
        {
            tracing::warn!(
                layer = id,
                "replacing the directory of a layer that was never recorded"
            );
            self.clear_place(home, id)?.remove()?;
            built = self.build(&dir, parent, options, quota);
        }
        let limited = built.and_then(|built| {
            if let (Some(parent), Some(owners)) = (parent, options.new_owners()) {
                self.give_owners(&dir, &built.diff, parent, owners, options)?;
            }
            finish(&dir)?;
            Ok(built.link)
        });
        let linked = limited.and_then(|link| make_link(home, &link, id));
        if linked.is_err() {
            self.lift_limits(&dir);
            if let Err(error) = tree::remove_tree(&dir) {
                tracing::warn!(layer = id, %error, "cannot remove an incomplete layer directory");
            }
        }
        linked
    }

    /// Moves a layer directory and its symbolic link into a temporary directory.
    fn clear_place(&self, home: &Path, id: &str) -> Result<TempDir> {
        let mut temp = TempDir::create(&home.join(TEMP_DIRS))?;
        self.lift_limits(&home.join(id));
        move_away(home, id, &mut temp)?;
        Ok(temp)
    }

    /// Lifts the limits of the layer in `dir`, which is being removed.
    pub(super) fn lift_limits(&self, dir: &Path) {
        if let Some(quotas) = &self.quotas {
            quotas.lift(dir);
        }
    }

    /// Moves a layer into a temporary directory, to be deleted without a lock. Layers of additional stores stay.
    pub(super) fn remove_layer(&self, id: &str) -> Result<Option<TempDir>> {
        check_id(id)?;
        for home in self.stores.writable() {
            if lstat_if_there(&home.join(id))?.is_some() {
                return self.clear_place(home, id).map(Some);
            }
        }
        Ok(None)
    }

    /// Removes a layer where it is. Layers of additional stores stay.
    pub(super) fn remove_layer_in_place(&self, id: &str) -> Result<()> {
        check_id(id)?;
        for home in self.stores.writable() {
            let dir = home.join(id);
            let used = UsedLayer::of(&dir);
            for name in names_of(home, id)? {
                let path = home.join(LINKS).join(name);
                tree::remove_tree(&path).map_err(|error| Error::io_at("removing", path, error))?;
            }
            self.lift_limits(&dir);
            let removed = tree::remove_tree(&dir).map_err(|error| Error::io_at("removing", &dir, error));
            used.tell_if_gone();
            removed?;
        }
        Ok(())
    }
}

/// A layer in an additional layer store that one that is being removed was made of.
struct UsedLayer {
    /// The directory of the layer that is being removed.
    dir: PathBuf,
    used: Option<PathBuf>,
}

impl UsedLayer {
    fn of(dir: &Path) -> Self {
        let used = read_additional_layer(dir).unwrap_or_else(|error| {
            tracing::warn!("{}", error.chain());
            None
        });
        let dir = dir.to_owned();
        Self { dir, used }
    }

    /// Tells the store that the use has ended, unless the layer still says that it goes on.
    fn tell_if_gone(self) {
        let Some(used) = self.used else { return };
        if let Ok(None) = read_additional_layer(&self.dir) {
            tell_end(&used);
        }
    }
}

/// Makes the symbolic link of a layer in `l/`.
pub(super) fn make_link(home: &Path, link: &str, id: &str) -> Result<()> {
    let path = home.join(LINKS).join(link);
    let mut made = rustix::fs::symlink(layout::link_target(id), &path);
    if let Err(Errno::NOENT) = made {
        let links = home.join(LINKS);
        std::fs::create_dir(&links).at("creating", &links)?;
        made = rustix::fs::symlink(layout::link_target(id), &path);
    }
    // A repair by another process may have been faster.
    if made == Err(Errno::EXIST) && leads_to(&path, id) {
        return Ok(());
    }
    made.at("creating the symbolic link of a layer,", path)
}

/// Moves what is at the path of a layer, and its symbolic link, into a temporary directory of the same home.
pub(super) fn move_away(home: &Path, id: &str, temp: &mut TempDir) -> Result<()> {
    for name in names_of(home, id)? {
        // One that stays leads nowhere; garbage collection removes it.
        if let Err(error) = temp.stage_deletion(&home.join(LINKS).join(name)) {
            tracing::warn!(layer = id, error = %error.chain(), "cannot remove the symbolic link of a layer");
        }
    }
    let dir = home.join(id);
    let used = UsedLayer::of(&dir);
    temp.stage_deletion(&dir)?;
    used.tell_if_gone();
    Ok(())
}

/// The names of the symbolic links of a layer, also of a damaged one.
fn names_of(home: &Path, id: &str) -> Result<Vec<OsString>> {
    let written = read_link_name(&home.join(id)).unwrap_or_else(|error| {
        tracing::warn!(layer = id, "{}", error.chain());
        None
    });
    match written {
        // Not if it is the link of another layer.
        Some(name) if leads_to(&home.join(LINKS).join(&name), id) => Ok(vec![OsString::from(name)]),
        _ => links_to(home, id),
    }
}

/// Whether a symbolic link in `l/` is one to the layer.
fn leads_to(link: &Path, id: &str) -> bool {
    let target = rustix::fs::readlink(link, Vec::new());
    target.is_ok_and(|target| layout::parse_link_target(target.as_bytes()) == Some(id))
}

/// The names in `l/` of the symbolic links to a layer.
fn links_to(home: &Path, id: &str) -> Result<Vec<OsString>> {
    let links = read_links(home)?.into_iter();
    let of_layer = links.filter(|(_name, target)| target.as_deref() == Some(id));
    Ok(of_layer.map(|(name, _target)| OsString::from_vec(name)).collect())
}
