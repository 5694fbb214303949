//! Copying one entry of a tree.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::driver::copy_data::DataCopier;
use crate::driver::new_owners::NewOwners;
use crate::error::{Error, Result as CrateResult};
use crate::idmap::Owner;
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::tree;
use crate::sys::{at, privilege, selinux, xattr};
use crate::whiteout::OVERRIDE_STAT;

/// How files come into a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Files {
    /// As files of their own, in another place.
    Copied,
    /// As hard links, in the same place with everything that belongs to it.
    Linked,
    /// Not at all: the tree itself gets the owners of the copy.
    Present,
}

/// Which extended attributes are copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attributes {
    /// Those that belong to a file's content. Others (SELinux labels, marks of overlayfs) belong to its place.
    OfContent,
    /// Those that a mount shows, without what belongs to a file's place.
    OfShown,
    All,
    /// None: whoever has the file copied does the rest.
    None,
}

impl Attributes {
    fn include(self, name: &[u8]) -> bool {
        let of_content = || {
            name == b"security.capability"
                || name.starts_with(b"user.")
                || name.starts_with(b"system.posix_acl_")
        };
        match self {
            Self::All => true,
            Self::None => false,
            Self::OfContent => of_content(),
            Self::OfShown => {
                let of_overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
                !of_overlay && (of_content() || name.starts_with(b"trusted."))
            }
        }
    }
}

/// What the entries of a copy have in common.
#[derive(Debug)]
pub(super) struct Rules<'a> {
    pub(super) files: Files,
    pub(super) attributes: Attributes,
    /// A failure to set an owner is no error.
    pub(super) ignore_owners: bool,
    /// The owners of the copy, if they are others.
    pub(super) owners: Option<NewOwners<'a>>,
    /// The SELinux label that everything gets, with [`Files::Present`].
    pub(super) label: Option<&'a str>,
    /// Only what gets another owner is copied, with the directories above it.
    pub(super) only_changed: bool,
    /// What is mounted in the tree is left out.
    pub(super) one_mount: bool,
    /// Mode of every file of the copy; owner and mode go into an attribute.
    pub(super) forced_mode: Option<u32>,
    /// Where contents are looked for before they are read from the tree itself.
    pub(super) contents: &'a [OwnedFd],
    /// The number of a file's names is right.
    pub(super) counts_names: bool,
    /// First copy of each inode with several names. Locked while such a file is copied: its other names wait for it.
    pub(super) links: Mutex<HashMap<(u64, u64), Vec<u8>>>,
    /// The caller is root: a failure to set an attribute is an error.
    pub(super) root_user: bool,
    pub(super) rootless: bool,
    pub(super) me: Owner,
}

impl Rules<'_> {
    /// Those of a plain copy.
    pub(super) fn new() -> Self {
        Self {
            files: Files::Copied,
            attributes: Attributes::OfContent,
            ignore_owners: false,
            owners: None,
            label: None,
            only_changed: false,
            one_mount: false,
            forced_mode: None,
            contents: &[],
            counts_names: true,
            links: Mutex::default(),
            root_user: privilege::is_root(),
            rootless: privilege::is_rootless(),
            me: privilege::effective_owner(),
        }
    }

    /// Devices can be made. A whiteout can be made everywhere.
    fn devices(&self) -> bool {
        self.files != Files::Copied || !self.rootless
    }

    /// The owner that the copy of a file has.
    pub(super) fn owner_of(&self, stat: &Stat) -> CrateResult<Owner> {
        let old = owner(stat);
        self.owners.map_or(Ok(old), |owners| owners.of(old))
    }

    /// The same for the root of the tree.
    pub(super) fn owner_of_root(&self, stat: &Stat) -> CrateResult<Owner> {
        let old = owner(stat);
        self.owners.map_or(Ok(old), |owners| owners.of_root(old))
    }
}

/// The owner that a file has.
pub(super) fn owner(stat: &Stat) -> Owner {
    Owner {
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

/// Why something could not be copied.
#[derive(Debug)]
pub(super) enum Failure {
    Io(io::Error),
    Owner(Error),
}

impl Failure {
    pub(super) fn into_error(self, doing: String) -> Error {
        match self {
            Self::Io(error) => Error::io(doing, error),
            Self::Owner(error) => error.context(doing),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Owner(error)
    }
}

pub(super) type Result<T> = std::result::Result<T, Failure>;

/// What one thread copies with.
pub(super) struct Worker<'a> {
    rules: &'a Rules<'a>,
    /// The root of the copy.
    root: BorrowedFd<'a>,
    data: DataCopier,
    pub(super) sync_tracker: SyncTracker,
}

/// A directory of the tree, where its contents are, and its copy.
pub(super) struct Pair<'a> {
    pub(super) source: BorrowedFd<'a>,
    pub(super) target: BorrowedFd<'a>,
    /// The same directory in each of [`Rules::contents`] that has it.
    pub(super) contents: &'a [OwnedFd],
}

impl<'a> Worker<'a> {
    pub(super) fn new(rules: &'a Rules<'a>, root: BorrowedFd<'a>, durable: bool) -> Self {
        Self {
            rules,
            root,
            data: DataCopier::default(),
            sync_tracker: SyncTracker::new(durable),
        }
    }

    /// Copies anything but a directory. `path`: of the entry, from the root.
    pub(super) fn entry(&mut self, dirs: &Pair<'_>, name: &CStr, path: &[u8], stat: &Stat) -> Result<()> {
        let rules = self.rules;
        if rules.files == Files::Linked {
            match rustix::fs::linkat(dirs.source, name, dirs.target, name, AtFlags::empty()) {
                // Too many links; a file of another user, or in another project.
                Err(Errno::MLINK | Errno::PERM | Errno::ACCESS | Errno::XDEV) => {}
                linked => return Ok(linked?),
            }
        }
        if rules.files == Files::Present {
            return self.present(dirs.target, name, stat);
        }
        let new = rules.owner_of(stat)?;
        if rules.only_changed && new == owner(stat) {
            return Ok(());
        }
        if stat.st_nlink < 2 && rules.counts_names {
            return self.single(dirs, name, stat, new).map(drop);
        }
        let mut links = rules.links.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(first) = links.get(&tree::identity(stat)) {
            match link_again(self.root, first, dirs.target, name) {
                // It was taken away again, since the file was deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                linked => return Ok(linked?),
            }
        }
        if self.single(dirs, name, stat, new)? {
            links.insert(tree::identity(stat), path.to_owned());
        }
        Ok(())
    }

    /// Gives an entry of the tree itself its new owner, once for all its names.
    fn present(&self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
        let rules = self.rules;
        if let Some(label) = rules.label {
            selinux::set_label_at(dir, name.to_bytes(), label)?;
        }
        let mut links = rules.links.lock().unwrap_or_else(PoisonError::into_inner);
        if stat.st_nlink < 2 {
            drop(links);
        } else if links.insert(tree::identity(stat), Vec::new()).is_some() {
            // `stat` may tell of the new owner.
            return Ok(());
        }
        let new = rules.owner_of(stat)?;
        if new == owner(stat) {
            return Ok(());
        }
        const CAPABILITY: &str = "security.capability";
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        // A new owner takes these away.
        let capability = match is_file {
            true => xattr::get_at(dir, name.to_bytes(), CAPABILITY)?,
            false => None,
        };
        let (uid, gid) = (Some(Uid::from_raw(new.uid)), Some(Gid::from_raw(new.gid)));
        rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
        if stat.st_mode & 0o6000 != 0 {
            rustix::fs::chmodat(dir, name, self.mode(stat), AtFlags::empty())?;
        }
        if let Some(capability) = capability {
            let set = xattr::set_at(dir, name.to_bytes(), CAPABILITY.as_bytes(), &capability);
            self.attribute_set(CAPABILITY.as_bytes(), set)?;
        }
        Ok(())
    }

    /// Returns whether it was copied.
    fn single(&mut self, dirs: &Pair<'_>, name: &CStr, stat: &Stat, owner: Owner) -> Result<bool> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => self.file(dirs, name, stat, owner)?,
            FileType::Symlink => {
                let link = at::read_link_at(dirs.source, name.to_bytes())?;
                rustix::fs::symlinkat(OsStr::from_bytes(&link), dirs.target, name)?;
                self.special(dirs, name, stat, owner)?;
            }
            FileType::BlockDevice | FileType::CharacterDevice if !self.rules.devices() => return Ok(false),
            _ => {
                rustix::fs::mknodat(dirs.target, name, kind, Mode::RUSR | Mode::WUSR, stat.st_rdev)?;
                self.special(dirs, name, stat, owner)?;
            }
        }
        Ok(true)
    }

    fn file(&mut self, dirs: &Pair<'_>, name: &CStr, stat: &Stat, owner: Owner) -> Result<()> {
        const OPEN: OFlags = OFlags::NOFOLLOW
            .union(OFlags::CLOEXEC)
            .union(OFlags::RDONLY)
            .union(OFlags::NONBLOCK);
        let found = (stat.st_size > 0).then(|| {
            dirs.contents.iter().find_map(|dir| {
                let file = rustix::fs::openat(dir, name, OPEN, Mode::empty()).ok()?;
                let found = rustix::fs::fstat(&file).ok()?;
                is_content_of(&found, stat).then_some((file, found))
            })
        });
        let (from, content) = match found.flatten() {
            Some((file, found)) => (file, found),
            None => (rustix::fs::openat(dirs.source, name, OPEN, Mode::empty())?, *stat),
        };
        let create = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = rustix::fs::openat(dirs.target, name, create, Mode::RUSR | Mode::WUSR)?;
        let written = stat.st_size > 0 && self.data.copy(&from, &to, &content)?;
        self.finish(from.as_fd(), to.as_fd(), stat, Some(owner))?;
        if written {
            self.sync_tracker.file(to);
        }
        Ok(())
    }

    /// Owner, attributes, mode and times of an open file or directory, in an order in which no step undoes another. Without
    /// `owner` its own.
    pub(super) fn finish(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        stat: &Stat,
        owner: Option<Owner>,
    ) -> Result<()> {
        let owner = owner.map_or_else(|| self.rules.owner_of(stat), Ok)?;
        if self.rules.files == Files::Present {
            if let Some(label) = self.rules.label {
                selinux::set_label(to, label)?;
            }
            if owner != self::owner(stat) {
                let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
                rustix::fs::fchown(to, Some(uid), Some(gid))?;
                rustix::fs::fchmod(to, self.mode(stat))?;
            }
            return Ok(());
        }
        if let Some((uid, gid)) = self.owner_to_set(owner) {
            self.owned(rustix::fs::fchown(to, Some(uid), Some(gid)))?;
        }
        let names = xattr::flist_raw(from)?;
        for name in names
            .split(|byte| *byte == 0)
            .filter(|name| !name.is_empty() && self.is_copied(name))
        {
            let Ok(text) = std::str::from_utf8(name) else {
                continue;
            };
            if let Some(value) = xattr::fget(from, text)? {
                self.attribute_set(name, xattr::fset(to, name, &value))?;
            }
        }
        if let Some(value) = self.kept(stat, owner) {
            xattr::fset(to, OVERRIDE_STAT.as_bytes(), value.as_bytes())?;
        }
        rustix::fs::fchmod(to, self.mode(stat))?;
        Ok(rustix::fs::futimens(to, &times(stat))?)
    }

    /// As [`Worker::finish`], for files that cannot be opened.
    fn special(&self, dirs: &Pair<'_>, name: &CStr, stat: &Stat, owner: Owner) -> Result<()> {
        let &Pair { source, target, .. } = dirs;
        if let Some((uid, gid)) = self.owner_to_set(owner) {
            self.owned(rustix::fs::chownat(
                target,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            ))?;
        }
        for attribute in xattr::list_at(source, name.to_bytes())? {
            if !self.is_copied(attribute.as_bytes()) {
                continue;
            }
            if let Some(value) = xattr::get_at(source, name.to_bytes(), &attribute)? {
                let set = xattr::set_at(target, name.to_bytes(), attribute.as_bytes(), &value);
                self.attribute_set(attribute.as_bytes(), set)?;
            }
        }
        // A link has no mode.
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            rustix::fs::chmodat(target, name, self.mode(stat), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(
            target,
            name,
            &times(stat),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    fn is_copied(&self, name: &[u8]) -> bool {
        let kept_anew = self.rules.forced_mode.is_some() && name == OVERRIDE_STAT.as_bytes();
        self.rules.attributes.include(name) && !kept_anew
    }

    /// What comes of setting an attribute.
    fn attribute_set(&self, name: &[u8], set: rustix::io::Result<()>) -> Result<()> {
        match set {
            // The label that a new file gets here is the one that others get.
            Err(Errno::PERM | Errno::ACCESS) if name == b"security.selinux" => Ok(()),
            set => self.allow(set),
        }
    }

    fn mode(&self, stat: &Stat) -> Mode {
        Mode::from_raw_mode(self.rules.forced_mode.unwrap_or(stat.st_mode & 0o7777))
    }

    /// What a forced mode hides, as an attribute has it.
    fn kept(&self, stat: &Stat, owner: Owner) -> Option<String> {
        self.rules.forced_mode?;
        let kind = if tree::is_directory(stat) { "dir" } else { "file" };
        let (uid, gid, mode) = (owner.uid, owner.gid, stat.st_mode & 0o7777);
        Some(format!("{uid}:{gid}:{mode:04o}:{kind}"))
    }

    /// The owner to set; `None` if it is the caller, who owns new files anyway, or if the owner goes into an attribute.
    fn owner_to_set(&self, owner: Owner) -> Option<(Uid, Gid)> {
        let is_set = owner != self.rules.me && self.rules.forced_mode.is_none();
        is_set.then(|| (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
    }

    fn owned(&self, result: rustix::io::Result<()>) -> Result<()> {
        match result {
            Err(Errno::PERM | Errno::INVAL) if self.rules.ignore_owners => Ok(()),
            result => Ok(result?),
        }
    }

    /// Passes an error on only if the caller is root.
    fn allow(&self, result: rustix::io::Result<()>) -> Result<()> {
        match result {
            Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) if !self.rules.root_user => Ok(()),
            result => Ok(result?),
        }
    }
}

/// Whether a file has the content of the one that a mount shows with `stat`.
fn is_content_of(found: &Stat, stat: &Stat) -> bool {
    FileType::from_raw_mode(found.st_mode) == FileType::RegularFile
        && (
            found.st_size,
            found.st_mtime,
            found.st_mtime_nsec,
            found.st_blocks,
        ) == (stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_blocks)
}

/// Makes a hard link to the file at `first` below `root`.
fn link_again(root: BorrowedFd<'_>, first: &[u8], dir: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    let length = parent_length(first);
    let (above, base) = first.split_at(length);
    let base = OsStr::from_bytes(base.strip_prefix(b"/").unwrap_or(base));
    let above = tree::open_dir_below(root, above)?;
    Ok(rustix::fs::linkat(&above, base, dir, name, AtFlags::empty())?)
}

/// Length of the parent's path.
pub(super) fn parent_length(path: &[u8]) -> usize {
    path.iter().rposition(|byte| *byte == b'/').unwrap_or(0)
}

/// When a file was last read and changed, to set it again.
pub(super) fn times(stat: &Stat) -> Timestamps {
    let time = |tv_sec, nanoseconds| Timespec {
        tv_sec,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
