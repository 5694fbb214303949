//! Files that a layer had before and to which hard links of a diff lead.
//!
//! The header of a hard link describes the file that it shares. The layer stays as it is until it gets its new tree, so
//! what headers say of its files is collected while the diff is unpacked and carried out when it is merged. A tree that
//! is a copy of the layer's shares files with it: there a file that is to change is replaced, under all of its names, by a
//! copy. So is, in the layer's own tree, a file that other layers have, too.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Stat, Uid};
use rustix::io::Errno;

use crate::archive::apply::metadata::{Rules, chmod_node, kind};
use crate::archive::apply::new_file::copy_file;
use crate::archive::apply::settle::literal_dir;
use crate::archive::apply::visited::{Visited, ignore_unsupported, times_of};
use crate::archive::path::{push, show, split};
use crate::archive::tar::reader::Entry;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::Owner;
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::{at, tree, xattr};

const DOING: &str = "changing a file that hard links share";

/// How much memory names and headers may take.
const MAX_SIZE: usize = 128 << 20;

/// What a name or a header takes besides its text.
const ITEM_SIZE: usize = 256;

/// Device and inode.
type Identity = (u64, u64);

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SharedFiles {
    files: BTreeMap<Identity, SharedFile>,
    /// Copies that stand for files of the layer where those cannot be linked to, and which.
    stand_ins: BTreeMap<Identity, Identity>,
    /// How headers are carried out.
    rules: Option<Rules>,
    size: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SharedFile {
    /// Names in the layer by which it was found.
    paths: BTreeSet<Vec<u8>>,
    /// What headers say of it, with the owner in the tree.
    headers: Vec<(Entry, Owner)>,
}

/// How the tree into which a diff is merged has the files that it shares with the layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing<'a> {
    pub(crate) files: &'a SharedFiles,
    /// The tree is the layer's; else it is a copy, and what is in the layer's own must not change.
    pub(crate) in_place: bool,
}

impl SharedFiles {
    /// Notes that a hard link leads to the file at `path` of the layer.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArchive`] for too many of them.
    pub(crate) fn add(&mut self, identity: Identity, path: Vec<u8>) -> Result<()> {
        let size = path.len();
        if self.files.entry(identity).or_default().paths.insert(path) {
            self.count(size)?;
        }
        Ok(())
    }

    fn count(&mut self, size: usize) -> Result<()> {
        self.size = self.size.saturating_add(size + ITEM_SIZE);
        if self.size > MAX_SIZE {
            return Err(
                ErrorKind::InvalidArchive.err("more hard links to files of the layer than a diff may have")
            );
        }
        Ok(())
    }

    /// Notes that the copy with the identity `copy` stands for a file of the layer.
    ///
    /// # Errors
    /// As [`SharedFiles::add`].
    pub(crate) fn stand_in(&mut self, copy: Identity, identity: Identity) -> Result<()> {
        if self.stand_ins.insert(copy, identity).is_none() {
            self.count(0)?;
        }
        Ok(())
    }

    /// The file of the layer that a file stands for, or the file.
    fn meant(&self, identity: Identity) -> Identity {
        self.stand_ins.get(&identity).copied().unwrap_or(identity)
    }

    /// Whether it is a file of the layer, or stands for one.
    pub(crate) fn has(&self, identity: Identity) -> bool {
        !self.files.is_empty() && self.files.contains_key(&self.meant(identity))
    }

    /// Puts hard links to files of the layer in the places of the copies that stand for them: in `moved`, a copy of what was
    /// unpacked to `unpacked`, which is in the tree `into`.
    ///
    /// # Errors
    /// As [`SharedFiles::check`].
    pub(crate) fn link_up(
        &self,
        unpacked: BorrowedFd<'_>,
        moved: BorrowedFd<'_>,
        into: BorrowedFd<'_>,
    ) -> Result<()> {
        if self.stand_ins.is_empty() {
            return Ok(());
        }
        each_file(&mut Visited::new(unpacked), |_, above, name, stat| {
            let Some(meant) = self.stand_ins.get(&tree::identity(stat)) else {
                return Ok(());
            };
            let paths = self.files.get(meant).map(|file| &file.paths);
            let Some(path) = paths.and_then(BTreeSet::first) else {
                return Ok(());
            };
            let missing = || Error::io(DOING, Errno::NOENT);
            let dir = literal_dir(moved, above)?.ok_or_else(missing)?;
            let (source, file) = self.find(into, *meant, path)?;
            rustix::fs::unlinkat(&dir, name, AtFlags::empty()).during(DOING)?;
            rustix::fs::linkat(&source, file, &dir, name, AtFlags::empty()).during(DOING)
        })
    }

    /// The directory and the name of the file at `path` in the tree `root`.
    fn find<'a>(
        &self,
        root: BorrowedFd<'_>,
        (_, inode): Identity,
        path: &'a [u8],
    ) -> Result<(OwnedFd, &'a [u8])> {
        // A snapshot has the same inodes on another device.
        let device = rustix::fs::fstat(root).during(DOING)?.st_dev;
        let (above, name) = split(path);
        if let Some(dir) = literal_dir(root, above)?
            && let Some(stat) = at::lstat_at(dir.as_fd(), name).during(DOING)?
            && tree::identity(&stat) == (device, inode)
        {
            return Ok((dir, name));
        }
        let what = format!("hard link to {}, which was replaced meanwhile", show(path));
        Err(Error::io(what, Errno::BUSY))
    }

    /// Notes what a header says of such a file, which is `name` in `dir` and has the status `stat`.
    ///
    /// # Errors
    /// As [`SharedFiles::add`].
    pub(crate) fn describe(
        &mut self,
        rules: &Rules,
        (dir, name, stat): (BorrowedFd<'_>, &[u8], &Stat),
        entry: &Entry,
        owner: Owner,
    ) -> Result<()> {
        let header = Entry {
            mode: entry.mode,
            mtime: entry.mtime,
            atime: entry.atime,
            records: entry.records.xattrs_only(),
            ..Entry::default()
        };
        let headers = &mut self
            .files
            .entry(self.meant(tree::identity(stat)))
            .or_default()
            .headers;
        let known = match headers.last() {
            Some(last) => *last == (header.clone(), owner),
            None => rules.is_described(dir, name, stat, entry, owner),
        };
        if known {
            return Ok(());
        }
        let size = header.records.size();
        // The next one sets all that the last one did.
        headers.pop_if(|(last, kept)| last.records.xattrs().next().is_none() && *kept == owner);
        headers.push((header, owner));
        self.rules.get_or_insert_with(|| rules.clone());
        self.count(size)
    }

    /// Checks that the tree `root`, which the layer has by now, still has all of these files where they were found.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] of the kind `ResourceBusy` if not.
    pub(crate) fn check(&self, root: BorrowedFd<'_>) -> Result<()> {
        for (identity, file) in &self.files {
            for path in &file.paths {
                self.find(root, *identity, path)?;
            }
        }
        Ok(())
    }
}

impl Sharing<'_> {
    /// Carries out what headers say of files of the layer, in the tree `into`, to which the diff has been moved. `spare` is
    /// a directory of the same file system, in which anything may be made.
    pub(crate) fn carry_out(
        self,
        into: &mut Visited<'_>,
        spare: BorrowedFd<'_>,
        sync_tracker: &mut SyncTracker,
    ) -> Result<()> {
        let Some(rules) = &self.files.rules else {
            return Ok(());
        };
        let described = self
            .files
            .files
            .iter()
            .filter(|(_, file)| !file.headers.is_empty());
        // A snapshot has the same inodes on another device.
        let device = rustix::fs::fstat(into.root()).during(DOING)?.st_dev;
        let mut work = Work {
            rules,
            spare,
            in_place: self.in_place,
            elsewhere: BTreeSet::new(),
            todo: described
                .map(|((_, inode), file)| ((device, *inode), file.headers.as_slice()))
                .collect(),
            copies: BTreeMap::new(),
            next: 0,
        };
        if self.in_place {
            work.elsewhere = work.names_elsewhere(into)?;
        }
        each_file(into, |into, path, name, stat| {
            let Some(headers) = work.todo.get(&tree::identity(stat)).copied() else {
                return Ok(());
            };
            let dir = into.open(path)?;
            work.change(dir.as_fd(), name, stat, headers, sync_tracker)
                .context(|| {
                    let mut full = path.to_vec();
                    push(&mut full, name);
                    format!("changing {}", show(&full))
                })
        })?;
        work.finish()
    }
}

/// Tells of everything in a tree that is no directory: the path of its directory, its name and status.
fn each_file(
    into: &mut Visited<'_>,
    mut tell: impl FnMut(&mut Visited<'_>, &[u8], &[u8], &Stat) -> Result<()>,
) -> Result<()> {
    let mut dirs = vec![Vec::new()];
    let mut buffer = tree::listing_buffer();
    while let Some(path) = dirs.pop() {
        let dir = match tree::open_dir_below(into.root(), &path) {
            Err(Errno::ACCESS) => into.open(&path)?,
            opened => opened.during(DOING)?,
        };
        let names = tree::list_names(dir.as_fd(), &mut buffer).during(DOING)?;
        for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let Some(stat) = at::lstat_at(dir.as_fd(), name).during(DOING)? else {
                continue;
            };
            if kind(&stat) == FileType::Directory {
                let mut full = path.clone();
                push(&mut full, name);
                dirs.push(full);
            } else {
                tell(into, &path, name, &stat)?;
            }
        }
    }
    Ok(())
}

struct Work<'a> {
    rules: &'a Rules,
    /// Where copies are made.
    spare: BorrowedFd<'a>,
    /// Files are changed where they are.
    in_place: bool,
    /// Except these, which other layers have, too.
    elsewhere: BTreeSet<Identity>,
    todo: BTreeMap<Identity, &'a [(Entry, Owner)]>,
    /// The names of copies.
    copies: BTreeMap<Identity, Vec<u8>>,
    next: u64,
}

impl Work<'_> {
    /// Files that have more names than the tree has of them.
    fn names_elsewhere(&self, into: &mut Visited<'_>) -> Result<BTreeSet<Identity>> {
        let mut left: BTreeMap<Identity, u64> = BTreeMap::new();
        each_file(into, |_into, _path, _name, stat| {
            let identity = tree::identity(stat);
            if stat.st_nlink > 1 && self.todo.contains_key(&identity) {
                #[expect(clippy::useless_conversion, reason = "other types on other machines")]
                let links = u64::from(stat.st_nlink);
                let left = left.entry(identity).or_insert(links);
                *left = left.saturating_sub(1);
            }
            Ok(())
        })?;
        Ok(left
            .into_iter()
            .filter(|(_, left)| *left > 0)
            .map(|(identity, _)| identity)
            .collect())
    }

    /// Changes the file `name` in `dir`, or replaces it by a changed copy.
    fn change(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        headers: &[(Entry, Owner)],
        sync_tracker: &mut SyncTracker,
    ) -> Result<()> {
        let (identity, spare) = (tree::identity(stat), self.spare);
        if self.in_place && !self.elsewhere.contains(&identity) {
            self.todo.remove(&identity);
            return self.describe(dir, name, headers);
        }
        if !self.copies.contains_key(&identity) {
            let copy = self.copy((dir, name, stat), spare, sync_tracker)?;
            self.describe(spare, &copy, headers)?;
            self.copies.insert(identity, copy);
        }
        let Some(copy) = self.copies.get(&identity) else {
            return Ok(());
        };
        rustix::fs::unlinkat(dir, name, AtFlags::empty()).during(DOING)?;
        rustix::fs::linkat(spare, copy.as_slice(), dir, name, AtFlags::empty()).during(DOING)
    }

    fn describe(&self, dir: BorrowedFd<'_>, name: &[u8], headers: &[(Entry, Owner)]) -> Result<()> {
        let mut each = headers.iter();
        each.try_for_each(|(entry, owner)| self.rules.node(dir, name, entry, *owner))
    }

    /// Copies a file with all that belongs to it; returns the name of the copy.
    fn copy(
        &mut self,
        from: (BorrowedFd<'_>, &[u8], &Stat),
        spare: BorrowedFd<'_>,
        sync_tracker: &mut SyncTracker,
    ) -> Result<Vec<u8>> {
        loop {
            let name = format!("copy-{}", self.next).into_bytes();
            self.next += 1;
            match copy_file(from, (spare, &name)) {
                // What was unpacked may have left a directory of any name.
                Err(error) if error.has_errno(Errno::EXIST) => {}
                copied => {
                    if let Some((_, copy, _)) = copied? {
                        sync_tracker.file(copy.into());
                    }
                    keep_state(from, (spare, &name))?;
                    return Ok(name);
                }
            }
        }
    }

    /// Removes the names by which copies were made.
    fn finish(self) -> Result<()> {
        for name in self.copies.values() {
            rustix::fs::unlinkat(self.spare, name.as_slice(), AtFlags::empty()).during(DOING)?;
        }
        Ok(())
    }
}

/// Gives a copy owner, attributes, mode and times of the original, in an order in which no step undoes another.
pub(super) fn keep_state(
    (from, name, stat): (BorrowedFd<'_>, &[u8], &Stat),
    (to, copy): (BorrowedFd<'_>, &[u8]),
) -> Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(to, copy, Some(uid), Some(gid), nofollow).during(DOING)?;
    for attribute in xattr::list_at(from, name).during(DOING)? {
        if let Some(value) = xattr::get_at(from, name, &attribute).during(DOING)? {
            let set = xattr::set_at(to, copy, attribute.as_bytes(), &value);
            ignore_unsupported(set).during(DOING)?;
        }
    }
    if kind(stat) != FileType::Symlink {
        chmod_node(to, copy, stat.st_mode & 0o7777).during(DOING)?;
    }
    rustix::fs::utimensat(to, copy, &times_of(stat), nofollow).during(DOING)
}
