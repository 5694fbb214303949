//! Programs that drivers start: finding them, and keeping what they print within bounds.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{MemfdFlags, SealFlags};

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

/// What a program prints, in memory and no more than so many bytes: what it writes beyond fails. Not a pipe: nobody has to
/// read while the program runs, and a daemon that it leaves behind may keep its end open.
#[derive(Debug)]
pub(super) struct Printed {
    file: File,
    limit: u64,
}

impl Printed {
    /// Room for `limit` bytes.
    pub(super) fn new(limit: u64) -> Result<Self> {
        const DOING: &str = "making a file for what a program prints";
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("printed", flags).during(DOING)?;
        rustix::fs::ftruncate(&file, limit).during(DOING)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).during(DOING)?;
        let file = File::from(file);
        Ok(Self { file, limit })
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

    /// What was printed; `None` if there was no room for more.
    pub(super) fn read(mut self) -> std::io::Result<Option<Vec<u8>>> {
        let length = self.file.stream_position()?;
        if length >= self.limit {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.file.rewind()?;
        self.file.take(length).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// The messages for an error, in one line.
    pub(super) fn messages(&mut self) -> String {
        let mut bytes = Vec::new();
        let read = self.file.stream_position().and_then(|length| {
            self.file.rewind()?;
            (&self.file).take(length.min(MAX_MESSAGE)).read_to_end(&mut bytes)
        });
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
        let run = |script: &str| {
            let printed = Printed::new(1000).unwrap();
            let status = Command::new("sh")
                .args(["-c", script])
                .stdout(printed.end().unwrap())
                .stderr(Stdio::null())
                .status();
            (printed, status.unwrap().success())
        };
        let (printed, ended) = run("echo one; echo two");
        assert_eq!(
            (printed.read().unwrap(), ended),
            (Some(b"one\ntwo\n".to_vec()), true)
        );
        let (printed, ended) = run("exec yes");
        assert_eq!((printed.read().unwrap(), ended), (None, false));
        let (mut printed, _ended) = run("echo; echo ' one '; echo two");
        assert_eq!(printed.messages(), "one; two");
        let (mut printed, _ended) = run("exit 0");
        assert_eq!(printed.messages(), "no message");
        assert_eq!(printed.read().unwrap(), Some(Vec::new()));
    }
}
