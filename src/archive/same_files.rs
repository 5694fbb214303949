//! Files of several trees that have the same content, which are made to share it.
//!
//! Trees are walked and files read in bounded steps. Of a file its place is remembered and not its descriptor; it is opened
//! again to be read and to be shared, and must still be the same inode. What vanishes meanwhile is passed over. The kernel locks both
//! files and compares them before they share anything, so that nobody has to be kept from writing to them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::archive::apply::metadata::kind;
use crate::archive::content_hash::ContentHash;
use crate::archive::diff::walk::TreeWalk;
use crate::archive::lookup::open_dir;
use crate::archive::path::{show, split};
use crate::error::{IoContext as _, Result};
use crate::sys::sparse_read::{Piece, SparseReader};
use crate::sys::{at, dedupe};

/// Names that one step looks at.
const WALKED: usize = 1024;

/// Bytes of files that one step reads.
const READ_STEP: u64 = 8 << 20;

/// How many bytes could be read instead of opening a file.
const OPENING: u64 = 32 << 10;

/// Bytes that are read at a time, at the most.
const READ_SIZE: usize = 256 * 1024;

/// Files of one key that others are compared with: more of them have different contents, which a good key does not have.
const MAX_SOURCES: usize = 16;

/// A regular file with content.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    root: Arc<OwnedFd>,
    path: Box<[u8]>,
    identity: (u64, u64),
    size: u64,
}

/// The files in one tree.
pub(crate) struct Files {
    root: Arc<OwnedFd>,
    walk: TreeWalk,
    found: Vec<Candidate>,
}

impl Files {
    /// Those below `root`.
    pub(crate) fn new(root: OwnedFd) -> Result<Self> {
        let walk = TreeWalk::new(root.as_fd())?;
        Ok(Self {
            root: Arc::new(root),
            walk,
            found: Vec::new(),
        })
    }

    /// Looks at some more names; `false` at the end.
    pub(crate) fn step(&mut self) -> Result<bool> {
        for _ in 0..WALKED {
            if !self.walk.next()? {
                return Ok(false);
            }
            let Some(stat) = self.walk.stat()? else { continue };
            match kind(&stat) {
                FileType::Directory => {
                    self.walk.enter()?;
                }
                FileType::RegularFile if stat.st_size > 0 => self.found.push(Candidate {
                    root: Arc::clone(&self.root),
                    path: self.walk.path().into(),
                    identity: (stat.st_dev, stat.st_ino),
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                }),
                _ => {}
            }
        }
        Ok(true)
    }

    /// What was found, after the last step.
    pub(crate) fn into_found(self) -> Vec<Candidate> {
        self.found
    }
}

impl Candidate {
    /// Opens the file, with its status; `None` if it is another one by now, or gone.
    fn open(&self) -> Result<Option<(File, Stat)>> {
        let (parent, name) = split(&self.path);
        let opened = open_dir(self.root.as_fd(), parent).and_then(|dir| at::open_file_at(dir.as_fd(), name));
        let doing = || format!("opening {}", show(&self.path));
        let file = match opened {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS | Errno::PERM) => return Ok(None),
            Err(error) => return Err(error).during(doing()),
        };
        let stat = rustix::fs::fstat(&file).during(doing())?;
        let is_same =
            (stat.st_dev, stat.st_ino) == self.identity && u64::try_from(stat.st_size) == Ok(self.size);
        Ok(is_same.then(|| (file.into(), stat)))
    }
}

/// Groups of files that may have the same content. Several [`Work`]s take from it.
#[derive(Debug)]
pub(crate) struct Groups(Mutex<Vec<Vec<Candidate>>>);

impl Groups {
    /// Candidates on one file system and of one size are a group, each inode once.
    pub(crate) fn of_one_size(candidates: Vec<Candidate>) -> Self {
        let mut seen = HashSet::new();
        let mut groups: HashMap<(u64, u64), Vec<Candidate>> = HashMap::new();
        for candidate in candidates {
            if seen.insert(candidate.identity) {
                let group = groups.entry((candidate.identity.0, candidate.size));
                group.or_default().push(candidate);
            }
        }
        let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
        // Those that take longest are begun first, so that all works end at about the same time.
        groups.sort_by_key(|group| group.iter().map(|candidate| candidate.size).sum::<u64>());
        Self(Mutex::new(groups))
    }

    fn todo(&self) -> MutexGuard<'_, Vec<Vec<Candidate>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the content of a file is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    Crc,
    /// Nothing.
    Size,
    Sha256,
}

/// Reads the files of a group and divides it into those of one content.
struct Division {
    todo: Vec<Candidate>,
    key: Key,
    reading: Option<(Candidate, SparseReader, ContentHash)>,
    groups: HashMap<Vec<u8>, Vec<Candidate>>,
    read_size: usize,
    buffer: Vec<u8>,
}

impl Division {
    fn new(group: Vec<Candidate>, key: Key) -> Self {
        // Most files are small, and there is a group for each size.
        let largest = group.iter().map(|candidate| candidate.size).max().unwrap_or(0);
        let read_size = usize::try_from(largest).map_or(READ_SIZE, |size| size.clamp(1, READ_SIZE));
        Self {
            todo: group,
            key,
            reading: None,
            groups: HashMap::new(),
            read_size,
            buffer: Vec::new(),
        }
    }

    /// Reads some more, until `budget` is used; `false` at the end.
    fn step(&mut self, budget: &mut u64) -> Result<bool> {
        if self.key == Key::Size {
            self.groups.insert(Vec::new(), std::mem::take(&mut self.todo));
            return Ok(false);
        }
        self.buffer.resize(self.read_size, 0);
        while *budget > 0 {
            let Some((candidate, mut reader, mut hash)) = self.reading.take() else {
                let Some(candidate) = self.todo.pop() else {
                    return Ok(false);
                };
                let hash = match self.key {
                    Key::Sha256 => ContentHash::sha256(),
                    Key::Crc | Key::Size => ContentHash::crc(),
                };
                *budget = budget.saturating_sub(OPENING);
                if let Some((file, stat)) = candidate.open()? {
                    self.reading = Some((candidate, SparseReader::new(file, &stat), hash));
                }
                continue;
            };
            let doing = || format!("reading {}", show(&candidate.path));
            match reader.next(&mut self.buffer).during(doing())? {
                Piece::Data(count) => {
                    *budget = budget.saturating_sub(count as u64);
                    hash.update(self.buffer.get(..count).unwrap_or_default());
                }
                Piece::Hole(length) => hash.zeros(length),
                Piece::End => {
                    self.groups.entry(hash.finish()).or_default().push(candidate);
                    continue;
                }
            }
            self.reading = Some((candidate, reader, hash));
        }
        Ok(true)
    }

    /// Files that have the same content by what they are told by, after the last step.
    fn into_groups(self) -> Vec<Vec<Candidate>> {
        let groups = self.groups.into_values();
        groups.filter(|group| group.len() > 1).collect()
    }
}

/// What sharing has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shared {
    /// Bytes of files that share their content with another one now.
    pub(crate) bytes: u64,
    /// How many files that are.
    pub(crate) files: u64,
    /// Why files cannot share their content there.
    pub(crate) unsupported: Option<String>,
}

impl Shared {
    /// Adds what the sharing of other files has come to.
    pub(crate) fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
        self.unsupported = self.unsupported.take().or(other.unsupported);
    }
}

/// Has the files of a group share their content, as far as it is the same.
struct Sharing {
    todo: Vec<Candidate>,
    sources: Vec<File>,
}

impl Sharing {
    /// Goes on with some more files, until `budget` is used, and adds to `shared`; `false` at the end.
    fn step(&mut self, budget: &mut u64, shared: &mut Shared) -> Result<bool> {
        while *budget > 0 {
            let Some(candidate) = self.todo.pop() else {
                return Ok(false);
            };
            *budget = budget.saturating_sub(OPENING + candidate.size);
            let Some((file, _)) = candidate.open()? else {
                continue;
            };
            let mut is_shared = false;
            for source in &self.sources {
                match dedupe::share(source, &file) {
                    Ok(true) => {
                        shared.bytes += candidate.size;
                        shared.files += 1;
                        is_shared = true;
                        break;
                    }
                    Ok(false) => {}
                    Err(error) if is_unsupported(&error) => {
                        shared.unsupported = Some(error.to_string());
                        return Ok(false);
                    }
                    Err(error) => {
                        // Perhaps with another one.
                        tracing::debug!(file = show(&candidate.path), %error, "two files cannot share their content");
                    }
                }
            }
            if !is_shared && self.sources.len() < MAX_SOURCES {
                self.sources.push(file);
            }
        }
        Ok(true)
    }
}

/// Has the files of one group after the other share their content.
pub(crate) struct Work {
    groups: Arc<Groups>,
    key: Key,
    division: Option<Division>,
    divided: Vec<Vec<Candidate>>,
    sharing: Option<Sharing>,
    shared: Shared,
}

impl Work {
    /// On the groups that no other work has taken.
    pub(crate) fn new(groups: Arc<Groups>, key: Key) -> Self {
        Self {
            groups,
            key,
            division: None,
            divided: Vec::new(),
            sharing: None,
            shared: Shared::default(),
        }
    }

    /// Does some more; `false` at the end. Most groups are small, and a step does many of them.
    pub(crate) fn step(&mut self) -> Result<bool> {
        let mut budget = READ_STEP;
        while budget > 0 {
            if let Some(sharing) = &mut self.sharing {
                if !sharing.step(&mut budget, &mut self.shared)? {
                    self.sharing = None;
                }
                if self.shared.unsupported.is_some() {
                    self.groups.todo().clear();
                    return Ok(false);
                }
            } else if let Some(todo) = self.divided.pop() {
                let sources = Vec::new();
                self.sharing = Some(Sharing { todo, sources });
            } else if let Some(mut division) = self.division.take() {
                if division.step(&mut budget)? {
                    self.division = Some(division);
                } else {
                    self.divided = division.into_groups();
                }
            } else if let Some(group) = self.groups.todo().pop() {
                self.division = Some(Division::new(group, self.key));
            } else {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What it came to, after the last step.
    pub(crate) fn into_shared(self) -> Shared {
        self.shared
    }
}

/// Whether no file there can share its content.
fn is_unsupported(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS)
    )
}
