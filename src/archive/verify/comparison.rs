//! Compares a tree with the one that is expected, in one walk of bounded steps.
//!
//! Compared are types, owners, permissions, sizes, times of files, targets of links, device numbers and extended attributes;
//! and the content of files that the reading of the layer has not compared already. Not compared are the root directory and
//! the times of directories: mounting and creating containers can change them (podman's issue 25101), and a name that was
//! added or removed is found anyway.

use std::cmp::Ordering;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use crate::archive::apply::metadata::kind;
use crate::archive::apply::settle::literal_dir;
use crate::archive::diff::walk::{TreeWalk, absolute};
use crate::archive::path::split;
use crate::archive::tar_split::crc::Crc;
use crate::archive::verify::difference::{AttributeChange, Difference, DifferenceKind};
use crate::archive::verify::expected_item::{Content, Item, What};
use crate::archive::verify::expected_tree::{ExpectedTree, path_of, set_key};
use crate::archive::verify::item_comparison::Comparing;
use crate::archive::verify::overlay_marks::Marks;
use crate::error::{Error, IoContext as _, Result};
use crate::sys::sparse_read::{Piece, SparseReader};
use crate::sys::{at, xattr};

const DOING: &str = "looking at a file of the layer";

/// Differences of one layer that are told of one by one.
pub(crate) const MAX_DIFFERENCES: usize = 1000;

/// Bytes of a file that are read at a time.
const READ_SIZE: usize = 128 * 1024;

/// See the module's head.
pub(crate) struct TreeCheck {
    walk: TreeWalk,
    expected: Arc<ExpectedTree>,
    comparing: Comparing,
    marks: Option<Marks>,
    /// The walk's current entry has not been dealt with yet.
    pending: bool,
    walk_is_over: bool,
    /// The key of that entry.
    key: Vec<u8>,
    /// The key of the expected name that the last step ended with.
    cursor: Option<Box<[u8]>>,
    reading: Option<Reading>,
    buffer: Vec<u8>,
    differences: Vec<Difference>,
    /// How many there are beyond those.
    more: u64,
}

/// A file whose content is being compared.
struct Reading {
    path: Vec<u8>,
    file: SparseReader,
    crc: Crc,
    expected: [u8; 8],
    changes: Vec<AttributeChange>,
}

/// What a comparison has found.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) differences: Vec<Difference>,
    /// How many there are beyond those.
    pub(crate) more: u64,
}

impl TreeCheck {
    /// Compares the tree `root`. With `marks` it has the layer's own changes alone, else everything.
    pub(crate) fn new(
        root: BorrowedFd<'_>,
        expected: Arc<ExpectedTree>,
        comparing: Comparing,
        marks: Option<Marks>,
    ) -> Result<Self> {
        Ok(Self {
            walk: TreeWalk::new(root)?,
            expected,
            comparing,
            marks,
            pending: false,
            walk_is_over: false,
            key: Vec::new(),
            cursor: None,
            reading: None,
            buffer: Vec::new(),
            differences: Vec::new(),
            more: 0,
        })
    }

    /// Goes on for `entries` names, or as many pieces of files; `false` at the end.
    pub(crate) fn step(&mut self, entries: usize) -> Result<bool> {
        let expected = Arc::clone(&self.expected);
        let before = self.cursor.take();
        let mut names = expected.after(before.as_deref()).peekable();
        let mut cursor = None;
        for _ in 0..entries {
            if let Some(reading) = self.reading.take() {
                self.read_on(reading)?;
                continue;
            }
            if !self.pending && !self.walk_is_over {
                self.pending = self.walk.next()?;
                self.walk_is_over = !self.pending;
                set_key(&mut self.key, self.walk.path());
            }
            let order = match (self.pending, names.peek()) {
                (false, None) => {
                    self.marks_kept()?;
                    return Ok(false);
                }
                (true, Some((name, _))) => self.key.as_slice().cmp(name),
                (true, None) => Ordering::Less,
                (false, Some(_)) => Ordering::Greater,
            };
            let next = names.next_if(|_| order != Ordering::Less);
            cursor = next.map_or(cursor, |(name, _)| Some(name));
            self.pending &= order == Ordering::Greater;
            match next {
                None => self.added()?,
                Some((_, item)) if order == Ordering::Equal => self.both(item)?,
                Some((name, item)) => self.missing(name, item),
            }
        }
        drop(names);
        self.cursor = cursor.map(Box::from).or(before);
        Ok(true)
    }

    /// What was found, after the last step.
    pub(crate) fn into_compared(self) -> Compared {
        Compared {
            differences: self.differences,
            more: self.more,
        }
    }

    fn note(&mut self, path: &[u8], kind: DifferenceKind) {
        if self.differences.len() >= MAX_DIFFERENCES {
            self.more += 1;
            return;
        }
        self.differences.push(Difference {
            path: absolute(path),
            kind,
        });
    }

    /// A name that is there and was not expected.
    fn added(&mut self) -> Result<()> {
        let path = self.walk.path().to_vec();
        let Some(stat) = self.walk.stat()? else {
            return Ok(());
        };
        let is_dir = kind(&stat) == FileType::Directory;
        let unsure = self.expected.is_unsure(&path);
        if self.is_whiteout(&stat) {
            // An opaque root is written as whiteouts of everything in it.
            let is_told = self.expected.deletes(&path) || self.expected.empties(split(&path).0);
            if !unsure && !is_told {
                self.note(&path, DifferenceKind::Hidden);
            }
            return Ok(());
        }
        let leads = is_dir && self.expected.leads_to_mark(&path);
        if !unsure && !leads {
            self.note(&path, DifferenceKind::Added { is_dir });
        }
        if is_dir {
            self.opaque(&path)?;
            self.walk.enter()?;
        }
        Ok(())
    }

    /// A name that was expected and is not there.
    fn missing(&mut self, name: &[u8], item: &Item) {
        let path = path_of(name);
        let is_device = matches!(item.what, What::Device { .. });
        let is_dir = matches!(item.what, What::Directory { .. });
        let may_be_left_out = match item.what {
            // It is a mark and not a file.
            What::Device { number: 0, .. } => self.marks.is_some(),
            _ => is_device && self.comparing.in_user_namespace,
        };
        if !may_be_left_out && !self.expected.is_unsure(&path) {
            self.note(&path, DifferenceKind::Missing { is_dir });
        }
    }

    fn is_whiteout(&self, stat: &Stat) -> bool {
        self.marks.is_some() && kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0
    }

    /// A name that is there and was expected.
    fn both(&mut self, item: &Item) -> Result<()> {
        let Some(stat) = self.walk.stat()? else {
            return Ok(());
        };
        let path = self.walk.path().to_vec();
        let is_dir = kind(&stat) == FileType::Directory;
        if self.expected.is_unsure(&path) {
            // What is below is looked at, to get past it.
            if is_dir {
                self.walk.enter()?;
            }
            return Ok(());
        }
        let (dir, name) = (self.walk.dir()?, self.walk.name());
        let attributes = xattr::list_at(dir, name).unwrap_or_default();
        let mut changes = match item.what {
            // overlayfs' mark is what was made of such an entry.
            What::Device { number: 0, .. } if self.is_whiteout(&stat) => Vec::new(),
            What::Directory { implied: true } if is_dir => {
                let below = self.marks.as_ref().map(|marks| marks.stat_below(&path));
                let below = below.transpose()?.flatten();
                self.comparing.compare_implied(&stat, below.as_ref())
            }
            _ => self.comparing.compare(dir, name, &stat, &attributes, item),
        };
        if let Some(marks) = &self.marks {
            let foreign = marks.foreign_attributes(dir, name, &attributes)?;
            changes.extend(foreign.into_iter().map(AttributeChange::Attribute));
        }
        let has_type = !changes
            .iter()
            .any(|change| matches!(change, AttributeChange::Type { .. }));
        let content = match item.what {
            What::File { size, content }
                if has_type && Ok(size) == u64::try_from(stat.st_size) && size > 0 =>
            {
                match content {
                    Content::Recorded(sum) => Some(sum),
                    Content::Read(sum) if !item.own => Some(sum),
                    Content::Read(_) => None,
                }
            }
            _ => None,
        };
        if is_dir {
            if has_type {
                self.opaque(&path)?;
            }
            self.walk.enter()?;
        } else if let Some(expected) = content {
            match self.open(&stat) {
                Ok(file) => {
                    self.reading = Some(Reading {
                        path,
                        file,
                        crc: Crc::new(),
                        expected,
                        changes,
                    });
                    return Ok(());
                }
                Err(error) => changes.push(unreadable(error)?),
            }
        }
        if !changes.is_empty() {
            self.note(&path, DifferenceKind::Changed(changes));
        }
        Ok(())
    }

    /// Opens the walk's current entry, a regular file.
    fn open(&self, stat: &Stat) -> std::io::Result<SparseReader> {
        let dir = self.walk.dir().map_err(std::io::Error::from)?;
        Ok(SparseReader::new(
            at::open_file_at(dir, self.walk.name())?.into(),
            stat,
        ))
    }

    /// Reads a piece of a file.
    fn read_on(&mut self, mut reading: Reading) -> Result<()> {
        self.buffer.resize(READ_SIZE, 0);
        match reading.file.next(&mut self.buffer) {
            Ok(Piece::End) => {
                if reading.crc.take() != reading.expected {
                    reading.changes.push(AttributeChange::Content);
                }
            }
            Ok(piece) => {
                match piece {
                    Piece::Data(count) => reading.crc.update(self.buffer.get(..count).unwrap_or_default()),
                    Piece::Hole(length) => reading.crc.zeros(length),
                    Piece::End => {}
                }
                self.reading = Some(reading);
                return Ok(());
            }
            Err(error) => reading.changes.push(unreadable(error)?),
        }
        if !reading.changes.is_empty() {
            self.note(&reading.path, DifferenceKind::Changed(reading.changes));
        }
        Ok(())
    }

    /// Notes a directory that hides what the layers below have, although the layer does not say so.
    fn opaque(&mut self, path: &[u8]) -> Result<()> {
        let Some(marks) = &self.marks else {
            return Ok(());
        };
        let is_opaque = marks.is_opaque(self.walk.dir()?, self.walk.name())?;
        if is_opaque && !self.expected.may_be_opaque(path) && marks.below(path)? == Some(FileType::Directory)
        {
            self.note(path, DifferenceKind::Hidden);
        }
        Ok(())
    }

    /// After the walk: whether everything that the layer deletes is hidden.
    fn marks_kept(&mut self) -> Result<()> {
        let Some(marks) = self.marks.take() else {
            return Ok(());
        };
        let root = rustix::io::fcntl_dupfd_cloexec(self.walk.dir()?, 0).during("using the root directory")?;
        let sure = |path: &Vec<u8>| !self.expected.is_unsure(path);
        let deleted = self.expected.deleted().filter(sure);
        let deleted: Vec<Vec<u8>> = deleted
            .filter(|path| !self.expected.replaces_directory(path))
            .collect();
        let opaque = self.expected.opaque().filter(sure);
        let opaque: Vec<Vec<u8>> = opaque.filter(|path| !path.is_empty()).collect();
        for path in &deleted {
            if marks.is_hidden_above(root.as_fd(), path)? {
                continue;
            }
            let Some(below) = marks.below(path)? else { continue };
            let (parent, name) = split(path);
            let dir = literal_dir(root.as_fd(), parent)?;
            let own = match &dir {
                Some(dir) => at::lstat_at(dir.as_fd(), name).during(DOING)?,
                None => None,
            };
            let hides = match (&own, &dir) {
                (Some(own), Some(dir)) if kind(own) == FileType::Directory => {
                    below != FileType::Directory || marks.is_opaque(dir.as_fd(), name)?
                }
                (own, _) => own.is_some(),
            };
            if !hides {
                self.note(path, DifferenceKind::NotDeleted);
            }
        }
        for path in &opaque {
            if marks.is_hidden_above(root.as_fd(), path)? || marks.below(path)? != Some(FileType::Directory) {
                continue;
            }
            let (parent, name) = split(path);
            let hides = match literal_dir(root.as_fd(), parent)? {
                Some(dir) => {
                    let own = at::lstat_at(dir.as_fd(), name).during(DOING)?;
                    own.is_some_and(|own| kind(&own) != FileType::Directory)
                        || marks.is_opaque(dir.as_fd(), name)?
                }
                None => false,
            };
            if !hides {
                self.note(path, DifferenceKind::NotDeleted);
            }
        }
        Ok(())
    }
}

/// What is wrong with a file that cannot be read.
fn unreadable(error: std::io::Error) -> Result<AttributeChange> {
    let change = AttributeChange::Unreadable(error.to_string());
    let error = Error::io("reading a file of the layer", error);
    match error.is_passing() {
        true => Err(error),
        false => Ok(change),
    }
}
