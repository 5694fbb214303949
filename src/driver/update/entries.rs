//! The entries of two trees: whether they are the same, and how those of one come into the other.

use std::ffi::CStr;
use std::fs::File;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;

use crate::driver::copy_entry::{Failure, Pair, Result, times};
use crate::driver::update::attributes::{Attributes, carried, give};
use crate::driver::update::frame::{Base, Frame};
use crate::driver::update::walk::Walk;
use crate::sys::sparse_read::next_data;
use crate::sys::tree;
use crate::sys::{at, xattr};
use crate::whiteout::{self, OPAQUE_VALUE, WhiteoutFormat};

/// Bytes of two files that are compared at a time.
const COMPARED: usize = 128 * 1024;

/// The seconds that every file system can keep: those that 32 bits can.
const ANY_SECOND: RangeInclusive<i64> = -0x8000_0000..=0x7fff_ffff;

/// What is said of a file whose time the file system has replaced by the nearest one that it can have.
const FAR_TIME: &str = "the time of its last change, which is out of the range of the file system";

/// Why a link is not there.
const LONG_LINK: &str = "a link to a path that is too long for the file system";

const OPEN: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn is_device(stat: &Stat) -> bool {
    matches!(kind(stat), FileType::CharacterDevice | FileType::BlockDevice)
}

impl Walk<'_> {
    /// Whether marks for overlayfs are attributes as any other: the new tree is a whole one.
    fn keeps_marks(&self) -> bool {
        self.is_update() && self.form() == WhiteoutFormat::Apply
    }

    /// The attributes that an entry of the source gets. What a mount program shows of its own is none of them.
    fn wanted(&self, dir: BorrowedFd<'_>, name: &CStr, is_own: bool) -> Result<Attributes> {
        let keeps_marks = self.shown.counts_names;
        Ok(carried(dir, name.to_bytes(), self.remap(is_own), keeps_marks)?)
    }

    /// Whether an entry of the source and one of the base are the same but for contents. Both have their new owners. In a
    /// comparison, what the base cannot have is a loss and no difference.
    pub(super) fn is_same_entry(
        &mut self,
        name: &CStr,
        stat: &Stat,
        base: &Base<'_>,
        is_own: bool,
    ) -> Result<bool> {
        let (base, remap) = (&base.stat, base.remap);
        let same_mode = kind(stat) == FileType::Symlink || stat.st_mode == base.st_mode;
        let same_owner = self.ignores_owners() || (stat.st_uid, stat.st_gid) == (base.st_uid, base.st_gid);
        // The file system of a copy may keep whole seconds, as zfs-fuse does. Contents are compared too.
        let is_rounded = !self.is_update() && base.st_mtime_nsec == 0;
        let same_time =
            stat.st_mtime == base.st_mtime && (stat.st_mtime_nsec == base.st_mtime_nsec || is_rounded);
        if kind(stat) != kind(base) || !same_mode || !same_owner {
            return Ok(false);
        }
        if !same_time && !self.cannot_have_time(stat, base)? {
            return Ok(false);
        }
        let (from, base_dir) = (self.from.current()?, self.base.current()?);
        match kind(stat) {
            FileType::RegularFile if stat.st_size != base.st_size => return Ok(false),
            FileType::Symlink
                if at::read_link_at(from, name.to_bytes())?
                    != at::read_link_at(base_dir, name.to_bytes())? =>
            {
                return Ok(false);
            }
            _ if is_device(stat) && stat.st_rdev != base.st_rdev => return Ok(false),
            _ => {}
        }
        let there = carried(base_dir, name.to_bytes(), remap, self.keeps_marks())?;
        let wanted = self.wanted(from, name, is_own)?;
        match self.is_update() {
            // Those that the new tree cannot have are named when the entry is written.
            true => Ok(wanted == there),
            false => {
                let same = self.are_all_there(kind(stat), &wanted, &there)?;
                if same && !same_time {
                    self.lose(FAR_TIME);
                }
                Ok(same)
            }
        }
    }

    /// Whether an entry that is compared has the time that comes of this one because it cannot have it.
    fn cannot_have_time(&self, stat: &Stat, there: &Stat) -> Result<bool> {
        match self.trial() {
            Some(trial) if !ANY_SECOND.contains(&stat.st_mtime) => {
                let kept = trial.kept_second(stat)?;
                Ok(kept != stat.st_mtime && kept == there.st_mtime)
            }
            _ => Ok(false),
        }
    }

    /// Notes that an entry of the new tree has another time than it was given, if it has.
    fn lose_time(&mut self, dir: Option<BorrowedFd<'_>>, name: &CStr, stat: &Stat) -> Result<()> {
        if ANY_SECOND.contains(&stat.st_mtime) {
            return Ok(());
        }
        let dir = dir.map_or_else(|| self.to.current(), Ok)?;
        if at::lstat_at(dir, name.to_bytes())?.is_some_and(|there| there.st_mtime != stat.st_mtime) {
            self.lose(FAR_TIME);
        }
        Ok(())
    }

    /// Whether an entry that is compared has these attributes, all but those that it cannot have.
    fn are_all_there(&mut self, kind: FileType, wanted: &Attributes, there: &Attributes) -> Result<bool> {
        if there.keys().any(|name| !wanted.contains_key(name)) {
            return Ok(false);
        }
        let keeps_marks = self.form() == WhiteoutFormat::Apply;
        let (mut lost, mut refused) = (Vec::new(), None);
        for (name, value) in wanted {
            let is_lost = if whiteout::is_driver_attribute(name) {
                !keeps_marks
            } else if there.get(name) == Some(value) {
                false
            } else if let Some(trial) = self.trial() {
                let refused = match &mut refused {
                    Some(refused) => refused,
                    none => none.insert(trial.refused_attributes(kind, wanted, keeps_marks)?),
                };
                if !refused.contains(name) {
                    return Ok(false);
                }
                true
            } else {
                return Ok(false);
            };
            if is_lost {
                lost.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        self.lose_attributes(lost);
        Ok(true)
    }

    /// Whether two regular files of the same size have the same content.
    fn is_same_content(&self, name: &CStr) -> Result<bool> {
        let open = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, name, OPEN, Mode::empty());
        let (one, other) = (open(self.from.current()?)?, open(self.base.current()?)?);
        let (one, other) = (File::from(one), File::from(other));
        let (mut ours, mut theirs) = (vec![0; COMPARED], vec![0; COMPARED]);
        let mut offset = 0;
        loop {
            // Where both have a hole there is nothing to read.
            let data = |file| next_data(file, offset, u64::MAX).map(|data| data.start);
            offset = data(&one)?.min(data(&other)?);
            if offset == u64::MAX {
                let size = |file| rustix::fs::fstat(file).map(|stat| stat.st_size);
                return Ok(size(&one)? == size(&other)?);
            }
            let count = fill(&one, &mut ours, offset)?;
            if fill(&other, &mut theirs, offset)? != count || ours.get(..count) != theirs.get(..count) {
                return Ok(false);
            }
            if count < COMPARED {
                return Ok(true);
            }
            offset += count as u64;
        }
    }

    /// Compares or copies anything but a directory.
    pub(super) fn single(
        &mut self,
        name: &CStr,
        stat: &Stat,
        base: Option<&Base<'_>>,
        is_own: bool,
    ) -> Result<()> {
        if let Some(what) = self.obstacle(name, stat) {
            self.lose(what);
            return match base {
                Some(_) => self.remove(name),
                None => Ok(()),
            };
        }
        if base.is_none() && kind(stat) == FileType::Symlink && self.cannot_have_link(name)? {
            self.lose(LONG_LINK);
            return Ok(());
        }
        if is_own && self.regrouped.is_none() {
            self.meet(stat);
        }
        let has_one_name = |base: &Base<'_>| stat.st_nlink < 2 && base.stat.st_nlink < 2;
        let same_names = match &self.regrouped {
            Some(regrouped) => !regrouped.contains(&tree::identity(stat)),
            None if self.is_update() => base.is_some_and(has_one_name),
            None => true,
        };
        if self.regrouped.is_none()
            && !self.is_update()
            && base.is_some_and(|base| base.stat.st_nlink != stat.st_nlink)
        {
            // Which names belong together is found out where everything is looked at.
            self.falls_short = true;
            return Ok(());
        }
        if let Some(base) = base.filter(|_| same_names) {
            let same_entry = self.is_same_entry(name, stat, base, is_own)?;
            let is_file = kind(stat) == FileType::RegularFile;
            let base = &base.stat;
            let may_be_kept = is_file && kind(base) == FileType::RegularFile && stat.st_size == base.st_size;
            let is_whole = self.is_update() && self.form() == WhiteoutFormat::Apply;
            if same_entry && !is_file {
                return Ok(());
            }
            if may_be_kept && (same_entry || is_whole) && self.is_same_content(name)? {
                return match same_entry {
                    true => Ok(()),
                    false => self.describe(name, stat, is_own),
                };
            }
        }
        self.differs();
        if !self.is_update() {
            return Ok(());
        }
        self.clear(name)?;
        // A layer that does not tell everything may have files without their contents.
        let is_complete = self.shown.own.as_ref().is_some_and(|own| own.complete);
        let contents: Vec<OwnedFd> = match is_complete {
            true => Vec::from_iter(self.own_dir()?),
            false => Vec::new(),
        };
        let dirs = Pair {
            source: self.from.current()?,
            target: self.to.current()?,
            contents: &contents,
        };
        match self.worker.entry(&dirs, name, &self.path, stat) {
            Err(Failure::Io(error))
                if kind(stat) == FileType::Symlink
                    && Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG) =>
            {
                self.lose(LONG_LINK);
                return match base {
                    Some(_) => self.remove(name),
                    None => Ok(()),
                };
            }
            copied => copied?,
        }
        self.give_attributes(name, is_own)?;
        self.lose_time(None, name, stat)
    }

    /// Whether the compared tree cannot have a link of the source.
    fn cannot_have_link(&self, name: &CStr) -> Result<bool> {
        let Some(trial) = self.trial() else {
            return Ok(false);
        };
        let target = at::read_link_at(self.from.current()?, name.to_bytes())?;
        Ok(!trial.takes_link(&target)?)
    }

    /// Why the tree that is written or compared cannot have an entry.
    fn obstacle(&self, name: &CStr, stat: &Stat) -> Option<&'static str> {
        match self.form() {
            WhiteoutFormat::Overlay(_) if kind(stat) == FileType::CharacterDevice && stat.st_rdev == 0 => {
                return Some("a character device 0:0, which overlayfs takes for a deletion");
            }
            WhiteoutFormat::Verbatim if name.to_bytes().starts_with(whiteout::PREFIX) => {
                return Some("a name that the mount program takes for a deletion");
            }
            _ => {}
        }
        let is_forbidden = is_device(stat) && stat.st_rdev != 0 && self.in_user_namespace();
        is_forbidden.then_some("a device, which cannot be made in a user namespace")
    }

    /// Gives a file of a whole tree, whose content is the right one, everything else.
    fn describe(&mut self, name: &CStr, stat: &Stat, is_own: bool) -> Result<()> {
        let to = self.to.current()?;
        self.own_at(to, name, stat)?;
        rustix::fs::chmodat(
            to,
            name,
            Mode::from_raw_mode(stat.st_mode & 0o7777),
            AtFlags::empty(),
        )?;
        self.give_attributes(name, is_own)?;
        rustix::fs::utimensat(self.to.current()?, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?;
        self.lose_time(None, name, stat)
    }

    /// Gives what is there the owner that `stat` has.
    fn own_at(&self, dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
        let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if (there.st_uid, there.st_gid) == (stat.st_uid, stat.st_gid) || self.keeps_owners_apart() {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        match rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::PERM | Errno::INVAL) if self.ignores_owners() => Ok(()),
            owned => Ok(owned?),
        }
    }

    /// Gives an entry of the new tree the attributes that it has in the source.
    fn give_attributes(&mut self, name: &CStr, is_own: bool) -> Result<()> {
        let lost = self.copy_attributes(self.from.current()?, self.to.current()?, name, is_own)?;
        self.lose_attributes(lost);
        Ok(())
    }

    /// Returns those that the new tree cannot have.
    fn copy_attributes(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        is_own: bool,
    ) -> Result<Vec<String>> {
        let wanted = self.wanted(from, name, is_own)?;
        let mut lost = Vec::new();
        give(&wanted, to, name.to_bytes(), self.keeps_marks(), |attribute| {
            lost.push(String::from_utf8_lossy(attribute).into_owned());
        })?;
        Ok(lost)
    }

    fn lose_attributes(&mut self, lost: Vec<String>) {
        for attribute in lost {
            self.lose(format!("the extended attribute {attribute}"));
        }
    }

    /// Gives a directory of the new tree what belongs to itself.
    pub(super) fn finish_dir(
        &mut self,
        frame: &Frame,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
    ) -> Result<()> {
        match self.form() {
            WhiteoutFormat::Overlay(namespace) if frame.is_opaque => {
                xattr::fset(to, namespace.opaque().as_bytes(), OPAQUE_VALUE)?;
            }
            WhiteoutFormat::Verbatim if frame.is_opaque => make_empty(to, whiteout::OPAQUE)?,
            _ => {}
        }
        self.own_at(to, c".", &frame.stat)?;
        self.worker.finish(from, to, &frame.stat, None)?;
        let lost = self.copy_attributes(from, to, c".", frame.is_own)?;
        self.lose_attributes(lost);
        self.lose_time(Some(to), c".", &frame.stat)
    }

    /// Has the new tree not show what the base does.
    pub(super) fn remove(&mut self, name: &CStr) -> Result<()> {
        self.differs();
        if !self.is_update() {
            return Ok(());
        }
        self.clear(name)?;
        let to = self.to.current()?;
        match self.form() {
            WhiteoutFormat::Apply => {}
            WhiteoutFormat::Overlay(_) => {
                rustix::fs::mknodat(to, name, FileType::CharacterDevice, Mode::empty(), 0)?;
            }
            WhiteoutFormat::Verbatim => make_empty(to, &[whiteout::PREFIX, name.to_bytes()].concat())?,
        }
        Ok(())
    }

    /// Takes away what the written tree itself has of this name.
    pub(super) fn clear(&self, name: &CStr) -> Result<()> {
        let to = self.to.current()?;
        match rustix::fs::unlinkat(to, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                let dir = Path::new("/proc/self/fd").join(to.as_raw_fd().to_string());
                let name = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
                Ok(tree::remove_tree(&dir.join::<&std::ffi::OsStr>(name))?)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a directory in a tree of changes, if it is not there.
    pub(super) fn make_dir(&self, name: &CStr) -> Result<()> {
        let to = self.to.current()?;
        match rustix::fs::mkdirat(to, name, Mode::RWXU) {
            Err(Errno::EXIST) => {}
            made => return Ok(made?),
        }
        let there = at::lstat_at(to, name.to_bytes())?;
        if there.is_some_and(|stat| tree::is_directory(&stat)) {
            return Ok(());
        }
        self.clear(name)?;
        Ok(rustix::fs::mkdirat(to, name, Mode::RWXU)?)
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &File, buffer: &mut [u8], offset: u64) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let count =
            rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *rest, offset + filled as u64))?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

fn make_empty(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o644)).map(drop)
}
