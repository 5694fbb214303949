//! When this machine was started: what was changed before was written by processes that have ended.

use std::path::Path;
use std::time::{Duration, SystemTime};

/// When the machine was started, by its clock of today.
fn boot_time() -> Option<SystemTime> {
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(seconds).ok()?)
}

/// Whether the file was last changed before the machine was started. Not if that cannot be told, or there is no file.
pub(crate) fn changed_before_boot(path: &Path) -> bool {
    let changed = std::fs::metadata(path).and_then(|meta| meta.modified());
    changed
        .ok()
        .zip(boot_time())
        .is_some_and(|(changed, boot)| changed < boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_file_is_younger_than_the_machines_start() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("file");
        assert!(!changed_before_boot(&path), "there is none");
        let file = std::fs::File::create(&path).unwrap();
        assert!(!changed_before_boot(&path));
        let boot = boot_time().unwrap();
        assert!(boot < SystemTime::now());
        file.set_modified(boot - Duration::from_secs(60)).unwrap();
        assert!(changed_before_boot(&path));
    }
}
