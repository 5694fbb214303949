//! In which inodes a snapshot and the subvolume that it was made of can differ, from the numbers of transactions.
//!
//! A snapshot shares all blocks of its tree with its origin. Whoever changes one of them, in either tree, writes a new block, with
//! the number of the transaction; and each change of a file or directory that can be seen writes its inode item, with that
//! number too. So what is different now is at inodes that were written, in one of the trees, after the transaction of the
//! snapshot. Of many of these only the time of the last access was written: inodes whose items are otherwise the same in both trees, the
//! names in directories and the attributes among them, are left out. Some others are not different either: only what is
//! *not* found is known to be equal.
//!
//! Names of inodes are found too: of every directory that has a changed inode somewhere below, the inode is among those that
//! are found. A directory that is not, in either tree, is equal with everything in it: its names lead to the same inodes in both
//! trees, none of these has changed, and so on below.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::collections::HashSet;
use std::fmt;
use std::ops::Range as Bytes;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Getter, Opcode, Updater, opcode};

use crate::sys::btrfs::nested::has_nested;
use crate::sys::btrfs::search::{Item, ItemKey, Range, Search};
use crate::sys::btrfs::subvolume::{GROUP, ROOT_INODE, is_btrfs, is_subvolume};

/// The last inode number that a file can have.
const LAST_INODE: u64 = u64::MAX - 256;

/// Types of items: inodes, their names, and the last type of what belongs to an inode beside the content of files: the names in a
/// directory. Attributes are between these.
const INODE: u8 = 1;
const NAME: u8 = 12;
const MORE_NAMES: u8 = 13;
const DIRECTORY_INDEX: u8 = 96;

/// Where an inode item has the numbers of the transactions that have made it and have written it last, and the time of the
/// last access.
const INODE_MADE: usize = 0;
const INODE_TRANSACTION: usize = 8;
const INODE_ACCESSED: Bytes<usize> = 112..124;

/// Bytes of an item of more names before the name itself, and where the length of the name is.
const MORE_HEADER: usize = 18;
const MORE_LENGTH: usize = 16;

/// Most changed inodes. Where there are more, whole trees are compared in about the same time and less memory.
const MAX_CHANGED: usize = 200_000;

/// Most bytes that a file system is made to write first, since what it has not written is not in its trees. That takes a
/// time in which whole trees are compared as well.
const MAX_UNWRITTEN: u64 = 16 << 20;

/// Inodes of which one step finds the names, and searches that it makes to compare some.
const PER_STEP: usize = 1000;

/// `struct btrfs_ioctl_get_subvol_info_args`, the times at its end as numbers.
#[repr(C)]
struct SubvolumeInfo {
    id: u64,
    name: [u8; 256],
    above: u64,
    directory: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    /// That of the subvolume that it is a snapshot of; else zero.
    origin_uuid: [u8; 16],
    received_uuid: [u8; 16],
    changed: u64,
    /// The transaction that has made it.
    made: u64,
    sent: u64,
    received: u64,
    times: [u64; 8],
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_fs_info_args`.
#[repr(C)]
struct FsInfo {
    max_device: u64,
    devices: u64,
    uuid: [u8; 16],
    rest: [u64; 124],
}

const SUBVOLUME_INFO: Opcode = opcode::read::<SubvolumeInfo>(GROUP, 60);
const FS_INFO: Opcode = opcode::read::<FsInfo>(GROUP, 31);

/// One of the two trees.
struct Tree {
    root: OwnedFd,
    /// Inodes of which the names are still to be found.
    unnamed: Vec<u64>,
    /// Directories that were among these already.
    seen: HashSet<u64>,
}

/// What is done next.
enum Stage {
    /// Having everything written that is in memory only.
    Write,
    /// Finding changed inodes in the tree of this number, in what is left of this range.
    Change(usize, Range),
    /// Leaving out those that are the same in both trees. Of one, what is left of its items.
    Compare(Option<Range>),
    /// Finding the names of inodes in the tree of this number.
    Name(usize),
}

/// A search for the inodes in which two subvolumes can differ, step by step.
pub(crate) struct SnapshotChanges {
    trees: [Tree; 2],
    filesystem: [u8; 16],
    /// The first transaction after that of the snapshot.
    since: u64,
    searches: [Search; 2],
    stage: Stage,
    /// Inodes that were written, the last one to be compared next.
    written: Vec<u64>,
    found: HashSet<u64>,
}

impl SnapshotChanges {
    /// Begins the search in the subvolumes with these root directories. `None` where it could miss something or is not allowed:
    /// if `new` is no snapshot of `old`, if there are subvolumes in one of them, without `CAP_SYS_ADMIN` in the initial user
    /// namespace, and while there is much that the file system has to write.
    pub(crate) fn begin(new: BorrowedFd<'_>, old: BorrowedFd<'_>) -> Result<Option<Self>> {
        for root in [new, old] {
            if !is_subvolume(&rustix::fs::fstat(root)?) || !is_btrfs(root)? || has_nested(root)? {
                return Ok(None);
            }
        }
        let (snapshot, origin) = (subvolume_info(new)?, subvolume_info(old)?);
        let filesystem = filesystem_uuid(new)?;
        if snapshot.origin_uuid != origin.uuid
            || origin.uuid == [0; 16]
            || snapshot.made == 0
            || filesystem != filesystem_uuid(old)?
        {
            return Ok(None);
        }
        let mut search = Search::new();
        match search.some(new, names_of(ROOT_INODE), 1, |_item| {}) {
            Err(Errno::PERM) => return Ok(None),
            searched => searched?,
        };
        let tree = |root: BorrowedFd<'_>| {
            Ok::<_, Errno>(Tree {
                root: rustix::io::fcntl_dupfd_cloexec(root, 0)?,
                unnamed: Vec::new(),
                seen: HashSet::new(),
            })
        };
        Ok(Some(Self {
            trees: [tree(new)?, tree(old)?],
            filesystem,
            since: snapshot.made + 1,
            searches: [search, Search::new()],
            stage: Stage::Write,
            written: Vec::new(),
            found: HashSet::new(),
        }))
    }

    /// One step; `false` at the end. Blocking.
    ///
    /// # Errors
    /// `E2BIG` if there is too much to write or to find: whole trees are to be compared then, as after any other error.
    pub(crate) fn step(&mut self) -> Result<bool> {
        self.stage = match self.stage {
            Stage::Write => {
                // New names and inodes get into the trees with the transaction, what is written to files with its data.
                if unwritten(&self.filesystem).is_none_or(|bytes| bytes > MAX_UNWRITTEN) {
                    return Err(Errno::TOOBIG);
                }
                rustix::fs::syncfs(&self.trees[0].root)?;
                Stage::Change(0, everything(self.since))
            }
            Stage::Change(number, range) => {
                let (Some(tree), Some(search)) = (self.trees.get(number), self.searches.get_mut(number))
                else {
                    return Ok(false);
                };
                let (since, written) = (self.since, &mut self.written);
                let left = search.some(tree.root.as_fd(), range, u32::MAX, |item| {
                    if is_written_since(item, since) {
                        written.push(item.key.object);
                    }
                })?;
                if written.len() > MAX_CHANGED {
                    return Err(Errno::TOOBIG);
                }
                match left {
                    Some(left) => Stage::Change(number, left),
                    None if number + 1 < self.trees.len() => Stage::Change(number + 1, everything(since)),
                    None => {
                        written.sort_unstable();
                        written.dedup();
                        Stage::Compare(None)
                    }
                }
            }
            Stage::Compare(range) => self.compare_some(range)?,
            Stage::Name(number) => {
                if self.name_some(number)? {
                    Stage::Name(number)
                } else if number + 1 < self.trees.len() {
                    Stage::Name(number + 1)
                } else {
                    return Ok(false);
                }
            }
        };
        Ok(true)
    }

    /// Compares some of the inodes that were written, one of them from `range` on. Returns what is done next.
    fn compare_some(&mut self, mut range: Option<Range>) -> Result<Stage> {
        let ([tree, other], [search, other_search]) = (&mut self.trees, &mut self.searches);
        let since = self.since;
        for _ in 0..PER_STEP {
            let Some(inode) = self.written.last().copied() else {
                return Ok(Stage::Name(0));
            };
            let (same, left) = Search::compare_some(
                (search, tree.root.as_fd()),
                (other_search, other.root.as_fd()),
                range.unwrap_or_else(|| items_of(inode)),
                |item, other| is_same(item, other, since),
            )?;
            range = left;
            if range.is_some() {
                continue;
            }
            self.written.pop();
            if !same {
                tree.unnamed.push(inode);
                other.unnamed.push(inode);
            }
        }
        Ok(Stage::Compare(range))
    }

    /// Finds the directories of some inodes; `false` if there were none left.
    fn name_some(&mut self, number: usize) -> Result<bool> {
        let (Some(tree), Some(search)) = (self.trees.get_mut(number), self.searches.get_mut(number)) else {
            return Ok(false);
        };
        for _ in 0..PER_STEP {
            let Some(inode) = tree.unnamed.pop() else {
                return Ok(false);
            };
            self.found.insert(inode);
            let (seen, unnamed) = (&mut tree.seen, &mut tree.unnamed);
            let mut above = |directory| {
                if seen.insert(directory) {
                    unnamed.push(directory);
                }
            };
            search.all(tree.root.as_fd(), names_of(inode), |item| match item.key.kind {
                NAME => above(item.key.offset),
                MORE_NAMES => directories_in(item.data).for_each(&mut above),
                _ => {}
            })?;
        }
        Ok(true)
    }

    /// The numbers of the inodes, after the last step. What has another number, the same in both trees, is the same in both,
    /// with everything in it.
    pub(crate) fn into_inodes(self) -> HashSet<u64> {
        self.found
    }
}

impl fmt::Debug for SnapshotChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotChanges")
            .field("since", &self.since)
            .finish_non_exhaustive()
    }
}

/// All items of inodes in blocks that were written since a transaction.
fn everything(since: u64) -> Range {
    let key = |object, number| ItemKey {
        object,
        kind: if number == 0 { 0 } else { u8::MAX },
        offset: number,
    };
    Range {
        tree: 0,
        first: key(ROOT_INODE, 0),
        last: key(LAST_INODE, u64::MAX),
        since,
    }
}

/// The names of an inode.
fn names_of(inode: u64) -> Range {
    kinds_of(inode, NAME, MORE_NAMES)
}

/// All items of an inode but the content of a file.
fn items_of(inode: u64) -> Range {
    kinds_of(inode, INODE, DIRECTORY_INDEX)
}

/// The items of an inode of the kinds from `first` to `last`, of any age.
fn kinds_of(inode: u64, first: u8, last: u8) -> Range {
    let key = |kind, offset| ItemKey {
        object: inode,
        kind,
        offset,
    };
    Range {
        tree: 0,
        first: key(first, 0),
        last: key(last, u64::MAX),
        since: 0,
    }
}

/// Whether two items with the same key, one from each tree, are known to be the same but for an access. An inode that was made since a
/// transaction is not known to be: its number may have been that of another one.
fn is_same(item: Item<'_>, other: Item<'_>, since: u64) -> bool {
    if item.key.kind != INODE {
        return item.data == other.data;
    }
    let what_counts = |data| {
        let made = number_in(data, INODE_MADE).filter(|made| *made < since)?;
        let rest = data.get(INODE_TRANSACTION + 8..INODE_ACCESSED.start)?;
        Some((made, rest, data.get(INODE_ACCESSED.end..)?))
    };
    let counts = what_counts(item.data);
    counts.is_some() && counts == what_counts(other.data)
}

/// Whether an item is that of an inode which was written since a transaction.
fn is_written_since(item: Item<'_>, since: u64) -> bool {
    item.key.kind == INODE && number_in(item.data, INODE_TRANSACTION).is_none_or(|written| written >= since)
}

/// The directories in an item of more names.
fn directories_in(mut data: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        let directory = number_in(data, 0)?;
        let length = data.get(MORE_LENGTH..MORE_HEADER)?.try_into().ok()?;
        data = data.get(MORE_HEADER + usize::from(u16::from_le_bytes(length))..)?;
        Some(directory)
    })
}

/// A number in an item, as it is on disk.
fn number_in(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

/// Bytes that were written to files of a file system and are in memory only; `None` if it does not tell.
fn unwritten(filesystem: &[u8; 16]) -> Option<u64> {
    let mut name = String::new();
    for (index, byte) in filesystem.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            name.push('-');
        }
        name.push_str(&format!("{byte:02x}"));
    }
    // Small file systems have one kind of space for both.
    let number = |kind, what| {
        let path = format!("/sys/fs/btrfs/{name}/allocation/{kind}/{what}");
        std::fs::read_to_string(path).ok()?.trim_end().parse::<u64>().ok()
    };
    // What has no place on the disk yet, and what is on its way there.
    let read = |kind| number(kind, "bytes_may_use")?.checked_add(number(kind, "bytes_reserved")?);
    read("data").or_else(|| read("mixed"))
}

fn subvolume_info(root: BorrowedFd<'_>) -> Result<SubvolumeInfo> {
    // SAFETY: this opcode fills an argument of this layout.
    unsafe { ioctl::ioctl(root, Getter::<SUBVOLUME_INFO, SubvolumeInfo>::new()) }
}

fn filesystem_uuid(file: BorrowedFd<'_>) -> Result<[u8; 16]> {
    let mut info = FsInfo {
        max_device: 0,
        devices: 0,
        uuid: [0; 16],
        rest: [0; 124],
    };
    // SAFETY: the argument has the layout that this opcode takes and fills.
    unsafe { ioctl::ioctl(file, Updater::<FS_INFO, _>::new(&mut info)) }?;
    Ok(info.uuid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_are_those_of_the_kernel() {
        assert_eq!((SUBVOLUME_INFO, FS_INFO), (0x81f8_943c, 0x8400_941f));
    }

    #[test]
    fn items_of_more_names_are_read() {
        let mut data = Vec::new();
        for (directory, name) in [(7u64, "first"), (300, "b"), (7, "")] {
            data.extend_from_slice(&directory.to_le_bytes());
            data.extend_from_slice(&5u64.to_le_bytes());
            data.extend_from_slice(&u16::try_from(name.len()).unwrap().to_le_bytes());
            data.extend_from_slice(name.as_bytes());
        }
        assert_eq!(directories_in(&data).collect::<Vec<_>>(), [7, 300, 7]);
        for cut in 0..data.len() {
            assert!(directories_in(&data[..cut]).count() < 3);
        }
    }
}
