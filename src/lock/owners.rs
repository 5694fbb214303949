//! Which processes hold a lock file, according to `/proc`.
//!
//! The kernel lists the locks of every open file in `/proc/PID/fdinfo/N` (`lock:` lines), also those that belong to
//! no process (open-file-description locks, as this library takes them). A process sees its own locks; those of
//! other users' processes need privileges.
//!
//! The device and inode in these lines don't tell which file it is: on btrfs the device is another one than in the status
//! of the file, and files of two subvolumes can have the same inode number. So the status of the open file is read.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::error::{IoContext as _, Result};
use crate::sys::mount_namespaces::if_shown;

/// A process that holds a lock file.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockOwner {
    /// The lock file.
    pub path: PathBuf,
    /// Process ID of the holder.
    pub pid: u32,
    /// Name of its command, empty if it is gone already.
    pub command: String,
    /// Whether the lock is exclusive.
    pub exclusive: bool,
}

/// Whether a line is a `lock:` line, as in `1: OFDLCK  ADVISORY  WRITE -1 fe:00:1234 0 EOF`, and if so, whether of a write lock.
fn parse(line: &str) -> Option<bool> {
    let mut fields = line.strip_prefix("lock:")?.split_whitespace();
    Some(fields.find(|field| matches!(*field, "READ" | "WRITE"))? == "WRITE")
}

/// The holders of these lock files that this process may see. A file that does not exist has none.
pub(crate) fn owners(paths: &[PathBuf]) -> Result<Vec<LockOwner>> {
    let mut wanted: HashMap<(u64, u64), &Path> = HashMap::new();
    for path in paths {
        match std::fs::metadata(path) {
            Ok(meta) => {
                wanted.insert((meta.dev(), meta.ino()), path);
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).at("reading the status of", path),
        }
    }
    let mut found: Vec<LockOwner> = Vec::new();
    for entry in std::fs::read_dir("/proc").at("listing", "/proc")? {
        let entry = entry.at("listing", "/proc")?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        // The process has ended, or belongs to another user.
        let shown = |path: &Path| if_shown(std::fs::read_dir(path)).at("listing", path);
        let Some(files) = shown(&entry.path().join("fdinfo"))? else {
            continue;
        };
        for file in files {
            let Some(file) = if_shown(file).at("listing", entry.path())? else {
                break;
            };
            let Some(info) = if_shown(std::fs::read_to_string(file.path())).at("reading", file.path())?
            else {
                continue;
            };
            let locks: Vec<bool> = info.lines().filter_map(parse).collect();
            if locks.is_empty() {
                continue;
            }
            // It may have been closed meanwhile.
            let open = entry.path().join("fd").join(file.file_name());
            let meta = if_shown(std::fs::metadata(&open)).at("looking at", &open)?;
            let Some(path) = meta.and_then(|meta| wanted.get(&(meta.dev(), meta.ino()))) else {
                continue;
            };
            for exclusive in locks {
                let known = found
                    .iter_mut()
                    .find(|owner| owner.pid == pid && owner.path == **path);
                match known {
                    Some(owner) => owner.exclusive |= exclusive,
                    None => found.push(LockOwner {
                        path: path.to_path_buf(),
                        pid,
                        command: std::fs::read_to_string(entry.path().join("comm"))
                            .unwrap_or_default()
                            .trim_end()
                            .into(),
                        exclusive,
                    }),
                }
            }
        }
    }
    found.sort_by(|a, b| (&a.path, a.pid).cmp(&(&b.path, b.pid)));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::driver::conformance::btrfs;
    use crate::lock::record_lock::{LockFile, LockMode};
    use crate::skip::skip;
    use crate::sys::at;
    use crate::sys::btrfs::create_subvolume;

    #[test]
    fn lines_of_the_kernel_are_read() {
        let line = "lock:\t1: OFDLCK  ADVISORY  WRITE -1 fe:0a:1234 0 EOF";
        assert_eq!(parse(line), Some(true));
        assert_eq!(
            parse("lock:\t1: POSIX  ADVISORY  READ 77 00:1b:9 0 EOF"),
            Some(false)
        );
        for other in ["pos:\t0", "lock:\t1: LEASE  ACTIVE", ""] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    /// This process, and nobody who holds anything else, holds the first of these locks exclusively.
    fn only_the_first_is_held_here(paths: &[PathBuf]) {
        // Another test may be starting a program: its process shares all open files until it executes that program.
        let me = owners(paths).unwrap();
        assert!(me.iter().any(|owner| owner.pid == std::process::id()), "{me:?}");
        assert!(
            me.iter().all(|owner| owner.path == paths[0] && owner.exclusive),
            "{me:?}"
        );
    }

    #[tokio::test]
    async fn this_process_and_another_one_are_named() {
        let tmp = tempfile::tempdir().unwrap();
        let paths = [
            tmp.path().join("a.lock"),
            tmp.path().join("b.lock"),
            tmp.path().join("missing.lock"),
        ];
        let lock = LockFile::open(&paths[0], LockMode::ReadWrite).unwrap();
        assert_eq!(owners(&paths).unwrap(), []);
        let held = lock.exclusive(None).await.unwrap();
        only_the_first_is_held_here(&paths);
        drop(held);
        let Some(mut peer) = crate::lock::peer::Peer::start() else {
            return;
        };
        assert!(peer.try_shared(&paths[1]));
        let other = owners(&paths).unwrap();
        assert_eq!(other.len(), 1, "{other:?}");
        assert_eq!((other[0].pid, other[0].exclusive), (peer.pid(), false));
        assert!(other[0].command.starts_with("python3"), "{other:?}");
    }

    /// There the kernel tells of another device than the status of a file does, and of inode numbers that several files have.
    #[tokio::test]
    async fn on_btrfs_the_file_itself_is_recognised() {
        let Ok(file_system) = btrfs::shared().map_err(skip) else {
            return;
        };
        let tmp = tempfile::tempdir_in(file_system).unwrap();
        let dir = at::open_dir(tmp.path()).unwrap();
        let paths = ["one", "two"].map(|name| {
            create_subvolume(dir.as_fd(), name.as_bytes()).unwrap();
            tmp.path().join(name).join("a.lock")
        });
        let locks = paths
            .each_ref()
            .map(|path| LockFile::open(path, LockMode::ReadWrite).unwrap());
        let [one, two] = paths.each_ref().map(|path| std::fs::metadata(path).unwrap());
        assert!(one.ino() == two.ino() && one.dev() != two.dev());
        let held = locks[0].exclusive(None).await.unwrap();
        only_the_first_is_held_here(&paths);
        drop(held);
    }
}
