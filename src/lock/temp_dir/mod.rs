//! Temporary directories. Beside each is a lock file that its owner holds, so that the directory of a killed process can
//! be recognised and removed.
//!
//! ```text
//! <root>/                  0700
//!   lock-<n>               0600  held by the owner; n is a random number, of 32 bits
//!   temp-dir-<n>/          0700
//!     <k>-<basename>             moved here to be deleted
//!     <k>-addition               being built, to be renamed to its place
//! ```
//!
//! The lock is held before the directory is created, and its file is unlinked after the directory is removed. What a
//! killed process leaves has an unlocked lock file, or none, and [`recover`] of any later process removes it; names and
//! order are those of the Go library, so each side cleans up after the other.
//!
//! Unlinking lock files causes two races. This library avoids both by checking, after locking, that the file still has
//! its name ([`StagingLock`]). The Go library does not check: it creates the file, closes it, and opens it again to lock it. If it
//! was unlinked meanwhile, the lock has no name, and whoever comes next removes the directory under its owner. So [`recover`]
//! leaves alone what may be such a file for a [`MOMENT`], and keeps the last ones that it has unlinked
//! locked until its end: a Go process that has just created one fails to lock it and takes another name. Numbers of this library
//! begin with a zero, which tells them from those of the Go library.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::staging_lock::{self, StagingLock};
use crate::sys::{at, list_dir_if_there, make_private_subdir, random, tree};

const DIR_PREFIX: &str = "temp-dir-";
const LOCK_PREFIX: &str = "lock-";

/// How long a process may take between the creation of a lock file and the lock.
const MOMENT: Duration = Duration::from_secs(1);

/// How many lock files that were unlinked stay locked at the same time: each takes a file descriptor.
const MAX_UNLINKED: usize = 64;

/// The least number that is taken for one of the Go library, which draws them from all of 32 bits.
const LEAST_OF_GO: u32 = 1_000_000;

/// Names tried before giving up.
const MAX_TRIES: usize = 1000;

/// A locked temporary directory `temp-dir-N` with its `lock-N` beside it, in Go's layout. Dropping it removes both,
/// which may block for long.
#[derive(Debug)]
#[must_use = "the directory is removed when this is dropped"]
pub(crate) struct TempDir {
    path: PathBuf,
    /// `None` once removed.
    lock: Option<StagingLock>,
    /// Shared by deletions and additions, so that no name comes twice.
    counter: u64,
    companion: Option<Companion>,
}

/// What goes with a temporary directory and is not in it.
struct Companion(Box<dyn FnOnce() -> Result<()> + Send + Sync>);

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Companion")
    }
}

impl TempDir {
    /// Creates one below `root` (which is created, 0700, if missing, but not what is above it). Blocking.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        make_private_subdir(root)?;
        for _ in 0..MAX_TRIES {
            let suffix = format!("0{}", random::number()?);
            let Some(lock) = StagingLock::try_create(&member(root, LOCK_PREFIX, suffix.as_bytes()))? else {
                continue;
            };
            let path = member(root, DIR_PREFIX, suffix.as_bytes());
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        lock: Some(lock),
                        counter: 0,
                        companion: None,
                    });
                }
                Err(error) => {
                    // An old directory without a lock file is left to `recover`.
                    lock.remove()?;
                    if error.kind() != std::io::ErrorKind::AlreadyExists {
                        return Err(error).at("creating temporary directory", &path);
                    }
                }
            }
        }
        Err(ErrorKind::Io
            .err("no free name for a temporary directory in")
            .at(root))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The number in the names of the directory and its lock file: what is elsewhere and belongs to them can be named by it.
    pub(crate) fn number(&self) -> &str {
        let name = self.path.file_name().and_then(OsStr::to_str);
        name.and_then(|name| name.strip_prefix(DIR_PREFIX))
            .unwrap_or_default()
    }

    /// Has `remove` run before the directory is removed, in place of what was to run so far. If it fails, the directory
    /// is left to the next recovery.
    pub(crate) fn set_companion(&mut self, remove: impl FnOnce() -> Result<()> + Send + Sync + 'static) {
        self.companion = Some(Companion(Box::new(remove)));
    }

    /// Nothing is to run any more before the directory is removed.
    pub(crate) fn forget_companion(&mut self) {
        self.companion = None;
    }

    fn next(&mut self, name: &OsStr) -> PathBuf {
        let mut file = OsString::from(format!("{}-", self.counter));
        file.push(name);
        self.counter += 1;
        self.path.join(file)
    }

    /// A fresh path `<counter>-addition` inside; the caller creates something there and renames it out.
    pub(crate) fn addition(&mut self) -> PathBuf {
        self.next(OsStr::new("addition"))
    }

    /// Renames `path` into this directory as `<counter>-<basename>`; `false` if there was nothing.
    pub(crate) fn stage_deletion(&mut self, path: &Path) -> Result<bool> {
        let Some(name) = path.file_name() else {
            return Err(ErrorKind::InvalidInput
                .err("no name to move to a temporary directory in")
                .at(path));
        };
        let target = self.next(name);
        match at::rename(path, &target) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).at("moving to a temporary directory", path),
        }
    }

    /// Removes the directory and the lock file now and reports failures (drop only logs them).
    pub(crate) fn remove(mut self) -> Result<()> {
        self.clean_up()
    }

    /// If the directory cannot be removed the lock file stays, unlocked, for the next recovery.
    fn clean_up(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        if let Some(Companion(remove)) = self.companion.take() {
            remove()?;
        }
        tree::remove_tree(&self.path).at("removing temporary directory", &self.path)?;
        lock.remove()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            tracing::warn!("{}; a later recovery will remove it", error.chain());
        }
    }
}

/// Removes what killed processes have left below `root`. Blocking; a missing root is no error.
///
/// Directories in use, by this process or another, are not touched. One that cannot be removed does not stop the
/// others; the first failure is returned.
pub(crate) fn recover(root: &Path) -> Result<()> {
    recover_with(root, &mut |_number| Ok(()))
}

/// As [`recover`]; `companion` removes what goes with a directory of this number, before the directory. If it
/// fails, the directory stays.
pub(crate) fn recover_with(root: &Path, companion: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let mut suffixes = BTreeSet::new();
    for entry in list_dir_if_there(root)? {
        let name = entry?.file_name().into_vec();
        let suffix = [DIR_PREFIX, LOCK_PREFIX]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix.as_bytes()));
        if let Some(suffix) = suffix {
            suffixes.insert(suffix.to_vec());
        }
    }
    let mut unlinked = VecDeque::new();
    let mut first_failure: Option<Error> = None;
    for suffix in suffixes {
        match recover_one(root, &suffix, companion) {
            Ok(lock) => {
                unlinked.extend(lock.filter(|_| is_of_go(&suffix)));
                if unlinked.len() > MAX_UNLINKED {
                    drop(unlinked.pop_front());
                }
            }
            Err(error) if first_failure.is_none() => first_failure = Some(error),
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
    drop(unlinked);
    first_failure.map_or(Ok(()), Err)
}

/// The directory of a number below `root`.
pub(crate) fn of_number(root: &Path, number: &str) -> PathBuf {
    member(root, DIR_PREFIX, number.as_bytes())
}

/// The directories that killed processes have left below `root`. Changes nothing; what is in
/// use is not among them. Blocking.
pub(crate) fn stale(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in list_dir_if_there(root)? {
        let name = entry?.file_name().into_vec();
        let Some(suffix) = name.strip_prefix(DIR_PREFIX.as_bytes()) else {
            continue;
        };
        let dir = member(root, DIR_PREFIX, suffix);
        let file = member(root, LOCK_PREFIX, suffix);
        let is_free = match staging_lock::is_free(&file) {
            // Nobody can have locked what is no file.
            Err(_) if file.symlink_metadata().is_ok_and(|status| !status.is_file()) => None,
            looked => looked?,
        };
        // Its owner removes the directory first, then the lock file.
        if is_free != Some(false) && dir.symlink_metadata().is_ok() {
            found.push(dir);
        }
    }
    found.sort();
    Ok(found)
}

/// The unlinked lock if there was something to recover, `None` if it is in use.
fn recover_one(
    root: &Path,
    suffix: &[u8],
    companion: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Option<StagingLock>> {
    let (file, dir) = (
        member(root, LOCK_PREFIX, suffix),
        member(root, DIR_PREFIX, suffix),
    );
    if is_of_go(suffix) && dir.symlink_metadata().is_err() && is_new(&file) {
        return Ok(None);
    }
    let Some(lock) = StagingLock::try_acquire(&file)? else {
        return Ok(None);
    };
    if let Ok(number) = std::str::from_utf8(suffix) {
        companion(number)?;
    }
    tree::remove_tree(&dir)
        .at("removing", &dir)
        .context(|| "recovering a temporary directory of a killed process".to_owned())?;
    lock.unlink()?;
    tracing::debug!("recovered {}", dir.display());
    Ok(Some(lock))
}

/// Whether the Go library has drawn a number.
fn is_of_go(suffix: &[u8]) -> bool {
    let number = std::str::from_utf8(suffix)
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    !suffix.starts_with(b"0") && number.is_some_and(|number| number >= LEAST_OF_GO)
}

/// Whether a file was made a moment ago. The clock of its file system may be a little ahead.
fn is_new(file: &Path) -> bool {
    let made = file.symlink_metadata().and_then(|status| status.modified());
    let distance = |made: SystemTime| made.elapsed().unwrap_or_else(|ahead| ahead.duration());
    // One that cannot be looked at is left alone as well.
    made.map_or(true, |made| distance(made) < MOMENT)
}

fn member(root: &Path, prefix: &str, suffix: &[u8]) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(OsStr::from_bytes(suffix));
    root.join(name)
}

#[cfg(test)]
mod tests;
