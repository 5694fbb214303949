//! The extended attributes of files in a tree that shall show what another one does.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::driver::update::trees::Remap;
use crate::sys::xattr;
use crate::whiteout::is_driver_attribute;

/// Free bytes and inodes of a file system that is not full. No file can have attributes of more bytes together than these on a file
/// system that has a limit.
const ROOM: u64 = 1 << 20;
const ROOM_IN_INODES: u64 = 64;

/// Attributes by name.
pub(super) type Attributes = BTreeMap<Vec<u8>, Vec<u8>>;

/// Whether an attribute belongs to a file and not to its place: a label of SELinux is that of the store, and a signature of EVM
/// has the inode in it. XFS lists access control lists under names of its own too.
fn is_carried(name: &[u8]) -> bool {
    !matches!(
        name,
        b"" | b"security.selinux" | b"security.evm" | b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT"
    )
}

/// What of a file's attributes another tree has to have. `keeps_marks`: those that mark something for overlayfs are among
/// them.
pub(super) fn carried(
    dir: BorrowedFd<'_>,
    name: &[u8],
    remap: &Remap,
    keeps_marks: bool,
) -> rustix::io::Result<Attributes> {
    let mut found = Attributes::new();
    for attribute in xattr::list_raw_at(dir, name)?.split(|byte| *byte == 0) {
        if !is_carried(attribute) || (!keeps_marks && is_driver_attribute(attribute)) {
            continue;
        }
        let Ok(text) = std::ffi::CString::new(attribute) else {
            continue;
        };
        if let Some(value) = xattr::get_at(dir, name, text.as_c_str())? {
            found.insert(attribute.to_vec(), mapped(attribute, value, remap));
        }
    }
    Ok(found)
}

/// Gives a file of the new tree exactly these attributes. Those that it cannot have go to `lose`.
pub(super) fn give(
    wanted: &Attributes,
    dir: BorrowedFd<'_>,
    name: &[u8],
    keeps_marks: bool,
    mut lose: impl FnMut(&[u8]),
) -> rustix::io::Result<()> {
    let there = carried(dir, name, &None, keeps_marks)?;
    for attribute in there.keys().filter(|name| !wanted.contains_key(*name)) {
        match xattr::remove_at(dir, name, attribute) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(error) => return Err(error),
        }
    }
    for (attribute, value) in wanted {
        if there.get(attribute) == Some(value) {
            continue;
        }
        if !keeps_marks && is_driver_attribute(attribute) {
            lose(attribute);
            continue;
        }
        match xattr::set_at(dir, name, attribute, value) {
            Err(error) if is_refusal(dir, error) => lose(attribute),
            set => set?,
        }
    }
    Ok(())
}

/// Whether a failure to set an attribute of a file in `dir` says that the file cannot have it. Some file systems, ext4 and btrfs
/// among them, say that there is no space if those of one file get too large for them, also where there is plenty.
fn is_refusal(dir: BorrowedFd<'_>, error: Errno) -> bool {
    match error {
        Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP | Errno::INVAL | Errno::TOOBIG => true,
        Errno::NOSPC => rustix::fs::fstatvfs(dir).is_ok_and(|there| {
            let has_inodes = there.f_files == 0 || there.f_favail > ROOM_IN_INODES;
            there.f_bavail.saturating_mul(there.f_frsize) > ROOM && has_inodes
        }),
        _ => false,
    }
}

/// An access control list with the owners that files get. Its entries: tag, permissions, ID.
fn mapped(attribute: &[u8], value: Vec<u8>, remap: &Remap) -> Vec<u8> {
    const VERSION: usize = 4;
    const ENTRY: usize = 8;
    const USER: u16 = 2;
    const GROUP: u16 = 8;
    let mut value = value;
    let Some((from, to)) = remap else { return value };
    if !attribute.starts_with(b"system.posix_acl_") {
        return value;
    }
    for entry in value
        .get_mut(VERSION..)
        .unwrap_or_default()
        .chunks_exact_mut(ENTRY)
    {
        let Ok([tag0, tag1, _, _, id @ ..]) = <&mut [u8; ENTRY]>::try_from(entry) else {
            continue;
        };
        let mut bytes = [0; 4];
        bytes.copy_from_slice(id);
        let (user, group) = from.moved_to(to, u32::from_le_bytes(bytes));
        let new = match u16::from_le_bytes([*tag0, *tag1]) {
            USER => user,
            GROUP => group,
            _ => None,
        };
        if let Some(new) = new {
            id.copy_from_slice(&new.to_le_bytes());
        }
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idmap::{IdMap, IdMappings};

    #[test]
    fn lists_are_carried_under_one_name() {
        for (name, carried) in [
            (&b"system.posix_acl_access"[..], true),
            (b"trusted.SGI_ACL_FILE", false),
            (b"trusted.SGI_ACL_DEFAULT", false),
            (b"trusted.test", true),
            (b"security.selinux", false),
        ] {
            assert_eq!(is_carried(name), carried, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn owners_in_lists_are_mapped() {
        let list = |user: u32, group: u32| {
            let mut value = 2u32.to_le_bytes().to_vec();
            for (tag, id) in [(1u16, u32::MAX), (2, user), (8, group), (16, u32::MAX)] {
                value.extend(tag.to_le_bytes());
                value.extend(6u16.to_le_bytes());
                value.extend(id.to_le_bytes());
            }
            value
        };
        let maps = |host| IdMappings {
            uids: vec![IdMap::new(0, host, 10)],
            gids: vec![IdMap::new(0, host + 100, 10)],
        };
        let remap = Some((maps(1000), maps(2000)));
        let mapped = |name: &[u8], value| mapped(name, value, &remap);
        let acl = b"system.posix_acl_access";
        assert_eq!(mapped(acl, list(1005, 1106)), list(2005, 2106));
        // In no range.
        assert_eq!(mapped(acl, list(5, 1105)), list(5, 2105));
        assert_eq!(mapped(b"user.test", list(1005, 1106)), list(1005, 1106));
        for end in [0, 3, 4, 9] {
            let short = list(1005, 1106)[..end].to_vec();
            assert_eq!(mapped(acl, short.clone()), short);
        }
    }
}
