//! Earlier versions of a large file that become its next one by writing what has changed.
//!
//! The [reserves](crate::sys::reserve) of a file, which change places with it on a full disk, do so at every change of a
//! large one: the old version is the reserve from then on. The process that wrote both knows in which bytes they differ, and
//! so writes only those to make the next version of it. The name always stands for a whole version.
//!
//! A reserve is trusted to be such a version only as long as its inode and times are those that this process has seen at the
//! exchange; its caller adds that no other process has written the file since. It is written to only
//! - while nobody else has it open: who has opened the file reads on in a version that stays as it is;
//! - when the exchange that made it a reserve is on disk: before that a power cut brings it back as the file. Where changes
//!   of names are written in order this costs nothing from the second version on, as each sync of a file takes the
//!   exchanges before it along.
//!
//! What is not forced to disk itself is written this way only where nothing survives a power cut at all.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, RenameFlags};
use rustix::io::Errno;

use crate::error::{IoContext as _, Result};
use crate::sys::at;
use crate::sys::atomic::{AtomicFile, Mtime};
use crate::sys::lease::Lease;
use crate::sys::name_sync::{self, NameOrder};
use crate::sys::reserve;

/// The permissions of a file.
const MODE: u32 = 0o600;

/// What makes one version of a file the next.
#[derive(Debug)]
pub(crate) struct Patch {
    /// Bytes, and where they are written; later ones over earlier ones.
    pub(crate) pieces: Vec<(u64, Vec<u8>)>,
}

impl Patch {
    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|(_, piece)| piece.len() as u64).sum()
    }
}

/// Which version of a file this is, up to its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    device: u64,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Content {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            changed: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// A reserve whose content is known.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    content: Content,
    /// The time of the last change to the inode: the exchange.
    exchanged: (i64, i64),
    /// What makes it the current version.
    missing: Vec<Arc<Patch>>,
    /// Whether the exchange is on disk.
    settled: bool,
}

/// What is known of a file and its reserves.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    /// The file, if this process knows what is in it.
    current: Option<Content>,
    /// The one that has been a reserve for longest first.
    known: VecDeque<Spare>,
    /// How the file system keeps names; `None` if that was not asked yet.
    order: Option<NameOrder>,
    /// Whether files cannot change places here.
    unsupported: bool,
}

/// What is written to a spare.
enum Change<'a> {
    Missing,
    Whole(&'a [u8]),
}

impl Spares {
    /// Whether a file can be written to a spare in the directory of `target`, `sync` telling whether it is forced to disk.
    pub(crate) fn can_write(&mut self, target: &Path, sync: bool) -> bool {
        !self.unsupported && (sync || self.order(target) == Some(NameOrder::InMemory))
    }

    /// Forgets what the files are, not where they are.
    pub(crate) fn forget(&mut self) {
        self.current = None;
        self.known.clear();
    }

    /// Names in the directory of the file are on disk.
    pub(crate) fn settle(&mut self) {
        for spare in &mut self.known {
            spare.settled = true;
        }
    }

    /// The length of the file to which [`Spares::write`] writes first.
    pub(crate) fn size_of_next(&self, target: &Path) -> u64 {
        let next = self.unknown(target).next();
        let status = next.and_then(|path| std::fs::symlink_metadata(path).ok());
        status.map_or(0, |status| status.size())
    }

    /// Makes a spare the next version by writing what it lacks. `None` if there is none that can be used; then the file is as
    /// it was.
    pub(crate) fn patch(&mut self, target: &Path, patch: &Arc<Patch>, sync: bool) -> Result<Option<Mtime>> {
        // What has changed long ago is cheaper to write as a whole.
        let limit = self.current.map_or(0, |current| current.size / 4);
        let many = |spare: &Spare| spare.missing.iter().map(|patch| patch.bytes()).sum::<u64>() > limit;
        self.known.retain(|spare| !many(spare));
        if sync && self.order(target) == Some(NameOrder::Kept) && self.known.len() < reserve::COUNT {
            // Where all are known, the one that is used next was settled by the sync of another.
            let unsettled = self.known.front().is_some_and(|spare| !spare.settled);
            if unsettled && self.unknown(target).next().is_some() {
                return Ok(None);
            }
        }
        while let Some(mut spare) = self.known.pop_front() {
            spare.missing.push(Arc::clone(patch));
            if let Some(file) = spare.open()
                && let Some(mtime) =
                    self.replace(target, &file, &mut spare, &Change::Missing, Some(patch), sync)?
            {
                return Ok(Some(mtime));
            }
        }
        Ok(None)
    }

    /// Writes all of the next version; `patch` makes the current version this one too, if that is known. `None` if the file is
    /// to be replaced in the usual way; then it is as it was.
    ///
    /// In memory that is written to a spare, which has its pages already. Elsewhere a spare of which nothing is known could be
    /// the file again after a power cut, unless the directory is synced before; so there it is a new file, and the old
    /// one takes the place of a spare.
    pub(crate) fn write(
        &mut self,
        target: &Path,
        content: &[u8],
        patch: Option<&Arc<Patch>>,
        sync: bool,
    ) -> Result<Option<Mtime>> {
        if patch.is_none() {
            self.forget();
        }
        let unknown: Vec<PathBuf> = self.unknown(target).collect();
        if self.order(target) != Some(NameOrder::InMemory) {
            return match (patch, unknown.into_iter().next()) {
                (Some(patch), Some(spare)) => self.write_new(target, content, patch, spare, sync),
                _ => Ok(None),
            };
        }
        for path in unknown {
            let Some(file) = reserve::open(&path) else {
                continue;
            };
            let Ok(status) = file.metadata() else { continue };
            let mut spare = Spare {
                path,
                content: Content::of(&status),
                exchanged: (status.ctime(), status.ctime_nsec()),
                missing: Vec::new(),
                settled: false,
            };
            let change = Change::Whole(content);
            if let Some(mtime) = self.replace(target, &file, &mut spare, &change, patch, sync)? {
                return Ok(Some(mtime));
            }
        }
        Ok(None)
    }

    /// Writes a new file; the old one becomes the spare `path`.
    fn write_new(
        &mut self,
        target: &Path,
        content: &[u8],
        patch: &Arc<Patch>,
        path: PathBuf,
        sync: bool,
    ) -> Result<Option<Mtime>> {
        let write = || {
            let mut file = AtomicFile::create(target)?;
            file.write_all(content).at("writing the new", target)?;
            file.commit_keeping(sync, MODE, &path)
        };
        let (file, kept) = match write() {
            Err(error) if error.is_full() => return Ok(None),
            written => written?,
        };
        if sync && self.order(target) == Some(NameOrder::Kept) {
            self.settle();
        }
        let new = file.metadata().at("looking at", target)?;
        let mtime = Mtime::of_file(&new);
        match kept {
            true => self.exchanged(target, &new, path, Some(patch))?,
            false => self.replaced(target, Some(patch)),
        }
        Ok(Some(mtime))
    }

    /// A file has become the current one, and what that was is the spare `path`.
    fn exchanged(
        &mut self,
        target: &Path,
        new: &Metadata,
        path: PathBuf,
        patch: Option<&Arc<Patch>>,
    ) -> Result<()> {
        let old = std::fs::symlink_metadata(&path).at("looking at", &path)?;
        let before = self.current.replace(Content::of(new));
        let Some(patch) = patch else {
            self.known.clear();
            return Ok(());
        };
        self.miss(patch);
        if before == Some(Content::of(&old)) {
            // Now: to give it more blocks later would make it a file that someone has touched.
            reserve::keep(target, new.size());
            let old = std::fs::symlink_metadata(&path).at("looking at", &path)?;
            self.known.push_back(Spare {
                path,
                content: Content::of(&old),
                exchanged: (old.ctime(), old.ctime_nsec()),
                missing: vec![Arc::clone(patch)],
                settled: false,
            });
        }
        Ok(())
    }

    /// The file was replaced in another way by content that `patch` makes of the last one.
    pub(crate) fn replaced(&mut self, target: &Path, patch: Option<&Arc<Patch>>) {
        match patch {
            Some(patch) => self.miss(patch),
            None => self.known.clear(),
        }
        let current = std::fs::symlink_metadata(target);
        self.current = current.ok().map(|current| Content::of(&current));
    }

    fn miss(&mut self, patch: &Arc<Patch>) {
        for spare in &mut self.known {
            spare.missing.push(Arc::clone(patch));
        }
    }

    /// The reserves of which nothing is known.
    fn unknown(&self, target: &Path) -> impl Iterator<Item = PathBuf> {
        let known = |path: &PathBuf| self.known.iter().any(|spare| spare.path == *path);
        let paths: Vec<PathBuf> = reserve::paths(target).filter(|path| !known(path)).collect();
        paths.into_iter()
    }

    fn order(&mut self, target: &Path) -> Option<NameOrder> {
        if self.order.is_none() {
            let dir = at::open_dir(target.parent()?).ok()?;
            self.order = name_sync::name_order(dir.as_fd()).ok();
        }
        self.order
    }

    /// Writes to the spare and has it change places with the file. `None` if that cannot be done; then the file is as it was.
    fn replace(
        &mut self,
        target: &Path,
        file: &File,
        spare: &mut Spare,
        change: &Change<'_>,
        patch: Option<&Arc<Patch>>,
        sync: bool,
    ) -> Result<Option<Mtime>> {
        let Some(lease) = Lease::of(file) else {
            return Ok(None);
        };
        let order = self.order(target);
        if sync && order != Some(NameOrder::InMemory) && !spare.settled {
            if let Some(dir) = target.parent() {
                name_sync::sync_dir(dir)?;
            }
            self.settle();
        }
        let written = spare.write(file, change).and_then(|()| {
            if sync {
                // All of the inode: with its time, names that were changed before go to disk.
                rustix::fs::fsync(file)?;
            }
            Ok(())
        });
        match written {
            Ok(()) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Ok(None),
            Err(error) => return Err(error).at("writing", &spare.path),
        }
        if sync && order == Some(NameOrder::Kept) {
            self.settle();
        }
        match rustix::fs::renameat_with(CWD, &spare.path, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.unsupported = true;
                return Ok(None);
            }
            Err(error) => return Err(error).at("replacing", target),
        }
        drop(lease);
        let new = file.metadata().at("looking at", target)?;
        self.exchanged(target, &new, std::mem::take(&mut spare.path), patch)?;
        Ok(Some(Mtime::of_file(&new)))
    }
}

impl Spare {
    /// The reserve, if it is still the one that is known.
    fn open(&self) -> Option<File> {
        let file = reserve::open(&self.path)?;
        let now = file.metadata().ok()?;
        let same = Content::of(&now) == self.content && (now.ctime(), now.ctime_nsec()) == self.exchanged;
        same.then_some(file)
    }

    fn write(&self, file: &File, change: &Change<'_>) -> rustix::io::Result<()> {
        let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        match change {
            Change::Missing => {
                for (at, piece) in self.missing.iter().flat_map(|patch| &patch.pieces) {
                    file.write_all_at(piece, *at).map_err(errno)?;
                }
            }
            Change::Whole(content) => {
                file.write_all_at(content, 0).map_err(errno)?;
                let length = content.len() as u64;
                let now = file.metadata().map_err(errno)?;
                if now.size() != length {
                    rustix::fs::ftruncate(file, length)?;
                }
                if now.mode() & 0o7777 != MODE {
                    rustix::fs::fchmod(file, Mode::from_raw_mode(MODE))?;
                }
            }
        }
        reserve::touch(file)
    }
}
