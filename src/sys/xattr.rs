//! Extended attributes of open files and of names below an open directory.
//!
//! Names below a directory go through `/proc/self/fd/N/NAME`, whose first part the kernel resolves to the open
//! directory itself; the last part is never followed.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;

use rustix::fs::XattrFlags;
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// Values up to this size need one call.
const FIRST_TRY: usize = 256;

fn grow(
    mut call: impl FnMut(&mut [u8]) -> Result<usize>,
    mut size: impl FnMut() -> Result<usize>,
) -> Result<Vec<u8>> {
    let mut buffer = vec![0; FIRST_TRY];
    loop {
        match call(&mut buffer) {
            Ok(count) => {
                buffer.truncate(count);
                return Ok(buffer);
            }
            // It may grow between the two calls: ask again.
            Err(Errno::RANGE) => {
                let count = size()?;
                buffer.resize(count.max(buffer.len() + 1), 0);
            }
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
    let path = proc_path(dir, name);
    let mut probe: [u8; 0] = [];
    optional(grow(
        |buffer| rustix::fs::lgetxattr(&path, attribute, buffer),
        || rustix::fs::lgetxattr(&path, attribute, &mut probe),
    ))
}

/// Whether `name` in `dir` can have an attribute of this name.
pub(crate) fn is_supported_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &str) -> bool {
    let mut probe: [u8; 0] = [];
    rustix::fs::lgetxattr(proc_path(dir, name), attribute, &mut probe) != Err(Errno::OPNOTSUPP)
}

/// Sets one attribute of `name` in `dir`; `name` must be a single component and is not followed.
pub(crate) fn set_at(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8], value: &[u8]) -> Result<()> {
    rustix::fs::lsetxattr(proc_path(dir, name), attribute, value, XattrFlags::empty())
}

/// The attribute names of `name` in `dir`, unordered; empty where the file system has none.
pub(crate) fn list_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<String>> {
    names(list_raw_at(dir, name))
}

/// The attribute names of `name` in `dir`, each with a zero byte at its end; empty where there are none.
pub(crate) fn list_raw_at(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Vec<u8>> {
    let path = proc_path(dir, name);
    let mut probe: [u8; 0] = [];
    let listed = optional(grow(
        |buffer| rustix::fs::llistxattr(&path, buffer),
        || rustix::fs::llistxattr(&path, &mut probe),
    ))?;
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
