//! Mounts in other mount namespaces, which this process does not see.

use std::collections::HashSet;
use std::path::Path;

use crate::sys::mount::parse_mount_table;

/// Whether a mount namespace of a process that this one may look at has a mount at `path`. Such a process may have another
/// root directory, so the last three components are compared. Reads the list of all processes.
pub(crate) fn is_mounted_elsewhere(path: &Path) -> bool {
    let components: Vec<_> = path.components().collect();
    let tail: std::path::PathBuf = components.iter().rev().take(3).rev().collect();
    let mut seen = HashSet::new();
    seen.extend(std::fs::read_link("/proc/self/ns/mnt"));
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return false;
    };
    for process in processes.flatten() {
        let is_process = process
            .file_name()
            .as_encoded_bytes()
            .iter()
            .all(u8::is_ascii_digit);
        // Processes of other users cannot be looked at, and processes end at any time.
        if is_process
            && let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt"))
            && seen.insert(namespace)
            && let Ok(table) = std::fs::read(process.path().join("mountinfo"))
            && parse_mount_table(&table, Path::new("/"))
                .iter()
                .any(|point| point.ends_with(&tail))
        {
            return true;
        }
    }
    false
}
