//! The names of temporary files that are to replace others, and what killed writers have left under them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use crate::error::{IoContext as _, Result};
use crate::sys::list_dir_if_there;

/// The prefix of the names of temporary files.
const PREFIX: &[u8] = b".tmp-";

/// The longest name of a file on Linux.
pub(super) const NAME_MAX: usize = 255;

/// Digits of the largest random suffix.
const DIGITS: usize = 10;

/// The temporary files that killed writers of these files have left, as long as no other one is writing them.
pub(crate) fn stale(targets: &[&Path]) -> Result<Vec<PathBuf>> {
    let mut bases: BTreeMap<&Path, Vec<&OsStr>> = BTreeMap::new();
    for target in targets {
        if let (Some(dir), Some(base)) = (target.parent(), target.file_name()) {
            bases.entry(dir).or_default().push(base);
        }
    }
    let mut found = Vec::new();
    for (dir, bases) in bases {
        for entry in list_dir_if_there(dir)? {
            let name = entry?.file_name();
            if bases.iter().any(|base| is_temp_name(&name, base)) {
                found.push(dir.join(name));
            }
        }
    }
    Ok(found)
}

/// Removes the temporary files that killed writers of these files have left. Returns how many there were.
pub(crate) fn remove_stale(targets: &[&Path]) -> Result<usize> {
    let mut removed = 0;
    for path in stale(targets)? {
        match std::fs::remove_file(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("removing", path),
        }
    }
    Ok(removed)
}

/// Whether the name is that of a temporary file of any target.
pub(crate) fn is_temporary(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    bytes.starts_with(PREFIX) && bytes.last().is_some_and(u8::is_ascii_digit)
}

/// The part of the temporary name after the prefix, cut if the whole would be too long for a file name.
fn stem(base: &OsStr) -> &[u8] {
    let bytes = base.as_bytes();
    bytes.get(..NAME_MAX - PREFIX.len() - DIGITS).unwrap_or(bytes)
}

/// A name for a temporary file that is to replace one.
pub(super) fn temp_name(base: &OsStr, random: u32) -> OsString {
    let mut name = PREFIX.to_vec();
    name.extend_from_slice(stem(base));
    name.extend_from_slice(random.to_string().as_bytes());
    OsString::from_vec(name)
}

fn is_temp_name(name: &OsStr, base: &OsStr) -> bool {
    let digits = name
        .as_bytes()
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix(stem(base)));
    digits.is_some_and(|digits| (1..=DIGITS).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_files_are_those_of_this_target() {
        let tmp = tempfile::tempdir().unwrap();
        let keep = [
            ".tmp-layers.json",
            ".tmp-layers.jsonx1",
            ".tmp-layers.json12345678901",
            "layers.json",
            ".tmp-x1",
        ];
        for name in keep
            .iter()
            .chain(&[".tmp-layers.json1", ".tmp-layers.json4294967295"])
        {
            std::fs::write(tmp.path().join(name), "").unwrap();
        }
        assert_eq!(remove_stale(&[&tmp.path().join("layers.json")]).unwrap(), 2);
        let mut keep: Vec<_> = keep.iter().map(ToString::to_string).collect();
        keep.sort();
        let left = std::fs::read_dir(tmp.path()).unwrap();
        let mut left: Vec<_> = left
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, keep);
        assert_eq!(
            remove_stale(&[&tmp.path().join("missing/layers.json")]).unwrap(),
            0
        );
    }
}
