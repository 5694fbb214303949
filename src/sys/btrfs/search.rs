//! Searching the trees of a btrfs. It needs privilege over the file system.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::os::fd::BorrowedFd;

use rustix::io::Result;
use rustix::ioctl::{self, Opcode, Updater, opcode};

use crate::sys::btrfs::subvolume::GROUP;

/// `struct btrfs_ioctl_search_args`, whose answer begins with a `struct btrfs_ioctl_search_header`.
#[repr(C)]
struct Arguments {
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
    found: [u8; 3992],
}

const SEARCH: Opcode = opcode::read_write::<Arguments>(GROUP, 17);

/// Where the type of an item is in its header.
const KIND_AT: usize = 24;

/// What is searched for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// A tree.
    pub(super) tree: u64,
    /// A type of items in it.
    pub(super) kind: u32,
}

/// The type of the first item that a search finds, which is not always of the type that was searched for.
pub(super) fn first_item(dir: BorrowedFd<'_>, key: Key) -> Result<Option<u32>> {
    let mut arguments = Arguments {
        tree: key.tree,
        min_object: 0,
        max_object: u64::MAX,
        min_offset: 0,
        max_offset: u64::MAX,
        min_transaction: 0,
        max_transaction: u64::MAX,
        min_kind: key.kind,
        max_kind: key.kind,
        count: 1,
        unused: 0,
        unused_too: [0; 4],
        found: [0; 3992],
    };
    // SAFETY: the argument has the layout that this opcode takes and fills.
    unsafe { ioctl::ioctl(dir, Updater::<SEARCH, _>::new(&mut arguments)) }?;
    if arguments.count == 0 {
        return Ok(None);
    }
    let kind = arguments.found.get(KIND_AT..KIND_AT + 4);
    let kind = kind.and_then(|bytes| bytes.try_into().ok());
    Ok(kind.map(u32::from_ne_bytes))
}

#[test]
fn the_opcode_is_that_of_the_kernel() {
    assert_eq!(SEARCH, 0xd000_9411);
}
