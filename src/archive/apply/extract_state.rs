//! State that is kept while an archive is unpacked: what the tar-split recorder relies on, sizes, times of directories.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;

use crate::archive::apply::linked_files::LinkedFiles;
use crate::archive::apply::prune::Removal;
use crate::archive::apply::seen::Seen;
use crate::archive::apply::shared_files::SharedFiles;
use crate::archive::path::clean;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, IoContext as _, Result};
use crate::sys::{at, tree};

/// What the tar-split recorder relies on, and what is counted.
#[derive(Default)]
pub(crate) struct ExtractState {
    /// Names, and lines that rely on files.
    pub(crate) seen: Seen,
    /// Lines whose names lead through symbolic links, with the names.
    pub(crate) via_links: Vec<(u64, Vec<u8>)>,
    /// Files of the layer that hard links share.
    pub(crate) shared: SharedFiles,
    /// Files that other layers have too, under the same inode: nothing of them may change.
    pub(crate) linked: LinkedFiles,
    /// Bytes in files and links of this archive.
    pub(crate) size: u64,
}

/// A removal in progress: keeps for the recorder what it relies on.
pub(crate) struct Removing<'a> {
    pub(crate) state: &'a mut ExtractState,
    pub(crate) recorder: &'a mut TarSplitRecorder,
    /// The root of the tree.
    pub(crate) root: BorrowedFd<'a>,
}

impl Removal for Removing<'_> {
    fn leaving(&mut self, dir: BorrowedFd<'_>, name: &[u8], path: &[u8], kind: FileType) -> Result<()> {
        let stat = at::lstat_at(dir, name).during("reading the status")?;
        let size = stat
            .filter(|stat| stat.st_nlink == 1 && !self.state.shared.has(tree::identity(stat)))
            .map_or(0, |stat| stat.st_size);
        self.state.size = self.state.size.saturating_sub(u64::try_from(size).unwrap_or(0));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let doing = "opening a file that is being replaced";
        match kind {
            FileType::RegularFile => {
                if let Some(line) = self.state.seen.take_line(path) {
                    let file = rustix::fs::openat(dir, name, flags, Mode::empty()).during(doing)?;
                    self.recorder.spill(line, &mut file.into(), self.root)?;
                }
            }
            FileType::Symlink => {
                // Names that lead through it are about to mean something else.
                for (line, name) in self.state.via_links.drain(..) {
                    let mut path = Vec::new();
                    clean(&name, &mut path);
                    match at::open_in_root(self.root, &path, flags, Mode::empty()) {
                        Ok(file) => self.recorder.spill(line, &mut file.into(), self.root)?,
                        // It was replaced itself, and kept then.
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                        Err(error) => return Err(Error::io(doing, error)),
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Times of directories, which are set at the very end. One allocation for all names.
#[derive(Default)]
pub(crate) struct DirTimes {
    names: Vec<u8>,
    list: Vec<(usize, Timestamps)>,
}

impl DirTimes {
    /// Notes the times of the directory at `path`.
    pub(crate) fn push(&mut self, path: &[u8], times: Timestamps) {
        self.names.extend_from_slice(path);
        self.list.push((self.names.len(), times));
    }

    /// Paths and times in the order of the archive.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &Timestamps)> {
        let mut start = 0;
        self.list.iter().map(move |(end, times)| {
            let name = self.names.get(start..*end).unwrap_or_default();
            start = *end;
            (name, times)
        })
    }
}
