//! Whether something is there. That a call fails does not say that it is not.

use std::path::Path;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::error::{IoContext as _, Result};

/// The result of looking at a path; `None` if nothing can be there.
pub(crate) fn if_there<T>(looked: rustix::io::Result<T>, path: &Path) -> Result<Option<T>> {
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG | Errno::LOOP) => Ok(None),
        Err(error) => Err(error).at("looking at", path),
    }
}

/// The status of what is at `path`, links followed; `None` if nothing is there. Blocking.
pub(crate) fn stat_if_there(path: &Path) -> Result<Option<Stat>> {
    if_there(rustix::fs::stat(path), path)
}

/// As [`stat_if_there`], of a link itself.
pub(crate) fn lstat_if_there(path: &Path) -> Result<Option<Stat>> {
    if_there(rustix::fs::lstat(path), path)
}

/// Whether something is at `path`, links followed. Blocking.
pub(crate) fn is_there(path: &Path) -> Result<bool> {
    Ok(stat_if_there(path)?.is_some())
}

/// Whether a directory is at `path`, links followed. Blocking.
pub(crate) fn is_dir(path: &Path) -> Result<bool> {
    let found = stat_if_there(path)?;
    Ok(found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory))
}

/// Whether a regular file is at `path`, links followed. Blocking.
pub(crate) fn is_file(path: &Path) -> Result<bool> {
    let found = stat_if_there(path)?;
    Ok(found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile))
}

/// The first of `path` and the directories above it that is there; `path` if none is. Blocking.
pub(crate) fn first_above(path: &Path) -> Result<&Path> {
    for above in path.ancestors() {
        if is_there(above)? {
            return Ok(above);
        }
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_be_there_is_not_there() {
        let tmp = tempfile::tempdir().unwrap();
        let at = |name: &str| tmp.path().join(name);
        std::fs::write(at("file"), "").unwrap();
        std::os::unix::fs::symlink("none", at("dangling")).unwrap();
        std::os::unix::fs::symlink("loop", at("loop")).unwrap();
        assert!(is_dir(tmp.path()).unwrap() && is_there(&at("file")).unwrap());
        assert!(!is_dir(&at("file")).unwrap());
        for missing in ["none", "file/below", "dangling", "loop", &"x".repeat(300)] {
            assert!(!is_there(&at(missing)).unwrap(), "{missing}");
        }
        assert!(lstat_if_there(&at("dangling")).unwrap().is_some());
        for error in [Errno::IO, Errno::ACCESS, Errno::STALE, Errno::NOMEM] {
            let error = if_there::<()>(Err(error), &at("file")).unwrap_err();
            assert_eq!(error.path(), Some(&*at("file")));
        }
    }
}
