//! Programs that drivers start: finding them, and keeping what they print.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::error::{IoContext as _, Result};

/// Most bytes of a failed program's messages that are passed on.
const MAX_MESSAGE: u64 = 4096;

/// The first executable file called `name` in the directories of `path`, which has the form of `$PATH`.
pub(super) fn find(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .filter(|dir| dir.is_absolute())
        .map(|dir| dir.join(name))
        .find(|file| {
            file.metadata()
                .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        })
}

/// Has a program killed when a file that it writes, such as what it prints, has so many bytes.
pub(super) fn limit_files(child: &mut Child, bytes: u64) -> Result<()> {
    let limit = Rlimit {
        current: Some(bytes),
        maximum: Some(bytes),
    };
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    match prlimit(pid, Resource::Fsize, limit) {
        // It may have ended.
        Ok(_) | Err(Errno::SRCH) => Ok(()),
        Err(error) => {
            const DOING: &str = "limiting what a program may print";
            child.kill().and_then(|()| child.wait()).during(DOING)?;
            Err(error).during(DOING)
        }
    }
}

/// What a program prints, in memory. Not a pipe: nobody has to read while the program runs, and a daemon that it leaves behind
/// may keep its end open.
#[derive(Debug)]
pub(super) struct Printed {
    file: File,
}

impl Printed {
    pub(super) fn new() -> Result<Self> {
        let file = rustix::fs::memfd_create("printed", MemfdFlags::CLOEXEC);
        let file = file.during("making a file for what a program prints")?.into();
        Ok(Self { file })
    }

    /// The program's end.
    pub(super) fn end(&self) -> Result<Stdio> {
        // The place where it writes is shared.
        let file = self
            .file
            .try_clone()
            .during("keeping a file for what a program prints open");
        Ok(file?.into())
    }

    /// Whether fewer bytes were printed.
    pub(super) fn is_shorter(&self, limit: u64) -> bool {
        self.file.metadata().is_ok_and(|meta| meta.len() < limit)
    }

    /// What was printed; `None` if that is `limit` bytes or more.
    pub(super) fn read(mut self, limit: u64) -> std::io::Result<Option<Vec<u8>>> {
        let mut bytes = Vec::new();
        self.file.rewind()?;
        let length = self.file.take(limit).read_to_end(&mut bytes)?;
        Ok(Some(bytes).filter(|_| (length as u64) < limit))
    }

    /// The messages for an error, in one line.
    pub(super) fn messages(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self
            .file
            .rewind()
            .and_then(|()| (&self.file).take(MAX_MESSAGE).read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        match read {
            Err(error) => format!("its messages cannot be read ({error})"),
            Ok(_) if lines.is_empty() => "no message".to_owned(),
            Ok(_) => lines.join("; "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn programs_are_found_in_a_list_of_directories() {
        assert_eq!(
            find("sh", OsStr::new("/does/not/exist:/bin")),
            Some("/bin/sh".into())
        );
        assert_eq!(find("sh", OsStr::new("")), None);
        assert_eq!(find("passwd", OsStr::new("/etc")), None, "not executable");
        // Relative directories are not searched.
        assert_eq!(find("Cargo.toml", OsStr::new(".")), None);
    }

    #[test]
    fn what_is_printed_has_a_limit() {
        const LIMIT: u64 = 1_000_000;
        let run = |script: &str| {
            let printed = Printed::new().unwrap();
            let mut child = Command::new("sh")
                .args(["-c", script])
                .stdin(Stdio::piped())
                .stdout(printed.end().unwrap())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            limit_files(&mut child, LIMIT).unwrap();
            drop(child.stdin.take());
            (printed, child.wait().unwrap().success())
        };
        let (printed, ended) = run("read x; echo one; echo two");
        assert_eq!(
            (printed.read(LIMIT).unwrap(), ended),
            (Some(b"one\ntwo\n".to_vec()), true)
        );
        for endless in ["read x; exec yes", "trap '' XFSZ; read x; yes; exit 0"] {
            let (printed, _ended) = run(endless);
            assert!(!printed.is_shorter(LIMIT), "{endless}");
            assert_eq!(printed.read(LIMIT).unwrap(), None, "{endless}");
        }
        let (mut printed, _ended) = run("echo; echo ' one '; echo two");
        assert_eq!(printed.messages(), "one; two");
        let (mut printed, _ended) = run("exit 0");
        assert_eq!(printed.messages(), "no message");
        assert_eq!(printed.read(LIMIT).unwrap(), Some(Vec::new()));
    }
}
