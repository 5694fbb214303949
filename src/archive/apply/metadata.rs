//! Owner, mode, times and attributes of what was unpacked.
//!
//! The order matters: the owner first (changing it clears set-ID bits and drops `security.capability`), then the
//! mode, the times, the attributes. Each is set only where it differs from what is there.

use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::archive::path::show;
use crate::archive::tar::header::Timestamp;
use crate::archive::tar::reader::Entry;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, privilege, xattr};
use crate::whiteout::{self, Namespace, OVERRIDE_STAT};

/// How an archive's metadata becomes the tree's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Container IDs in the archive, host IDs in the tree.
    pub(crate) mappings: IdMappings,
    /// The owner (a container's ID) of everything, whatever the archive says.
    pub(crate) owner: Option<Owner>,
    /// Go on with a warning when an owner cannot be set.
    pub(crate) ignore_chown_errors: bool,
    /// Some attributes cannot be set and are left out.
    pub(crate) in_user_namespace: bool,
    /// Mode of everything but symbolic links. No owner is set; the real ones, and the real type, go into an attribute.
    pub(crate) force_mask: Option<u32>,
    /// Permissions matter to this process.
    pub(crate) checked: bool,
}

/// The value of the attribute that keeps owner, mode and type where a forced mode hides them.
pub(crate) fn override_value(owner: Owner, mode: u32, kind: &str) -> String {
    format!("{}:{}:{:04o}:{kind}", owner.uid, owner.gid, mode & 0o7777)
}

/// The type of an entry in such a value.
fn override_kind(entry: &Entry) -> String {
    match entry.kind {
        b'5' => "dir".into(),
        b'3' => format!("char-{}-{}", entry.dev_major, entry.dev_minor),
        b'4' => format!("block-{}-{}", entry.dev_major, entry.dev_minor),
        b'6' => "pipe".into(),
        _ => "file".into(),
    }
}

/// An ID from a header. Archives made where `nobody` is -2 have it negative.
pub(crate) fn id(number: i64) -> Result<u32> {
    u32::try_from(number)
        .or_else(|_reason| i32::try_from(number).map(i32::cast_unsigned))
        .map_err(|_reason| ErrorKind::InvalidArchive.err(format!("owner or group {number} is out of range")))
}

/// The type of what a status describes.
pub(crate) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// The number of the device that an entry stands for, by the kernel's own split: 12 bits of major number, 20 of minor.
pub(crate) fn device_number(entry: &Entry) -> u64 {
    let part = |number: i64, mask: i64| u32::try_from(number & mask).unwrap_or(0);
    rustix::fs::makedev(part(entry.dev_major, 0xfff), part(entry.dev_minor, 0xf_ffff))
}

/// Makes overlayfs hide what the layers below have in this directory.
pub(crate) fn mark_opaque(dir: BorrowedFd<'_>, namespace: Namespace) -> Result<()> {
    // Through a path, since the descriptor may be one that cannot be read.
    xattr::set_at(dir, b".", namespace.opaque().as_bytes(), whiteout::OPAQUE_VALUE)
        .during("marking a directory opaque (setxattr)")
}

/// Whether an attribute belongs to a driver or to the host and not to a layer.
pub(crate) fn is_foreign(name: &[u8]) -> bool {
    whiteout::is_driver_attribute(name) || name == b"security.selinux"
}

fn timespec(time: Timestamp) -> Timespec {
    Timespec {
        tv_sec: time.secs,
        tv_nsec: time.nanos.into(),
    }
}

/// The times for an entry: without a time of access, or with one before the last modification, both are the same.
pub(crate) fn times(mtime: Timestamp, atime: Option<Timestamp>) -> Timestamps {
    let atime = atime.map_or(mtime, |atime| atime.max(mtime));
    Timestamps {
        last_access: timespec(atime),
        last_modification: timespec(mtime),
    }
}

/// Whether a status tells this time.
fn is_time(secs: i64, nanos: u64, time: Timespec) -> bool {
    secs == time.tv_sec && i64::try_from(nanos) == Ok(time.tv_nsec)
}

/// Whether setting the mode is needed, given that the owner was changed or not.
fn mode_differs(stat: &Stat, mode: u32, chowned: bool) -> bool {
    stat.st_mode & 0o7777 != mode || (chowned && mode & 0o6000 != 0)
}

impl Rules {
    /// The owner in the tree.
    pub(crate) fn owner(&self, entry: &Entry) -> Result<Owner> {
        self.mappings.to_host(match self.owner {
            Some(owner) => owner,
            None => Owner {
                uid: id(entry.uid)?,
                gid: id(entry.gid)?,
            },
        })
    }

    /// The mode in the tree of an entry that is no symbolic link.
    pub(crate) fn mode(&self, entry: &Entry) -> u32 {
        self.force_mask.unwrap_or_else(|| self.readable(entry))
    }

    /// The mode of an entry with what its owner needs to read it: without, an owner whom permissions bind could neither
    /// export nor copy it.
    fn readable(&self, entry: &Entry) -> u32 {
        let needed = match entry.kind {
            _ if !self.checked => 0,
            b'5' => 0o500,
            _ => 0o400,
        };
        entry.mode & 0o7777 | needed
    }

    /// Runs `chown` if the owner differs; whether it did.
    fn chown(
        &self,
        stat: &Stat,
        owner: Owner,
        chown: impl FnOnce(Option<Uid>, Option<Gid>) -> rustix::io::Result<()>,
    ) -> Result<bool> {
        // The largest ID means "leave it" to the kernel.
        let uid = (owner.uid != stat.st_uid && owner.uid != u32::MAX).then(|| Uid::from_raw(owner.uid));
        let gid = (owner.gid != stat.st_gid && owner.gid != u32::MAX).then(|| Gid::from_raw(owner.gid));
        if uid.is_none() && gid.is_none() {
            return Ok(false);
        }
        match chown(uid, gid) {
            Ok(()) => Ok(true),
            Err(error) if self.ignore_chown_errors => {
                tracing::warn!(uid = owner.uid, gid = owner.gid, %error, "cannot set an owner, going on");
                Ok(false)
            }
            Err(error) => {
                let hint = if error == Errno::INVAL {
                    " (potentially insufficient UIDs or GIDs available in the user namespace: \
                     check /etc/subuid and /etc/subgid)"
                } else {
                    ""
                };
                Err(Error::io(
                    format!("setting owner {}:{}{hint}", owner.uid, owner.gid),
                    error,
                ))
            }
        }
    }

    /// Owner and mode of an open file or directory, whose present state is `stat`.
    pub(crate) fn permissions(
        &self,
        file: BorrowedFd<'_>,
        stat: &Stat,
        owner: Owner,
        mode: u32,
    ) -> Result<()> {
        if let Some(mask) = self.force_mask {
            if mode_differs(stat, mask, false) {
                rustix::fs::fchmod(file, Mode::from_raw_mode(mask)).during("setting the mode")?;
            }
            return Ok(());
        }
        let chowned = self.chown(stat, owner, |uid, gid| rustix::fs::fchown(file, uid, gid))?;
        if mode_differs(stat, mode, chowned) {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).during("setting the mode")?;
        }
        Ok(())
    }

    /// Everything of an open file; of an open directory everything but the times.
    pub(crate) fn open_file(
        &self,
        file: BorrowedFd<'_>,
        entry: &Entry,
        owner: Owner,
        with_times: bool,
    ) -> Result<()> {
        let stat = rustix::fs::fstat(file).during("reading the status")?;
        let mode = self.readable(entry);
        // Attributes can be set by who may write to the file.
        let has_attributes = entry.records.xattrs().next().is_some();
        let working = if self.checked && has_attributes {
            mode | 0o200
        } else {
            mode
        };
        self.permissions(file, &stat, owner, working)?;
        if with_times {
            rustix::fs::futimens(file, &times(entry.mtime, entry.atime)).during("setting the times")?;
        }
        self.attributes(entry, |name, value| xattr::fset(file, name, value))?;
        if working != mode && self.force_mask.is_none() {
            rustix::fs::fchmod(file, Mode::from_raw_mode(mode)).during("setting the mode")?;
        }
        self.keep_real(file, owner, entry.mode, &override_kind(entry))
    }

    /// Keeps in an attribute what a forced mode has hidden.
    pub(crate) fn keep_real(&self, file: BorrowedFd<'_>, owner: Owner, mode: u32, kind: &str) -> Result<()> {
        if self.force_mask.is_none() {
            return Ok(());
        }
        let value = override_value(owner, mode, kind);
        xattr::fset(file, OVERRIDE_STAT.as_bytes(), value.as_bytes())
            .during("keeping owner and mode in an attribute")
    }

    /// Everything of something that cannot or must not be opened.
    pub(crate) fn node(&self, dir: BorrowedFd<'_>, name: &[u8], entry: &Entry, owner: Owner) -> Result<()> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).during("reading the status")?;
        let chowned = self.force_mask.is_none()
            && self.chown(&stat, owner, |uid, gid| {
                rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            })?;
        let mode = self.mode(entry);
        let is_link = kind(&stat) == FileType::Symlink;
        if !is_link && mode_differs(&stat, mode, chowned) {
            chmod_node(dir, name, mode).during("setting the mode")?;
        }
        let times = times(entry.mtime, entry.atime);
        if !is_time(stat.st_mtime, stat.st_mtime_nsec, times.last_modification)
            || !is_time(stat.st_atime, stat.st_atime_nsec, times.last_access)
        {
            rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
                .during("setting the times")?;
        }
        self.attributes(entry, |attribute, value| {
            xattr::set_at(dir, name, attribute, value)
        })
    }

    /// Whether [`Rules::node`] would change nothing but the time of access of a file whose status is `stat`.
    pub(crate) fn is_described(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        entry: &Entry,
        owner: Owner,
    ) -> bool {
        let owned = self.force_mask.is_some()
            // An ordinary user cannot set owners, and has not done so before.
            || (self.ignore_chown_errors && !privilege::is_root())
            || [(owner.uid, stat.st_uid), (owner.gid, stat.st_gid)]
                .iter()
                .all(|(wanted, now)| wanted == now || *wanted == u32::MAX);
        let mode = self.force_mask.unwrap_or(entry.mode);
        let has = |(attribute, value): (&[u8], &[u8])| {
            let Ok(attribute) = std::str::from_utf8(attribute) else {
                return false;
            };
            let now = xattr::get_at(dir, name, attribute);
            now.is_ok_and(|now| now.as_deref() == Some(value))
        };
        let mut attributes = entry.records.xattrs().filter(|(name, _)| !is_foreign(name));
        owned
            && (kind(stat) == FileType::Symlink || !mode_differs(stat, mode, false))
            && is_time(stat.st_mtime, stat.st_mtime_nsec, timespec(entry.mtime))
            && attributes.all(has)
    }

    /// Whether a status says of a regular file what a new one for `entry` would have: owner, mode, time of last modification.
    pub(super) fn is_status(&self, stat: &Stat, entry: &Entry, owner: Owner) -> bool {
        let mtime = timespec(entry.mtime);
        self.force_mask.is_none()
            && (stat.st_uid, stat.st_gid) == (owner.uid, owner.gid)
            && stat.st_mode & 0o7777 == self.mode(entry)
            && is_time(stat.st_mtime, stat.st_mtime_nsec, mtime)
            && u64::try_from(stat.st_size) == Ok(entry.size)
    }

    /// Whether a file is the same as a new one for `entry` in everything but its content and its time of last access.
    pub(super) fn is_same(&self, file: BorrowedFd<'_>, entry: &Entry, owner: Owner) -> bool {
        let Ok(stat) = rustix::fs::fstat(file) else {
            return false;
        };
        if kind(&stat) != FileType::RegularFile || !self.is_status(&stat, entry, owner) {
            return false;
        }
        // Labels are the host's, and the same for all layers.
        let Ok(mut names) = xattr::flist(file) else {
            return false;
        };
        names.retain(|name| name != "security.selinux");
        let wanted = entry.records.xattrs().filter(|(name, _)| !is_foreign(name));
        let mut count = 0;
        for (name, value) in wanted {
            count += 1;
            let name = std::str::from_utf8(name).ok();
            let found = name.and_then(|name| xattr::fget(file, name).ok().flatten());
            if found.as_deref() != Some(value) {
                return false;
            }
        }
        names.len() == count
    }

    /// Attributes that layers may carry.
    ///
    /// SELinux labels belong to the host. The attributes by which overlayfs and fuse-overlayfs mark their layers are
    /// left out too: a layer says what it hides by whiteouts, and one that set the marks itself
    /// could redirect names or steal metadata from the layers below. No real image needs them. Nor does a layer need
    /// the attribute that keeps owner and mode.
    fn attributes(&self, entry: &Entry, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> Result<()> {
        for (name, value) in entry.records.xattrs() {
            if is_foreign(name) {
                tracing::debug!(
                    attribute = show(name),
                    entry = show(&entry.name),
                    "attribute left out"
                );
                continue;
            }
            match set(name, value) {
                Ok(()) => {}
                Err(error @ (Errno::OPNOTSUPP | Errno::PERM))
                    if error == Errno::OPNOTSUPP || self.in_user_namespace =>
                {
                    tracing::debug!(attribute = show(name), entry = show(&entry.name), %error, "attribute not set");
                }
                Err(error) => {
                    let doing = format!("setting attribute {} (setxattr)", show(name));
                    return Err(Error::io(doing, error));
                }
            }
        }
        Ok(())
    }
}

/// Sets the mode of something that is no symbolic link and must not be opened (a device, a FIFO).
pub(super) fn chmod_node(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    // A path descriptor pins what is there now, so that a link put in its place would not be followed.
    let pinned = rustix::fs::openat(
        dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    at::chmod_open(pinned.as_fd(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_may_be_negative_but_not_wider_than_32_bits() {
        for (number, value) in [(0, 0), (-2, u32::MAX - 1), (4_294_967_295, u32::MAX)] {
            assert_eq!(id(number).unwrap(), value);
        }
        for number in [4_294_967_296, -2_147_483_649, i64::MIN, i64::MAX] {
            assert_eq!(id(number).unwrap_err().kind(), ErrorKind::InvalidArchive);
        }
    }

    #[test]
    fn access_is_never_before_modification() {
        let at = |secs| Timestamp { secs, nanos: 1 };
        for (atime, expected) in [(None, 5), (Some(at(3)), 5), (Some(at(9)), 9)] {
            assert_eq!(times(at(5), atime).last_access.tv_sec, expected);
        }
    }
}
