//! Directories that only their owner may enter.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use rustix::io::Errno;

use crate::error::{IoContext as _, Result};

/// Makes a directory and those above it, 0700.
pub(crate) fn make_private_dir(path: &Path) -> Result<()> {
    make(path, true)
}

/// Makes a directory, 0700, in one that exists: a store that was removed while it was open is not made anew.
pub(crate) fn make_private_subdir(path: &Path) -> Result<()> {
    make(path, false)
}

fn make(path: &Path, with_parents: bool) -> Result<()> {
    // Mostly it is there: one call says so.
    if path.is_dir() {
        return Ok(());
    }
    let made = DirBuilder::new().recursive(with_parents).mode(0o700).create(path);
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Errno::NOTDIR).at("creating directory", path)
        }
        made => made.at("creating directory", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn what_is_above_a_subdirectory_is_not_made() {
        let tmp = tempfile::tempdir().unwrap();
        let deep = tmp.path().join("a/b/c");
        let error = make_private_subdir(&deep).unwrap_err();
        assert_eq!(
            (error.io_kind(), error.path()),
            (Some(io::ErrorKind::NotFound), Some(&*deep))
        );
        assert!(!tmp.path().join("a").exists());
        make_private_dir(&deep).unwrap();
        make_private_subdir(&deep).unwrap();
        make_private_subdir(&deep.join("d")).unwrap();
        let mode = deep.join("d").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
        std::fs::write(deep.join("file"), "").unwrap();
        let error = make_private_dir(&deep.join("file")).unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::NotADirectory));
    }
}
