//! Starting to write file content to disk.

#![expect(unsafe_code, reason = "sync_file_range has no safe wrapper")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Starts to write a file's content to disk and does not wait for it. It guarantees nothing: only a later sync does, and
/// if this call fails the sync does all of the work.
///
/// If it is called for several files before the first of them is synced, one commit of the file system's journal serves
/// all of them.
pub(crate) fn start(file: BorrowedFd<'_>) {
    // SAFETY: the call takes no pointers, and the descriptor is open while it runs.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result != 0 {
        tracing::trace!(
            "starting to write a file to disk: {}",
            std::io::Error::last_os_error()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::fd::AsFd as _;

    #[test]
    fn files_stay_as_they_are_and_what_cannot_be_written_is_no_failure() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"content").unwrap();
        start(file.as_file().as_fd());
        assert_eq!(std::fs::read(file.path()).unwrap(), b"content");
        let (reader, _writer) = std::io::pipe().unwrap();
        start(reader.as_fd());
    }
}
