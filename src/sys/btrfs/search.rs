//! Searching the trees of a btrfs. It needs privilege over the file system.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::fmt;
use std::os::fd::BorrowedFd;

use rustix::io::Result;
use rustix::ioctl::{self, Opcode, Updater, opcode};

use crate::sys::btrfs::subvolume::GROUP;

/// Room for the items of one answer; each of them is smaller than the largest block of a tree, of 64 KiB.
const ROOM: usize = 128 * 1024;

/// Bytes of `struct btrfs_ioctl_search_header`, which is in front of every item.
const HEADER: usize = 32;

/// Bytes of the largest item. An answer that has room for it is not cut off.
const LARGEST: usize = 64 * 1024;

/// `struct btrfs_ioctl_search_key`.
#[repr(C)]
struct Key {
    tree: u64,
    min_object: u64,
    max_object: u64,
    min_offset: u64,
    max_offset: u64,
    min_transaction: u64,
    max_transaction: u64,
    min_kind: u32,
    max_kind: u32,
    /// Items asked for, and found.
    count: u32,
    unused: u32,
    unused_too: [u64; 4],
}

/// The part of `struct btrfs_ioctl_search_args_v2` before the items.
#[repr(C)]
struct Head {
    key: Key,
    room: u64,
}

/// `struct btrfs_ioctl_search_args_v2`.
#[repr(C)]
struct Arguments {
    head: Head,
    found: [u8; ROOM],
}

const SEARCH: Opcode = opcode::read_write::<Head>(GROUP, 17);

/// The key of an item. Items are ordered by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemKey {
    pub(super) object: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl ItemKey {
    /// The key that comes next; `None` after the last one that there can be.
    fn next(self) -> Option<Self> {
        let Self { object, kind, offset } = self;
        if let Some(offset) = offset.checked_add(1) {
            return Some(Self { offset, ..self });
        }
        let (kind, offset) = (kind.checked_add(1), 0);
        match kind {
            Some(kind) => Some(Self { object, kind, offset }),
            None => object.checked_add(1).map(|object| Self {
                object,
                kind: 0,
                offset,
            }),
        }
    }
}

/// What is searched for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// A tree; 0 is that of the subvolume with the open file.
    pub(super) tree: u64,
    pub(super) first: ItemKey,
    /// The last key, which is part of the range.
    pub(super) last: ItemKey,
    /// Only items in blocks that were written in this transaction or a later one.
    pub(super) since: u64,
}

impl Range {
    /// What is left of it after an answer of `count` items at the most; `None` if that is nothing.
    fn after(self, end: &End, count: u32) -> Option<Self> {
        if end.items < count && end.bytes + HEADER + LARGEST <= ROOM {
            return None;
        }
        let first = end
            .key
            .and_then(ItemKey::next)
            .filter(|next| *next <= self.last)?;
        Some(Self { first, ..self })
    }
}

/// How far an answer goes.
#[derive(Default)]
struct End {
    key: Option<ItemKey>,
    items: u32,
    bytes: usize,
}

impl End {
    fn pass(&mut self, item: Item<'_>) {
        self.key = Some(item.key);
        self.items += 1;
        self.bytes += HEADER + item.data.len();
    }
}

/// An item of a tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item<'a> {
    pub(super) key: ItemKey,
    pub(super) data: &'a [u8],
}

/// Searches one after the other, with room for their answers.
pub(super) struct Search(Box<Arguments>);

impl Search {
    pub(super) fn new() -> Self {
        Self(Box::new(Arguments {
            head: Head {
                key: Key {
                    tree: 0,
                    min_object: 0,
                    max_object: 0,
                    min_offset: 0,
                    max_offset: 0,
                    min_transaction: 0,
                    max_transaction: u64::MAX,
                    min_kind: 0,
                    max_kind: 0,
                    count: 0,
                    unused: 0,
                    unused_too: [0; 4],
                },
                room: 0,
            },
            found: [0; ROOM],
        }))
    }

    /// Passes on the items that one answer has, `count` at the most. Returns what is left of the range, if there may be more.
    ///
    /// # Errors
    /// `EPERM` without privilege over the file system, `ENOENT` if there is no such tree.
    pub(super) fn some(
        &mut self,
        dir: BorrowedFd<'_>,
        range: Range,
        count: u32,
        mut each: impl FnMut(Item<'_>),
    ) -> Result<Option<Range>> {
        self.ask(dir, range, count)?;
        let mut end = End::default();
        for item in self.items() {
            end.pass(item);
            each(item);
        }
        Ok(range.after(&end, count))
    }

    /// Compares the items of one answer with those of the same range in another tree, one by one. Returns whether all are the
    /// same, and what is left of the range then.
    ///
    /// # Errors
    /// As [`Search::some`].
    pub(super) fn compare_some(
        (search, dir): (&mut Self, BorrowedFd<'_>),
        (other_search, other_dir): (&mut Self, BorrowedFd<'_>),
        range: Range,
        mut same: impl FnMut(Item<'_>, Item<'_>) -> bool,
    ) -> Result<(bool, Option<Range>)> {
        search.ask(dir, range, u32::MAX)?;
        other_search.ask(other_dir, range, u32::MAX)?;
        let (mut items, mut others) = (search.items(), other_search.items());
        let mut end = End::default();
        loop {
            match (items.next(), others.next()) {
                (Some(item), Some(other)) if item.key == other.key && same(item, other) => {
                    end.pass(item);
                }
                (None, None) => return Ok((true, range.after(&end, u32::MAX))),
                _ => return Ok((false, None)),
            }
        }
    }

    /// Has the file system fill in an answer.
    fn ask(&mut self, dir: BorrowedFd<'_>, range: Range, count: u32) -> Result<()> {
        let Range {
            tree,
            first,
            last,
            since,
        } = range;
        let arguments = &mut *self.0;
        arguments.head = Head {
            key: Key {
                tree,
                min_object: first.object,
                max_object: last.object,
                min_offset: first.offset,
                max_offset: last.offset,
                min_transaction: since,
                max_transaction: u64::MAX,
                min_kind: first.kind.into(),
                max_kind: last.kind.into(),
                count,
                unused: 0,
                unused_too: [0; 4],
            },
            room: ROOM as u64,
        };
        // SAFETY: the opcode takes the head and fills it, and as many bytes after it as it says; the argument has them.
        unsafe { ioctl::ioctl(dir, Updater::<SEARCH, Arguments>::new(arguments)) }
    }

    /// The items of the last answer.
    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let mut bytes = self.0.found.as_slice();
        (0..self.0.head.key.count).map_while(move |_| {
            let (item, rest) = item(bytes)?;
            bytes = rest;
            Some(item)
        })
    }

    /// Passes on all items of a range.
    ///
    /// # Errors
    /// As [`Search::some`].
    pub(super) fn all(
        &mut self,
        dir: BorrowedFd<'_>,
        range: Range,
        mut each: impl FnMut(Item<'_>),
    ) -> Result<()> {
        let mut left = Some(range);
        while let Some(range) = left {
            left = self.some(dir, range, u32::MAX, &mut each)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").finish_non_exhaustive()
    }
}

/// The first item in an answer, and what follows.
fn item(bytes: &[u8]) -> Option<(Item<'_>, &[u8])> {
    // The transaction comes first.
    let (header, rest) = bytes.split_at_checked(HEADER)?;
    let number = |at| header.get(at..at + 8)?.try_into().ok().map(u64::from_ne_bytes);
    let short = |at| header.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
    let key = ItemKey {
        object: number(8)?,
        offset: number(16)?,
        kind: u8::try_from(short(24)?).ok()?,
    };
    let (data, rest) = rest.split_at_checked(usize::try_from(short(28)?).ok()?)?;
    Some((Item { key, data }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opcode_is_that_of_the_kernel() {
        assert_eq!(SEARCH, 0xc070_9411);
    }

    #[test]
    fn keys_follow_each_other() {
        let key = |object, kind, offset| ItemKey { object, kind, offset };
        assert_eq!(key(1, 2, 3).next(), Some(key(1, 2, 4)));
        assert_eq!(key(1, 2, u64::MAX).next(), Some(key(1, 3, 0)));
        assert_eq!(key(1, u8::MAX, u64::MAX).next(), Some(key(2, 0, 0)));
        assert_eq!(key(u64::MAX, u8::MAX, u64::MAX).next(), None);
    }
}
