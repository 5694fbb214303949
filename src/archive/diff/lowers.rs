//! What lies below one layer's own tree: the trees of the layers under it, merged by overlayfs' rules.
//!
//! [`Lowers`] goes down together with a walk of the upper tree and knows for each directory in which of the lower
//! trees it exists and shows through. That ends at the first tree where the name is a whiteout, no directory, or an
//! opaque directory, and at once below an opaque directory of the upper tree. So one lookup is one `fstatat` per tree
//! that matters, with no links followed, and most directories of an upper tree matter in one or two trees only.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, Stat};
use rustix::io::Errno;

use crate::error::{IoContext as _, Result};
use crate::sys::{at, tree, xattr};
use crate::whiteout::{self, OPAQUE, OPAQUE_VALUE, PREFIX, WhiteoutFormat};

use crate::archive::diff::walk::{in_layer, name_in_layer};
use crate::archive::lookup::open_dir;

/// Trees of which the current directory stays open; the others are looked into by path.
const MAX_OPEN: usize = 64;

/// Whether it is overlayfs' mark for a deleted name.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Whether a file in `dir` hides `name` of the layers below; overlayfs has no such files.
pub(crate) fn is_hidden(dir: BorrowedFd<'_>, name: &[u8], form: WhiteoutFormat) -> rustix::io::Result<bool> {
    if form != WhiteoutFormat::Verbatim {
        return Ok(false);
    }
    match at::lstat_at(dir, &[PREFIX, name].concat()) {
        Ok(found) => Ok(found.is_some()),
        Err(Errno::NAMETOOLONG) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the directory `name` in `dir` hides what is below it.
pub(crate) fn is_opaque(dir: BorrowedFd<'_>, name: &[u8], form: WhiteoutFormat) -> rustix::io::Result<bool> {
    let marked = |attribute| match xattr::get_at(dir, name, attribute) {
        Ok(value) => Ok(value.as_deref() == Some(OPAQUE_VALUE)),
        // Gone meanwhile.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error),
    };
    match form {
        WhiteoutFormat::Apply => Ok(false),
        WhiteoutFormat::Overlay(namespace) => marked(namespace.opaque()),
        WhiteoutFormat::Verbatim => {
            for attribute in whiteout::PROGRAM_OPAQUE {
                if marked(attribute)? {
                    return Ok(true);
                }
            }
            match at::lstat_at(dir, &[name, b"/", OPAQUE].concat()) {
                Ok(found) => Ok(found.is_some()),
                Err(Errno::NOTDIR) => Ok(false),
                Err(error) => Err(error),
            }
        }
    }
}

/// The lower trees, seen from one directory.
pub(crate) struct Lowers<T> {
    trees: T,
    form: WhiteoutFormat,
    /// For each directory on the way down the indexes of the trees that show through in it, topmost first.
    levels: Vec<Vec<usize>>,
    /// The current directory in the first of these trees, if `open_at` is its level.
    open: Vec<OwnedFd>,
    open_at: usize,
}

impl<T: AsRef<[OwnedFd]>> Lowers<T> {
    /// Starts in the root, which is never opaque.
    pub(crate) fn new(trees: T, form: WhiteoutFormat) -> Self {
        let levels = vec![(0..trees.as_ref().len()).collect()];
        Self {
            trees,
            form,
            levels,
            open: Vec::new(),
            open_at: 0,
        }
    }

    /// Goes back up until `depth` directories deep (1 is the root).
    pub(crate) fn leave_to(&mut self, depth: usize) {
        self.levels.truncate(depth.max(1));
    }

    /// What the layers below show as `name` in the current directory, whose path is `dir`.
    pub(crate) fn find(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<Stat>> {
        let form = self.form;
        self.visit(dir, |_, below| {
            let what = name_in_layer(dir, name);
            let stat = at::lstat_at(below, name);
            match stat.at("looking below the layer at", what)? {
                Some(stat) => Ok(Some((!is_whiteout(&stat)).then_some(stat))),
                None => {
                    let hidden = is_hidden(below, name, form).at("looking below the layer at", what)?;
                    Ok(hidden.then_some(None))
                }
            }
        })
        .map(Option::flatten)
    }

    /// Opens the directory that the layers below show as `name` in the current directory, whose path is `dir`: the
    /// topmost one, from which they take its owner, mode, times and attributes. `None` if they show none.
    pub(crate) fn open(&mut self, dir: &[u8], name: &[u8]) -> Result<Option<OwnedFd>> {
        let form = self.form;
        self.visit(dir, |_, below| match open_lower(below, dir, name, form)? {
            Lower::Directory(opened) => Ok(Some(Some(opened))),
            Lower::Nothing => Ok(None),
            Lower::Hides => Ok(Some(None)),
        })
        .map(Option::flatten)
    }

    /// Whether any of the trees shows through in the current directory.
    pub(crate) fn shows(&self) -> bool {
        self.levels.last().is_some_and(|showing| !showing.is_empty())
    }

    /// The names that the layers below show in the current directory, whose path is `dir`, sorted.
    pub(crate) fn names(&mut self, dir: &[u8]) -> Result<Vec<Vec<u8>>> {
        let form = self.form;
        let mut seen: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
        let mut buffer = tree::listing_buffer();
        self.visit(dir, |_, below| {
            let what = in_layer(dir);
            let listed = rustix::fs::openat(below, ".", tree::DIR_FLAGS, Mode::empty())
                .and_then(|opened| tree::list_names(opened.as_fd(), &mut buffer))
                .at("listing below the layer", what)?;
            let mut hidden = Vec::new();
            for name in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                match name.strip_prefix(PREFIX) {
                    Some(name) if form == WhiteoutFormat::Verbatim => hidden.push(name.to_vec()),
                    _ if seen.contains_key(name) => {}
                    _ => {
                        let stat = at::lstat_at(below, name).at("looking below the layer at", what)?;
                        seen.insert(name.to_vec(), stat.is_some_and(|stat| !is_whiteout(&stat)));
                    }
                }
            }
            for name in hidden {
                seen.entry(name).or_insert(false);
            }
            Ok(None::<()>)
        })?;
        Ok(seen
            .into_iter()
            .filter_map(|(name, there)| there.then_some(name))
            .collect())
    }

    /// Goes down into `name` of the current directory, whose path is `dir`; `opaque` says that the upper tree's
    /// directory hides what is below it.
    pub(crate) fn enter(&mut self, dir: &[u8], name: &[u8], opaque: bool) -> Result<()> {
        let mut showing = Vec::new();
        let mut open = Vec::new();
        if !opaque {
            let form = self.form;
            self.visit(dir, |index, below| {
                let opened = match open_lower(below, dir, name, form)? {
                    Lower::Directory(opened) => opened,
                    Lower::Nothing => return Ok(None),
                    Lower::Hides => return Ok(Some(())),
                };
                let opaque = is_opaque(below, name, form)
                    .at("looking below the layer at", name_in_layer(dir, name))?;
                showing.push(index);
                if open.len() < MAX_OPEN {
                    open.push(opened);
                }
                Ok(opaque.then_some(()))
            })?;
        }
        self.levels.push(showing);
        self.open = open;
        self.open_at = self.levels.len() - 1;
        Ok(())
    }

    /// Calls `look` with the directory `dir` in each tree that shows through in it, until it returns something.
    fn visit<Found>(
        &mut self,
        dir: &[u8],
        mut look: impl FnMut(usize, BorrowedFd<'_>) -> Result<Option<Found>>,
    ) -> Result<Option<Found>> {
        let level = self.levels.len() - 1;
        let Some(showing) = self.levels.last() else {
            return Ok(None);
        };
        if self.open_at != level {
            self.open.clear();
            self.open_at = level;
        }
        for (position, index) in showing.iter().enumerate() {
            let Some(tree) = self.trees.as_ref().get(*index) else {
                continue;
            };
            let tree = tree.as_fd();
            let temporary;
            let below = if level == 0 {
                tree
            } else if let Some(below) = self.open.get(position) {
                below.as_fd()
            } else {
                let opened = open_dir(tree, dir).at("opening directory below the layer", in_layer(dir))?;
                if position == self.open.len() && position < MAX_OPEN {
                    self.open.push(opened);
                    match self.open.last() {
                        Some(opened) => opened.as_fd(),
                        None => continue,
                    }
                } else {
                    temporary = opened;
                    temporary.as_fd()
                }
            };
            if let Some(found) = look(*index, below)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

/// A name in one of the trees.
enum Lower {
    Directory(OwnedFd),
    Nothing,
    /// It is no directory, or deleted: the trees further down do not show through.
    Hides,
}

fn open_lower(below: BorrowedFd<'_>, dir: &[u8], name: &[u8], form: WhiteoutFormat) -> Result<Lower> {
    let what = name_in_layer(dir, name);
    match at::open_dir_at(below, name) {
        Ok(opened) => Ok(Lower::Directory(opened)),
        Err(Errno::NOENT) => {
            let hidden = is_hidden(below, name, form).at("looking below the layer at", what)?;
            Ok(if hidden { Lower::Hides } else { Lower::Nothing })
        }
        Err(Errno::NOTDIR | Errno::LOOP) => Ok(Lower::Hides),
        Err(error) => Err(error).at("opening directory below the layer", what),
    }
}
