//! Compares what is at one name with what is expected there.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, Stat};

use crate::archive::apply::metadata::kind;
use crate::archive::verify::acl::{self, ACCESS_ACL};
use crate::archive::verify::difference::AttributeChange;
use crate::archive::verify::expected_item::{Attributes, CAPABILITIES, Item, UNSURE_TIME, What};
use crate::idmap::{IdMappings, Owner};
use crate::sys::{at, xattr};
use crate::whiteout;

/// What is not compared, and how owners are read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparing {
    /// Owners on disk are the host's.
    pub(crate) mappings: IdMappings,
    /// Owners may be others.
    pub(crate) ignore_owners: bool,
    /// Permissions may be others.
    pub(crate) ignore_modes: bool,
    /// Types may be others.
    pub(crate) ignore_types: bool,
    /// Times may be others.
    pub(crate) ignore_times: bool,
    /// Devices cannot be made, and some attributes not be set.
    pub(crate) in_user_namespace: bool,
    /// This process is bound by permissions, and what it unpacks has those that it needs.
    pub(crate) checked: bool,
}

impl Comparing {
    /// What of an item's metadata is different at `name`, which has these attributes.
    pub(super) fn compare(
        &self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        attributes: &[String],
        item: &Item,
    ) -> Vec<AttributeChange> {
        let mut changes = Vec::new();
        let found = letter(kind(stat));
        let expected = match &item.what {
            What::Directory { implied: true } if found == b'5' => return self.compare_implied(stat, None),
            What::Unknown => return changes,
            What::Directory { .. } => b'5',
            What::File { .. } => b'0',
            What::SymbolicLink(_) => b'2',
            What::Device { kind, .. } => *kind,
            What::Fifo => b'6',
        };
        if expected != found {
            if !self.ignore_types {
                changes.push(AttributeChange::Type { expected, found });
            }
            return changes;
        }
        self.compare_owner(stat, item, &mut changes);
        let mode = stat.st_mode & 0o7777;
        let readable = if expected == b'5' { 0o500 } else { 0o400 };
        let may_be_readable = self.checked && mode == item.mode | readable;
        let by_acl = || acl_mode(item).is_some_and(|of_acl| mode == item.mode & 0o7000 | of_acl);
        if expected != b'2' && mode != item.mode && !may_be_readable && !self.ignore_modes && !by_acl() {
            changes.push(AttributeChange::Mode {
                expected: item.mode,
                found: mode,
            });
        }
        if expected != b'5' && !self.ignore_times && !same_time(item.mtime, stat.st_mtime) {
            changes.push(AttributeChange::ModificationTime {
                expected: item.mtime,
                found: stat.st_mtime,
            });
        }
        match &item.what {
            What::File { size, .. } => {
                let found = u64::try_from(stat.st_size).unwrap_or(0);
                if found != *size {
                    changes.push(AttributeChange::Size {
                        expected: *size,
                        found,
                    });
                }
            }
            What::Device { number, .. } if stat.st_rdev != *number => {
                changes.push(AttributeChange::Device {
                    expected: *number,
                    found: stat.st_rdev,
                });
            }
            What::SymbolicLink(target) => {
                let found = at::read_link_at(dir, name);
                if !matches!(found, Ok(found) if *found == **target) {
                    changes.push(AttributeChange::LinkTarget);
                }
            }
            _ => {}
        }
        self.compare_attributes((dir, name), stat, attributes, item, &mut changes);
        changes
    }

    /// What is different of a directory that no entry describes. It is as `below`, in the layers below, or as programs make one
    /// that is missing: with the permissions that one of the usual file creation masks leaves.
    pub(super) fn compare_implied(&self, stat: &Stat, below: Option<&Stat>) -> Vec<AttributeChange> {
        const LEFT: [u32; 6] = [0o755, 0o700, 0o750, 0o775, 0o770, 0o777];
        let mut changes = Vec::new();
        let (mode, root) = (stat.st_mode & 0o7777, rustix::process::geteuid().as_raw());
        let as_below = below.is_some_and(|below| {
            mode == below.st_mode & 0o7777 && (stat.st_uid, stat.st_gid) == (below.st_uid, below.st_gid)
        });
        if as_below {
            return changes;
        }
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        let of_root = self
            .mappings
            .to_container(Owner { uid, gid })
            .is_ok_and(|found| found.uid == 0);
        // One in a set-group-ID directory has that bit too, and the group.
        if !self.ignore_modes && !LEFT.contains(&(mode & !0o2000)) {
            changes.push(AttributeChange::Mode {
                expected: 0o755,
                found: mode,
            });
        }
        // The Go library gives it, in the complete trees of its vfs driver, to the user that runs it.
        if !self.ignore_owners && !of_root && uid != root {
            changes.push(AttributeChange::Owner {
                expected: 0,
                found: uid,
            });
        }
        changes
    }

    fn compare_owner(&self, stat: &Stat, item: &Item, changes: &mut Vec<AttributeChange>) {
        if self.ignore_owners {
            return;
        }
        let (uid, gid) = (stat.st_uid, stat.st_gid);
        let Ok(found) = self.mappings.to_container(Owner { uid, gid }) else {
            changes.push(AttributeChange::Unmapped { uid, gid });
            return;
        };
        // The largest ID means "leave it" to the kernel.
        if item.uid != found.uid && item.uid != u32::MAX {
            changes.push(AttributeChange::Owner {
                expected: item.uid,
                found: found.uid,
            });
        }
        if item.gid != found.gid && item.gid != u32::MAX {
            changes.push(AttributeChange::Group {
                expected: item.gid,
                found: found.gid,
            });
        }
    }

    fn compare_attributes(
        &self,
        (dir, name): (BorrowedFd<'_>, &[u8]),
        stat: &Stat,
        found: &[String],
        item: &Item,
        changes: &mut Vec<AttributeChange>,
    ) {
        let expected: &[_] = item.attributes.as_deref().unwrap_or_default();
        for (attribute, value) in expected {
            let Ok(attribute) = std::str::from_utf8(attribute) else {
                continue;
            };
            let same = match xattr::get_at(dir, name, attribute) {
                Ok(Some(found)) => same_value(attribute, value, &found, stat),
                Ok(None) if attribute == ACCESS_ACL && acl::is_minimal(value) => true,
                // Older Go programs leave empty ones out, and the Go library some in a copy of the tree of the layer below.
                Ok(None) if value.is_empty() || !item.own && !is_copied(attribute) => true,
                // What could not be set, for the file system or the user namespace.
                Ok(None) => self.in_user_namespace || !xattr::is_supported_at(dir, name, attribute),
                Err(_unreadable) => true,
            };
            if !same {
                changes.push(AttributeChange::Attribute(attribute.to_owned()));
            }
        }
        for attribute in found {
            let known = |list: &Attributes| list.iter().any(|(name, _)| **name == *attribute.as_bytes());
            if is_content(attribute) && !item.attributes.as_ref().is_some_and(known) {
                changes.push(AttributeChange::Attribute(attribute.clone()));
            }
        }
    }
}

/// The letter of a type in a tar header.
fn letter(kind: FileType) -> u8 {
    match kind {
        FileType::Directory => b'5',
        FileType::Symlink => b'2',
        FileType::CharacterDevice => b'3',
        FileType::BlockDevice => b'4',
        FileType::Fifo => b'6',
        FileType::RegularFile => b'0',
        _ => b'?',
    }
}

/// The last second that ext4 has; what becomes of later ones is different everywhere.
const LAST_TIME: i64 = 0x3_7fff_ffff;

/// Whether a file was given a time. Some programs and file systems have no times before 1970, others none after 2038.
fn same_time(expected: i64, found: i64) -> bool {
    expected == found
        || expected == UNSURE_TIME
        || (expected < 0 && found == 0)
        || expected > LAST_TIME
        || (!(i64::from(i32::MIN)..=i64::from(i32::MAX)).contains(&expected)
            && (found == i64::from(i32::MAX) || found == i64::from(i32::MIN)))
}

/// Whether an attribute that was not expected is a change of the layer: others are inherited, or set by the host.
fn is_content(name: &str) -> bool {
    name.as_bytes() == CAPABILITIES
        || name.starts_with("user.") && !whiteout::is_driver_attribute(name.as_bytes())
}

/// Whether an attribute goes into a copy of a layer's tree.
fn is_copied(name: &str) -> bool {
    name.as_bytes() == CAPABILITIES || name.starts_with("user.")
}

/// Whether an attribute has the value. The kernel converts file capabilities between its versions, and a change of the mode
/// changes an ACL.
fn same_value(name: &str, expected: &[u8], found: &[u8], stat: &Stat) -> bool {
    if name == ACCESS_ACL {
        return expected == found || acl::is_same_but_for_mode(expected, found, stat.st_mode);
    }
    if name.as_bytes() == CAPABILITIES {
        // Version and flags; two words of permitted and inheritable capabilities each; perhaps the root user of a namespace.
        let sets = |value: &[u8]| value.get(4..20).map(<[u8]>::to_vec);
        let effective = |value: &[u8]| value.first().map(|byte| byte & 1);
        return sets(expected) == sets(found) && effective(expected) == effective(found);
    }
    expected == found
}

/// The permissions that the ACL of an item gives it: it is set after the mode.
fn acl_mode(item: &Item) -> Option<u32> {
    let attributes = item.attributes.as_deref().unwrap_or_default();
    let (_, value) = attributes
        .iter()
        .find(|(name, _)| **name == *ACCESS_ACL.as_bytes())?;
    acl::mode(value)
}
