//! The calls for extended attributes that take a directory and a name in it, of Linux 6.13 and newer. They need no `/proc`
//! and cost a third of a path through it.
//!
//! Each call returns `None` where the kernel, or a filter of system calls, does not have it.

#![expect(unsafe_code, reason = "the calls have no safe wrapper")]

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// The numbers of the calls are the same on the architectures that count from zero.
const FIRST: Option<libc::c_long> = match cfg!(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64",
    target_arch = "s390x",
    target_arch = "powerpc64",
    target_arch = "loongarch64",
)) {
    true => Some(463),
    false => None,
};

/// The places of the calls after the first.
const SET: libc::c_long = 0;
const GET: libc::c_long = 1;
const LIST: libc::c_long = 2;
const REMOVE: libc::c_long = 3;

/// The kernel has said that it does not have them.
static MISSING: AtomicBool = AtomicBool::new(false);

/// `struct xattr_args` of `linux/xattr.h`.
#[repr(C)]
struct Value {
    /// Its address.
    value: u64,
    size: u32,
    flags: u32,
}

impl Value {
    fn new(address: *const u8, size: usize) -> Self {
        Self {
            value: address as u64,
            // No value is that long, and the kernel says so.
            size: u32::try_from(size).unwrap_or(u32::MAX),
            flags: 0,
        }
    }
}

/// The number of a call, as long as the kernel may have it.
fn number(call: libc::c_long) -> Option<libc::c_long> {
    let is_missing = MISSING.load(Ordering::Relaxed);
    FIRST.filter(|_| !is_missing).map(|first| first + call)
}

/// Hands on what a call has returned, unless it is not there. Filters of system calls say `EPERM` instead.
fn result(returned: libc::c_long) -> Option<Result<usize>> {
    if let Ok(count) = usize::try_from(returned) {
        return Some(Ok(count));
    }
    let error = std::io::Error::last_os_error();
    match Errno::from_io_error(&error).unwrap_or(Errno::IO) {
        Errno::NOSYS => {
            MISSING.store(true, Ordering::Relaxed);
            None
        }
        Errno::PERM => None,
        error => Some(Err(error)),
    }
}

/// Has `call` run with the name and the attribute as C strings.
fn with_names(
    name: impl Arg,
    attribute: impl Arg,
    call: impl FnOnce(&CStr, &CStr) -> Option<Result<usize>>,
) -> Option<Result<usize>> {
    let called =
        name.into_with_c_str(|name| attribute.into_with_c_str(|attribute| Ok(call(name, attribute))));
    match called {
        Ok(returned) => returned,
        Err(error) => Some(Err(error)),
    }
}

/// Reads or sets an attribute.
///
/// # Safety
/// The memory of `value` is valid for as long as its size says: to be written by [`GET`], to be read by [`SET`].
unsafe fn exchange(
    call: libc::c_long,
    dir: BorrowedFd<'_>,
    name: &[u8],
    attribute: impl Arg,
    value: &Value,
) -> Option<Result<usize>> {
    let number = number(call)?;
    with_names(name, attribute, |name, attribute| {
        // SAFETY: both names end in a zero byte and live during the call, the caller answers for the memory of the value, and
        // the size of the structure is its own.
        let returned = unsafe {
            libc::syscall(
                number,
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attribute.as_ptr(),
                std::ptr::from_ref(value),
                size_of::<Value>(),
            )
        };
        result(returned)
    })
}

/// Reads an attribute into `buffer`; with an empty one its size is returned. The last part of `name` is not followed.
pub(super) fn get(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attribute: impl Arg,
    buffer: &mut [u8],
) -> Option<Result<usize>> {
    let value = Value::new(buffer.as_mut_ptr(), buffer.len());
    // SAFETY: the value is the buffer, which is borrowed mutably and as long as its size says.
    unsafe { exchange(GET, dir, name, attribute, &value) }
}

/// Sets an attribute. The last part of `name` is not followed.
pub(super) fn set(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attribute: impl Arg,
    value: &[u8],
) -> Option<Result<usize>> {
    let value = Value::new(value.as_ptr(), value.len());
    // SAFETY: the value is borrowed and as long as its size says.
    unsafe { exchange(SET, dir, name, attribute, &value) }
}

/// Removes an attribute. The last part of `name` is not followed.
pub(super) fn remove(dir: BorrowedFd<'_>, name: &[u8], attribute: impl Arg) -> Option<Result<usize>> {
    let number = number(REMOVE)?;
    with_names(name, attribute, |name, attribute| {
        // SAFETY: both names end in a zero byte and live during the call.
        let returned = unsafe {
            libc::syscall(
                number,
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                attribute.as_ptr(),
            )
        };
        result(returned)
    })
}

/// Writes the names of all attributes into `buffer`, each with a zero byte at its end; with an empty one their size is
/// returned. The last part of `name` is not followed.
pub(super) fn list(dir: BorrowedFd<'_>, name: &[u8], buffer: &mut [u8]) -> Option<Result<usize>> {
    let number = number(LIST)?;
    with_names(name, c"", |name, _| {
        // SAFETY: the name ends in a zero byte and lives during the call, and the buffer is borrowed mutably and as long as
        // its length says.
        let returned = unsafe {
            libc::syscall(
                number,
                dir.as_raw_fd(),
                name.as_ptr(),
                libc::AT_SYMLINK_NOFOLLOW,
                buffer.as_mut_ptr(),
                buffer.len(),
            )
        };
        result(returned)
    })
}

/// Runs `work` as on a kernel without the calls. Other threads have none either meanwhile.
#[cfg(test)]
pub(super) fn without<T>(work: impl FnOnce() -> T) -> T {
    let before = MISSING.swap(true, Ordering::Relaxed);
    let result = work();
    MISSING.store(before, Ordering::Relaxed);
    result
}
