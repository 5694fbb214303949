//! Turns the tree of a layer into contents, stored by their digests, and an image of everything else.
//!
//! It happens in a locked temporary directory: the old tree is broken up, and given up if something fails.

use std::collections::{BTreeSet, HashMap};
use std::ffi::CStr;
use std::io::{self, BufWriter};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::erofs;
use super::image::{DATA, IMAGE};
use super::node::{Content, Node, Object, OwnAttribute, Sum, Tree, object_path};
use crate::driver::copy_data::DataCopier;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::tree::{self, DIR_FLAGS, DirStack, identity};
use crate::sys::{at, privilege, verity, xattr};
use crate::whiteout::{Namespace, OPAQUE_VALUE, OVERRIDE_STAT};

const DOING: &str = "storing the contents of a layer by their digests";

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// What became of a tree.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::driver::overlay) enum Converted {
    /// It is in the image.
    Yes,
    /// No image can have it; it is as it was. The reason.
    No(String),
}

/// Moves the contents of the tree `from` into the empty directory `objects`, and writes the image below the directory
/// `layer`. `shown` are the names of two hexadecimal digits that the layers below show in their root. With `durable` all of it
/// is on disk afterwards.
///
/// # Errors
/// [`ErrorKind::Io`]; the tree is then to be given up.
pub(in crate::driver::overlay) fn convert(
    from: &OwnedFd,
    objects: BorrowedFd<'_>,
    layer: BorrowedFd<'_>,
    shown: &BTreeSet<[u8; 2]>,
    durable: bool,
) -> Result<Converted> {
    let mut tree = read_tree(from).during("reading a layer")?;
    if let Err(error) = erofs::Image::new(&tree) {
        return match error.kind() {
            ErrorKind::NotSupported => Ok(Converted::No(error.chain())),
            _ => Err(error),
        };
    }
    Mover::new(objects).run(from, &mut tree).during(DOING)?;
    finish_root(&mut tree, shown);
    let image = write_image(&erofs::Image::new(&tree)?, layer).during("writing the image of a layer")?;
    if durable {
        // Names, modes and contents of all that was moved, too.
        rustix::fs::syncfs(&image).during("syncing a layer")?;
    }
    // Compat: the Go library goes on without, too.
    if let Err(error) = verity::enable(image.as_fd()) {
        tracing::warn!(%error, "no fs-verity for the image of a layer");
    }
    Ok(Converted::Yes)
}

/// Opens a directory another time.
fn reopen(dir: &OwnedFd) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty())?)
}

/// Everything about a tree but its contents. Each has a sum of its own for the time being: the image is then no smaller than it
/// will be.
fn read_tree(top: &OwnedFd) -> io::Result<Tree> {
    let mut tree = Tree::default();
    let mut linked: HashMap<(u64, u64), usize> = HashMap::new();
    let mut buffer = tree::listing_buffer();
    let root = reopen(top)?;
    let stat = rustix::fs::fstat(&root)?;
    tree.nodes.push(node_of(
        &stat,
        attributes(root.as_fd(), b".", true)?,
        Content::Directory(Vec::new()),
    ));
    let mut levels = vec![(0, tree::list_names(root.as_fd(), &mut buffer)?)];
    let mut stack = DirStack::new(root);
    while let Some((dir, names)) = levels.last_mut() {
        let Some(name) = tree::last_name(names).map(CStr::to_owned) else {
            levels.pop();
            stack.leave()?;
            continue;
        };
        tree::pop_name(names);
        let (dir, here, name) = (*dir, stack.current()?, name.to_bytes());
        let stat = at::lstat_at(here, name)?.ok_or(Errno::NOENT)?;
        let is_dir = tree::is_directory(&stat);
        let known = linked
            .get(&identity(&stat))
            .copied()
            .filter(|_| !is_dir && stat.st_nlink > 1);
        let number = known.unwrap_or(tree.nodes.len());
        if let Some(node) = tree.nodes.get_mut(number) {
            node.links += 1;
        } else {
            let content = match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Content::Directory(Vec::new()),
                FileType::RegularFile => Content::File {
                    size: u64::try_from(stat.st_size).unwrap_or(0),
                    object: Object::placeholder(number),
                },
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(here, name, Vec::new())?;
                    Content::Link(target.into_bytes().into())
                }
                FileType::CharacterDevice | FileType::BlockDevice => Content::Device(device_number(&stat)),
                FileType::Fifo | FileType::Socket | FileType::Unknown => Content::Nothing,
            };
            tree.nodes
                .push(node_of(&stat, attributes(here, name, is_dir)?, content));
            if !is_dir && stat.st_nlink > 1 {
                linked.insert(identity(&stat), number);
            }
        }
        if let Some(Node {
            content: Content::Directory(entries),
            ..
        }) = tree.nodes.get_mut(dir)
        {
            entries.push((name.into(), number));
        }
        if is_dir {
            let inside = at::open_dir_at(here, name)?;
            levels.push((number, tree::list_names(inside.as_fd(), &mut buffer)?));
            stack.enter(inside)?;
        }
    }
    Ok(tree)
}

fn node_of(stat: &Stat, attributes: Vec<OwnAttribute>, content: Content) -> Node {
    let nanoseconds = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
    Node {
        mode: stat.st_mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        links: 1,
        mtime: (stat.st_mtime, nanoseconds),
        attributes,
        content,
    }
}

/// A device's number as the kernel encodes it in 32 bits.
fn device_number(stat: &Stat) -> u32 {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The attributes that belong to a file. SELinux labels belong to the host.
fn attributes(dir: BorrowedFd<'_>, name: &[u8], is_dir: bool) -> rustix::io::Result<Vec<OwnAttribute>> {
    let mut found = Vec::new();
    let listed = xattr::list_raw_at(dir, name)?;
    for attribute in listed
        .split(|byte| *byte == 0)
        .filter(|attribute| is_kept(attribute, is_dir))
    {
        if let Some(value) = xattr::get_at(dir, name, attribute)? {
            found.push((attribute.into(), value.into()));
        }
    }
    Ok(found)
}

fn is_kept(attribute: &[u8], is_dir: bool) -> bool {
    if attribute.starts_with(b"trusted.overlay.") {
        return is_dir && attribute == Namespace::Trusted.opaque().as_bytes();
    }
    let prefixes: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system.posix_acl_"];
    attribute == OVERRIDE_STAT.as_bytes()
        || (attribute != b"security.selinux" && prefixes.iter().any(|prefix| attribute.starts_with(prefix)))
}

/// Moves contents to their places.
struct Mover<'a> {
    objects: BorrowedFd<'a>,
    /// What is there, with fs-verity digests.
    known: HashMap<Sum, Option<Sum>>,
    dirs: BTreeSet<u8>,
    /// Cleared when the file system has no fs-verity.
    has_verity: bool,
    copier: DataCopier,
    buffer: Vec<u8>,
}

impl<'a> Mover<'a> {
    fn new(objects: BorrowedFd<'a>) -> Self {
        Self {
            objects,
            known: HashMap::new(),
            dirs: BTreeSet::new(),
            has_verity: true,
            copier: DataCopier::default(),
            buffer: vec![0; BUFFER],
        }
    }

    /// Moves the contents of a tree, and writes down in `tree` which they are.
    fn run(&mut self, top: &OwnedFd, tree: &mut Tree) -> io::Result<()> {
        let mut done = vec![false; tree.nodes.len()];
        let mut stack = DirStack::new(reopen(top)?);
        let mut levels = vec![(0, 0)];
        while let Some((dir, index)) = levels.last_mut() {
            let entry = match tree.nodes.get(*dir).map(|node| &node.content) {
                Some(Content::Directory(entries)) => entries.get(*index).cloned(),
                _ => None,
            };
            *index += 1;
            let Some((name, number)) = entry else {
                levels.pop();
                stack.leave()?;
                continue;
            };
            match tree.nodes.get_mut(number).map(|node| &mut node.content) {
                Some(Content::Directory(_)) => {
                    let inside = at::open_dir_at(stack.current()?, &name)?;
                    stack.enter(inside)?;
                    levels.push((number, 0));
                }
                Some(Content::File { size, object }) if done.get(number) == Some(&false) => {
                    (*size, *object) = self.take(stack.current()?, &name)?;
                    if let Some(done) = done.get_mut(number) {
                        *done = true;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the size of a file and what its content is stored as.
    fn take(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<(u64, Object)> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty())?;
        let (size, sum) = self.sum(&file)?;
        if let Some(verity) = self.known.get(&sum) {
            return Ok((size, Object { sum, verity: *verity }));
        }
        let path = object_path(&sum);
        if let Some(first) = sum.first()
            && self.dirs.insert(*first)
        {
            let parent = path.split('/').next().unwrap_or_default();
            let mode = Mode::from_raw_mode(0o755);
            rustix::fs::mkdirat(self.objects, parent, mode)?;
            rustix::fs::chmodat(self.objects, parent, mode, AtFlags::empty())?;
        }
        let stat = rustix::fs::fstat(&file)?;
        // Another name may be that of a file of another layer, which keeps its owner, mode and attributes.
        let moved = match stat.st_nlink {
            1 => rustix::fs::renameat(dir, name, self.objects, &*path),
            _ => Err(Errno::MLINK),
        };
        let object = match moved {
            Ok(()) => {
                make_object(&file)?;
                file
            }
            // The home was mounted on itself meanwhile.
            Err(Errno::MLINK | Errno::XDEV) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let copy = rustix::fs::openat(self.objects, &*path, flags, Mode::empty())?;
                rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0))?;
                self.copier.copy(&file, &copy, &stat)?;
                drop(copy);
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                rustix::fs::openat(self.objects, &*path, flags, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
        let verity = match self.has_verity && size > 0 {
            true => verity::enable(object.as_fd())?,
            false => None,
        };
        self.has_verity &= size == 0 || verity.is_some();
        self.known.insert(sum, verity);
        Ok((size, Object { sum, verity }))
    }

    fn sum(&mut self, file: &OwnedFd) -> io::Result<(u64, Sum)> {
        let (mut hasher, mut size) = (Sha256::new(), 0);
        loop {
            match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut *self.buffer))? {
                0 => return Ok((size, hasher.finalize().into())),
                count => {
                    hasher.update(self.buffer.get(..count).unwrap_or_default());
                    size += count as u64;
                }
            }
        }
    }
}

/// Takes from a file what belongs to the names that it had.
fn make_object(file: &OwnedFd) -> rustix::io::Result<()> {
    for attribute in xattr::flist_raw(file.as_fd())?.split(|byte| *byte == 0) {
        if !attribute.is_empty() && attribute != b"security.selinux" {
            match rustix::fs::fremovexattr(file, attribute) {
                Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    let me = privilege::effective_owner();
    rustix::fs::fchown(file, Some(Uid::from_raw(me.uid)), Some(Gid::from_raw(me.gid)))?;
    rustix::fs::fchmod(file, Mode::empty())
}

/// What the root of an image needs where there are no data-only layers: it hides the directories of contents. Names that
/// the layers below show are not hidden.
fn finish_root(tree: &mut Tree, shown: &BTreeSet<[u8; 2]>) {
    let next = tree.nodes.len();
    let Some(root) = tree.nodes.first_mut() else {
        return;
    };
    let opaque = Namespace::Trusted.opaque().as_bytes();
    root.attributes.retain(|(name, _)| **name != *opaque);
    root.attributes.push((opaque.into(), OPAQUE_VALUE.into()));
    let whiteout = Node {
        mode: FileType::CharacterDevice.as_raw_mode() | 0o644,
        links: 1,
        attributes: Vec::new(),
        content: Content::Device(0),
        ..*root
    };
    let Content::Directory(entries) = &mut root.content else {
        return;
    };
    let taken: BTreeSet<Box<[u8]>> = entries.iter().map(|(name, _)| name.clone()).collect();
    let names = (0..=u8::MAX).map(|number| format!("{number:02x}").into_bytes());
    let free = names.filter(|name| {
        let is_shown = name.first_chunk().is_some_and(|name| shown.contains(name));
        !is_shown && !taken.contains(name.as_slice())
    });
    let hidden: Vec<_> = free
        .zip(next..)
        .map(|(name, number)| (name.into(), number))
        .collect();
    let count = hidden.len();
    entries.extend(hidden);
    tree.nodes.extend(std::iter::repeat_n(whiteout, count));
}

/// Returns the image, open for reading.
fn write_image(image: &erofs::Image<'_>, layer: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(layer, DATA, Mode::RWXU)?;
    let data = at::open_dir_at(layer, DATA.as_bytes())?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o644);
    let file = rustix::fs::openat(&data, IMAGE, flags, mode)?;
    rustix::fs::fchmod(&file, mode)?;
    image.write(BufWriter::with_capacity(BUFFER, std::fs::File::from(file)))?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&data, IMAGE, flags, Mode::empty())?)
}
