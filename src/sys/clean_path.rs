//! Paths without `.`, `..` and doubled slashes.

use std::path::{Component, Path, PathBuf};

/// The absolute path with `.` and `..` resolved without reading the disk, as in the Go library: both write the same
/// paths into shared files, and find the same lock files.
pub(crate) fn clean_path(path: &Path) -> std::io::Result<PathBuf> {
    let mut clean = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            part => clean.push(part),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_resolved_without_the_disk() {
        for (path, expected) in [
            ("/a//b/./c/", "/a/b/c"),
            ("/missing/../a/.", "/a"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
        ] {
            assert_eq!(
                clean_path(Path::new(path)).unwrap(),
                Path::new(expected),
                "{path}"
            );
        }
        let here = std::env::current_dir().unwrap();
        assert_eq!(clean_path(Path::new("x/../y")).unwrap(), here.join("y"));
        assert!(clean_path(Path::new("")).is_err());
    }
}
