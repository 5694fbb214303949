//! What a layer changes: a list of paths that were added, modified or deleted.
//!
//! [`UpperChanges`] reads it off an overlay upper directory, [`TreeComparison`] compares two complete trees, both in
//! steps of bounded length. Neither looks at content: a file counts as modified when its status, link target or attributes differ. The trees' roots
//! are never listed.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use crate::error::{IoContext as _, Result};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, xattr};
use crate::whiteout::{self, Namespace, WhiteoutFormat};

use crate::archive::diff::lowers::{Lowers, is_opaque, is_whiteout};
use crate::archive::diff::walk::{TreeWalk, absolute, in_layer};
use crate::archive::lookup::Lookup;
use crate::archive::path;

/// What happened to a path.
///
/// Serialised as the number that the Go library uses: 0 modified, 1 added, 2 deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It existed before and is different now; also a directory in which something changed.
    Modify,
    /// It is new.
    Add,
    /// It is gone, with everything in it.
    Delete,
}

impl ChangeKind {
    /// The letter that stands for it in listings: `C`, `A` or `D`.
    pub const fn letter(self) -> char {
        match self {
            Self::Modify => 'C',
            Self::Add => 'A',
            Self::Delete => 'D',
        }
    }
}

impl Serialize for ChangeKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(match self {
            Self::Modify => 0,
            Self::Add => 1,
            Self::Delete => 2,
        })
    }
}

impl<'de> Deserialize<'de> for ChangeKind {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Self::Modify),
            1 => Ok(Self::Add),
            2 => Ok(Self::Delete),
            other => Err(D::Error::custom(format_args!("unknown kind of change {other}"))),
        }
    }
}

/// One changed path. Displayed as `C /a`, `A /a` or `D /a`.
///
/// [`Change::path`] is absolute inside the layer. To find the file in a mounted tree, join [`Change::relative`] to the
/// mount point: [`Path::join`] with an absolute path gives that path itself, a file of the host.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Change {
    /// Path from the layer's root, beginning with a slash. Serialised with U+FFFD for what is not UTF-8.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

impl Change {
    /// The path without the slash in front, as seen from the layer's root.
    ///
    /// ```
    /// # fn demo(change: &graphroot::Change, mount_point: &std::path::Path) {
    /// let file = mount_point.join(change.relative());
    /// # }
    /// ```
    pub fn relative(&self) -> &Path {
        self.path.strip_prefix("/").unwrap_or(&self.path)
    }
}

fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.letter(), self.path.display())
    }
}

/// Collects changes, and the directories above them.
#[derive(Default)]
struct List {
    changes: Vec<Change>,
    /// For each directory on the way down, the root excepted, whether it is in the list.
    listed: Vec<bool>,
    /// So many of them from the top are known to be.
    known: usize,
}

impl List {
    fn push(&mut self, path: &[u8], kind: ChangeKind) {
        self.changes.push(Change {
            path: absolute(path),
            kind,
        });
    }

    /// Lists the directories above the walk's current entry that are not listed yet.
    fn push_parents(&mut self, walk: &TreeWalk) {
        for index in self.known..self.listed.len() {
            let listed = self
                .listed
                .get_mut(index)
                .is_none_or(|listed| std::mem::replace(listed, true));
            if !listed {
                // The root is depth 1, the first directory in `listed` depth 2.
                self.push(walk.path_at(index + 2), ChangeKind::Modify);
            }
        }
        self.known = self.listed.len();
    }

    fn enter(&mut self, listed: bool) {
        self.listed.push(listed);
    }

    fn leave_to(&mut self, depth: usize) {
        self.listed.truncate(depth.saturating_sub(1));
        self.known = self.known.min(self.listed.len());
    }
}

/// Equal, or the same second where one of the two file systems keeps only seconds.
fn same_time(a: &Stat, b: &Stat) -> bool {
    a.st_mtime == b.st_mtime
        && (a.st_mtime_nsec == b.st_mtime_nsec || a.st_mtime_nsec == 0 || b.st_mtime_nsec == 0)
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// What an overlay upper directory changes in the trees below. It is found out step by step.
///
/// Directories that are in the upper directory only because something in them was copied up are left out, unless
/// something in them was added or deleted. A directory that was deleted and made anew is there: what it had and has no
/// more is listed as deleted, the rest as added or modified.
pub(crate) struct UpperChanges {
    walk: TreeWalk,
    lowers: Lowers<Vec<OwnedFd>>,
    /// Says which attributes mark opaque directories.
    form: WhiteoutFormat,
    list: List,
    /// For each directory on the way down, the root first, whether it hides what the layers below have in it.
    replaced: Vec<bool>,
}

impl UpperChanges {
    /// Opens the upper directory. `lowers` are the trees below, topmost first.
    pub(crate) fn new(upper: BorrowedFd<'_>, lowers: Vec<OwnedFd>, namespace: Namespace) -> Result<Self> {
        let form = WhiteoutFormat::Overlay(namespace);
        Ok(Self {
            walk: TreeWalk::new(upper)?,
            lowers: Lowers::new(lowers, form),
            form,
            list: List::default(),
            replaced: vec![false],
        })
    }

    /// Looks at some more entries, at most `count`; `false` once all were looked at.
    pub(crate) fn step(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            if !self.walk.next()? {
                return Ok(false);
            }
            self.look()?;
        }
        Ok(true)
    }

    /// All changes, once there is nothing more to look at. Ordered component by component: what is in a directory
    /// follows it at once.
    pub(crate) fn into_changes(mut self) -> Vec<Change> {
        // In order already, but for directories that were listed after something in them.
        self.list.changes.sort_by(|a, b| a.path.cmp(&b.path));
        self.list.changes
    }

    /// Looks at the current entry.
    fn look(&mut self) -> Result<()> {
        let Self {
            walk,
            lowers,
            form,
            list,
            replaced,
        } = self;
        lowers.leave_to(walk.depth());
        list.leave_to(walk.depth());
        replaced.truncate(walk.depth());
        let Some(stat) = walk.stat()? else { return Ok(()) };
        let (dir_path, name) = (walk.dir_path(), walk.name());
        let hidden = replaced.last().is_some_and(|hidden| *hidden);
        let below = lowers.find(dir_path, name)?;
        if is_whiteout(&stat) {
            // A name that nothing below has is none that was deleted. Where everything is hidden it is listed already.
            if below.is_some() && !hidden {
                list.push_parents(walk);
                list.push(walk.path(), ChangeKind::Delete);
            }
            return Ok(());
        }
        let both_dirs = is_dir(&stat) && below.as_ref().is_some_and(is_dir);
        let kind = match &below {
            None => Some(ChangeKind::Add),
            Some(below) => {
                let unchanged = both_dirs && same_directory(&stat, below) && same_attributes(walk, lowers)?;
                (!unchanged).then_some(ChangeKind::Modify)
            }
        };
        if kind == Some(ChangeKind::Add) {
            list.push_parents(walk);
        }
        if let Some(kind) = kind {
            list.push(walk.path(), kind);
        }
        if is_dir(&stat) {
            let opaque =
                is_opaque(walk.dir()?, name, *form).at("reading attributes of", in_layer(walk.path()))?;
            let replaces = both_dirs && (hidden || opaque);
            lowers.enter(dir_path, name, false)?;
            list.enter(kind.is_some());
            replaced.push(replaces);
            // If it is gone, the next round leaves all of these again.
            if walk.enter()? && replaces {
                push_hidden(walk, lowers, list)?;
            }
        }
        Ok(())
    }
}

/// Lists what the layers below have, and the upper tree has not, in the directory that was just entered.
fn push_hidden(walk: &TreeWalk, lowers: &mut Lowers<Vec<OwnedFd>>, list: &mut List) -> Result<()> {
    let dir = walk.dir_path().to_vec();
    for name in lowers.names(&dir)? {
        let mut path = dir.clone();
        path::push(&mut path, &name);
        let own = at::lstat_at(walk.dir()?, &name).at("looking at", in_layer(&path))?;
        if own.is_none_or(|stat| is_whiteout(&stat)) {
            list.push_parents(walk);
            list.push(&path, ChangeKind::Delete);
        }
    }
    Ok(())
}

/// Whether two directories have the same status. Their sizes say nothing.
fn same_directory(new: &Stat, old: &Stat) -> bool {
    new.st_mode == old.st_mode && (new.st_uid, new.st_gid) == (old.st_uid, old.st_gid) && same_time(new, old)
}

/// Whether the walk's current entry, a directory, has the attributes of the one below.
fn same_attributes(walk: &TreeWalk, lowers: &mut Lowers<Vec<OwnedFd>>) -> Result<bool> {
    let name = walk.name();
    let what = in_layer(walk.path());
    let Some(below) = lowers.open(walk.dir_path(), name)? else {
        return Ok(false);
    };
    let own = compared_attributes(walk.dir()?, name).at("reading attributes of", what)?;
    let old = compared_attributes(below.as_fd(), b".").at("reading attributes of", what)?;
    Ok(own == old)
}

/// One of two trees that are compared, and whose owners it has.
#[derive(Clone, Copy)]
pub(crate) struct ComparedTree<'a> {
    /// The tree's root.
    pub(crate) root: BorrowedFd<'a>,
    /// Its owners are host IDs of these mappings.
    pub(crate) mappings: &'a IdMappings,
}

/// What has to be done to the tree `old` (nothing: the empty tree) to make it look like `new`; owners are compared
/// as the container sees them. It is found out step by step.
///
/// A directory that both trees have, the very same inode, is not looked into.
pub(crate) struct TreeComparison {
    /// Always as deep as `old`.
    new: TreeWalk,
    old: TreeWalk,
    new_mappings: IdMappings,
    old_mappings: IdMappings,
    list: List,
    /// The inode numbers at which the trees can differ, if that is known.
    differing: Option<HashSet<u64>>,
}

impl TreeComparison {
    /// Opens the two trees.
    pub(crate) fn new(new: ComparedTree<'_>, old: Option<ComparedTree<'_>>) -> Result<Self> {
        let old_walk = match old {
            Some(old) => TreeWalk::new(old.root)?,
            None => TreeWalk::empty(),
        };
        Ok(Self {
            new: TreeWalk::new(new.root)?,
            old: old_walk,
            new_mappings: new.mappings.clone(),
            old_mappings: old.map(|old| old.mappings.clone()).unwrap_or_default(),
            list: List::default(),
            differing: None,
        })
    }

    /// Looks only at these inode numbers: what has another one, and the same in both trees, is the same with everything in it.
    /// Both trees have the same mappings.
    pub(crate) fn look_only_at(&mut self, differing: HashSet<u64>) {
        self.differing = Some(differing);
    }

    /// Compares some more entries, about `count`; `false` once all are compared.
    pub(crate) fn step(&mut self, count: usize) -> Result<bool> {
        for _ in 0..count {
            let side = match (self.new.peek(), self.old.peek()) {
                (Some(new), Some(old)) => new.cmp(old),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) if self.new.depth() == 1 => return Ok(false),
                (None, None) => {
                    self.new.leave()?;
                    self.old.leave()?;
                    self.list.leave_to(self.new.depth());
                    continue;
                }
            };
            if side.is_eq() && self.is_known_to_be_equal() {
                self.new.advance();
                self.old.advance();
            } else {
                self.compare(side)?;
            }
        }
        Ok(true)
    }

    /// Whether the next entry, which has the same name in both trees, needs no comparison.
    fn is_known_to_be_equal(&self) -> bool {
        let Some(differing) = &self.differing else {
            return false;
        };
        let inode = self.new.peek_inode();
        inode == self.old.peek_inode() && inode.is_some_and(|inode| !differing.contains(&inode))
    }

    /// All changes, once there is no more to compare, sorted by the bytes of the path.
    pub(crate) fn into_changes(mut self) -> Vec<Change> {
        let key = |change: &Change| change.path.as_os_str().as_bytes().to_vec();
        self.list.changes.sort_by_cached_key(key);
        self.list.changes
    }

    /// Compares the next entry of the one walk, the other or (`Equal`) both.
    fn compare(&mut self, side: Ordering) -> Result<()> {
        let new_stat = if side.is_le() && self.new.advance() {
            self.new.stat()?
        } else {
            None
        };
        let old_stat = if side.is_ge() && self.old.advance() {
            self.old.stat()?
        } else {
            None
        };
        let kind = match (&new_stat, &old_stat) {
            (Some(_), None) => ChangeKind::Add,
            (None, Some(_)) => ChangeKind::Delete,
            // Gone while it was being looked at.
            (None, None) => return Ok(()),
            (Some(new), Some(old)) => {
                if is_dir(new) && is_dir(old) && (new.st_dev, new.st_ino) == (old.st_dev, old.st_ino) {
                    return Ok(());
                }
                ChangeKind::Modify
            }
        };
        let listed = match (&new_stat, &old_stat) {
            (Some(new), Some(old)) => {
                !same_owner(new, &self.new_mappings, old, &self.old_mappings)
                    || !same_status(new, old)
                    || !same_details(&self.new, &self.old, new)?
            }
            _ => true,
        };
        if listed {
            // The walk that has the entry knows the path; the directories above are the same in both.
            let walk = if new_stat.is_some() { &self.new } else { &self.old };
            self.list.push_parents(walk);
            self.list.push(walk.path(), kind);
        }
        if new_stat.as_ref().is_some_and(is_dir) && self.new.enter()? {
            if !(old_stat.as_ref().is_some_and(is_dir) && self.old.enter()?) {
                self.old.enter_empty();
            }
            self.list.enter(listed);
        }
        Ok(())
    }
}

fn same_owner(new: &Stat, new_maps: &IdMappings, old: &Stat, old_maps: &IdMappings) -> bool {
    let new = Owner {
        uid: new.st_uid,
        gid: new.st_gid,
    };
    let old = Owner {
        uid: old.st_uid,
        gid: old.st_gid,
    };
    match (new_maps.to_container(new), old_maps.to_container(old)) {
        (Ok(new), Ok(old)) => new == old,
        // Owners that no container can have are compared as they are.
        (Ok(new), Err(_unmapped)) => new == old,
        (Err(_unmapped), _) => new == old,
    }
}

fn same_status(new: &Stat, old: &Stat) -> bool {
    new.st_mode == old.st_mode
        && new.st_rdev == old.st_rdev
        && same_time(new, old)
        // The size of a directory says nothing.
        && (is_dir(new) || new.st_size == old.st_size)
}

/// Compares what takes more calls: link target, attributes.
fn same_details(new: &TreeWalk, old: &TreeWalk, stat: &Stat) -> Result<bool> {
    let same = same_content(new.name(), new.dir()?, old.dir()?, stat);
    same.at("reading links and attributes of", in_layer(new.path()))
}

fn same_content(
    name: &[u8],
    new: BorrowedFd<'_>,
    old: BorrowedFd<'_>,
    stat: &Stat,
) -> rustix::io::Result<bool> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
        && at::read_link_at(new, name)? != at::read_link_at(old, name)?
    {
        return Ok(false);
    }
    Ok(compared_attributes(new, name)? == compared_attributes(old, name)?)
}

/// Whether the file `name` of a directory is as it is in an older one, as a comparison of whole trees would find it.
pub(crate) fn is_unchanged(
    name: &[u8],
    (new, new_mappings): (BorrowedFd<'_>, &IdMappings),
    (old, old_mappings): (BorrowedFd<'_>, &IdMappings),
) -> Result<bool> {
    let doing = "comparing a file with that of the layer below";
    let stats = (at::lstat_at(new, name), at::lstat_at(old, name));
    let (Some(new_stat), Some(old_stat)) = (stats.0.during(doing)?, stats.1.during(doing)?) else {
        return Ok(false);
    };
    Ok(same_owner(&new_stat, new_mappings, &old_stat, old_mappings)
        && same_status(&new_stat, &old_stat)
        && same_content(name, new, old, &new_stat).during(doing)?)
}

/// The attributes that count as content, sorted by name.
fn compared_attributes(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<(String, Vec<u8>)>> {
    let mut names = xattr::list_at(dir, name)?;
    // What is kept for lack of room elsewhere is in the status already.
    names.retain(|name| {
        name == "security.capability"
            || (name.starts_with("user.") && !whiteout::is_driver_attribute(name.as_bytes()))
    });
    names.sort_unstable();
    let mut attributes = Vec::with_capacity(names.len());
    for attribute in names {
        if let Some(value) = xattr::get_at(dir, name, &attribute)? {
            attributes.push((attribute, value));
        }
    }
    Ok(attributes)
}

/// Files that were counted and may come again under another name, by device and inode.
pub(crate) type Counted = HashSet<(u64, u64)>;

/// The sizes of everything added or modified in the tree `new`, directories excepted; a file with several names
/// counts once, one that cannot be looked at not at all. Of a list in parts, `seen` goes from part to part.
pub(crate) fn changes_size(new: BorrowedFd<'_>, changes: &[Change], seen: &mut Counted) -> u64 {
    let mut lookup = Lookup::new(new);
    let mut size = 0u64;
    for change in changes.iter().filter(|change| change.kind != ChangeKind::Delete) {
        let bytes = change.path.as_os_str().as_bytes();
        let (dir, name) = path::split(bytes.strip_prefix(b"/").unwrap_or(bytes));
        let stat = match lookup.dir(dir) {
            Ok(None) => Ok(None),
            Ok(Some(dir)) => at::lstat_at(dir, name),
            Err(error) => Err(error),
        };
        let stat = match stat {
            Ok(Some(stat)) => stat,
            Ok(None) => continue,
            Err(error) => {
                tracing::warn!(path = %change.path.display(), %error, "cannot tell the size of a changed file");
                continue;
            }
        };
        if !is_dir(&stat) && (stat.st_nlink < 2 || seen.insert((stat.st_dev, stat.st_ino))) {
            size = size.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
    }
    size
}
