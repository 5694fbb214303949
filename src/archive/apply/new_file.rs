//! Files that were not there: how they are made, and copies of others.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;

use crate::archive::apply::metadata::kind;
use crate::error::{IoContext as _, Result};
use crate::sys::at;

/// How a file is made that was not there.
pub(super) const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Makes `to` (a name in a directory, where nothing is) the same as `from`, which has a status and is no directory; owner,
/// attributes, mode and times excepted. Of a regular file it returns the original, the copy and how many bytes were copied.
pub(super) fn copy_file(
    (dir, name, stat): (BorrowedFd<'_>, &[u8], &Stat),
    (to, base): (BorrowedFd<'_>, &[u8]),
) -> Result<Option<(File, File, u64)>> {
    let doing = "copying a file";
    match kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut from = File::from(rustix::fs::openat(dir, name, flags, Mode::empty()).during(doing)?);
            let mode = Mode::RUSR | Mode::WUSR;
            let mut to = File::from(rustix::fs::openat(to, base, NEW_FILE, mode).during(doing)?);
            let count = copy_data(&mut from, &mut to).during(doing)?;
            Ok(Some((from, to, count)))
        }
        FileType::Symlink => {
            let target = at::read_link_at(dir, name).during(doing)?;
            rustix::fs::symlinkat(target, to, base).during(doing)?;
            Ok(None)
        }
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
            rustix::fs::mknodat(to, base, kind, mode, stat.st_rdev).during(doing)?;
            Ok(None)
        }
    }
}

/// Copies the content, without what are holes; returns how much.
fn copy_data(from: &mut File, to: &mut File) -> std::io::Result<u64> {
    let size = from.metadata()?.len();
    let (mut count, mut end) = (0u64, 0);
    while end < size {
        let start = match rustix::fs::seek(&*from, SeekFrom::Data(end)) {
            // Nothing but a hole to the end.
            Err(Errno::NXIO) => break,
            found => found?,
        };
        end = rustix::fs::seek(&*from, SeekFrom::Hole(start))?;
        for file in [&*from, &*to] {
            rustix::fs::seek(file, SeekFrom::Start(start))?;
        }
        count += io::copy(&mut from.take(end.saturating_sub(start)), to)?;
    }
    to.set_len(size)?;
    Ok(count)
}
