//! Makes tar streams of trees: of a whole one, of an overlay upper directory, or of a list of changes.
//!
//! A tree that has not changed gives the same bytes every time: entries come in a fixed order, times are those of the
//! files to the second, marks of deletions have fixed ones. A stream never has an entry for the root itself.
//!
//! Left out are sockets, what vanishes while the tree is read, and, with a warning, what has an owner that the
//! container cannot see. Deletions are never left out.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use tar_core::EntryType;

use crate::bridge::{Producer, Progress};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, xattr};
use crate::whiteout::{self, Namespace, WhiteoutFormat};

use crate::archive::diff::changes::{Change, ChangeKind};
use crate::archive::diff::lowers::{Lowers, is_opaque, is_whiteout};
use crate::archive::diff::walk::{TreeWalk, absolute, in_layer};
use crate::archive::lookup::Lookup;
use crate::archive::path;
use crate::archive::tar::writer::{Item, TarWriter};

/// Entries without bytes that one step passes over at the most.
const MAX_EMPTY_ENTRIES: usize = 1024;

/// A tar stream of a tree, as a producer.
pub(crate) struct Export {
    entries: Entries,
    stream: EntryStream,
    ended: bool,
}

/// What the stream is made of.
enum Entries {
    /// A whole tree, depth first.
    Tree(TreeWalk),
    /// An overlay upper directory, depth first.
    Upper {
        walk: TreeWalk,
        lowers: Lowers<Vec<OwnedFd>>,
        namespace: Namespace,
    },
    /// Some paths of a tree, in their order.
    Changes {
        tree: Lookup<OwnedFd>,
        changes: std::vec::IntoIter<Change>,
    },
}

impl Export {
    /// The whole tree `root`, owners as the container that `mappings` describes sees them, from byte `offset` of the
    /// stream on.
    pub(crate) fn tree(root: BorrowedFd<'_>, mappings: &IdMappings, offset: u64) -> Result<Self> {
        let walk = TreeWalk::new(root)?;
        Ok(Self::new(Entries::Tree(walk), mappings, offset))
    }

    /// What the overlay upper directory `upper` holds; its marks of deletions become those of a tar stream.
    ///
    /// An opaque directory is marked as such only if the trees below, `lowers` (topmost first), have something that it
    /// hides: overlayfs makes every new directory opaque.
    pub(crate) fn upper(
        upper: BorrowedFd<'_>,
        lowers: Vec<OwnedFd>,
        namespace: Namespace,
        mappings: &IdMappings,
        offset: u64,
    ) -> Result<Self> {
        let entries = Entries::Upper {
            walk: TreeWalk::new(upper)?,
            lowers: Lowers::new(lowers, WhiteoutFormat::Overlay(namespace)),
            namespace,
        };
        Ok(Self::new(entries, mappings, offset))
    }

    /// The changes that lead to the tree `new`; see [`crate::archive::diff::changes::TreeComparison`].
    pub(crate) fn changes(
        new: OwnedFd,
        mut changes: Vec<Change>,
        mappings: &IdMappings,
        offset: u64,
    ) -> Self {
        changes.sort_by(|a, b| a.path.as_os_str().cmp(b.path.as_os_str()));
        let entries = Entries::Changes {
            tree: Lookup::new(new),
            changes: changes.into_iter(),
        };
        Self::new(entries, mappings, offset)
    }

    fn new(entries: Entries, mappings: &IdMappings, offset: u64) -> Self {
        Self {
            entries,
            stream: EntryStream {
                tar: TarWriter::new(offset),
                mappings: mappings.clone(),
                links: HashMap::new(),
            },
            ended: false,
        }
    }
}

impl Producer for Export {
    fn step(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Progress> {
        let end = out.len() + room;
        let mut empty = 0;
        loop {
            if !self.stream.tar.is_empty() {
                let before = out.len();
                self.stream.tar.take(out, end - before)?;
                if out.len() > before {
                    empty = 0;
                }
            }
            if !self.stream.tar.is_empty() {
                return Ok(Progress::More);
            }
            if self.ended {
                return match self.stream.tar.skip() {
                    0 => Ok(Progress::End),
                    missing => {
                        let what =
                            format!("an offset that lies {missing} bytes beyond the end of the layer stream");
                        Err(ErrorKind::InvalidInput.err(what))
                    }
                };
            }
            empty += 1;
            if empty > MAX_EMPTY_ENTRIES {
                return Ok(Progress::More);
            }
            if !self.entries.next(&mut self.stream)? {
                self.stream.tar.finish();
                self.ended = true;
            }
        }
    }
}

impl Entries {
    /// Queues the next entry, if it is to be in the stream; `false` at the end.
    fn next(&mut self, stream: &mut EntryStream) -> Result<bool> {
        match self {
            Self::Tree(walk) => {
                if !walk.next()? {
                    return Ok(false);
                }
                let dir = walk.dir()?;
                if let Some(object) = Object::open(dir, walk.name(), walk.path(), walk.kind())? {
                    let is_dir = object.kind() == FileType::Directory;
                    stream.object(object, dir, walk.path())?;
                    if is_dir {
                        walk.enter()?;
                    }
                }
            }
            Self::Upper {
                walk,
                lowers,
                namespace,
            } => {
                if !walk.next()? {
                    return Ok(false);
                }
                lowers.leave_to(walk.depth());
                let (dir, name, path) = (walk.dir()?, walk.name(), walk.path());
                let Some(object) = Object::open(dir, name, path, walk.kind())? else {
                    return Ok(true);
                };
                if is_whiteout(&object.stat) {
                    stream.whiteout(path, Some(&object.stat))?;
                    return Ok(true);
                }
                let stat = object.stat;
                let is_dir = object.kind() == FileType::Directory;
                stream.object(object, dir, path)?;
                if is_dir {
                    let opaque = is_opaque(dir, name, WhiteoutFormat::Overlay(*namespace))
                        .at("reading attributes of", in_layer(path))?;
                    if opaque && lowers.find(walk.dir_path(), name)?.is_some() {
                        stream.opaque(path, &stat)?;
                    }
                    lowers.enter(walk.dir_path(), name, opaque)?;
                    walk.enter()?;
                }
            }
            Self::Changes { tree, changes } => {
                let Some(change) = changes.next() else {
                    return Ok(false);
                };
                let path = change.path.as_os_str().as_bytes();
                let path = path.strip_prefix(b"/").unwrap_or(path);
                if path.is_empty() {
                    return Ok(true);
                }
                if change.kind == ChangeKind::Delete {
                    stream.whiteout(path, None)?;
                    return Ok(true);
                }
                let (parent, name) = path::split(path);
                let found = tree.dir(parent).at("opening directory", in_layer(parent))?;
                if let Some(dir) = found
                    && let Some(object) = Object::open(dir, name, path, FileType::Unknown)?
                {
                    stream.object(object, dir, path)?;
                }
            }
        }
        Ok(true)
    }
}

/// Something in a tree that is about to be written.
struct Object {
    stat: Stat,
    /// Open for reading if it is a regular file.
    file: Option<OwnedFd>,
}

impl Object {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Looks at `name` in `dir`, and opens it if it is a regular file; `hint` is what the directory says it is.
    /// `None` if it is gone. Nothing but a regular file is ever opened: opening a device can have effects.
    fn open(dir: BorrowedFd<'_>, name: &[u8], path: &[u8], hint: FileType) -> Result<Option<Self>> {
        if hint != FileType::RegularFile {
            match at::lstat_at(dir, name).at("looking at", in_layer(path))? {
                None => return Ok(None),
                Some(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => {
                    return Ok(Some(Self { stat, file: None }));
                }
                Some(_) => {}
            }
        }
        // Should it have become a FIFO by now, do not wait for its other end.
        let file = match at::open_file_at(dir, name) {
            Ok(file) => file,
            // Gone, or something else by now; a file that changes like that has no right state to be written in.
            Err(Errno::NOENT | Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(None),
            Err(error) => return Err(error).at("opening", in_layer(path)),
        };
        let stat = rustix::fs::fstat(&file).at("looking at", in_layer(path))?;
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(regular.then_some(Self {
            stat,
            file: Some(file),
        }))
    }

    /// The attributes that go into a stream, sorted by name.
    fn attributes(&self, dir: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<(String, Vec<u8>)>> {
        let name = path::split(path).1;
        let listed = match &self.file {
            Some(file) => xattr::flist(file.as_fd()),
            None => xattr::list_at(dir, name),
        };
        let mut names = match listed {
            Err(Errno::NOENT) => return Ok(Vec::new()),
            listed => listed.at("listing attributes of", in_layer(path))?,
        };
        names.retain(|name| is_exported(name));
        names.sort_unstable();
        let mut attributes = Vec::with_capacity(names.len());
        for attribute in names {
            let value = match &self.file {
                Some(file) => xattr::fget(file.as_fd(), &attribute),
                None => xattr::get_at(dir, name, &attribute),
            };
            let skipped = match value {
                Ok(Some(value)) if !attribute.contains('=') => {
                    attributes.push((attribute, value));
                    continue;
                }
                // Removed meanwhile, or its name was not UTF-8.
                Ok(None) => continue,
                Ok(Some(_)) => "its name cannot be in a tar stream".to_owned(),
                // Too big for the call, or a capability that means nothing in this user namespace.
                Err(error @ (Errno::TOOBIG | Errno::OVERFLOW)) => error.to_string(),
                Err(error) => {
                    return Err(Error::io_at(
                        format!("reading attribute {attribute} of"),
                        absolute(path),
                        error,
                    ));
                }
            };
            tracing::warn!(path = %absolute(path).display(), attribute, error = skipped, "attribute left out of a layer stream");
        }
        Ok(attributes)
    }
}

/// Whether an attribute is part of a layer: neither what the host's security modules nor what overlayfs keep there.
fn is_exported(name: &str) -> bool {
    matches!(name, "security.capability" | "security.ima")
        || (name.starts_with("user.") && !whiteout::is_driver_attribute(name.as_bytes()))
}

/// A stream being written, and the files in it that have several names.
struct EntryStream {
    tar: TarWriter,
    mappings: IdMappings,
    /// Device and inode, and the first name.
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl EntryStream {
    fn owner(&self, stat: &Stat) -> Result<Owner> {
        let owner = Owner {
            uid: stat.st_uid,
            gid: stat.st_gid,
        };
        if self.mappings.is_identity() {
            Ok(owner)
        } else {
            self.mappings.to_container(owner)
        }
    }

    /// Owner of a mark. It means nothing, and the kernel's own marks belong to the host's root, which may
    /// be mapped in no container; but the reader of the stream must be able to map it.
    fn mark_owner(&self, stat: &Stat) -> Owner {
        self.owner(stat).unwrap_or_default()
    }

    fn object(&mut self, object: Object, dir: BorrowedFd<'_>, path: &[u8]) -> Result<()> {
        let stat = &object.stat;
        let kind = match object.kind() {
            FileType::RegularFile => EntryType::Regular,
            FileType::Directory => EntryType::Directory,
            FileType::Symlink => EntryType::Symlink,
            FileType::CharacterDevice => EntryType::Char,
            FileType::BlockDevice => EntryType::Block,
            FileType::Fifo => EntryType::Fifo,
            _ => return Ok(()),
        };
        let owner = match self.owner(stat) {
            Ok(owner) => owner,
            // Literal marks (overlay with a mount program) are as good as the kernel's.
            Err(_unmapped) if path::split(path).1.starts_with(whiteout::PREFIX) => Owner::default(),
            Err(error) => {
                let path = absolute(path);
                tracing::warn!(path = %path.display(), error = %error.chain(), "left out of a layer stream");
                return Ok(());
            }
        };
        let attributes = object.attributes(dir, path)?;
        let mut item = Item {
            kind,
            mode: stat.st_mode & 0o7777,
            owner,
            mtime: stat.st_mtime,
            xattrs: &attributes,
            ..Item::mark(path)
        };
        let name;
        let target;
        match kind {
            EntryType::Directory => {
                name = [path, b"/"].concat();
                item.name = &name;
            }
            EntryType::Symlink => {
                target = match at::read_link_at(dir, path::split(path).1) {
                    Err(Errno::NOENT | Errno::INVAL) => return Ok(()),
                    target => target.at("reading link", in_layer(path))?,
                };
                item.link = &target;
            }
            EntryType::Char | EntryType::Block => {
                item.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            }
            EntryType::Regular => item.size = u64::try_from(stat.st_size).unwrap_or(0),
            _ => {}
        }
        if stat.st_nlink > 1 && kind != EntryType::Directory {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&inode) {
                let link = Item {
                    kind: EntryType::Link,
                    link: first,
                    size: 0,
                    device: (0, 0),
                    ..item
                };
                return self.tar.header(&link);
            }
            self.links.insert(inode, path.to_vec());
        }
        self.tar.header(&item)?;
        let size = item.size;
        if let Some(file) = object.file
            && size > 0
        {
            self.tar.content(file, size, absolute(path));
        }
        Ok(())
    }

    /// The mark that `path` is deleted; owner and time are those of the mark on disk, if there is one.
    fn whiteout(&mut self, path: &[u8], stat: Option<&Stat>) -> Result<()> {
        let (dir, name) = path::split(path);
        let mut mark = dir.to_vec();
        path::push(&mut mark, whiteout::PREFIX);
        mark.extend_from_slice(name);
        self.tar.header(&Item {
            owner: stat.map(|stat| self.mark_owner(stat)).unwrap_or_default(),
            mtime: stat.map_or(0, |stat| stat.st_mtime),
            ..Item::mark(&mark)
        })
    }

    /// The mark that the directory `path` hides what is below it.
    fn opaque(&mut self, path: &[u8], stat: &Stat) -> Result<()> {
        let mut mark = path.to_vec();
        path::push(&mut mark, whiteout::OPAQUE);
        self.tar.header(&Item {
            mode: stat.st_mode & 0o777,
            owner: self.mark_owner(stat),
            ..Item::mark(&mark)
        })
    }
}
