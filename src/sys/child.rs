//! Waiting for another program, but not for ever.

#![expect(
    unsafe_code,
    reason = "poll without a time-out that restarts has no safe wrapper among the features in use"
)]

use std::io;
use std::os::fd::AsRawFd as _;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Waits until a child ends. One that has not ended after `limit` is killed, and the error is
/// [`io::ErrorKind::TimedOut`]; what it has started goes on.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> io::Result<ExitStatus> {
    let ended = poll(child, limit);
    if !matches!(ended, Ok(true)) {
        child.kill()?;
        child.wait()?;
    }
    match ended {
        Ok(true) => child.wait(),
        Ok(false) => {
            let text = format!("it has not ended after {} s", limit.as_secs_f32());
            Err(io::Error::new(io::ErrorKind::TimedOut, text))
        }
        Err(error) => Err(error),
    }
}

/// Whether the child ends in time.
fn poll(child: &Child, limit: Duration) -> io::Result<bool> {
    let begun = Instant::now();
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let handle = pidfd_open(pid.ok_or(io::ErrorKind::InvalidInput)?, PidfdFlags::empty())?;
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        // Rounded up, so that the last wait is not a loop of empty ones.
        let left = i32::try_from(left.as_millis().saturating_add(1)).unwrap_or(i32::MAX);
        let mut wanted = libc::pollfd {
            fd: handle.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: the pointer is to one `pollfd` that lives as long as the call, and its descriptor is open.
        let count = unsafe { libc::poll(&raw mut wanted, 1, left) };
        match count {
            0 if begun.elapsed() >= limit => return Ok(false),
            0 => {}
            1.. => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let mut quick = Command::new("sh").args(["-c", "exit 7"]).spawn().unwrap();
        assert_eq!(
            wait(&mut quick, Duration::from_secs(600)).unwrap().code(),
            Some(7)
        );
        let mut slow = Command::new("sleep").arg("1000").spawn().unwrap();
        let error = wait(&mut slow, Duration::from_millis(10)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(slow.try_wait().unwrap().is_some(), "it goes on");
    }
}
