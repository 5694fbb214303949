//! A tree with everything in it that a layer can have.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};

use crate::error::Result;
use crate::sys::{at, privilege, xattr};
use crate::test_util::tree_driver::bed::{Fault, write};
use crate::test_util::tree_driver::tree::look;

/// Entries of a large directory: more than fit into a few listings.
const MANY: usize = 1100;
/// The path of the file at the bottom is as long as a layer can have it; with that of the tree it is longer than the kernel takes one.
const LEVELS: usize = 18;
const LENGTH: usize = 225;

/// Puts everything into an empty tree that the caller and the file system allow.
pub(super) fn fill(tree: &Path) -> Result<(), Fault> {
    fs::create_dir_all(tree.join("d/e/f"))?;
    fs::create_dir(tree.join("empty directory"))?;
    write(tree, "empty", "")?;
    write(tree, "d/short", "content")?;
    let long: Vec<u8> = (0..100_000_u32).flat_map(|number| number.to_le_bytes()).collect();
    fs::write(tree.join("d/long"), long)?;
    let mut sparse = fs::File::create(tree.join("sparse"))?;
    sparse.set_len(1 << 21)?;
    sparse.write_all(b"begin")?;
    for name in ["linked", "d/e/linked again"] {
        fs::hard_link(tree.join("d/short"), tree.join(name))?;
    }
    rustix::fs::mknodat(CWD, tree.join("fifo"), FileType::Fifo, Mode::RUSR, 0)?;
    symlink("/nowhere/at all", tree.join("d/e/dangling"))?;
    symlink("d", tree.join("to a directory"))?;
    symlink("t".repeat(1000), tree.join("to a long path"))?;
    fs::hard_link(tree.join("to a long path"), tree.join("d/linked link"))?;
    fs::hard_link(tree.join("fifo"), tree.join("d/linked FIFO"))?;
    write(tree, "capable", "content")?;
    match fs::write(tree.join("n".repeat(250)), "long name") {
        // Not every file system has names of this length.
        Err(error) if error.kind() == io::ErrorKind::InvalidFilename => {}
        written => written?,
    }
    fs::write(tree.join(OsStr::from_bytes(b"not \xff utf-8\n")), "odd")?;
    set_attributes(tree)?;
    if privilege::is_root() {
        give_owners(tree)?;
    }
    let mut modes = vec![
        ("d/long", 0o4755),
        ("capable", 0o755),
        ("d/e", 0o2710),
        ("empty directory", 0o1777),
        ("linked", 0o400),
        ("d/e/f", 0o555),
        ("", 0o751),
    ];
    if privilege::overrides_modes() {
        modes.push(("empty", 0));
    }
    for (name, mode) in modes {
        fs::set_permissions(tree.join(name), Permissions::from_mode(mode))?;
    }
    // From the bottom up: nothing is changed in a directory after its time was set.
    let paths: Vec<PathBuf> = look(tree)?.into_keys().rev().collect();
    for (number, path) in (1_i64..).zip(paths) {
        // Every second time is before 1970.
        let sign = if number % 2 == 0 { 1 } else { -1 };
        let time = Timespec {
            tv_sec: sign * 100_000_000 + number,
            tv_nsec: 123_456_000 + number,
        };
        let times = Timestamps {
            last_access: time,
            last_modification: time,
        };
        let full = match path.as_os_str().is_empty() {
            true => tree.to_owned(),
            false => tree.join(path),
        };
        rustix::fs::utimensat(CWD, full, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Gives extended attributes and ACLs where there are some.
fn set_attributes(tree: &Path) -> Result<(), Fault> {
    let dir = at::open_dir(tree)?;
    let set = |path: &str, name: &str, value: &[u8]| {
        xattr::set_at(dir.as_fd(), path.as_bytes(), name.as_bytes(), value)
    };
    if xattr::is_supported_at(dir.as_fd(), b"empty", "user.test") {
        for path in ["empty", "sparse", "d/long", "d/short", "capable"] {
            set(path, "user.test", b"a \0 value")?;
        }
        set("sparse", "user.long", &[b'v'; 700])?;
        set("d", "user.test", b"")?;
        set(".", "user.root", b"1")?;
    }
    // Where there are none the tree is without.
    for (path, kind, owner) in [
        ("sparse", "access", 6),
        ("d/long", "access", 7),
        ("d", "access", 7),
        ("d/e", "default", 7),
        (".", "access", 7),
        (".", "default", 7),
    ] {
        let _listed = set(path, &format!("system.posix_acl_{kind}"), &acl(owner));
    }
    Ok(())
}

/// `u::OWNER,u:1234:r--,g::r--,m::r--,o::---`.
fn acl(owner: u8) -> Vec<u8> {
    let mut list = b"\x02\0\0\0\x01\0".to_vec();
    list.push(owner);
    list.extend(
        b"\0\xff\xff\xff\xff\x02\0\x04\0\xd2\x04\0\0\x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x04\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff",
    );
    list
}

/// What only root can give.
fn give_owners(tree: &Path) -> Result<(), Fault> {
    if !privilege::is_rootless() {
        for (name, kind, major, minor) in [
            ("null", FileType::CharacterDevice, 1, 3),
            ("block", FileType::BlockDevice, 259, 70_000),
        ] {
            let number = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, tree.join(name), kind, Mode::RUSR, number)?;
            std::os::unix::fs::lchown(tree.join(name), Some(15), Some(16))?;
        }
    }
    for (path, user, group) in [
        ("", 3, 4),
        ("d/e", 5, 6),
        ("d/long", 7, 8),
        ("to a directory", 9, 0),
        ("capable", 10, 11),
        ("fifo", 12, 13),
    ] {
        std::os::unix::fs::lchown(tree.join(path), Some(user), Some(group))?;
    }
    let dir = at::open_dir(tree)?;
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for path in ["empty", "capable"] {
        let _set = xattr::set_at(dir.as_fd(), path.as_bytes(), b"security.capability", capability);
    }
    Ok(())
}

/// Makes a directory with many entries.
pub(super) fn fill_many(tree: &Path) -> Result<(), Fault> {
    fs::create_dir(tree.join("many"))?;
    // Names of one file, which are made quickly.
    write(tree, "many/0", "")?;
    for number in 1..MANY {
        fs::hard_link(tree.join("many/0"), tree.join(format!("many/{number}")))?;
    }
    Ok(())
}

/// Makes a file at a path that no call takes as a whole.
pub(super) fn fill_deep(tree: &Path) -> Result<(), Fault> {
    let mut dir = at::open_dir(tree)?;
    for _ in 0..LEVELS {
        rustix::fs::mkdirat(&dir, level(), Mode::RWXU)?;
        dir = at::open_dir_at(dir.as_fd(), level().as_bytes())?;
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file: OwnedFd = rustix::fs::openat(&dir, "bottom", flags, Mode::RUSR)?;
    fs::File::from(file).write_all(b"deep")?;
    Ok(())
}

/// What is in the file of [`fill_deep`].
pub(super) fn read_deep(tree: &Path) -> Result<String, Fault> {
    let mut dir = at::open_dir(tree)?;
    for _ in 0..LEVELS {
        dir = at::open_dir_at(dir.as_fd(), level().as_bytes())?;
    }
    let mut content = String::new();
    fs::File::from(at::open_file_at(dir.as_fd(), b"bottom")?).read_to_string(&mut content)?;
    Ok(content)
}

fn level() -> String {
    "d".repeat(LENGTH)
}
