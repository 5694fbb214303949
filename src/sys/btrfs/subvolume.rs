//! Making, recognising and destroying subvolumes.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::Stat;
use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Getter, Opcode, Setter, Updater, opcode};

/// Every ioctl of btrfs has this.
pub(super) const GROUP: u8 = 0x94;

/// `statfs` type of btrfs.
const MAGIC: i128 = 0x9123_683e;

/// The inode number of the root directory of every subvolume; no other file of a btrfs has it.
pub(super) const ROOT_INODE: u64 = 256;

/// The longest name of a file.
const MAX_NAME: usize = 255;

const READ_ONLY: u64 = 2;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArguments {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
struct OldVolumeArguments {
    fd: i64,
    name: [u8; 4088],
}

/// `struct btrfs_ioctl_ino_lookup_args`.
#[repr(C)]
struct InodeLookup {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

const SNAPSHOT: Opcode = opcode::write::<VolumeArguments>(GROUP, 23);
const CREATE: Opcode = opcode::write::<VolumeArguments>(GROUP, 24);
const DESTROY: Opcode = opcode::write::<OldVolumeArguments>(GROUP, 15);
const LOOK_UP: Opcode = opcode::read_write::<InodeLookup>(GROUP, 18);
const GET_FLAGS: Opcode = opcode::read::<u64>(GROUP, 25);
const SET_FLAGS: Opcode = opcode::write::<u64>(GROUP, 26);

/// Whether an open file is on a btrfs.
pub(crate) fn is_btrfs(file: BorrowedFd<'_>) -> Result<bool> {
    // The field is signed on some architectures; only its low half is the type.
    Ok(i128::from(rustix::fs::fstatfs(file)?.f_type) & 0xffff_ffff == MAGIC)
}

/// A name in a field of `N` bytes that a zero byte ends.
fn name_field<const N: usize>(name: &[u8]) -> Result<[u8; N]> {
    if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    let mut field = [0; N];
    match field.get_mut(..name.len()) {
        Some(place) if name.len() <= MAX_NAME => place.copy_from_slice(name),
        _ => return Err(Errno::NAMETOOLONG),
    }
    Ok(field)
}

/// Makes the empty subvolume `name` in `dir`.
pub(crate) fn create_subvolume(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let arguments = VolumeArguments {
        fd: 0,
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: name_field(name)?,
    };
    // SAFETY: the argument has the layout that this opcode takes.
    unsafe { ioctl::ioctl(dir, Setter::<CREATE, _>::new(arguments)) }
}

/// Makes `name` in `dir` a writable snapshot of the subvolume of which `source` is the root directory. What is in subvolumes
/// below it is not in the snapshot: there are empty directories in their places.
///
/// # Errors
/// `EINVAL` if `source` is no such directory, `EXDEV` if it is on another file system.
pub(crate) fn snapshot(source: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let arguments = VolumeArguments {
        fd: source.as_raw_fd().into(),
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: name_field(name)?,
    };
    // SAFETY: the argument has the layout that this opcode takes; the descriptor in it stays open during the call.
    unsafe { ioctl::ioctl(dir, Setter::<SNAPSHOT, _>::new(arguments)) }
}

/// Destroys the subvolume `name` in `dir`. Its files are removed in the background.
///
/// # Errors
/// `ENOTEMPTY` if there are subvolumes below it, `EPERM` without privilege over the file system.
pub(super) fn destroy(dir: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    let arguments = OldVolumeArguments {
        fd: 0,
        name: name_field(name)?,
    };
    // SAFETY: the argument has the layout that this opcode takes.
    unsafe { ioctl::ioctl(dir, Setter::<DESTROY, _>::new(arguments)) }
}

/// Whether `stat` is that of the root directory of a subvolume, if it is of a file on a btrfs.
pub(crate) fn is_subvolume(stat: &Stat) -> bool {
    stat.st_ino == ROOT_INODE
}

/// The ID of the subvolume that a file or directory is in. It is never given to another one of the file system.
pub(super) fn subvolume_id(file: BorrowedFd<'_>) -> Result<u64> {
    let mut arguments = InodeLookup {
        tree: 0,
        object: ROOT_INODE,
        name: [0; 4080],
    };
    // SAFETY: the argument has the layout that this opcode takes and fills.
    unsafe { ioctl::ioctl(file, Updater::<LOOK_UP, _>::new(&mut arguments)) }?;
    match arguments.tree {
        0 => Err(Errno::INVAL),
        id => Ok(id),
    }
}

/// A number that tells a directory from others of its file system for as long as it exists: its inode number, or for the
/// root of a subvolume, which all have the same, the subvolume's ID.
pub(crate) fn subvolume_or_inode(dir: BorrowedFd<'_>) -> Result<u64> {
    let stat = rustix::fs::fstat(dir)?;
    if is_subvolume(&stat) && is_btrfs(dir)? {
        return subvolume_id(dir);
    }
    Ok(stat.st_ino)
}

/// Makes a subvolume writable that was made read-only; `dir` is its root directory.
pub(crate) fn clear_read_only(dir: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: this opcode fills one number of 64 bits.
    let flags = unsafe { ioctl::ioctl(dir, Getter::<GET_FLAGS, u64>::new()) }?;
    if flags & READ_ONLY == 0 {
        return Ok(());
    }
    // SAFETY: this opcode takes one number of 64 bits.
    unsafe { ioctl::ioctl(dir, Setter::<SET_FLAGS, u64>::new(flags & !READ_ONLY)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::at;
    use std::os::fd::AsFd as _;

    #[test]
    fn opcodes_are_those_of_the_kernel() {
        assert_eq!(
            (CREATE, SNAPSHOT, DESTROY, LOOK_UP),
            (0x5000_9418, 0x5000_9417, 0x5000_940f, 0xd000_9412)
        );
        assert_eq!((GET_FLAGS, SET_FLAGS), (0x8008_9419, 0x4008_941a));
    }

    #[test]
    fn names_that_no_file_can_have_are_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = at::open_dir(tmp.path()).unwrap();
        for (name, refused) in [
            (b"".to_vec(), Errno::INVAL),
            (b"a/b".to_vec(), Errno::INVAL),
            (b"a\0b".to_vec(), Errno::INVAL),
            (vec![b'x'; 256], Errno::NAMETOOLONG),
            (vec![b'x'; 5000], Errno::NAMETOOLONG),
        ] {
            assert_eq!(create_subvolume(dir.as_fd(), &name), Err(refused));
            assert_eq!(snapshot(dir.as_fd(), dir.as_fd(), &name), Err(refused));
            assert_eq!(destroy(dir.as_fd(), &name), Err(refused));
        }
    }

    #[test]
    fn other_file_systems_have_no_subvolumes() {
        let proc = at::open_dir(std::path::Path::new("/proc")).unwrap();
        assert!(!is_btrfs(proc.as_fd()).unwrap());
        assert!(create_subvolume(proc.as_fd(), b"x").is_err() && subvolume_id(proc.as_fd()).is_err());
        let inode = rustix::fs::fstat(&proc).unwrap().st_ino;
        assert_eq!(subvolume_or_inode(proc.as_fd()).unwrap(), inode);
    }
}
