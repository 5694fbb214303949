//! Files that are replaced atomically: written under a temporary name beside the target, then renamed over it.
//!
//! The temporary name is `.tmp-<basename><decimal digits>`, as in the Go library. A crash leaves such a file;
//! [`remove_stale`](super::temporary_names::remove_stale) removes the stale temporary files of one target. Its caller
//! must hold the lock that every writer of that target holds.

use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Stat};
#[cfg(feature = "pull")]
use rustix::fs::{FileType, Gid, Uid};
use rustix::io::Errno;

use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::temporary_names::temp_name;
use crate::sys::{make_private_subdir, random, unnamed};

/// Time of the last change to a file's content, to the nanosecond. Only ever compared for equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mtime {
    seconds: i64,
    nanoseconds: i64,
}

impl Mtime {
    /// The time in a file's status.
    pub(crate) fn of(stat: &Stat) -> Self {
        // Nanoseconds are below 10^9 whatever their type on this architecture.
        Self {
            seconds: stat.st_mtime,
            nanoseconds: i64::try_from(stat.st_mtime_nsec).unwrap_or(-1),
        }
    }

    /// As [`Mtime::of`], of the standard library's status.
    pub(crate) fn of_file(file: &Metadata) -> Self {
        Self {
            seconds: file.mtime(),
            nanoseconds: file.mtime_nsec(),
        }
    }

    /// The time of the file that `path` names now; `None` if there is none.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>> {
        match rustix::fs::stat(path) {
            Ok(stat) => Ok(Some(Self::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error).at("reading the status of", path),
        }
    }
}

/// A file that replaces its target on [`AtomicFile::commit`]. If it is dropped before, it is removed and the target stays
/// unchanged.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    target: PathBuf,
    /// The temporary path; empty while the file has no name, and once it has been renamed.
    temp: PathBuf,
}

impl AtomicFile {
    /// Starts a file (0600) that will replace `target`; its directory must exist.
    pub(crate) fn create(target: &Path) -> Result<Self> {
        Self::create_with(target, Mode::RUSR | Mode::WUSR)
    }

    fn create_with(target: &Path, mode: Mode) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (fd, temp) = with_temp_path(target, |temp| rustix::fs::open(temp, flags, mode))?;
        Ok(Self {
            file: File::from(fd),
            target: target.to_owned(),
            temp,
        })
    }

    /// As [`AtomicFile::create`], with `mode` less the umask, for [`AtomicFile::commit_as_user_file`]. The file has no name
    /// until it is committed, so a killed process leaves nothing. Where the file system knows no files without a name, it has a temporary one.
    #[cfg(feature = "pull")]
    pub(crate) fn create_unnamed(target: &Path, mode: u32) -> Result<Self> {
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        match unnamed::open(CWD, dir, Mode::from_raw_mode(mode)).at("creating a file in", dir)? {
            Some(fd) => Ok(Self {
                file: File::from(fd),
                target: target.to_owned(),
                temp: PathBuf::new(),
            }),
            None => Self::create_with(target, Mode::from_raw_mode(mode)),
        }
    }

    /// A second handle of the file, for a writer that wants to own one.
    #[cfg(feature = "pull")]
    pub(crate) fn handle(&self) -> Result<File> {
        self.file.try_clone().at("duplicating a handle of", &self.temp)
    }

    /// Renames the file over the target, with these permissions. `sync` forces its data to disk before the
    /// rename, so that after a power loss the target is either the old or the new file and never a torn one.
    ///
    /// Returns the new file's time, as [`Mtime::at`] reports it from now on.
    pub(crate) fn commit(self, sync: bool, mode: u32) -> Result<Mtime> {
        let stat = self.stat()?;
        self.set_mode(&stat, mode)?;
        self.rename(sync)?;
        Ok(Mtime::of(&stat))
    }

    /// As [`AtomicFile::commit`]; what the target was until then gets the name `old`, in place of what has it. Where files
    /// cannot change places, or there was none, that does not happen. Returns the new file, and whether it did.
    pub(crate) fn commit_keeping(mut self, sync: bool, mode: u32, old: &Path) -> Result<(File, bool)> {
        self.set_mode(&self.stat()?, mode)?;
        if sync {
            rustix::fs::fsync(&self.file).at("syncing", &self.target)?;
        }
        let file = self.file.try_clone().at("duplicating a handle of", &self.temp)?;
        match rustix::fs::renameat_with(CWD, &self.temp, CWD, &self.target, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.rename(false)?;
                return Ok((file, false));
            }
            Err(error) => return Err(error).at("replacing", &self.target),
        }
        // If this fails, the old file goes with the temporary name.
        let kept = rustix::fs::rename(&self.temp, old).is_ok();
        if kept {
            self.temp = PathBuf::new();
        }
        Ok((file, kept))
    }

    /// As [`AtomicFile::commit`], with what programs leave that write the target in place: a file that is replaced
    /// hands on its mode, and its owner and group as far as this user may give them; a new one has the mode that it
    /// was created with.
    #[cfg(feature = "pull")]
    pub(crate) fn commit_as_user_file(self, sync: bool) -> Result<()> {
        match rustix::fs::lstat(&self.target) {
            Ok(old) if FileType::from_raw_mode(old.st_mode).is_file() => {
                let new = self.stat()?;
                if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid) {
                    let (owner, group) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
                    match rustix::fs::fchown(&self.file, Some(owner), Some(group)) {
                        Ok(()) | Err(Errno::PERM | Errno::INVAL) => {}
                        Err(error) => return Err(error).at("changing the owner of", &self.target),
                    }
                }
                self.set_mode(&new, old.st_mode & 0o777)?;
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error).at("reading the status of", &self.target),
        }
        self.rename(sync)
    }

    fn stat(&self) -> Result<Stat> {
        rustix::fs::fstat(&self.file).at("reading the status of the new", &self.target)
    }

    fn set_mode(&self, stat: &Stat, mode: u32) -> Result<()> {
        if stat.st_mode & 0o7777 == mode {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::fchmod(&self.file, mode).at("setting the mode of", &self.target)
    }

    fn rename(mut self, sync: bool) -> Result<()> {
        if sync {
            rustix::fs::fdatasync(&self.file).at("syncing", &self.target)?;
        }
        if self.temp.as_os_str().is_empty() {
            let link = |temp: &Path| unnamed::link(&self.file, CWD, temp);
            self.temp = with_temp_path(&self.target, link)?.1;
        }
        rustix::fs::rename(&self.temp, &self.target).at("replacing", &self.target)?;
        self.temp = PathBuf::new();
        Ok(())
    }
}

/// Has `make` make a file under a temporary name for `target`. Returns the path too.
fn with_temp_path<T>(
    target: &Path,
    mut make: impl FnMut(&Path) -> rustix::io::Result<T>,
) -> Result<(T, PathBuf)> {
    let Some(base) = target.file_name() else {
        let error = ErrorKind::UnsafePath.err("a file to write must have a name");
        return Err(error.at(target));
    };
    let made = random::with_unused(|number| {
        let temp = target.with_file_name(temp_name(base, number));
        make(&temp).map(|made| (made, temp))
    });
    made.at("creating a temporary file for", target)
}

impl Write for AtomicFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if self.temp.as_os_str().is_empty() {
            return;
        }
        if let Err(error) = std::fs::remove_file(&self.temp) {
            tracing::warn!(path = %self.temp.display(), %error, "cannot remove a temporary file");
        }
    }
}

/// Replaces `target` by a file with this content and mode.
pub(crate) fn write_file(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<Mtime> {
    let mut file = AtomicFile::create(target)?;
    file.write_all(content).at("writing", &file.temp)?;
    file.commit(sync, mode)
}

/// Makes `target` a file with this content and mode unless there is something, which then stays, also if another process
/// makes it at the same time. Returns whether it was made, as the file's time.
pub(crate) fn write_new_file(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<Option<Mtime>> {
    let mut file = AtomicFile::create(target)?;
    file.write_all(content).at("writing", &file.temp)?;
    let stat = file.stat()?;
    file.set_mode(&stat, mode)?;
    if sync {
        rustix::fs::fdatasync(&file.file).at("syncing", target)?;
    }
    match rustix::fs::link(&file.temp, target) {
        Ok(()) => Ok(Some(Mtime::of(&stat))),
        Err(Errno::EXIST) => Ok(None),
        Err(error) => Err(error).at("creating", target),
    }
}

/// As [`write_file`], with the mode and owner that [`AtomicFile::commit_as_user_file`] gives; a new file has `mode` less
/// the umask. The new file has no name before it is whole, as by [`AtomicFile::create_unnamed`].
#[cfg(feature = "pull")]
pub(crate) fn write_user_file(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<()> {
    let mut file = AtomicFile::create_unnamed(target, mode)?;
    file.write_all(content).at("writing", target)?;
    file.commit_as_user_file(sync)
}

/// As [`write_file`]; if the directory is missing, it is made first, 0700, but not what is above it.
pub(crate) fn write_file_in_new_dir(target: &Path, content: &[u8], mode: u32, sync: bool) -> Result<Mtime> {
    match write_file(target, content, mode, sync) {
        Err(error) if error.io_kind() == Some(io::ErrorKind::NotFound) => {
            if let Some(dir) = target.parent() {
                make_private_subdir(dir)?;
            }
            write_file(target, content, mode, sync)
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::temporary_names::NAME_MAX;
    use std::os::unix::fs::PermissionsExt as _;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_commit_replaces_the_target_and_reports_its_time() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("layers.json");
        for (content, mode, sync) in [("[]", 0o600, true), ("[{}]", 0o600, false), ("x", 0o644, true)] {
            let mtime = write_file(&path, content.as_bytes(), mode, sync).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(Mtime::at(&path).unwrap(), Some(mtime));
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                mode
            );
        }
        assert_eq!(names(tmp.path()), ["layers.json"]);
        assert_eq!(Mtime::at(&tmp.path().join("other")).unwrap(), None);
    }

    #[test]
    fn a_new_file_replaces_nothing() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("containers.json");
        for (content, made) in [("[]", true), ("[{}]", false)] {
            let mtime = write_new_file(&path, content.as_bytes(), 0o640, true).unwrap();
            assert_eq!(mtime.is_some(), made);
            assert!(!made || mtime == Mtime::at(&path).unwrap());
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "[]");
            assert_eq!(
                std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                0o640
            );
            assert_eq!(names(tmp.path()), ["containers.json"]);
        }
    }

    #[test]
    fn a_drop_or_a_failed_rename_leaves_the_target_and_no_temporary_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("item");
        write_file(&path, b"old", 0o600, false).unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        let during = names(tmp.path());
        assert!(
            during.len() == 2 && during[0].starts_with(".tmp-item"),
            "{during:?}"
        );
        drop(file);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");

        let dir = tmp.path().join("directory");
        std::fs::create_dir_all(dir.join("full")).unwrap();
        let error = write_file(&dir, b"x", 0o600, false).unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::Io, Some(dir.as_path())));
        assert_eq!(names(tmp.path()), ["directory", "item"]);
        assert!(AtomicFile::create(&tmp.path().join("missing/item")).is_err());
    }

    #[cfg(feature = "pull")]
    #[test]
    fn a_file_without_a_name_leaves_nothing_and_replaces_its_target() {
        for parent in ["/dev/shm", "/tmp"] {
            let tmp = tempfile::tempdir_in(parent).unwrap();
            let path = tmp.path().join("item");
            let mut file = AtomicFile::create_unnamed(&path, 0o666).unwrap();
            file.write_all(b"new").unwrap();
            assert_eq!(names(tmp.path()), [""; 0], "{parent}");
            file.commit_as_user_file(true).unwrap();
            let mut file = AtomicFile::create_unnamed(&path, 0o666).unwrap();
            file.write_all(b"newer").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"new");
            let mut handle = file.handle().unwrap();
            handle.write_all(b"!").unwrap();
            file.commit_as_user_file(true).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"newer!");
            assert_eq!(names(tmp.path()), ["item"]);
            drop(AtomicFile::create_unnamed(&path, 0o666).unwrap());
            assert!(AtomicFile::create_unnamed(&tmp.path().join("missing/item"), 0o666).is_err());
        }
    }

    #[cfg(feature = "pull")]
    #[test]
    fn files_of_users_have_the_mode_that_writing_in_place_gives() {
        let tmp = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let plain = tmp.path().join("plain");
        drop(std::fs::File::create(&plain).unwrap());
        let path = tmp.path().join("item");
        let write = |content: &[u8]| {
            let mut file = AtomicFile::create_unnamed(&path, 0o666).unwrap();
            file.write_all(content).unwrap();
            file.commit_as_user_file(false).unwrap();
        };
        write(b"1");
        assert_eq!(mode(&path), mode(&plain), "the umask is heeded");
        for kept in [0o600, 0o444, 0o777] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(kept)).unwrap();
            write(b"2");
            assert_eq!(mode(&path), kept);
            write_user_file(&path, b"3", 0o644, false).unwrap();
            assert_eq!(
                (mode(&path), std::fs::read(&path).unwrap()),
                (kept, b"3".to_vec())
            );
        }
        if crate::sys::privilege::is_root() {
            std::os::unix::fs::chown(&path, Some(7), Some(8)).unwrap();
            write(b"4");
            let stat = rustix::fs::stat(&path).unwrap();
            assert_eq!((stat.st_uid, stat.st_gid), (7, 8));
        }
    }

    /// A store that was removed while it is open stays removed.
    #[test]
    fn only_the_directory_itself_is_made_for_a_file() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("store/layers/layers.json");
        let error = write_file_in_new_dir(&path, b"[]", 0o600, false).unwrap_err();
        assert_eq!(error.io_kind(), Some(io::ErrorKind::NotFound));
        assert!(names(tmp.path()).is_empty());
        std::fs::create_dir(tmp.path().join("store")).unwrap();
        write_file_in_new_dir(&path, b"[]", 0o600, false).unwrap();
        assert_eq!(names(path.parent().unwrap()), ["layers.json"]);
    }

    #[test]
    fn names_up_to_the_limit_can_be_written() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("n".repeat(NAME_MAX));
        write_file(&path, b"x", 0o600, false).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"x");
    }
}
