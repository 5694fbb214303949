//! Temporary directories whose lock tells whether their owner lives, in Go's layout.
//!
//! ```text
//! <root>/lock-<n>        held locked by the owner; made and locked before the directory is
//! <root>/temp-dir-<n>/
//!     <i>-<basename>     something that was renamed here to be deleted
//!     <i>-addition       something that is being made here to be renamed away
//! ```
//!
//! A directory whose lock can be taken has lost its owner: whoever notices ([`recover`]) removes it. The names and
//! the kind of lock are those of the Go library, so either side cleans up after the other.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::ofd::{self, Kind};

/// How many names are tried before giving up.
const MAX_NAMES: usize = 1000;

/// A locked file that vanishes with its owner's work.
#[derive(Debug)]
struct OwnedLock {
    path: PathBuf,
    file: File,
}

impl OwnedLock {
    /// Locks the file at `path`, creating it if missing; `None` if somebody else has it locked or removed it
    /// meanwhile.
    fn try_acquire(path: PathBuf) -> Result<Option<Self>> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).at("opening", &path)?);
        if !ofd::try_lock(file.as_fd(), Kind::Exclusive).at("locking", &path)? {
            return Ok(None);
        }
        // A recovering process removes lock files while it holds them: ours may be such a file, gone from its name.
        let open = file.metadata().at("looking at", &path)?;
        match std::fs::symlink_metadata(&path) {
            Ok(named) if (named.dev(), named.ino()) == (open.dev(), open.ino()) => Ok(Some(Self { path, file })),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).at("looking at", &path),
        }
    }

    /// Removes the file while it is locked, then lets go.
    fn remove(self) -> Result<()> {
        let removed = std::fs::remove_file(&self.path);
        drop(self.file);
        match removed {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("removing", &self.path),
            _ => Ok(()),
        }
    }
}

/// A locked temporary directory. Dropped, it is removed with everything in it.
#[derive(Debug)]
pub(crate) struct TempDir {
    path: PathBuf,
    counter: u32,
    /// `None` once removed.
    lock: Option<OwnedLock>,
}

impl TempDir {
    /// Makes a new one below `root` (which is created, 0700, where missing). Blocking.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        for attempt in 0..MAX_NAMES {
            let mut random = [0; 4];
            getrandom::fill(&mut random)
                .map_err(|error| Error::io("drawing a random name", std::io::Error::from(error)))?;
            let number = u32::from_ne_bytes(random);
            let lock_path = root.join(format!("lock-{number}"));
            let lock = match OwnedLock::try_acquire(lock_path) {
                Err(error) if attempt == 0 && error.io_kind() == Some(std::io::ErrorKind::NotFound) => {
                    crate::sys::make_private_dir(root)?;
                    continue;
                }
                lock => lock?,
            };
            let Some(lock) = lock else { continue };
            let path = root.join(format!("temp-dir-{number}"));
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self { path, counter: 0, lock: Some(lock) }),
                // Left by somebody whose lock file is gone; it is not ours to use.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => lock.remove()?,
                Err(error) => {
                    lock.remove()?;
                    return Err(error).at("creating directory", path);
                }
            }
        }
        Err(Error::io_at("finding a free name in", root, std::io::Error::from(std::io::ErrorKind::AlreadyExists)))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn next(&mut self) -> u32 {
        let number = self.counter;
        self.counter += 1;
        number
    }

    /// A fresh path inside; the caller creates something there and renames it out.
    pub(crate) fn addition(&mut self) -> PathBuf {
        let number = self.next();
        self.path.join(format!("{number}-addition"))
    }

    /// Renames `path` into this directory; `false` if there was nothing.
    pub(crate) fn stage_deletion(&mut self, path: &Path) -> Result<bool> {
        let Some(name) = path.file_name() else {
            return Err(ErrorKind::UnsafePath.err("moving away a path without a name").at(path));
        };
        let number = self.next();
        let mut target = std::ffi::OsString::from(format!("{number}-"));
        target.push(name);
        match std::fs::rename(path, self.path.join(target)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).at("moving away", path),
        }
    }

    /// Removes the directory and the lock file now and reports failures (drop only logs them).
    pub(crate) fn remove(mut self) -> Result<()> {
        self.remove_once()
    }

    fn remove_once(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else { return Ok(()) };
        // After a failure the lock is let go, not removed: the next recovery tries again.
        crate::sys::tree::remove_tree(&self.path).at("removing", &self.path)?;
        lock.remove()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = self.remove_once() {
            tracing::warn!(error = %error.chain(), "cannot remove a temporary directory yet");
        }
    }
}

/// Removes what killed processes left below `root`. Blocking; a missing root is fine.
pub(crate) fn recover(root: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.at("listing", root)?,
    };
    let mut numbers = HashSet::new();
    for entry in entries {
        let name = entry.at("listing", root)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(number) = name.strip_prefix("temp-dir-").or_else(|| name.strip_prefix("lock-")) {
            numbers.insert(number.to_owned());
        }
    }
    for number in numbers {
        // Taken: its owner lives.
        let Some(lock) = OwnedLock::try_acquire(root.join(format!("lock-{number}")))? else { continue };
        let path = root.join(format!("temp-dir-{number}"));
        tracing::debug!(path = %path.display(), "removing what a process left behind");
        crate::sys::tree::remove_tree(&path).at("removing", &path)?;
        lock.remove()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(root).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn live_directories_stay_and_dead_ones_go() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("a/tempdirs");
        recover(&root).unwrap();
        let mut live = TempDir::create(&root).unwrap();
        let addition = live.addition();
        assert!(addition.ends_with("0-addition"));
        std::fs::write(&addition, "x").unwrap();
        let victim = tmp.path().join("victim");
        std::fs::write(&victim, "y").unwrap();
        assert!(live.stage_deletion(&victim).unwrap());
        assert!(!live.stage_deletion(&victim).unwrap());
        // A dead one, one that lost its lock file, and a lock without a directory.
        std::fs::create_dir_all(root.join("temp-dir-7/0-addition")).unwrap();
        std::fs::write(root.join("lock-7"), "").unwrap();
        std::fs::create_dir(root.join("temp-dir-8")).unwrap();
        std::fs::write(root.join("lock-9"), "").unwrap();
        recover(&root).unwrap();
        assert_eq!(names(&root).len(), 2, "{:?}", names(&root));
        assert_eq!(names(live.path()), ["0-addition", "1-victim"]);
        live.remove().unwrap();
        assert!(names(&root).is_empty());
    }

    #[test]
    fn a_lock_of_another_process_is_respected() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        std::fs::create_dir(root.join("temp-dir-5")).unwrap();
        let script = "import fcntl,sys\nf=open(sys.argv[1],'w')\nfcntl.lockf(f,fcntl.LOCK_EX)\nprint('held',flush=True)\nsys.stdin.read()";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .arg(root.join("lock-5"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        recover(root).unwrap();
        assert!(root.join("temp-dir-5").exists());
        drop(child.stdin.take());
        child.wait().unwrap();
        recover(root).unwrap();
        assert!(names(root).is_empty());
    }
}
