//! Copies the content of a file: by reflink, else in the kernel, else through a buffer. Holes stay holes.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{SeekFrom, Stat};
use rustix::io::Errno;

/// Bytes per call where the kernel cannot copy by itself.
const BUFFER: usize = 128 * 1024;

/// Most bytes asked for in one `copy_file_range`, so that the call returns now and then.
const MAX_RANGE: u64 = 1 << 30;

/// Copies files, and remembers which ways do not work between their file systems.
#[derive(Debug)]
pub(super) struct DataCopier {
    /// Cleared when the file systems have refused a reflink.
    reflink: bool,
    /// Cleared when the kernel has refused to copy by itself.
    in_kernel: bool,
}

impl Default for DataCopier {
    fn default() -> Self {
        Self {
            reflink: true,
            in_kernel: true,
        }
    }
}

impl DataCopier {
    /// Copies a file of which `stat` says the size into an empty one. Returns whether content was written: a reflink
    /// changes nothing but metadata.
    pub(super) fn copy(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<bool> {
        if self.reflink {
            if rustix::fs::ioctl_ficlone(to, from).is_ok() {
                return Ok(false);
            }
            self.reflink = false;
        }
        self.write(from, to, stat).map(|()| true)
    }

    fn write(&mut self, from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        if allocated >= size {
            return self.range(from, to, 0, size);
        }
        let mut offset = 0;
        while offset < size {
            let start = match rustix::fs::seek(from, SeekFrom::Data(offset)) {
                Ok(start) => start,
                // A hole up to the end.
                Err(Errno::NXIO) => break,
                // The file system does not report holes.
                Err(Errno::INVAL | Errno::OPNOTSUPP) => offset,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(start))
                .unwrap_or(size)
                .min(size);
            self.range(from, to, start, end)?;
            offset = end.max(start + 1);
        }
        Ok(rustix::fs::ftruncate(to, size)?)
    }

    /// Copies the bytes between two offsets. A source that has become shorter ends the copy.
    fn range(&mut self, from: &OwnedFd, to: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
        let (mut read, mut written) = (start, start);
        while self.in_kernel && read < end {
            let length = usize::try_from((end - read).min(MAX_RANGE)).unwrap_or(BUFFER);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::XDEV | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL | Errno::PERM) => {
                    self.in_kernel = false;
                }
                Err(error) => return Err(error.into()),
            }
        }
        if read >= end {
            return Ok(());
        }
        let mut buffer = vec![0; BUFFER];
        while read < end {
            let wanted = usize::try_from(end - read).unwrap_or(BUFFER).min(BUFFER);
            let room = buffer.get_mut(..wanted).unwrap_or_default();
            let count = rustix::io::retry_on_intr(|| rustix::io::pread(from, &mut *room, read))?;
            let mut rest: &[u8] = room.get(..count).unwrap_or_default();
            if rest.is_empty() {
                return Ok(());
            }
            while !rest.is_empty() {
                let count = rustix::io::retry_on_intr(|| rustix::io::pwrite(to, rest, read))?;
                rest = rest.get(count..).unwrap_or_default();
                read += u64::try_from(count).unwrap_or(0);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    #[test]
    fn holes_stay_holes_and_every_way_copies_the_same() {
        let tmp = tempfile::tempdir().unwrap();
        let (from, to) = (tmp.path().join("from"), tmp.path().join("to"));
        let mut content = vec![0; 3 << 20];
        content[1 << 20] = 1;
        *content.last_mut().unwrap() = 2;
        let file = fs::File::create(&from).unwrap();
        file.set_len(content.len() as u64).unwrap();
        file.write_all_at(&[1], 1 << 20).unwrap();
        file.write_all_at(&[2], (3 << 20) - 1).unwrap();
        for (reflink, in_kernel) in [(true, true), (false, true), (false, false)] {
            let mut copier = DataCopier { reflink, in_kernel };
            let source = fs::File::open(&from).unwrap().into();
            let target = fs::File::create(&to).unwrap().into();
            let stat = rustix::fs::stat(&from).unwrap();
            copier.copy(&source, &target, &stat).unwrap();
            assert!(fs::read(&to).unwrap() == content, "{reflink} {in_kernel}");
            assert!(
                fs::metadata(&to).unwrap().blocks() * 512 < 1 << 20,
                "{reflink} {in_kernel}"
            );
            fs::remove_file(&to).unwrap();
        }
    }
}
