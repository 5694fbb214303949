//! User namespaces as carriers of ID mappings, for mounts.
//!
//! A namespace is born with a process, so a child is cloned that does nothing but wait to be killed. It runs no code
//! of the program, shares the table of open files (it must not keep locks alive) and sends no signal when it ends, so
//! that a program which handles `SIGCHLD` or waits for its own children sees nothing of it. An open file descriptor
//! keeps the namespace after the child is gone.

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
        let flags = libc::CLONE_NEWUSER | libc::CLONE_FILES;
        // SAFETY: without CLONE_VM and a stack this is a fork. The child runs with a copy of this thread's stack, and
        // as other threads may have held locks at this moment it makes system calls only: no allocation, no return.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
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
        // The kernel takes the whole map in one write, and no second one.
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
        // SAFETY: the process is a child that was not waited for yet, so the number cannot be anybody else's.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
        }
        loop {
            let no_status = std::ptr::null_mut();
            // SAFETY: a null pointer is allowed for a status that nobody wants. `__WALL` because the child sends no
            // signal at its end.
            let waited = unsafe { libc::waitpid(self.0, no_status, libc::__WALL) };
            if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }
}

/// The child's whole life. It goes with the thread that made it.
fn wait_for_death() -> ! {
    // SAFETY: plain system calls without pointers into this process; they cannot fail in a way that matters, and the
    // loop never returns to code that the child must not run.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        loop {
            libc::syscall(libc::SYS_ppoll, 0, 0, 0, 0, 0);
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
