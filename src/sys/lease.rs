//! Being the only one who has a file open.
//!
//! A lease for writing (`F_SETLEASE`) is given only while no other open file of the same inode exists, in any process; an
//! `open` that comes later waits until the lease is given back.
#![expect(unsafe_code, reason = "fcntl has no safe wrapper for leases")]

use std::fs::File;
use std::os::fd::AsRawFd as _;

use rustix::io::{Errno, Result};

/// `F_SETSIG`, which not every libc names. The number is the same wherever Rust's standard library runs on Linux.
const F_SETSIG: libc::c_int = 10;

/// The lease of a file that is open for writing; given back when dropped.
#[derive(Debug)]
pub(crate) struct Lease<'a>(&'a File);

impl<'a> Lease<'a> {
    /// The lease; `None` while someone else has the file open, and where there are no leases: on some file systems, and for
    /// files of other users.
    pub(crate) fn of(file: &'a File) -> Option<Self> {
        // Who waits for the file is no news for this process, and the default of the signal for it ends the process.
        fcntl(file, F_SETSIG, libc::SIGURG).ok()?;
        fcntl(file, libc::F_SETLEASE, libc::F_WRLCK).ok()?;
        let lease = Self(file);
        fcntl(file, libc::F_SETOWN, 0).ok()?;
        Some(lease)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Err(error) = fcntl(self.0, libc::F_SETLEASE, libc::F_UNLCK) {
            // It ends when the file is closed.
            tracing::debug!(%error, "cannot give a lease back");
        }
    }
}

fn fcntl(file: &File, command: libc::c_int, argument: libc::c_int) -> Result<()> {
    // SAFETY: the descriptor is open for the whole call, and the commands used here take an integer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if result != -1 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn only_one_has_the_file_open() {
        for parent in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
            let tmp = tempfile::tempdir_in(&parent).unwrap();
            let path = tmp.path().join("file");
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)
                .unwrap();
            drop(Lease::of(&file).unwrap());
            let reader = File::open(&path).unwrap();
            assert!(Lease::of(&file).is_none(), "{}", parent.display());
            drop(reader);
            let lease = Lease::of(&file).unwrap();
            // Whoever opens it waits, and nobody is told by a signal.
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| File::open(&path).unwrap());
                while !std::fs::read_to_string("/proc/locks")
                    .unwrap()
                    .contains("BREAKING")
                {
                    std::thread::yield_now();
                }
                drop(lease);
                drop(waiting.join().unwrap());
            });
        }
    }
}
