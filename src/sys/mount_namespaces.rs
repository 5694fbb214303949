//! Mounts in other mount namespaces, which this process does not see.

use std::collections::HashSet;
use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::sys::mount::parse_mount_table;

/// Whether a mount namespace of a process that this one may look at has a mount at `path`. Such a process may have another
/// root directory, so the last three components are compared. Reads the list of all processes.
pub(crate) fn is_mounted_elsewhere(path: &Path) -> io::Result<bool> {
    let components: Vec<_> = path.components().collect();
    let tail: std::path::PathBuf = components.iter().rev().take(3).rev().collect();
    let mut seen = HashSet::new();
    seen.extend(if_shown(std::fs::read_link("/proc/self/ns/mnt"))?);
    let Some(processes) = if_shown(std::fs::read_dir("/proc"))? else {
        return Ok(false);
    };
    for process in processes {
        let process = process?;
        let is_process = process
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit);
        // Processes of other users cannot be looked at, and processes end at any time.
        if is_process
            && let Some(namespace) = if_shown(std::fs::read_link(process.path().join("ns/mnt")))?
            && seen.insert(namespace)
            && let Some(table) = if_shown(std::fs::read(process.path().join("mountinfo")))?
            && parse_mount_table(&table, Path::new("/"))
                .iter()
                .any(|point| point.ends_with(&tail))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What `/proc` says of a process; `None` if the process has ended or is hidden from this one, or nothing is said of any.
pub(crate) fn if_shown<T>(shown: io::Result<T>) -> io::Result<Option<T>> {
    match shown {
        Ok(shown) => Ok(Some(shown)),
        Err(error) => match Errno::from_io_error(&error) {
            // Without a mount table, as one that is ending, it has no mounts.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::SRCH | Errno::ACCESS | Errno::PERM | Errno::INVAL) => {
                Ok(None)
            }
            _ => Err(error),
        },
    }
}
