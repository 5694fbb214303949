//! The walk through two trees, of which one is made to show what the other does, or is compared with it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use rustix::fs::Stat;
use rustix::io::Errno;

use crate::driver::copy_entry::{Attributes, Failure, Result, Rules, Worker, parent_length};
use crate::driver::update::frame::{Aim, Base, End, Frame, open_up, reopen};
use crate::driver::update::links::{Identity, regrouped};
use crate::driver::update::trees::{
    Loss, MAX_LOSSES, NewTree, OwnFiles, Remap, Remaps, ShownTree, with_owner,
};
use crate::driver::update::trial::Trial;
use crate::error::Result as CrateResult;
use crate::sys::at;
use crate::sys::tree::{self, DirStack};
use crate::whiteout::WhiteoutFormat;

/// How often an entry that is another one every time is looked at anew.
const MAX_TRIES: usize = 100;

/// A walk; see the module's head.
pub(super) struct Walk<'a> {
    pub(super) shown: &'a ShownTree,
    pub(super) aim: &'a Aim<'a>,
    pub(super) remaps: &'a Remaps,
    pub(super) worker: Worker<'a>,
    pub(super) from: DirStack,
    /// What is written; unused in a comparison.
    pub(super) to: DirStack,
    /// What the new tree shows so far, or the one that is compared.
    pub(super) base: DirStack,
    /// What the two layers have changed.
    pub(super) own: DirStack,
    pub(super) theirs: DirStack,
    pub(super) frames: Vec<Frame>,
    /// Of the current entry, from the root.
    pub(super) path: Vec<u8>,
    /// Files whose names do not belong together in the base, if that was looked into.
    pub(super) regrouped: Option<HashSet<Identity>>,
    /// How many names of files were met, and how many there are.
    pub(super) names_met: HashMap<Identity, (u64, u64)>,
    ignored: Option<Identity>,
    buffer: Vec<MaybeUninit<u8>>,
    pub(super) end: End,
    /// What the layers have changed does not tell everything: everything has to be looked at.
    pub(super) falls_short: bool,
}

/// Walks through the trees of `shown` and `aim`. With `may_skip` what the layers have not changed is passed over where that
/// is possible.
pub(super) fn run(shown: &ShownTree, aim: &Aim<'_>, remaps: &Remaps, may_skip: bool) -> CrateResult<End> {
    let is_complete = |own: &OwnFiles| own.complete;
    let rules = match aim {
        Aim::Update(new) => Rules {
            attributes: Attributes::None,
            ignore_owners: new.tree.ignore_chown_errors,
            forced_mode: new.tree.force_mask,
            counts_names: shown.counts_names,
            ..Rules::new()
        },
        Aim::Compare(..) => Rules::new(),
    };
    let mut changes_only = may_skip && shown.own.as_ref().is_some_and(is_complete);
    loop {
        let mut path = Vec::new();
        let walked = Walk::new(shown, aim, remaps, &rules, changes_only).and_then(|mut walk| {
            let walked = walk.all();
            path.clone_from(&walk.path);
            walked.map(|()| walk)
        });
        let walk = walked.map_err(|failure| {
            let path = String::from_utf8_lossy(&path);
            failure.into_error(format!("comparing and copying \"/{path}\""))
        })?;
        if walk.falls_short() && changes_only {
            changes_only = false;
            continue;
        }
        if let Aim::Update(new) = aim {
            walk.worker.sync_tracker.commit(new.tree.dir.as_fd())?;
        }
        return Ok(walk.end);
    }
}

impl<'a> Walk<'a> {
    fn new(
        shown: &'a ShownTree,
        aim: &'a Aim<'a>,
        remaps: &'a Remaps,
        rules: &'a Rules<'a>,
        changes_only: bool,
    ) -> Result<Self> {
        let root = shown.root.as_fd();
        let (to, base, theirs, durable) = match aim {
            Aim::Update(new) => {
                let tree = new.tree.dir.as_fd();
                let base = match new.tree.whiteouts {
                    WhiteoutFormat::Apply => Some(tree),
                    _ => new.below,
                };
                (tree, base, None, new.durable)
            }
            Aim::Compare(other, _) => (root, Some(other.root.as_fd()), other.own.as_ref(), false),
        };
        let regrouped = match base {
            Some(base) if !changes_only => Some(regrouped(root, base, shown.counts_names)?),
            Some(_) => None,
            None => Some(HashSet::new()),
        };
        let ignored = match aim {
            Aim::Update(NewTree {
                ignored: Some(dir), ..
            }) => Some(tree::identity(&rustix::fs::fstat(dir)?)),
            _ => None,
        };
        let stack = |dir: Option<BorrowedFd<'_>>| reopen(dir.unwrap_or(root)).map(DirStack::new);
        let own = shown.own.as_ref().map(|own| own.dir.as_fd());
        let theirs = theirs.map(|own| own.dir.as_fd());
        let mut walk = Self {
            shown,
            aim,
            remaps,
            worker: Worker::new(rules, to, durable),
            from: stack(Some(root))?,
            to: stack(Some(to))?,
            base: stack(base)?,
            own: stack(own)?,
            theirs: stack(theirs)?,
            frames: Vec::new(),
            path: Vec::new(),
            regrouped,
            names_met: HashMap::new(),
            ignored,
            buffer: tree::listing_buffer(),
            end: End::default(),
            falls_short: false,
        };
        let stat = rustix::fs::fstat(root)?;
        let is_own = own.is_some() || shown.own.is_none();
        let mut frame = Frame {
            names: Vec::new(),
            stat: with_owner(&stat, walk.remap(is_own)),
            is_own,
            has_base: base.is_some(),
            has_own: own.is_some(),
            has_theirs: theirs.is_some(),
            changes_only,
            is_same: false,
            is_opaque: false,
            is_touched: true,
        };
        frame.names = walk.list(&frame)?;
        if walk.is_update() {
            open_up(walk.to.current()?)?;
        }
        if matches!(aim, Aim::Compare(..)) {
            let remap = walk.base_remap(true);
            let base = Base {
                stat: with_owner(&rustix::fs::fstat(walk.base.current()?)?, remap),
                remap,
            };
            if !walk.is_same_entry(c".", &frame.stat, &base, is_own)? {
                walk.differs();
            }
        }
        walk.frames.push(frame);
        Ok(walk)
    }

    /// Whether the source and not a layer below it has a file: which owner it gets.
    pub(super) fn remap(&self, is_own: bool) -> &'a Remap {
        match is_own {
            true => &self.remaps.own,
            false => &self.remaps.below,
        }
    }

    /// The same for the base.
    fn base_remap(&self, is_own: bool) -> &'a Remap {
        let is_own = match self.aim {
            Aim::Update(_) => false,
            Aim::Compare(other, _) => is_own || other.own.is_none(),
        };
        match is_own {
            true => &self.remaps.base_own,
            false => &self.remaps.base,
        }
    }

    pub(super) fn is_update(&self) -> bool {
        matches!(self.aim, Aim::Update(_))
    }

    /// How deletions are written in the tree that is written or compared.
    pub(super) fn form(&self) -> WhiteoutFormat {
        match self.aim {
            Aim::Update(new) => new.tree.whiteouts,
            Aim::Compare(other, _) => {
                let own = other.own.as_ref();
                own.map_or(WhiteoutFormat::Apply, |own| own.whiteouts)
            }
        }
    }

    /// Where is tried out what a compared tree can have.
    pub(super) fn trial(&self) -> Option<&'a Trial> {
        match self.aim {
            Aim::Update(_) => None,
            Aim::Compare(_, trial) => *trial,
        }
    }

    /// The new tree, while one is written.
    fn new_tree(&self) -> Option<&NewTree<'a>> {
        match self.aim {
            Aim::Update(new) => Some(new),
            Aim::Compare(..) => None,
        }
    }

    /// A failure to set an owner is no error.
    pub(super) fn ignores_owners(&self) -> bool {
        self.new_tree().is_some_and(|new| new.tree.ignore_chown_errors)
    }

    /// Owners go into an attribute.
    pub(super) fn keeps_owners_apart(&self) -> bool {
        self.new_tree().is_some_and(|new| new.tree.force_mask.is_some())
    }

    pub(super) fn in_user_namespace(&self) -> bool {
        match self.aim {
            Aim::Update(new) => new.tree.in_user_namespace,
            Aim::Compare(other, _) => other.in_user_namespace,
        }
    }

    /// The current directory of what the source has changed, if it is there.
    pub(super) fn own_dir(&self) -> Result<Option<OwnedFd>> {
        match self.frames.last() {
            Some(frame) if frame.has_own => Ok(Some(reopen(self.own.current()?)?)),
            _ => Ok(None),
        }
    }

    pub(super) fn frame(&mut self) -> Option<&mut Frame> {
        self.frames.last_mut()
    }

    /// Notes a difference, or that something is written.
    pub(super) fn differs(&mut self) {
        if !self.is_update() && self.end.difference.is_none() {
            let path = std::ffi::OsString::from_vec(self.path.clone());
            self.end.difference = Some(PathBuf::from("/").join(path));
        }
        if let Some(frame) = self.frame() {
            frame.is_touched = true;
        }
    }

    pub(super) fn lose(&mut self, what: impl Into<String>) {
        if self.end.losses.len() < MAX_LOSSES {
            let path = PathBuf::from("/").join(std::ffi::OsString::from_vec(self.path.clone()));
            let what = what.into();
            self.end.losses.push(Loss { path, what });
        }
    }

    /// Whether something was passed over that should not have been.
    fn falls_short(&self) -> bool {
        self.falls_short || self.names_met.values().any(|(met, names)| met < names)
    }

    /// The names to look at in a directory in which the walks are, the last ones first.
    pub(super) fn list(&mut self, frame: &Frame) -> Result<Vec<CString>> {
        let mut dirs = Vec::new();
        if !frame.changes_only {
            dirs.push(self.from.current()?);
        }
        if !frame.changes_only && frame.has_base {
            dirs.push(self.base.current()?);
        }
        if frame.changes_only && frame.has_own {
            dirs.push(self.own.current()?);
        }
        if frame.changes_only && frame.has_theirs {
            dirs.push(self.theirs.current()?);
        }
        let mut found = BTreeSet::new();
        for dir in dirs {
            let mut names = match tree::list_names(dir, &mut self.buffer) {
                // Deleted meanwhile.
                Err(Errno::NOENT) => continue,
                names => names?,
            };
            while let Some(name) = tree::last_name(&names) {
                found.insert(name.to_owned());
                tree::pop_name(&mut names);
            }
        }
        Ok(found.into_iter().rev().collect())
    }

    fn all(&mut self) -> Result<()> {
        while !self.falls_short && self.end.difference.is_none() {
            let Some(frame) = self.frames.last_mut() else {
                return Ok(());
            };
            match frame.names.pop() {
                Some(name) => {
                    let length = self.path.len();
                    if length > 0 {
                        self.path.push(b'/');
                    }
                    self.path.extend_from_slice(name.to_bytes());
                    let depth = self.frames.len();
                    self.look(&name)?;
                    if self.frames.len() == depth {
                        self.path.truncate(length);
                    }
                }
                None => {
                    self.leave()?;
                    self.path.truncate(parent_length(&self.path));
                }
            }
        }
        Ok(())
    }

    /// Looks at an entry of the current directory, and anew if it has become another one meanwhile.
    fn look(&mut self, name: &CStr) -> Result<()> {
        let mut last = Failure::from(Errno::AGAIN);
        for _ in 0..MAX_TRIES {
            let shown = at::lstat_at(self.from.current()?, name.to_bytes())?;
            let looked = self.look_at(name, shown);
            if shown.as_ref().is_none_or(tree::is_directory) {
                match looked? {
                    true => return Ok(()),
                    false => continue,
                }
            }
            match looked {
                Err(failure) if self.has_changed(name, shown.as_ref())? => last = failure,
                looked => return looked.map(drop),
            }
            if self.is_update() {
                self.clear(name)?;
            }
        }
        Err(last)
    }

    /// Whether the source has another entry of this name than before.
    pub(super) fn has_changed(&self, name: &CStr, before: Option<&Stat>) -> Result<bool> {
        let now = at::lstat_at(self.from.current()?, name.to_bytes())?;
        let of = |stat: &Stat| (tree::identity(stat), stat.st_ctime, stat.st_ctime_nsec);
        Ok(now.as_ref().map(of) != before.map(of))
    }

    /// Looks at an entry of which the source has this status; `false` if it is a directory that is gone before anything was done.
    fn look_at(&mut self, name: &CStr, shown: Option<Stat>) -> Result<bool> {
        let Some(&Frame {
            has_base,
            has_own,
            has_theirs,
            ..
        }) = self.frames.last()
        else {
            return Ok(true);
        };
        let status = |dirs: &DirStack| at::lstat_at(dirs.current()?, name.to_bytes());
        let base = if has_base { status(&self.base)? } else { None };
        if base.is_some() && base.as_ref().map(tree::identity) == self.ignored {
            return Ok(true);
        }
        let own = if has_own { status(&self.own)? } else { None };
        let theirs = if has_theirs { status(&self.theirs)? } else { None };
        let is_own = own.is_some() || self.shown.own.is_none();
        let Some(shown) = shown else {
            if base.is_some() {
                self.remove(name)?;
            }
            return Ok(true);
        };
        let stat = with_owner(&shown, self.remap(is_own));
        let base_remap = self.base_remap(theirs.is_some());
        let base = base.map(|base| Base {
            stat: with_owner(&base, base_remap),
            remap: base_remap,
        });
        if tree::is_directory(&stat) {
            self.enter(name, &stat, base.as_ref(), is_own)
        } else {
            self.single(name, &stat, base.as_ref(), is_own).map(|()| true)
        }
    }

    /// The number of the current entry's names that are met, where only changes are looked at.
    pub(super) fn meet(&mut self, stat: &Stat) {
        if stat.st_nlink > 1 && self.shown.counts_names {
            let counted = self.names_met.entry(tree::identity(stat)).or_default();
            *counted = (counted.0 + 1, stat.st_nlink);
        }
    }
}
