//! Limits on the space of subvolumes.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};

use crate::sys::btrfs::search::{ItemKey, Range, Search};
use crate::sys::btrfs::subvolume::GROUP;

/// The tree of quotas, and the type of the item in it that says whether they are kept.
const QUOTA_TREE: u64 = 8;
const STATUS: u8 = 240;

const ENABLE: u64 = 1;
/// The limit is on all that the subvolume refers to, whether it shares it with others or not.
const MAX_REFERRED: u64 = 1;

/// `struct btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct Control {
    command: u64,
    status: u64,
}

/// `struct btrfs_ioctl_qgroup_create_args`.
#[repr(C)]
struct Group {
    create: u64,
    id: u64,
}

/// `struct btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct Limit {
    /// Zero for that of the subvolume with the open file.
    group: u64,
    flags: u64,
    max_referred: u64,
    max_exclusive: u64,
    reserved_referred: u64,
    reserved_exclusive: u64,
}

const CONTROL: Opcode = opcode::read_write::<Control>(GROUP, 40);
const GROUPS: Opcode = opcode::write::<Group>(GROUP, 42);
// The kernel takes it, whatever its number says.
const LIMIT: Opcode = opcode::read::<Limit>(GROUP, 43);

/// Whether the file system of `dir` counts the space of its subvolumes.
///
/// # Errors
/// `EPERM` without privilege over the file system.
pub(crate) fn is_quota_enabled(dir: BorrowedFd<'_>) -> Result<bool> {
    let key = |number| ItemKey {
        object: number,
        kind: STATUS,
        offset: number,
    };
    let range = Range {
        tree: QUOTA_TREE,
        first: key(0),
        last: key(u64::MAX),
        since: 0,
    };
    let mut first = None;
    match Search::new().some(dir, range, 1, |item| first = Some(item.key.kind)) {
        // There is no such tree.
        Err(Errno::NOENT) => Ok(false),
        // What is found is not always of the type that was searched for.
        searched => searched.map(|_rest| first == Some(STATUS)),
    }
}

/// Has the file system of `dir` count the space of its subvolumes.
///
/// # Errors
/// `EPERM` without privilege over the file system.
pub(crate) fn enable_quota(dir: BorrowedFd<'_>) -> Result<()> {
    let mut control = Control {
        command: ENABLE,
        status: 0,
    };
    // SAFETY: the argument has the layout that this opcode takes and fills.
    unsafe { ioctl::ioctl(dir, Updater::<CONTROL, _>::new(&mut control)) }
}

/// Limits the bytes that the subvolume of `dir` refers to.
pub(crate) fn limit(dir: BorrowedFd<'_>, bytes: u64) -> Result<()> {
    let mut limit = Limit {
        group: 0,
        flags: MAX_REFERRED,
        max_referred: bytes,
        max_exclusive: 0,
        reserved_referred: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: the argument has the layout that this opcode takes.
    unsafe { ioctl::ioctl(dir, Updater::<LIMIT, _>::new(&mut limit)) }
}

/// Removes the account of a subvolume that was destroyed. It fails where space is not counted, and as long as files of it are
/// still to be removed; newer kernels remove it by themselves then.
pub(super) fn remove_group(dir: BorrowedFd<'_>, subvolume: u64) -> Result<()> {
    let group = Group {
        create: 0,
        id: subvolume,
    };
    // SAFETY: the argument has the layout that this opcode takes.
    unsafe { ioctl::ioctl(dir, Setter::<GROUPS, _>::new(group)) }
}

#[test]
fn opcodes_are_those_of_the_kernel() {
    assert_eq!((CONTROL, GROUPS, LIMIT), (0xc010_9428, 0x4010_942a, 0x8030_942b));
}
