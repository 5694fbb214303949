//! Whole-file record locks that belong to the open file (`F_OFD_SETLK`), not to the process.
//!
//! They conflict with the classic `fcntl` locks of other processes (what the Go library takes) in both directions,
//! exclude separate opens within one process too, and survive when another part of the process closes the same file.
#![expect(
    unsafe_code,
    reason = "fcntl with a lock description has no safe wrapper for the OFD commands"
)]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::{Errno, Result};

// The OFD commands take the 64-bit form on every architecture; musl has no other.
#[cfg(not(target_env = "gnu"))]
use libc::flock as Description;
#[cfg(target_env = "gnu")]
use libc::flock64 as Description;

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Together with other shared locks; the file must be open for reading.
    Shared,
    /// Excludes all other locks; the file must be open for writing.
    Exclusive,
}

impl Kind {
    fn raw(self) -> libc::c_int {
        match self {
            Self::Shared => libc::F_RDLCK,
            Self::Exclusive => libc::F_WRLCK,
        }
    }
}

/// The whole file, however long it is or becomes: start and length 0. `l_pid` must be 0 for the OFD commands.
fn whole_file(lock: libc::c_int) -> Result<Description> {
    // SAFETY: the structure consists of integers only, for which all zeros is a valid value.
    let mut description: Description = unsafe { std::mem::zeroed() };
    // These constants are `int` on some architectures and `short` on others; they are single digits.
    description.l_type = lock.try_into().map_err(|_too_large| Errno::INVAL)?;
    description.l_whence = libc::SEEK_SET.try_into().map_err(|_too_large| Errno::INVAL)?;
    Ok(description)
}

fn call(file: BorrowedFd<'_>, command: libc::c_int, description: &mut Description) -> Result<()> {
    loop {
        // SAFETY: the descriptor is open for the whole call, and `description` is the structure that the three OFD
        // commands read and write; the kernel keeps no pointer to it.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(description)) };
        if result != -1 {
            return Ok(());
        }
        match Errno::from_io_error(&std::io::Error::last_os_error()) {
            Some(Errno::INTR) => {}
            Some(error) => return Err(error),
            None => return Err(Errno::IO),
        }
    }
}

/// Takes the lock, or changes the kind of the one held, if that is possible now; `false` if another file holds it.
pub(crate) fn try_lock(file: BorrowedFd<'_>, kind: Kind) -> Result<bool> {
    match call(file, libc::F_OFD_SETLK, &mut whole_file(kind.raw())?) {
        Ok(()) => Ok(true),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Waits for the lock without a limit.
pub(crate) fn lock(file: BorrowedFd<'_>, kind: Kind) -> Result<()> {
    call(file, libc::F_OFD_SETLKW, &mut whole_file(kind.raw())?)
}

/// Releases the lock; no effect if none is held.
pub(crate) fn unlock(file: BorrowedFd<'_>) -> Result<()> {
    call(file, libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK)?)
}

/// The process that holds a conflicting lock, or -1 if an open file holds it, as with OFD locks. `None` if there is no
/// conflict.
pub(crate) fn holder(file: BorrowedFd<'_>, kind: Kind) -> Result<Option<i32>> {
    let mut description = whole_file(kind.raw())?;
    call(file, libc::F_OFD_GETLK, &mut description)?;
    let free = libc::c_int::from(description.l_type) == libc::F_UNLCK;
    Ok((!free).then_some(description.l_pid))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

    #[test]
    fn separate_opens_of_one_process_exclude_each_other() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("lock");
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .unwrap()
        };
        let (one, two) = (open(), open());
        assert!(try_lock(one.as_fd(), Kind::Shared).unwrap());
        assert!(try_lock(two.as_fd(), Kind::Shared).unwrap());
        assert!(!try_lock(two.as_fd(), Kind::Exclusive).unwrap());
        assert_eq!(holder(two.as_fd(), Kind::Exclusive).unwrap(), Some(-1));
        assert_eq!(holder(two.as_fd(), Kind::Shared).unwrap(), None);
        unlock(one.as_fd()).unwrap();
        assert!(try_lock(two.as_fd(), Kind::Exclusive).unwrap());
        assert!(!try_lock(one.as_fd(), Kind::Shared).unwrap());
        // A classic lock would be lost here.
        drop(open());
        assert!(!try_lock(one.as_fd(), Kind::Shared).unwrap());
        drop(two);
        lock(one.as_fd(), Kind::Exclusive).unwrap();
        assert_eq!(holder(one.as_fd(), Kind::Exclusive).unwrap(), None);
    }

    #[test]
    fn a_file_open_for_reading_cannot_be_locked_exclusively() {
        let tmp = tempfile::NamedTempFile::new().unwrap();
        let file = File::open(tmp.path()).unwrap();
        assert!(try_lock(file.as_fd(), Kind::Shared).unwrap());
        assert_eq!(try_lock(file.as_fd(), Kind::Exclusive), Err(Errno::BADF));
    }
}
