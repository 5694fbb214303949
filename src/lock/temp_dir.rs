//! Temporary directories. Beside each is a lock file that its owner holds, so that the directory of a killed process can
//! be recognised and removed.
//!
//! ```text
//! <root>/                  0700
//!   lock-<n>               0600  held by the owner; n is a random number, of 32 bits
//!   temp-dir-<n>/          0700
//!     <k>-<basename>             moved here to be deleted
//!     <k>-addition               being built, to be renamed to its place
//! ```
//!
//! The lock is held before the directory is created, and its file is unlinked after the directory is removed. What a
//! killed process leaves has an unlocked lock file, or none, and [`recover`] of any later process removes it; names and
//! order are those of the Go library, so each side cleans up after the other.
//!
//! Unlinking lock files causes two races. This library avoids both by checking, after locking, that the file still has
//! its name ([`StagingLock`]). The Go library does not check: it creates the file, closes it, and opens it again to lock it. If it
//! was unlinked meanwhile, the lock has no name, and whoever comes next removes the directory under its owner. So [`recover`]
//! leaves alone what may be such a file for a [`MOMENT`], and keeps the last ones that it has unlinked
//! locked until its end: a Go process that has just created one fails to lock it and takes another name. Numbers of this library
//! begin with a zero, which tells them from those of the Go library.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::lock::staging_lock::{self, StagingLock};
use crate::sys::{at, list_dir_if_there, make_private_subdir, random, tree};

const DIR_PREFIX: &str = "temp-dir-";
const LOCK_PREFIX: &str = "lock-";

/// How long a process may take between the creation of a lock file and the lock.
const MOMENT: Duration = Duration::from_secs(1);

/// How many lock files that were unlinked stay locked at the same time: each takes a file descriptor.
const MAX_UNLINKED: usize = 64;

/// The least number that is taken for one of the Go library, which draws them from all of 32 bits.
const LEAST_OF_GO: u32 = 1_000_000;

/// Names tried before giving up.
const MAX_TRIES: usize = 1000;

/// A locked temporary directory `temp-dir-N` with its `lock-N` beside it, in Go's layout. Dropping it removes both,
/// which may block for long.
#[derive(Debug)]
#[must_use = "the directory is removed when this is dropped"]
pub(crate) struct TempDir {
    path: PathBuf,
    /// `None` once removed.
    lock: Option<StagingLock>,
    /// Shared by deletions and additions, so that no name comes twice.
    counter: u64,
    companion: Option<Companion>,
}

/// What goes with a temporary directory and is not in it.
struct Companion(Box<dyn FnOnce() -> Result<()> + Send + Sync>);

impl fmt::Debug for Companion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Companion")
    }
}

impl TempDir {
    /// Creates one below `root` (which is created, 0700, if missing, but not what is above it). Blocking.
    pub(crate) fn create(root: &Path) -> Result<Self> {
        make_private_subdir(root)?;
        for _ in 0..MAX_TRIES {
            let suffix = format!("0{}", random::number()?);
            let Some(lock) = StagingLock::try_create(&member(root, LOCK_PREFIX, suffix.as_bytes()))? else {
                continue;
            };
            let path = member(root, DIR_PREFIX, suffix.as_bytes());
            match std::fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    return Ok(Self {
                        path,
                        lock: Some(lock),
                        counter: 0,
                        companion: None,
                    });
                }
                Err(error) => {
                    // An old directory without a lock file is left to `recover`.
                    lock.remove()?;
                    if error.kind() != std::io::ErrorKind::AlreadyExists {
                        return Err(error).at("creating temporary directory", &path);
                    }
                }
            }
        }
        Err(ErrorKind::Io
            .err("no free name for a temporary directory in")
            .at(root))
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The number in the names of the directory and its lock file: what is elsewhere and belongs to them can be named by it.
    pub(crate) fn number(&self) -> &str {
        let name = self.path.file_name().and_then(OsStr::to_str);
        name.and_then(|name| name.strip_prefix(DIR_PREFIX))
            .unwrap_or_default()
    }

    /// Has `remove` run before the directory is removed, in place of what was to run so far. If it fails, the directory
    /// is left to the next recovery.
    pub(crate) fn set_companion(&mut self, remove: impl FnOnce() -> Result<()> + Send + Sync + 'static) {
        self.companion = Some(Companion(Box::new(remove)));
    }

    /// Nothing is to run any more before the directory is removed.
    pub(crate) fn forget_companion(&mut self) {
        self.companion = None;
    }

    fn next(&mut self, name: &OsStr) -> PathBuf {
        let mut file = OsString::from(format!("{}-", self.counter));
        file.push(name);
        self.counter += 1;
        self.path.join(file)
    }

    /// A fresh path `<counter>-addition` inside; the caller creates something there and renames it out.
    pub(crate) fn addition(&mut self) -> PathBuf {
        self.next(OsStr::new("addition"))
    }

    /// Renames `path` into this directory as `<counter>-<basename>`; `false` if there was nothing.
    pub(crate) fn stage_deletion(&mut self, path: &Path) -> Result<bool> {
        let Some(name) = path.file_name() else {
            return Err(ErrorKind::InvalidInput
                .err("no name to move to a temporary directory in")
                .at(path));
        };
        let target = self.next(name);
        match at::rename(path, &target) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(error) => Err(error).at("moving to a temporary directory", path),
        }
    }

    /// Removes the directory and the lock file now and reports failures (drop only logs them).
    pub(crate) fn remove(mut self) -> Result<()> {
        self.clean_up()
    }

    /// If the directory cannot be removed the lock file stays, unlocked, for the next recovery.
    fn clean_up(&mut self) -> Result<()> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        if let Some(Companion(remove)) = self.companion.take() {
            remove()?;
        }
        tree::remove_tree(&self.path).at("removing temporary directory", &self.path)?;
        lock.remove()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            tracing::warn!("{}; a later recovery will remove it", error.chain());
        }
    }
}

/// Removes what killed processes have left below `root`. Blocking; a missing root is no error.
///
/// Directories in use, by this process or another, are not touched. One that cannot be removed does not stop the
/// others; the first failure is returned.
pub(crate) fn recover(root: &Path) -> Result<()> {
    recover_with(root, &mut |_number| Ok(()))
}

/// As [`recover`]; `companion` removes what goes with a directory of this number, before the directory. If it
/// fails, the directory stays.
pub(crate) fn recover_with(root: &Path, companion: &mut dyn FnMut(&str) -> Result<()>) -> Result<()> {
    let mut suffixes = BTreeSet::new();
    for entry in list_dir_if_there(root)? {
        let name = entry?.file_name().into_vec();
        let suffix = [DIR_PREFIX, LOCK_PREFIX]
            .iter()
            .find_map(|prefix| name.strip_prefix(prefix.as_bytes()));
        if let Some(suffix) = suffix {
            suffixes.insert(suffix.to_vec());
        }
    }
    let mut unlinked = VecDeque::new();
    let mut first_failure: Option<Error> = None;
    for suffix in suffixes {
        match recover_one(root, &suffix, companion) {
            Ok(lock) => {
                unlinked.extend(lock.filter(|_| is_of_go(&suffix)));
                if unlinked.len() > MAX_UNLINKED {
                    drop(unlinked.pop_front());
                }
            }
            Err(error) if first_failure.is_none() => first_failure = Some(error),
            Err(error) => tracing::warn!("{}", error.chain()),
        }
    }
    drop(unlinked);
    first_failure.map_or(Ok(()), Err)
}

/// The directory of a number below `root`.
pub(crate) fn of_number(root: &Path, number: &str) -> PathBuf {
    member(root, DIR_PREFIX, number.as_bytes())
}

/// The directories that killed processes have left below `root`. Changes nothing; what is in
/// use is not among them. Blocking.
pub(crate) fn stale(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in list_dir_if_there(root)? {
        let name = entry?.file_name().into_vec();
        let Some(suffix) = name.strip_prefix(DIR_PREFIX.as_bytes()) else {
            continue;
        };
        let dir = member(root, DIR_PREFIX, suffix);
        let file = member(root, LOCK_PREFIX, suffix);
        let is_free = match staging_lock::is_free(&file) {
            // Nobody can have locked what is no file.
            Err(_) if file.symlink_metadata().is_ok_and(|status| !status.is_file()) => None,
            looked => looked?,
        };
        // Its owner removes the directory first, then the lock file.
        if is_free != Some(false) && dir.symlink_metadata().is_ok() {
            found.push(dir);
        }
    }
    found.sort();
    Ok(found)
}

/// The unlinked lock if there was something to recover, `None` if it is in use.
fn recover_one(
    root: &Path,
    suffix: &[u8],
    companion: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Option<StagingLock>> {
    let (file, dir) = (
        member(root, LOCK_PREFIX, suffix),
        member(root, DIR_PREFIX, suffix),
    );
    if is_of_go(suffix) && dir.symlink_metadata().is_err() && is_new(&file) {
        return Ok(None);
    }
    let Some(lock) = StagingLock::try_acquire(&file)? else {
        return Ok(None);
    };
    if let Ok(number) = std::str::from_utf8(suffix) {
        companion(number)?;
    }
    tree::remove_tree(&dir)
        .at("removing", &dir)
        .context(|| "recovering a temporary directory of a killed process".to_owned())?;
    lock.unlink()?;
    tracing::debug!("recovered {}", dir.display());
    Ok(Some(lock))
}

/// Whether the Go library has drawn a number.
fn is_of_go(suffix: &[u8]) -> bool {
    let number = std::str::from_utf8(suffix)
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    !suffix.starts_with(b"0") && number.is_some_and(|number| number >= LEAST_OF_GO)
}

/// Whether a file was made a moment ago. The clock of its file system may be a little ahead.
fn is_new(file: &Path) -> bool {
    let made = file.symlink_metadata().and_then(|status| status.modified());
    let distance = |made: SystemTime| made.elapsed().unwrap_or_else(|ahead| ahead.duration());
    // One that cannot be looked at is left alone as well.
    made.map_or(true, |made| distance(made) < MOMENT)
}

fn member(root: &Path, prefix: &str, suffix: &[u8]) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(OsStr::from_bytes(suffix));
    root.join(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::peer::Peer;
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    fn names(dir: &Path) -> BTreeSet<String> {
        let entries = fs::read_dir(dir).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn layout_and_life() {
        fn assert_shareable<T: Send + Sync + 'static>(_: &T) {}
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("tempdirs");
        let mut temp = TempDir::create(&root).unwrap();
        assert_shareable(&temp);
        let suffix = temp
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .strip_prefix("temp-dir-")
            .unwrap()
            .to_owned();
        assert!(
            suffix.starts_with('0') && suffix.parse::<u32>().is_ok(),
            "{suffix}"
        );
        assert_eq!(
            names(&root),
            [format!("lock-{suffix}"), format!("temp-dir-{suffix}")].into()
        );
        assert_eq!((mode(&root), mode(temp.path())), (0o700, 0o700));
        assert_eq!(mode(&root.join(format!("lock-{suffix}"))), 0o600);

        let layer = tmp.path().join("layer");
        fs::create_dir(&layer).unwrap();
        fs::write(layer.join("file"), "").unwrap();
        assert!(temp.stage_deletion(&layer).unwrap());
        assert!(!temp.stage_deletion(&layer).unwrap(), "it is gone");
        assert!(!temp.stage_deletion(&tmp.path().join("no/parent")).unwrap());
        assert_eq!(
            temp.stage_deletion(Path::new("..")).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
        let addition = temp.addition();
        assert_eq!(addition, temp.path().join("3-addition"));
        fs::write(&addition, "").unwrap();
        assert_eq!(
            names(temp.path()),
            ["0-layer".to_owned(), "3-addition".to_owned()].into()
        );
        fs::rename(&addition, tmp.path().join("committed")).unwrap();

        temp.remove().unwrap();
        assert!(names(&root).is_empty());
        drop(TempDir::create(&root).unwrap());
        assert!(names(&root).is_empty());
    }

    #[test]
    fn what_goes_with_a_directory_goes_first() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("tempdirs");
        let other = tmp.path().join("other");
        let fill = |temp: &mut TempDir| {
            fs::write(&other, "").unwrap();
            let (dir, other) = (temp.path().to_owned(), other.clone());
            temp.set_companion(move || {
                assert!(dir.exists());
                std::fs::remove_file(&other).at("removing", &other)
            });
        };
        let mut temp = TempDir::create(&root).unwrap();
        fill(&mut temp);
        drop(temp);
        assert!(!other.exists() && names(&root).is_empty());

        let mut temp = TempDir::create(&root).unwrap();
        fill(&mut temp);
        temp.forget_companion();
        drop(temp);
        assert!(other.exists() && names(&root).is_empty());

        // What cannot be removed now is removed by the next recovery.
        let mut temp = TempDir::create(&root).unwrap();
        let number = temp.number().to_owned();
        fill(&mut temp);
        fs::remove_file(&other).unwrap();
        temp.remove().unwrap_err();
        assert_eq!(names(&root).len(), 2);
        let mut seen = Vec::new();
        let error = recover_with(&root, &mut |number| {
            seen.push(number.to_owned());
            Err(ErrorKind::Io.err("no"))
        });
        assert_eq!(error.unwrap_err().chain(), "no");
        assert_eq!((seen, names(&root).len()), (vec![number], 2));
        recover(&root).unwrap();
        assert!(names(&root).is_empty());
    }

    #[test]
    fn what_is_stale_is_told_of_and_stays() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(stale(&tmp.path().join("missing")).unwrap().is_empty());
        let root = tmp.path().join("tempdirs");
        let temp = TempDir::create(&root).unwrap();
        for name in ["temp-dir-1", "temp-dir-2", "other"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        for name in ["lock-2", "lock-3"] {
            fs::write(root.join(name), "").unwrap();
        }
        let before = names(&root);
        let found = stale(&root).unwrap();
        assert_eq!(found, [root.join("temp-dir-1"), root.join("temp-dir-2")]);
        assert_eq!(names(&root), before);
        drop(temp);
        recover(&root).unwrap();
        assert!(stale(&root).unwrap().is_empty());
    }

    #[test]
    fn recovery_removes_what_is_not_locked_and_nothing_else() {
        let Some(mut peer) = Peer::start() else { return };
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().join("tmp");
        recover(&root).unwrap();
        assert!(!root.exists());

        let ours = TempDir::create(&root).unwrap();
        fs::write(ours.path().join("0-addition"), "").unwrap();
        let make = |n: u32| {
            fs::create_dir(root.join(format!("temp-dir-{n}"))).unwrap();
            fs::write(root.join(format!("temp-dir-{n}/0-layer")), "").unwrap();
        };
        // Another process is at work in 1; 2 was left by a killed one; 3 and 4 are halves; the rest is not ours.
        make(1);
        assert!(peer.try_exclusive(&root.join("lock-1")));
        make(2);
        fs::write(root.join("lock-2"), "").unwrap();
        make(3);
        fs::write(root.join("lock-4"), "").unwrap();
        fs::write(root.join("other"), "").unwrap();
        recover(&root).unwrap();

        let our_name = ours.path().file_name().unwrap().to_str().unwrap().to_owned();
        let our_lock = our_name.replace("temp-dir-", "lock-");
        let left = [
            our_name,
            our_lock,
            "lock-1".into(),
            "temp-dir-1".into(),
            "other".into(),
        ];
        assert_eq!(names(&root), left.into());
        assert!(ours.path().join("0-addition").exists());
        assert!(root.join("temp-dir-1/0-layer").exists());

        drop(peer);
        ours.remove().unwrap();
        recover(&root).unwrap();
        assert_eq!(names(&root), ["other".to_owned()].into());
    }

    /// The Go library locks the file a moment after it has created it, and does not see whether it still has its name.
    #[test]
    fn a_lock_file_that_go_may_be_about_to_lock_stays() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let make = |number: &str| fs::File::create(root.join(format!("lock-{number}"))).unwrap();
        let fresh = make("1452287245");
        // With its directory it has been locked; others are not of the Go library, or not of this moment.
        make("1452287246");
        fs::create_dir(root.join("temp-dir-1452287246")).unwrap();
        make("01452287247");
        make("name");
        let old = SystemTime::now() - MOMENT;
        make("1452287248").set_modified(old).unwrap();
        recover(root).unwrap();
        assert_eq!(names(root), ["lock-1452287245".to_owned()].into());
        fresh.set_modified(old).unwrap();
        recover(root).unwrap();
        assert!(names(root).is_empty());
    }

    /// A server may have another clock, and a clock may be set back.
    #[test]
    fn a_lock_file_from_the_future_stays_for_no_longer_than_others() {
        let tmp = tempfile::tempdir().unwrap();
        let made = |number: u32, ahead: Duration| {
            let file = fs::File::create(tmp.path().join(format!("lock-{number}"))).unwrap();
            file.set_modified(SystemTime::now() + ahead).unwrap();
        };
        // What is ahead by less than a moment when it is looked at.
        made(1_452_287_245, MOMENT - Duration::from_millis(1));
        made(1_452_287_246, Duration::from_secs(3600));
        made(1_452_287_247, Duration::from_secs(1 << 32));
        recover(tmp.path()).unwrap();
        assert_eq!(names(tmp.path()), ["lock-1452287245".to_owned()].into());
    }

    #[test]
    fn a_recovery_keeps_few_files_open() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path().canonicalize().unwrap();
        let count: u32 = 1000;
        for number in 0..count {
            let number = LEAST_OF_GO + number;
            fs::write(root.join(format!("lock-{number}")), "").unwrap();
            fs::create_dir(root.join(format!("temp-dir-{number}"))).unwrap();
        }
        let most = Cell::new(0);
        let recovered = recover_with(&root, &mut |_number| {
            let open = fs::read_dir("/proc/self/fd").unwrap().filter(|entry| {
                let leads = fs::read_link(entry.as_ref().unwrap().path());
                leads.is_ok_and(|leads| leads.starts_with(&root))
            });
            most.set(most.get().max(open.count()));
            Ok(())
        });
        recovered.unwrap();
        assert!((1..=MAX_UNLINKED + 2).contains(&most.get()), "{most:?}");
        assert!(names(&root).is_empty());
    }

    #[test]
    fn what_is_no_lock_file_is_locked_by_nobody() {
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let others: [fn(&Path); 4] = [
            |path| fs::create_dir(path).unwrap(),
            |path| std::os::unix::fs::symlink("elsewhere", path).unwrap(),
            |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            |path| rustix::fs::mkfifoat(rustix::fs::CWD, path, rustix::fs::Mode::RWXU).unwrap(),
        ];
        for (number, other) in others.into_iter().enumerate() {
            other(&root.join(format!("lock-{number}")));
            fs::create_dir(root.join(format!("temp-dir-{number}"))).unwrap();
        }
        let dirs = [0, 1, 2, 3].map(|number| root.join(format!("temp-dir-{number}")));
        assert_eq!(stale(root).unwrap(), dirs);
        // A pipe can be locked, and is not waited for.
        recover(root).unwrap_err();
        assert!(!dirs[3].exists() && dirs[0].exists());
    }

    #[test]
    fn one_that_cannot_be_recovered_does_not_stop_the_others() {
        let tmp = tempfile::tempdir().unwrap();
        // No lock file can be opened in place of a directory.
        fs::create_dir(tmp.path().join("lock-1")).unwrap();
        fs::create_dir(tmp.path().join("temp-dir-1")).unwrap();
        fs::create_dir(tmp.path().join("temp-dir-2")).unwrap();
        let error = recover(tmp.path()).unwrap_err();
        assert_eq!(error.path(), Some(&*tmp.path().join("lock-1")));
        assert_eq!(
            names(tmp.path()),
            ["lock-1".to_owned(), "temp-dir-1".to_owned()].into()
        );
    }

    /// Creators and recoverers side by side: no directory may vanish under its owner, and nothing may be left.
    #[test]
    fn recovery_never_takes_a_directory_from_its_owner() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let tmp = tempfile::tempdir().unwrap();
        let root = tmp.path();
        let at_work = AtomicUsize::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut temp = TempDir::create(root).unwrap();
                        let file = temp.addition();
                        fs::write(&file, "x").unwrap();
                        assert!(temp.stage_deletion(&file).unwrap());
                        temp.remove().unwrap();
                    }
                    at_work.fetch_sub(1, Ordering::SeqCst);
                });
            }
            for _ in 0..2 {
                scope.spawn(|| {
                    while at_work.load(Ordering::SeqCst) > 0 {
                        recover(root).unwrap();
                    }
                });
            }
        });
        recover(root).unwrap();
        assert!(names(root).is_empty());
    }
}
