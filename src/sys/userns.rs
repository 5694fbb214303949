//! User namespaces that carry the ID mapping of a mount.
//!
//! A user namespace is created together with a process, so [`create`] clones a child that only waits to be killed. The
//! child runs no code of the program, shares the table of open files (so that it keeps no locks alive), and sends no
//! signal when it ends: a program that handles `SIGCHLD` or waits for its own children does not notice it. An open file
//! descriptor keeps the namespace after the child has ended.

#![expect(
    unsafe_code,
    reason = "clone, and what the child may call, have no safe wrapper"
)]

use std::fmt::Write as _;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags};

use crate::idmap::{IdMap, IdMappings};

/// A child that waits in a new user namespace; killed and reaped when dropped.
struct Child(libc::pid_t);

impl Child {
    fn spawn() -> io::Result<Self> {
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::CLONE_FILES);
        let none: libc::c_long = 0;
        // The first two arguments are the flags and the child's stack; on s390x the stack comes first.
        let (first, second) = match cfg!(target_arch = "s390x") {
            true => (none, flags),
            false => (flags, none),
        };
        // SAFETY: without CLONE_VM and a stack this is a fork. The child runs with a copy of this thread's stack. Other
        // threads may have held locks at this moment, so it makes system calls only: no allocation, no return. All
        // arguments have the width of a register, as a variadic call requires.
        let pid = unsafe { libc::syscall(libc::SYS_clone, first, second, none, none, none) };
        if pid == 0 {
            wait_for_death();
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        libc::pid_t::try_from(pid).map(Self).map_err(io::Error::other)
    }

    fn write_map(&self, file: &str, ranges: &[IdMap]) -> io::Result<()> {
        let mut text = String::new();
        for range in ranges {
            writeln!(text, "{} {} {}", range.container_id, range.host_id, range.size)
                .map_err(io::Error::other)?;
        }
        // The kernel accepts one write, which must contain the whole map.
        let path = format!("/proc/{}/{file}", self.0);
        let map = rustix::fs::openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let written = rustix::io::write(map, text.as_bytes())?;
        if written == text.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the child was not waited for yet, so no other process can have its number.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
        }
        loop {
            let no_status = std::ptr::null_mut();
            // SAFETY: a null pointer is allowed for a status that is not wanted. `__WALL` because the child sends no
            // signal when it ends.
            let waited = unsafe { libc::waitpid(self.0, no_status, libc::__WALL) };
            if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }
}

/// What the child does. The kernel kills it when the thread that created it ends.
fn wait_for_death() -> ! {
    // SAFETY: system calls without pointers into this process. Whether they fail does not matter, and the loop never
    // returns to code that the child must not run.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        loop {
            let none: libc::c_long = 0;
            libc::syscall(libc::SYS_ppoll, none, none, none, none, none);
        }
    }
}

/// Makes a user namespace with these mappings. Blocking.
pub(crate) fn create(mappings: &IdMappings) -> io::Result<OwnedFd> {
    let child = Child::spawn()?;
    child.write_map("uid_map", &mappings.uids)?;
    child.write_map("gid_map", &mappings.gids)?;
    let path = format!("/proc/{}/ns/user", child.0);
    Ok(rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_outlives_its_child_and_no_child_stays() {
        if !crate::sys::privilege::is_root() {
            crate::skip::skip("user namespaces with foreign IDs need root");
            return;
        }
        let ranges = vec![IdMap::new(0, 100_000, 10)];
        let namespace = create(&IdMappings {
            uids: ranges.clone(),
            gids: ranges.clone(),
        })
        .unwrap();
        assert!(rustix::fs::fstat(&namespace).unwrap().st_ino > 0);
        let twice = vec![IdMap::new(0, 5, 10), IdMap::new(0, 500, 10)];
        let error = create(&IdMappings {
            uids: twice,
            gids: ranges,
        })
        .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        let mine = std::process::id().to_string();
        let children =
            std::fs::read_to_string(format!("/proc/self/task/{mine}/children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let status = std::fs::read_to_string(format!("/proc/{child}/status")).unwrap_or_default();
            assert!(!status.contains("State:\tZ"), "child {child} was not reaped");
        }
    }
}
