//! Extended attributes of open files and of names below an open directory.
//!
//! Where the kernel has no calls for names below a directory ([`xattr_at`]), these go through `/proc/self/fd/N/NAME`, whose
//! first part it resolves to the open directory itself; the last part is never followed.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use crate::sys::xattr_at;

/// Values up to this size need one call.
const FIRST_TRY: usize = 256;

fn grow(
    mut call: impl FnMut(&mut [u8]) -> Result<usize>,
    mut size: impl FnMut() -> Result<usize>,
) -> Result<Vec<u8>> {
    // Most files have no attribute: nothing is allocated for them.
    let mut first = [0; FIRST_TRY];
    match call(&mut first) {
        Ok(count) => return Ok(first.get(..count).unwrap_or_default().to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error),
    }
    let mut buffer = first.to_vec();
    loop {
        // It may grow between the two calls: ask again.
        buffer.resize(size()?.max(buffer.len() + 1), 0);
        match call(&mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                return Ok(buffer);
            }
            Err(Errno::RANGE) => {}
            Err(error) => return Err(error),
        }
    }
}

/// `None` if the attribute is absent or the file system has none at all.
fn optional(result: Result<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads one attribute of an open (not `O_PATH`) file.
pub(crate) fn fget(file: BorrowedFd<'_>, name: &str) -> Result<Option<Vec<u8>>> {
    let mut probe: [u8; 0] = [];
    optional(grow(
        |buffer| rustix::fs::fgetxattr(file, name, buffer),
        || rustix::fs::fgetxattr(file, name, &mut probe),
    ))
}

/// Sets one attribute of an open (not `O_PATH`) file.
pub(crate) fn fset(file: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
}

/// The attribute names of an open (not `O_PATH`) file, each with a zero byte at its end; empty where there are none.
pub(crate) fn flist_raw(file: BorrowedFd<'_>) -> Result<Vec<u8>> {
    let mut probe: [u8; 0] = [];
    let listed = optional(grow(
        |buffer| rustix::fs::flistxattr(file, buffer),
        || rustix::fs::flistxattr(file, &mut probe),
    ))?;
    Ok(listed.unwrap_or_default())
}

/// The path by which calls without an `at` form reach `name` below `dir`.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// Reads one attribute of `name` in `dir`; `name` must be a single component and is not followed.
pub(crate) fn get_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attribute: impl Arg + Copy,
) -> Result<Option<Vec<u8>>> {
    let get = |buffer: &mut [u8]| {
        xattr_at::get(dir, name, attribute, buffer)
            .unwrap_or_else(|| rustix::fs::lgetxattr(proc_path(dir, name), attribute, buffer))
    };
    optional(grow(get, || get(&mut [])))
}

/// Whether `name` in `dir` can have an attribute of this name.
pub(crate) fn is_supported_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &str) -> bool {
    let size = xattr_at::get(dir, name, attribute, &mut [])
        .unwrap_or_else(|| rustix::fs::lgetxattr(proc_path(dir, name), attribute, &mut [0u8; 0]));
    size != Err(Errno::OPNOTSUPP)
}

/// Sets one attribute of `name` in `dir`; `name` must be a single component and is not followed.
pub(crate) fn set_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<()> {
    match xattr_at::set(dir, name, attribute, value) {
        Some(set) => set.map(drop),
        None => rustix::fs::lsetxattr(proc_path(dir, name), attribute, value, XattrFlags::empty()),
    }
}

/// Removes one attribute of `name` in `dir`; `name` must be a single component and is not followed.
pub(crate) fn remove_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8]) -> Result<()> {
    match xattr_at::remove(dir, name, attribute) {
        Some(removed) => removed.map(drop),
        None => rustix::fs::lremovexattr(proc_path(dir, name), attribute),
    }
}

/// The attribute names of `name` in `dir`, unordered; empty where the file system has none.
pub(crate) fn list_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<String>> {
    names(list_raw_at(dir, name))
}

/// The attribute names of `name` in `dir`, each with a zero byte at its end; empty where there are none.
pub(crate) fn list_raw_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let list = |buffer: &mut [u8]| {
        xattr_at::list(dir, name, buffer)
            .unwrap_or_else(|| rustix::fs::llistxattr(proc_path(dir, name), buffer))
    };
    let listed = optional(grow(list, || list(&mut [])))?;
    Ok(listed.unwrap_or_default())
}

/// The attribute names of an open (not `O_PATH`) file, unordered; empty where the file system has none.
pub(crate) fn flist(file: BorrowedFd<'_>) -> Result<Vec<String>> {
    names(flist_raw(file))
}

fn names(list: Result<Vec<u8>>) -> Result<Vec<String>> {
    let list = list?;
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names
        .map(|name| std::ffi::OsStr::from_bytes(name).to_string_lossy().into_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    /// What all calls say of a file, a link to it, and a name that is not there.
    fn answers(dir: BorrowedFd<'_>) -> String {
        use std::fmt::Write as _;

        let (long, mut text) = ([b'x'; 1000], String::new());
        set_at(dir, b"file", b"user.short", b"value").unwrap();
        set_at(dir, b"file", b"user.long", &long).unwrap();
        set_at(dir, b"file", b"user.empty", b"").unwrap();
        for name in [&b"file"[..], b"link", b"missing", b"a\0b", b"."] {
            let mut names = list_at(dir, name);
            if let Ok(names) = &mut names {
                names.sort();
            }
            let raw = list_raw_at(dir, name).map(|list| list.len());
            writeln!(text, "{name:?}: {names:?} {raw:?}").unwrap();
            for attribute in [
                "user.short",
                "user.long",
                "user.empty",
                "user.absent",
                "nonsense",
                "system.x",
            ] {
                let value = get_at(dir, name, attribute);
                let supported = is_supported_at(dir, name, attribute);
                writeln!(text, "  {attribute}: {value:?} {supported}").unwrap();
            }
            let refused = set_at(dir, name, b"nonsense", b"value");
            writeln!(text, "  {refused:?}").unwrap();
        }
        for (name, attribute) in [
            (&b"file"[..], &b"user.short"[..]),
            (b"file", b"user.short"),
            (b"link", b"user.long"),
            (b"missing", b"user.long"),
        ] {
            let removed = remove_at(dir, name, attribute);
            writeln!(text, "{removed:?}").unwrap();
        }
        let refused = set_at(dir, b"link", b"user.short", b"value");
        writeln!(text, "{refused:?}").unwrap();
        text
    }

    #[test]
    fn both_ways_to_names_below_a_directory_are_the_same() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "content").unwrap();
        std::os::unix::fs::symlink("file", temp.path().join("link")).unwrap();
        let dir = std::fs::File::open(temp.path()).unwrap();
        let direct = answers(dir.as_fd());
        let by_path = xattr_at::without(|| answers(dir.as_fd()));
        assert_eq!(direct, by_path);
        assert!(
            direct.contains("user.short: Ok(Some([118, 97, 108, 117, 101]))"),
            "{direct}"
        );
    }
}
