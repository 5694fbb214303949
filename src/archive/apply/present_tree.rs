//! The tree that a layer has while a diff for it is unpacked: hard links of the diff may name files in it.
//!
//! A name is looked for as if the diff were merged already: what it has brought hides what the layer has, directories that
//! both have are one, and links of both are followed inside. A whiteout that came before takes its name away; opaque
//! markers have no order, and what one hides can still be linked to.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::metadata::kind;
use crate::archive::apply::settle::literal_dir;
use crate::archive::diff::changes::is_unchanged;
use crate::archive::diff::lowers::is_whiteout;
use crate::archive::path::{MAX_PATH, push, split};
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::sys::{at, xattr};
use crate::whiteout::{self, WhiteoutFormat, WhiteoutName};

const DOING: &str = "looking for the target of a hard link";

/// Symbolic links that are followed for one name.
const MAX_LINKS: usize = 40;

/// Components that are opened for one name: more than a path with links needs that leads anywhere.
const MAX_COMPONENTS: usize = 50_000;

/// See the module's head.
#[derive(Debug)]
pub(crate) struct PresentTree {
    /// The layer's own tree.
    pub(crate) dir: OwnedFd,
    /// How deletions are written in it.
    pub(crate) form: WhiteoutFormat,
    /// Its owners are host IDs of these mappings.
    pub(crate) mappings: IdMappings,
    /// The tree of the layer below with its mappings, where trees are complete: a file that is there, too, and the same, is
    /// not this layer's.
    pub(crate) below: Option<(OwnedFd, IdMappings)>,
    /// Nothing in it can be linked to from where the diff is unpacked, but from where that is copied to.
    pub(crate) is_apart: bool,
}

/// What a name stands for.
pub(crate) enum LinkTarget {
    Missing,
    Directory,
    /// Anything else: the last component of `path` in `dir`.
    File {
        dir: OwnedFd,
        /// Without links.
        path: Vec<u8>,
        stat: Stat,
        /// Only the layer has it, and not what was unpacked.
        of_layer: bool,
    },
}

/// A directory in both trees.
struct Place<'a> {
    roots: [BorrowedFd<'a>; 2],
    /// Without links.
    path: Vec<u8>,
    /// Of what was unpacked, and of the layer.
    dirs: [Option<OwnedFd>; 2],
    /// How many components may still be opened.
    budget: usize,
}

impl Place<'_> {
    /// Links may lead up and down again any number of times.
    fn spend(&mut self, components: usize) -> Result<()> {
        let left = self.budget.checked_sub(components);
        self.budget = left.ok_or(Errno::LOOP).during(DOING)?;
        Ok(())
    }

    fn open(&mut self) -> Result<()> {
        self.spend(self.path.split(|byte| *byte == b'/').count())?;
        for (dir, root) in self.dirs.iter_mut().zip(self.roots) {
            *dir = literal_dir(root, &self.path)?;
        }
        Ok(())
    }

    fn enter(&mut self, name: &[u8]) -> Result<()> {
        self.spend(1)?;
        for dir in &mut self.dirs {
            *dir = match &dir {
                Some(dir) => literal_dir(dir.as_fd(), name)?,
                None => None,
            };
        }
        push(&mut self.path, name);
        Ok(())
    }
}

impl PresentTree {
    /// Looks for the clean path `path`; `unpacked` is the tree of what the archive has brought so far, `marks` what it says
    /// of the layer.
    pub(crate) fn find(
        &self,
        unpacked: BorrowedFd<'_>,
        marks: &LayerMarks,
        path: &[u8],
    ) -> Result<LinkTarget> {
        let mut place = Place {
            roots: [unpacked, self.dir.as_fd()],
            path: Vec::new(),
            dirs: [None, None],
            budget: MAX_COMPONENTS,
        };
        place.open()?;
        let parts = |path: &[u8]| {
            let parts = path
                .rsplit(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."));
            parts.map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let (mut todo, mut links) = (parts(path), 0);
        while let Some(name) = todo.pop() {
            if name == b".." {
                let above = split(&place.path).0.len();
                place.path.truncate(above);
                place.open()?;
                continue;
            }
            let (last, length) = (todo.is_empty(), place.path.len());
            let Some((side, stat)) = self.look(&place, &name)? else {
                return Ok(LinkTarget::Missing);
            };
            match kind(&stat) {
                FileType::Directory => place.enter(&name)?,
                _ if last => {
                    let of_layer = side == 1;
                    let [own, old] = place.dirs;
                    let (Some(dir), mut path) = (if of_layer { old } else { own }, place.path) else {
                        return Ok(LinkTarget::Missing);
                    };
                    push(&mut path, &name);
                    if of_layer && (marks.deletes(&path) || !self.is_own(dir.as_fd(), &path)?) {
                        return Ok(LinkTarget::Missing);
                    }
                    return Ok(LinkTarget::File {
                        dir,
                        path,
                        stat,
                        of_layer,
                    });
                }
                FileType::Symlink => {
                    links += 1;
                    let Some(dir) = place.dirs.get(side).and_then(Option::as_ref) else {
                        return Ok(LinkTarget::Missing);
                    };
                    let target = at::read_link_at(dir.as_fd(), &name).during(DOING)?;
                    if links > MAX_LINKS || target.len() + length > MAX_PATH {
                        return Ok(LinkTarget::Missing);
                    }
                    if target.starts_with(b"/") {
                        place.path.clear();
                        place.open()?;
                    }
                    todo.extend(parts(&target));
                }
                _ => return Ok(LinkTarget::Missing),
            }
        }
        Ok(LinkTarget::Directory)
    }

    /// What is `name` in a place, and in which of the two trees.
    fn look(&self, place: &Place<'_>, name: &[u8]) -> Result<Option<(usize, Stat)>> {
        let [own, old] = &place.dirs;
        if let Some(own) = own
            && let Some(stat) = at::lstat_at(own.as_fd(), name).during(DOING)?
        {
            return Ok(Some((0, stat)));
        }
        // What hides names of the layers below is no file of this one.
        let Some(old) = old
            .as_ref()
            .filter(|_| whiteout::parse(name) == WhiteoutName::None)
        else {
            return Ok(None);
        };
        let stat = at::lstat_at(old.as_fd(), name).during(DOING)?;
        let overlay = matches!(self.form, WhiteoutFormat::Overlay(_));
        Ok(stat
            .filter(|stat| !(overlay && is_whiteout(stat)))
            .map(|stat| (1, stat)))
    }

    /// Whether the layer itself has the file at `path`, which is in its directory `dir`, and not one below.
    fn is_own(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<bool> {
        let (above, name) = split(path);
        if let WhiteoutFormat::Overlay(namespace) = self.form
            && xattr::get_at(dir, name, namespace.metacopy())
                .during(DOING)?
                .is_some()
        {
            return Ok(false);
        }
        let Some((root, mappings)) = &self.below else {
            return Ok(true);
        };
        match literal_dir(root.as_fd(), above)? {
            Some(below) => Ok(!is_unchanged(
                name,
                (dir, &self.mappings),
                (below.as_fd(), mappings),
            )?),
            None => Ok(true),
        }
    }
}
