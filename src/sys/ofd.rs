//! Whole-file open-file-description record locks (`fcntl(2)`, `F_OFD_SETLK`).
//!
//! They conflict with the classic `fcntl` locks that the Go library takes, in both directions; unlike those they
//! belong to the open file and not to the process, so closing some other handle of the file does not drop them.
#![expect(unsafe_code, reason = "no crate in the tree has a safe call for OFD locks")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// What a lock allows others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Others may share it.
    Shared,
    /// Nobody else may hold one.
    Exclusive,
}

fn whole_file(kind: libc::c_int) -> io::Result<libc::flock> {
    let narrow = |value: libc::c_int| libc::c_short::try_from(value).map_err(io::Error::other);
    Ok(libc::flock { l_type: narrow(kind)?, l_whence: narrow(libc::SEEK_SET)?, l_start: 0, l_len: 0, l_pid: 0 })
}

fn call(file: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    loop {
        // SAFETY: `file` is open for the length of the call, `lock` is a valid, exclusively borrowed struct flock
        // that the three OFD commands read and, for F_OFD_GETLK, write.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) };
        if result != -1 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn code(kind: Kind) -> libc::c_int {
    match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    }
}

/// Takes the lock if nobody is in the way; `false` if somebody is.
pub(crate) fn try_lock(file: BorrowedFd<'_>, kind: Kind) -> io::Result<bool> {
    match call(file, libc::F_OFD_SETLK, &mut whole_file(code(kind))?) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Takes the lock, waiting as long as it takes.
pub(crate) fn lock(file: BorrowedFd<'_>, kind: Kind) -> io::Result<()> {
    call(file, libc::F_OFD_SETLKW, &mut whole_file(code(kind))?)
}

/// Gives the lock back.
pub(crate) fn unlock(file: BorrowedFd<'_>) -> io::Result<()> {
    call(file, libc::F_OFD_SETLK, &mut whole_file(libc::F_UNLCK)?)
}

/// The process in the way of an exclusive lock: `None` if nobody is, `Some(None)` if it does not say (OFD locks have
/// no process).
pub(crate) fn holder(file: BorrowedFd<'_>) -> io::Result<Option<Option<u32>>> {
    let mut lock = whole_file(libc::F_WRLCK)?;
    call(file, libc::F_OFD_GETLK, &mut lock)?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(None);
    }
    Ok(Some(u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0)))
}
