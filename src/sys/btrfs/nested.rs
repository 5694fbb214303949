//! Subvolumes in subvolumes, as programs in a container make them.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Opcode, Updater, opcode};

use crate::sys::at;
use crate::sys::btrfs::quota::remove_group;
use crate::sys::btrfs::subvolume::{GROUP, destroy, subvolume_id};

/// Subvolumes in each other that are destroyed; what is deeper is left.
const MAX_DEPTH: u32 = 32;

/// How often the subvolumes in one are looked for again, since there were more than one answer has, or new ones.
const MAX_ROUNDS: u32 = 1024;

/// Most of them in one answer.
const MAX_FOUND: usize = 255;

/// A subvolume, and the inode number of the directory in the one above that it is in.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Place {
    subvolume: u64,
    directory: u64,
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct References {
    min_subvolume: u64,
    found: [Place; MAX_FOUND],
    count: u8,
    align: [u8; 7],
}

/// `struct btrfs_ioctl_ino_lookup_user_args`.
#[repr(C)]
struct Lookup {
    directory: u64,
    subvolume: u64,
    name: [u8; 256],
    path: [u8; 3824],
}

const REFERENCES: Opcode = opcode::read_write::<References>(GROUP, 61);
const LOOK_UP: Opcode = opcode::read_write::<Lookup>(GROUP, 62);

/// Destroys the subvolume `name` in `dir`, of which `root` is the root directory, with those below it.
///
/// # Errors
/// `EPERM` without privilege over the file system, and what else keeps one of them from being destroyed. It can then be
/// emptied and removed as directories are.
pub(crate) fn destroy_with_nested(dir: BorrowedFd<'_>, name: &[u8], root: BorrowedFd<'_>) -> Result<()> {
    destroy_at(dir, name, root, 0)
}

fn destroy_at(dir: BorrowedFd<'_>, name: &[u8], root: BorrowedFd<'_>, depth: u32) -> Result<()> {
    let id = subvolume_id(root)?;
    let mut destroyed = destroy(dir, name);
    for _round in 0..MAX_ROUNDS {
        if destroyed != Err(Errno::NOTEMPTY) || depth >= MAX_DEPTH {
            break;
        }
        if !destroy_nested(root, depth)? {
            break;
        }
        destroyed = destroy(dir, name);
    }
    destroyed?;
    // Its account is only in the way of nobody if that fails.
    remove_group(dir, id).ok();
    Ok(())
}

/// Destroys subvolumes in the one with the root directory `root`: as many as one answer has. Returns whether there were any.
fn destroy_nested(root: BorrowedFd<'_>, depth: u32) -> Result<bool> {
    let mut any = false;
    let references = references(root)?;
    for place in references.found.iter().take(references.count.into()) {
        let mut lookup = Lookup {
            directory: place.directory,
            subvolume: place.subvolume,
            name: [0; 256],
            path: [0; 3824],
        };
        // SAFETY: the argument has the layout that this opcode takes and fills.
        let asked = unsafe { ioctl::ioctl(root, Updater::<LOOK_UP, _>::new(&mut lookup)) };
        match asked {
            // Somebody else has removed it.
            Err(Errno::NOENT) => continue,
            asked => asked?,
        }
        let (path, name) = (text(&lookup.path)?, text(&lookup.name)?);
        // It ends with a slash, or is empty.
        let path = if path.is_empty() { b"." } else { path };
        let Some(above) = at::open_dir_without_links(root, path)? else {
            continue;
        };
        let above = at::open_dir_at(above.as_fd(), b".")?;
        let nested = at::open_dir_at(above.as_fd(), name)?;
        destroy_at(above.as_fd(), name, nested.as_fd(), depth + 1)?;
        any = true;
    }
    Ok(any)
}

/// Subvolumes in the one with the root directory `root`: as many as one answer has.
fn references(root: BorrowedFd<'_>) -> Result<References> {
    let mut references = References {
        min_subvolume: 0,
        found: [Place::default(); MAX_FOUND],
        count: 0,
        align: [0; 7],
    };
    // SAFETY: the argument has the layout that this opcode takes and fills.
    let asked = unsafe { ioctl::ioctl(root, Updater::<REFERENCES, _>::new(&mut references)) };
    match asked {
        // There are more than one answer has.
        Err(Errno::OVERFLOW) => Ok(references),
        asked => asked.map(|()| references),
    }
}

/// Whether there are subvolumes in the one with the root directory `root`.
pub(super) fn has_nested(root: BorrowedFd<'_>) -> Result<bool> {
    Ok(references(root)?.count > 0)
}

/// What is before the zero byte.
fn text(field: &[u8]) -> Result<&[u8]> {
    let text = CStr::from_bytes_until_nul(field).map_err(|_no_zero| Errno::INVAL)?;
    Ok(text.to_bytes())
}

#[test]
fn opcodes_are_those_of_the_kernel() {
    assert_eq!((REFERENCES, LOOK_UP), (0xd000_943d, 0xd000_943e));
}
