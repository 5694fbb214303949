//! Finding out whether a home was used with a mount program, where the flag file that says so is missing.

use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::error::{IoContext as _, Result};
use crate::sys::{at, tree, xattr};

/// Whether a home has files that a mount program has written: whiteouts that are files, or attributes of its own.
pub(super) fn has_mount_program_traces(home: &Path) -> Result<bool> {
    let scan = || -> rustix::io::Result<bool> {
        let mut buffer = tree::listing_buffer();
        let mut stack = tree::DirStack::new(at::open_dir(home)?);
        let mut names = tree::list_names(stack.current()?, &mut buffer)?;
        let mut pending = Vec::new();
        loop {
            let Some(name) = tree::last_name(&names) else {
                let Some(above) = pending.pop() else {
                    return Ok(false);
                };
                stack.leave()?;
                names = above;
                continue;
            };
            if name.to_bytes().starts_with(b".wh.") {
                return Ok(true);
            }
            let opened = rustix::fs::openat(stack.current()?, name, tree::DIR_FLAGS, Mode::empty());
            tree::pop_name(&mut names);
            let next = match opened {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(error),
            };
            let attributes = xattr::flist_raw(next.as_fd())?;
            let foreign = |name: &[u8]| {
                name.starts_with(b"user.fuseoverlayfs.") || name.starts_with(b"user.containers.")
            };
            if attributes.split(|byte| *byte == 0).any(foreign) {
                return Ok(true);
            }
            stack.enter(next)?;
            let inner = tree::list_names(stack.current()?, &mut buffer)?;
            pending.push(std::mem::replace(&mut names, inner));
        }
    };
    scan().at("looking for traces of a mount program in", home)
}
