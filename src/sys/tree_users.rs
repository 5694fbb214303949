//! Who uses a directory tree, as far as the kernel shows it to this process.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use crate::sys::mount::{has_mount_of, mounts_below, place_on_disk};
use crate::sys::mount_namespaces::if_shown;

/// Whether the tree at `dir`, or a part of it, is mounted elsewhere, in whichever mount namespace, has something mounted in it,
/// or is where another process has its root or its current directory. What this process may not see of others does not
/// count.
pub(crate) fn is_used(dir: BorrowedFd<'_>) -> io::Result<bool> {
    let real = fs::read_link(Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()))?;
    let Some(place) = place_on_disk(dir, &real)? else {
        // A mount without a path.
        return Ok(false);
    };
    if place.path == Path::new("/") {
        // The root of a file system, whose mounts are those of whoever has mounted it here.
        return Ok(false);
    }
    let mut seen = HashSet::new();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        if !is_process(&process) {
            continue;
        }
        // A process that has ended, or that is hidden, has none of these.
        let link = |name: &str| if_shown(fs::read_link(process.join(name)));
        let is_in = |path: Option<PathBuf>| path.is_some_and(|path| path.starts_with(&real));
        if is_in(link("root")?) || is_in(link("cwd")?) {
            return Ok(true);
        }
        if let Some(namespace) = link("ns/mnt")?
            && seen.insert(namespace)
            && let Some(table) = if_shown(fs::read(process.join("mountinfo")))?
            && has_mount_of(&table, &place)
        {
            return Ok(true);
        }
    }
    Ok(!mounts_below(&real)?.is_empty())
}

fn is_process(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.iter().all(u8::is_ascii_digit) && !name.is_empty()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::{Command, Stdio};

    use rustix::mount::{UnmountFlags, mount_bind, unmount};

    use super::*;
    use crate::skip::skip;
    use crate::sys::at;

    #[test]
    fn users_of_a_tree_are_seen() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap();
        let [tree, other] = ["tree", "tree2"].map(|name| root.join(name));
        for dir in [&tree, &other] {
            fs::create_dir_all(dir.join("dir")).unwrap();
        }
        let is_used = |path: &Path| super::is_used(at::open_dir(path).unwrap().as_fd()).unwrap();
        assert!(!is_used(&tree));
        let mut inside = Command::new("cat")
            .current_dir(tree.join("dir"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        assert!(is_used(&tree) && !is_used(&other));
        drop(inside.stdin.take());
        inside.wait().unwrap();
        assert!(!is_used(&tree));
        let place = root.join("place");
        fs::create_dir(&place).unwrap();
        if mount_bind(&tree, &place).is_err() {
            return skip("mounting needs root");
        }
        assert!(is_used(&tree) && !is_used(&tree.join("dir")) && !is_used(&other));
        unmount(&place, UnmountFlags::DETACH).unwrap();
        mount_bind(&other, tree.join("dir")).unwrap();
        assert!(is_used(&tree) && is_used(&other));
        unmount(tree.join("dir"), UnmountFlags::DETACH).unwrap();
        assert!(!is_used(&tree));
    }
}
