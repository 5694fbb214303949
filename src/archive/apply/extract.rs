//! Unpacks entries below an open directory, which is empty at first. Nothing outside of it can be reached, whatever the
//! names say.
//!
//! Names are cleaned lexically first (`..` stops at the root), parents are resolved inside the root, and the last
//! component is never followed: what is there is removed, then made anew with `O_EXCL`. Modes are set explicitly, so
//! the process's umask, which is shared by all threads, neither matters nor is touched. Missing parents are made with
//! mode 0755 and the owner that container root maps to. What the archive says of the layers below is collected
//! ([`LayerMarks`]).
//!
//! Each entry is one step; a crash leaves a partly unpacked tree, which its caller keeps in a staging directory.
//!
//! The tar-split recorder refers to files ([`crate::archive::apply::seen`]): before one is replaced its content is kept.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use crate::archive::apply::aufs::Aufs;
use crate::archive::apply::extract_state::{DirTimes, ExtractState};
use crate::archive::apply::hard_links::HardLinks;
use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::metadata::{self, Rules, kind};
use crate::archive::apply::new_file::NEW_FILE;
use crate::archive::apply::origins::{Origins, Spot};
use crate::archive::apply::parents::{Found, Parent};
use crate::archive::apply::payload::write_payload;
use crate::archive::apply::present_tree::PresentTree;
use crate::archive::apply::target::{Content, Inspect};
use crate::archive::apply::tree::{During as _, Tree};
use crate::archive::path::{MAX_PATH, clean, push, show, split};
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::crc::Crc;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::idmap::Owner;
use crate::sys::at;
use crate::whiteout::{self, WhiteoutName};

/// What an entry's placing came to, for the recorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Placed {
    /// A line refers to its payload.
    Recorded,
    /// Its payload, if it has any, is on the recorder itself, or was not read yet (and will be put there).
    Unrecorded,
}

/// How to unpack.
#[derive(Debug)]
pub(crate) struct Setup {
    /// What the archive holds.
    pub(crate) content: Content,
    /// Whether the entry `./` changes the root directory.
    pub(crate) root_entry: bool,
    /// Owners and attributes.
    pub(crate) rules: Rules,
    /// The tree of the layer to which the archive is applied, if that is there.
    pub(crate) present: Option<PresentTree>,
    /// Whether [`Extractor::finish`] makes everything durable.
    pub(crate) sync: bool,
    /// Files that have the content of payloads.
    pub(crate) origins: Option<Arc<Origins>>,
    /// Sees what is unpacked.
    pub(crate) inspect: Option<Box<dyn Inspect>>,
}

/// Unpacks one archive. See the module's head.
pub(crate) struct Extractor {
    tree: Tree,
    content: Content,
    root_entry: bool,
    dir_times: DirTimes,
    /// Owner and mode by the archive's entry for the root.
    root_stat: Option<(Owner, u32)>,
    /// For layers of complete trees only.
    aufs: Option<Aufs>,
    hard_links: HardLinks,
    crc: Crc,
    origins: Option<Arc<Origins>>,
    inspect: Option<Box<dyn Inspect>>,
    /// Scratch: the clean path of the current entry.
    path: Vec<u8>,
}

impl Extractor {
    /// Unpacks below `root`, which must be open for reading.
    pub(crate) fn new(root: OwnedFd, setup: Setup) -> Result<Self> {
        Ok(Self {
            tree: Tree::new(root, setup.rules, setup.sync)?,
            content: setup.content,
            root_entry: setup.root_entry,
            dir_times: DirTimes::default(),
            root_stat: None,
            aufs: (setup.content == Content::TreeLayer).then(Aufs::default),
            hard_links: HardLinks::new(setup.present),
            crc: Crc::new(),
            origins: setup.origins,
            inspect: setup.inspect,
            path: Vec::new(),
        })
    }

    /// Unpacks one entry, reads its payload as far as it is needed, and records it.
    pub(crate) fn place<S: ChunkSource>(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<S>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        if let Some(inspect) = &mut self.inspect {
            inspect.entry(entry)?;
        }
        let mut path = std::mem::take(&mut self.path);
        let cleaned = clean(&entry.name, &mut path);
        let first = self.tree.state.seen.name(&path);
        // A name that leads above the root is read elsewhere by other programs, so they get no line for it.
        let recordable = recorder.is_on() && first && !cleaned.clamped;
        let placed = self.dispatch(entry, &path, cleaned.dot, recordable, reader, recorder);
        self.path = path;
        let placed = placed.context(|| format!("unpacking {}", show(&entry.name)))?;
        if placed == Placed::Unrecorded && first && entry.size == 0 {
            recorder.file(&entry.name, 0, [0; 8])?;
        }
        Ok(())
    }

    /// To be called when the last entry was placed.
    pub(crate) fn end_of_entries(&mut self) -> Result<()> {
        match &mut self.inspect {
            Some(inspect) => inspect.end(),
            None => Ok(()),
        }
    }

    /// Sets the times of directories, syncs if that was asked for.
    pub(crate) fn finish(mut self) -> Result<(ExtractState, LayerMarks)> {
        for (path, times) in self.dir_times.iter() {
            let doing = "setting the times of a directory";
            if path.is_empty() {
                rustix::fs::futimens(self.tree.parents.root().fd(), times).during(doing)?;
                continue;
            }
            let (parent, name) = split(path);
            let Found::Directory(parent) = self.tree.parents.find(parent)? else {
                continue;
            };
            if parent.via_link() {
                // It has taken the place of a directory: the one that this is about is gone.
                continue;
            }
            if self.tree.dirs_gone {
                let stat = at::lstat_at(parent.fd(), name).during(doing)?;
                if stat.is_none_or(|stat| kind(&stat) != FileType::Directory) {
                    continue;
                }
            }
            match rustix::fs::utimensat(parent.fd(), name, times, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(Error::io(format!("{doing} {}", show(path)), error)),
            }
        }
        if self.tree.rules.force_mask.is_some() {
            // Compat: the Go library says this of a root of which the archive says nothing.
            let (owner, mode) = self.root_stat.unwrap_or((Owner::default(), 0o755));
            self.tree
                .rules
                .keep_real(self.tree.parents.root().fd(), owner, mode & 0o777, "dir")?;
        }
        let root = Rc::clone(self.tree.parents.root());
        self.tree.deferred_modes.set_all(root.fd(), true)?;
        std::mem::take(&mut self.tree.sync_tracker).commit(self.tree.parents.root().fd())?;
        self.tree.deferred_modes.set_all(root.fd(), false)?;
        Ok((self.tree.state, self.tree.marks))
    }

    fn dispatch<S: ChunkSource>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        dot: bool,
        recordable: bool,
        reader: &mut TarReader<S>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<Placed> {
        if path.contains(&0) {
            return Err(ErrorKind::InvalidArchive.err("name with a NUL byte"));
        }
        if path.len() > MAX_PATH {
            return Err(Error::io("resolving the name", Errno::NAMETOOLONG));
        }
        if entry.kind == b'g' {
            return Ok(Placed::Unrecorded);
        }
        if path.is_empty() {
            if self.tree.rules.force_mask.is_some() && entry.kind == b'5' {
                self.root_stat = Some((self.tree.rules.owner(entry)?, entry.mode));
            }
            if !dot || self.root_entry {
                self.root(entry)?;
            }
            return Ok(Placed::Unrecorded);
        }
        let (parent, base) = split(path);
        if let Some(aufs) = &mut self.aufs
            && Aufs::is_private(path)
        {
            aufs.place(
                entry,
                path,
                &self.tree.rules,
                self.tree.parents.root().fd(),
                reader,
                recorder,
            )?;
            return Ok(Placed::Unrecorded);
        }
        match whiteout::parse(base) {
            _ if self.content == Content::Files => {}
            WhiteoutName::None => {}
            WhiteoutName::Invalid => return Err(ErrorKind::UnsafePath.err("whiteout of no name")),
            WhiteoutName::Opaque => {
                self.tree.marks.empty(parent)?;
                return Ok(Placed::Unrecorded);
            }
            WhiteoutName::Deleted(name) => {
                let mut path = parent.to_vec();
                push(&mut path, name);
                // An owner is never a reason to fail.
                self.tree.marks.delete(path, self.tree.rules.owner(entry).ok())?;
                return Ok(Placed::Unrecorded);
            }
        }
        let is_device = matches!(entry.kind, b'3' | b'4');
        let masked = self.tree.rules.force_mask.is_some();
        // On disk it would be overlayfs' mark for a deleted name, and listed where no layer below has the name.
        let is_mark =
            entry.kind == b'3' && metadata::device_number(entry) == 0 && self.content == Content::Layer;
        if (is_device && self.tree.rules.in_user_namespace || is_mark) && !masked {
            // It hides what the layers below have, although it cannot be made.
            self.tree.marks.delete(path.to_vec(), None)?;
            if let Found::Directory(parent) = self.tree.parents.find(parent)? {
                self.tree.displace(&parent, base, recorder)?;
            }
            return Ok(Placed::Unrecorded);
        }
        if !matches!(entry.kind, b'0'..=b'7' | b'S') {
            let kind = char::from(entry.kind);
            let text = format!("unhandled tar header type {} ({kind:?})", entry.kind);
            return Err(ErrorKind::InvalidArchive.err(text));
        }
        let parent = self.tree.ensure(parent)?;
        match entry.kind {
            b'5' => self.directory(entry, path, &parent, base, recorder)?,
            b'2' => self.symlink(entry, &parent, base, recorder)?,
            b'1' => {
                let aufs = self.aufs.as_ref();
                self.hard_links
                    .place(&mut self.tree, aufs, entry, &parent, base, recorder)?;
            }
            b'3' | b'4' | b'6' if masked => self.stand_in(entry, &parent, base, recorder)?,
            b'3' | b'4' | b'6' => self.node(entry, &parent, base, recorder)?,
            _ => return self.regular(entry, &parent, base, recordable, reader, recorder),
        }
        Ok(Placed::Unrecorded)
    }

    /// The entry for the root itself.
    fn root(&mut self, entry: &Entry) -> Result<()> {
        if entry.kind != b'5' {
            return Err(ErrorKind::InvalidArchive.err("the root of a layer is a directory"));
        }
        let owner = self.tree.rules.owner(entry)?;
        let root = Rc::clone(self.tree.parents.root());
        self.tree.rules.open_file(root.fd(), entry, owner, false)?;
        self.tree.marks.describe(b"");
        let mode = self.tree.rules.mode(entry);
        self.tree.deferred_modes.close_later(root.fd(), b"", mode)?;
        self.dir_times
            .push(b"", metadata::times(entry.mtime, entry.atime));
        Ok(())
    }

    fn directory(
        &mut self,
        entry: &Entry,
        path: &[u8],
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let owner = self.tree.rules.owner(entry)?;
        let mode = Mode::from_raw_mode(self.tree.deferred_modes.working_mode(entry.mode & 0o777));
        match rustix::fs::mkdirat(parent.fd(), base, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = at::lstat_at(parent.fd(), base).during("reading the status")?;
                if there.is_none_or(|stat| kind(&stat) != FileType::Directory) {
                    self.tree.displace(parent, base, recorder)?;
                    rustix::fs::mkdirat(parent.fd(), base, mode).during("making a directory")?;
                }
            }
            Err(error) => return Err(Error::io("making a directory", error)),
        }
        let dir = at::open_dir_at(parent.fd(), base).during("opening a directory")?;
        self.tree.rules.open_file(dir.as_fd(), entry, owner, false)?;
        let mut real = std::mem::take(&mut self.tree.real);
        parent.child(base, &mut real);
        self.tree.marks.describe(&real);
        // By its real name: a link that it was reached through may be gone at the end.
        self.dir_times
            .push(&real, metadata::times(entry.mtime, entry.atime));
        let mode = self.tree.rules.mode(entry);
        let closed = self.tree.deferred_modes.close_later(dir.as_fd(), &real, mode);
        self.tree.real = real;
        closed?;
        self.tree.keep_open(path, parent, base, dir);
        Ok(())
    }

    /// An empty file for what cannot be made; an attribute tells what it is.
    fn stand_in(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let owner = self.tree.rules.owner(entry)?;
        let make = || rustix::fs::openat(parent.fd(), base, NEW_FILE, Mode::RUSR | Mode::WUSR);
        let file = self
            .tree
            .make(parent, base, recorder, make)
            .during("making a file")?;
        self.tree.rules.open_file(file.as_fd(), entry, owner, true)?;
        self.tree.sync_tracker.file(file);
        Ok(())
    }

    fn symlink(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let owner = self.tree.rules.owner(entry)?;
        let make = || rustix::fs::symlinkat(entry.link.as_slice(), parent.fd(), base);
        self.tree
            .make(parent, base, recorder, make)
            .during("making a symbolic link")?;
        let size = &mut self.tree.state.size;
        *size = size.saturating_add(entry.link.len() as u64);
        self.tree.rules.node(parent.fd(), base, entry, owner)
    }

    fn node(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let owner = self.tree.rules.owner(entry)?;
        let kind = match entry.kind {
            b'3' => FileType::CharacterDevice,
            b'4' => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = match kind {
            FileType::Fifo => 0,
            _ => metadata::device_number(entry),
        };
        let mode = Mode::from_raw_mode(entry.mode & 0o777);
        let make = || rustix::fs::mknodat(parent.fd(), base, kind, mode, device);
        self.tree
            .make(parent, base, recorder, make)
            .during("making a device or FIFO (mknod)")?;
        self.tree.rules.node(parent.fd(), base, entry, owner)
    }

    fn regular<S: ChunkSource>(
        &mut self,
        entry: &Entry,
        parent: &Rc<Parent>,
        base: &[u8],
        recordable: bool,
        reader: &mut TarReader<S>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<Placed> {
        let owner = self.tree.rules.owner(entry)?;
        let origin = match &self.origins {
            Some(origins) if entry.sparse.is_none() => origins.take(reader.offset()),
            _ => None,
        };
        let place = Spot { parent, base };
        let linked = match &origin {
            Some(origin) => origin.link(&mut self.tree, entry, owner, place, recorder)?,
            None => false,
        };
        let mut is_there = linked;
        let file = match origin {
            Some(origin) if linked => origin.file,
            origin => {
                let mode = Mode::from_raw_mode(entry.mode & 0o777);
                let make = || rustix::fs::openat(parent.fd(), base, NEW_FILE, mode);
                let made = self.tree.make(parent, base, recorder, make);
                let file = File::from(made.during("making a file")?);
                if let (Some(origins), Some(origin)) = (&self.origins, origin) {
                    is_there = origins.clone_to(&file, &origin, entry.size)?;
                }
                file
            }
        };
        // A name through a link may have replaced that very link.
        let recordable = recordable
            && entry.sparse.is_none()
            && (!parent.via_link() || self.tree.is_reached(&entry.name, &file)?);
        let to = (!is_there).then_some(&file);
        let (crc, inspect, mut offset) = (&mut self.crc, &mut self.inspect, reader.offset());
        write_payload(entry, to, reader, |piece| {
            if let Some(inspect) = inspect {
                inspect.content(entry, offset, piece);
                offset += piece.len() as u64;
            }
            if recordable {
                crc.update(piece);
                Ok(())
            } else {
                recorder.raw(piece)
            }
        })?;
        if !linked {
            self.tree.rules.open_file(file.as_fd(), entry, owner, true)?;
        }
        let sum = match inspect {
            Some(inspect) => inspect.content_end()?,
            None => None,
        };
        let file = match (&self.origins, sum) {
            (Some(origins), Some(sum)) => origins.share(&mut self.tree, file, &sum, entry, owner, place)?,
            _ => file,
        };
        let size = &mut self.tree.state.size;
        *size = size.saturating_add(entry.size);
        self.tree.sync_tracker.file(file.into());
        let sum = self.crc.take();
        if !recordable {
            return Ok(Placed::Unrecorded);
        }
        let line = recorder.file(&entry.name, entry.size, sum)?;
        if entry.size > 0 {
            parent.child(base, &mut self.tree.real);
            self.tree.state.seen.set_line(&self.tree.real, line);
            if parent.via_link() {
                self.tree.state.via_links.push((line, entry.name.clone()));
            }
        }
        Ok(Placed::Recorded)
    }
}
