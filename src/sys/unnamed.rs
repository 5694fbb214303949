//! Files without a name: the kernel removes them with their last handle, also when the process is killed.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::random;

/// Access to a new file, for reading and writing.
const ACCESS: OFlags = OFlags::RDWR.union(OFlags::CLOEXEC);

/// A new file on the file system of directory `path` in `dir`; `None` where the file system or the kernel has no files
/// without a name, and where the directory is missing.
pub(crate) fn open(dir: BorrowedFd<'_>, path: &Path, mode: Mode) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::openat(dir, path, ACCESS | OFlags::TMPFILE, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => Ok(None),
        result => result.map(Some),
    }
}

/// A new file (0600) on the file system of `dir`. Where there are no files without a name, one is made with a name that
/// is taken away at once.
pub(crate) fn create(dir: BorrowedFd<'_>) -> io::Result<File> {
    let mode = Mode::RUSR | Mode::WUSR;
    if let Some(file) = open(dir, Path::new("."), mode)? {
        return Ok(file.into());
    }
    random::with_unused(|number| {
        let name = format!(".graphroot-{number}");
        let file = rustix::fs::openat(dir, &name, ACCESS | OFlags::CREATE | OFlags::EXCL, mode)?;
        rustix::fs::unlinkat(dir, &name, AtFlags::empty())?;
        Ok(file.into())
    })
}

/// Gives a file a name in `dir`, which must not be in use.
pub(crate) fn link(
    file: &File,
    dir: BorrowedFd<'_>,
    name: impl rustix::path::Arg + Copy,
) -> rustix::io::Result<()> {
    match rustix::fs::linkat(file, "", dir, name, AtFlags::EMPTY_PATH) {
        // To an ordinary user, kernels before 6.10 say that of all files.
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, unnamed, dir, name, AtFlags::SYMLINK_FOLLOW)
}
