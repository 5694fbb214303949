//! Merges an unpacked layer into a tree that is there already: into the copy of the tree below it (complete trees), or
//! into what the same layer has got before.
//!
//! A directory merges with a directory and replaces everything else; an entry replaces whatever is there. Links are
//! never followed: a link of the tree is replaced by a directory of the layer like a file is. First the layer's marks
//! are carried out on the tree, then its files are moved there, whole directories where there is none.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::metadata::kind;
use crate::archive::apply::prune::{self, Removal};
use crate::archive::apply::settle::{literal_dir, mark};
use crate::archive::apply::shared_files::Sharing;
use crate::archive::apply::visited::Visited;
use crate::archive::path::{push, show, split};
use crate::error::{Error, IoContext as _, Result, ResultExt as _};
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::{at, tree, xattr};
use crate::whiteout::{self, OVERRIDE_STAT, WhiteoutFormat};

const DOING: &str = "merging the layer into its tree";

/// Nothing depends on what is removed.
struct Replaced;

impl Removal for Replaced {
    fn leaving(&mut self, _: BorrowedFd<'_>, _: &[u8], _: &[u8], _: FileType) -> Result<()> {
        Ok(())
    }
}

/// Moves everything below `from` into the tree `into` of the same file system, in whose form deletions are written.
/// Directories that were there already are no implied ones of `marks` any more. `sharing` tells of files of the layer that
/// get other metadata. With `durable` the names are on disk afterwards.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io); the tree is then neither as before nor as it should be.
pub(crate) fn merge(
    from: BorrowedFd<'_>,
    into: BorrowedFd<'_>,
    form: WhiteoutFormat,
    marks: &mut LayerMarks,
    sharing: Sharing<'_>,
    durable: bool,
) -> Result<()> {
    let mut merger = Merger {
        from: Visited::new(from),
        into: Visited::new(into),
        form,
    };
    merger.carry_out(marks)?;
    let mut todo = vec![Vec::new()];
    if marks.has_root_entry() {
        merger.describe(b"")?;
    } else if let Some(value) = xattr::fget(from, OVERRIDE_STAT).during(DOING)? {
        // With a forced mode every layer says this of its root.
        xattr::fset(into, OVERRIDE_STAT.as_bytes(), &value).during(DOING)?;
    }
    while let Some(path) = todo.pop() {
        merger
            .directory(&path, marks, &mut todo)
            .context(|| format!("merging {}", show(&path)))?;
    }
    let mut sync_tracker = SyncTracker::new(durable);
    sharing.carry_out(&mut merger.into, from, &mut sync_tracker)?;
    merger.into.restore(sync_tracker)
}

struct Merger<'a> {
    from: Visited<'a>,
    into: Visited<'a>,
    form: WhiteoutFormat,
}

impl Merger<'_> {
    /// Removes from the tree what the layer hides.
    fn carry_out(&mut self, marks: &LayerMarks) -> Result<()> {
        for (path, _owner) in marks.deleted() {
            let (parent, name) = split(path);
            let Some(dir) = literal_dir(self.into.root(), parent)? else {
                continue;
            };
            if let Some(there) = at::lstat_at(dir.as_fd(), name).during(DOING)? {
                self.remove(parent, name, &there)?;
            }
        }
        for path in marks.opaque() {
            if path.is_empty() {
                self.clear_root()?;
            } else if literal_dir(self.into.root(), path)?.is_some() {
                let dir = self.into.open(path)?;
                prune::clear(dir, path, &mut Replaced)?;
            }
        }
        Ok(())
    }

    /// Removes everything in the tree but what is being merged into it, which may lie in its root.
    fn clear_root(&mut self) -> Result<()> {
        let from = tree::identity(&rustix::fs::fstat(self.from.root()).during(DOING)?);
        let root = self.into.open(b"")?;
        let names = tree::list_names(root.as_fd(), &mut tree::listing_buffer()).during(DOING)?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let there = at::lstat_at(root.as_fd(), name).during(DOING)?;
            if let Some(there) = there.filter(|there| tree::identity(there) != from) {
                self.remove(b"", name, &there)?;
            }
        }
        Ok(())
    }

    fn remove(&mut self, parent: &[u8], name: &[u8], there: &Stat) -> Result<()> {
        let dir = self.into.open(parent)?;
        let mut path = parent.to_vec();
        push(&mut path, name);
        prune::remove(dir.as_fd(), name, &path, kind(there), &mut Replaced)
    }

    /// Gives a directory of the tree what the layer's entry for it says.
    fn describe(&mut self, path: &[u8]) -> Result<()> {
        let own = literal_dir(self.from.root(), path)?
            .ok_or(Errno::NOENT)
            .during(DOING)?;
        // Before it may be opened up for reading.
        let stat = rustix::fs::fstat(&own).during(DOING)?;
        let (own, there) = (self.from.open(path)?, self.into.open(path)?);
        self.into.describe(path, there.as_fd(), own.as_fd(), &stat)
    }

    /// Moves what the layer has in the directory at `path`, which both have; directories that both have are left to
    /// `todo`.
    fn directory(&mut self, path: &[u8], marks: &mut LayerMarks, todo: &mut Vec<Vec<u8>>) -> Result<()> {
        let (own, there) = (self.from.open(path)?, self.into.open(path)?);
        let names = tree::list_names(own.as_fd(), &mut tree::listing_buffer()).during(DOING)?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut full = path.to_vec();
            push(&mut full, name);
            let stat = |dir| at::lstat_at(dir, name).during(DOING);
            let is_dir = stat(own.as_fd())?.is_some_and(|stat| kind(&stat) == FileType::Directory);
            let mut replaced = self.drop_whiteout(there.as_fd(), name)?;
            if let Some(now) = stat(there.as_fd())? {
                if is_dir && kind(&now) == FileType::Directory {
                    if !marks.is_implied(&full) {
                        self.describe(&full)?;
                    }
                    marks.describe(&full);
                    todo.push(full);
                    continue;
                }
                self.remove(path, name, &now)?;
                replaced = true;
            }
            at::rename_at(own.as_fd(), there.as_fd(), name).during(DOING)?;
            if is_dir && replaced && self.form != WhiteoutFormat::Apply {
                // What was here hid what the layers below have.
                let dir = self.into.open(&full)?;
                mark(dir.as_fd(), self.form)?;
                marks.describe(&full);
            }
        }
        Ok(())
    }

    /// Removes the file that hides `name` from the layers below, if the form has such files; whether there was one.
    fn drop_whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool> {
        if self.form != WhiteoutFormat::Verbatim {
            return Ok(false);
        }
        match rustix::fs::unlinkat(dir, [whiteout::PREFIX, name].concat(), AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(false),
            Err(error) => Err(Error::io(DOING, error)),
        }
    }
}
