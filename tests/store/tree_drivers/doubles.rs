//! Drivers that are no part of the library, good ones and bad ones.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use graphroot::TreeDriver;
use rustix::fs::CWD;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_remount, unmount};

/// Copies trees with `cp`.
#[derive(Debug)]
pub struct Copies;

fn cp(arguments: &[&str], source: &Path, path: &Path) -> io::Result<()> {
    let mut cp = Command::new("cp");
    cp.env("LC_ALL", "C").args(arguments);
    cp.args(["--no-target-directory", "--"]);
    let done = cp.arg(source).arg(path).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&done.stderr).into_owned(),
        )),
    }
}

/// Leaves to the store what has paths that are too long for `cp`.
fn cp_or_leave(arguments: &[&str], source: &Path, path: &Path) -> io::Result<()> {
    cp(arguments, source, path).map_err(|error| match error.to_string() {
        said if said.contains("File name too long") => io::ErrorKind::Unsupported.into(),
        _ => error,
    })
}

impl TreeDriver for Copies {
    fn name(&self) -> &'static str {
        "copies"
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        cp_or_leave(&["--archive", "--reflink=auto"], source, path)
    }
}

/// Leaves copies to the store.
#[derive(Debug)]
pub struct Plain;

impl TreeDriver for Plain {
    fn name(&self) -> &'static str {
        "plain"
    }

    fn clone_tree(&self, _source: &Path, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Has the trees in a directory elsewhere and mounts them, as volumes are. The directory at a tree's path has a file with the
/// volume's number, below the mount.
#[derive(Debug)]
pub struct Mounted {
    pub volumes: PathBuf,
    /// They are file systems in memory, of which each can have a limit.
    pub in_memory: bool,
}

impl Mounted {
    const NUMBER: &str = "volume";

    /// The volume of the tree at `path`, which is not attached.
    fn volume(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        match fs::read_to_string(path.join(Self::NUMBER)) {
            Ok(number) if number.is_empty() => Ok(None),
            Ok(number) => Ok(Some(self.volumes.join(number))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_attached(&self, path: &Path) -> io::Result<bool> {
        let above = path.parent().unwrap();
        let mount_of = |path: &Path| -> io::Result<u64> {
            let flags = rustix::fs::AtFlags::empty();
            let stat = rustix::fs::statx(CWD, path, flags, rustix::fs::StatxFlags::MNT_ID)?;
            Ok(stat.stx_mnt_id)
        };
        match mount_of(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            found => Ok(found? != mount_of(above)?),
        }
    }

    /// Makes a volume, and the directory at `path` that stands for it; returns the volume.
    fn begin(&self, path: &Path) -> io::Result<PathBuf> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        fs::create_dir_all(&self.volumes)?;
        fs::create_dir(path)?;
        fs::write(path.join(Self::NUMBER), &number)?;
        let volume = self.volumes.join(number);
        fs::create_dir(&volume)?;
        if self.in_memory {
            mount("volume", &volume, "tmpfs", MountFlags::empty(), c"mode=0755")?;
        }
        Ok(volume)
    }
}

impl TreeDriver for Mounted {
    fn name(&self) -> &'static str {
        "mounted"
    }

    fn probe(&self, dir: &Path) -> io::Result<()> {
        match self.volumes.starts_with(dir) {
            true => Err(io::Error::other("the volumes are in the graph root")),
            false => Ok(()),
        }
    }

    fn create_tree(&self, path: &Path) -> io::Result<()> {
        self.begin(path).map(drop)
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        cp_or_leave(&["--archive"], source, &self.begin(path)?)
    }

    fn delete_tree(&self, path: &Path) -> io::Result<()> {
        match self.volume(path)? {
            Some(volume) if volume.exists() => {
                if self.in_memory {
                    let _unmounted = unmount(&volume, UnmountFlags::DETACH);
                }
                fs::remove_dir_all(volume)
            }
            _ => Ok(()),
        }
    }

    fn attach_tree(&self, path: &Path) -> io::Result<()> {
        if self.is_attached(path)? {
            return Ok(());
        }
        match self.volume(path)? {
            Some(volume) => Ok(mount_bind(volume, path)?),
            None => Err(io::Error::other("no volume")),
        }
    }

    fn detach_tree(&self, path: &Path) -> io::Result<()> {
        while self.is_attached(path)? {
            unmount(path, UnmountFlags::DETACH)?;
        }
        Ok(())
    }

    fn limits_size(&self) -> bool {
        self.in_memory
    }

    fn limit_size(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let size = std::ffi::CString::new(format!("size={bytes}"))?;
        Ok(mount_remount(path, MountFlags::empty(), &*size)?)
    }
}

/// The directory of the volumes; unmounts them when dropped.
pub struct Volumes(tempfile::TempDir);

impl Volumes {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn count(&self) -> usize {
        fs::read_dir(self.path()).unwrap().count()
    }
}

impl Drop for Volumes {
    fn drop(&mut self) {
        for volume in fs::read_dir(self.path()).unwrap() {
            let _in_memory = unmount(volume.unwrap().path(), UnmountFlags::DETACH);
        }
    }
}

/// How a method goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Error,
    Panic,
    /// It does nothing and says that it has.
    Lie,
    /// It does half of what it should, and fails.
    Half,
    /// The process ends before the call, as by a kill.
    KilledBefore,
    /// The process ends after the call.
    KilledAfter,
}

/// As [`Plain`] or [`Copies`], but its N-th call goes wrong.
#[derive(Debug)]
pub struct Faulty {
    pub fault: Fault,
    /// How many calls are well before it.
    left: AtomicUsize,
}

impl Faulty {
    pub fn after(calls: usize, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            fault,
            left: AtomicUsize::new(calls),
        })
    }

    /// Whether the call was reached.
    pub fn has_struck(&self) -> bool {
        self.left.load(Ordering::SeqCst) == usize::MAX
    }

    fn call(&self, path: &Path, method: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let strike = |left: usize| Some(left.wrapping_sub(usize::from(left != usize::MAX)));
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, strike);
        if left != Ok(0) {
            return method();
        }
        match self.fault {
            Fault::Error => Err(io::Error::other("injected")),
            Fault::Panic => panic!("injected"),
            Fault::Lie => Ok(()),
            Fault::Half => {
                if fs::create_dir(path).is_ok() {
                    fs::write(path.join("half"), "")?;
                }
                Err(io::Error::other("injected"))
            }
            Fault::KilledBefore => std::process::exit(77),
            Fault::KilledAfter => {
                let _done = method();
                std::process::exit(77)
            }
        }
    }
}

impl TreeDriver for Faulty {
    fn name(&self) -> &'static str {
        "faulty"
    }

    fn create_tree(&self, path: &Path) -> io::Result<()> {
        self.call(path, || fs::create_dir(path))
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        self.call(path, || Copies.clone_tree(source, path))
    }

    fn delete_tree(&self, path: &Path) -> io::Result<()> {
        self.call(path, || match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        })
    }

    fn attach_tree(&self, path: &Path) -> io::Result<()> {
        self.call(path, || Ok(()))
    }

    fn detach_tree(&self, path: &Path) -> io::Result<()> {
        self.call(path, || Ok(()))
    }

    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        self.call(path, || Ok(()))
    }
}

/// How [`Broken`] clones and deletes.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// Hard links to the files of the source.
    Links,
    /// A symbolic link to the source.
    SymbolicLink,
    /// Without times and owners.
    WithoutAttributes,
    /// Hard links become files.
    WithoutLinks,
    /// A clone of nothing is an empty tree.
    OfNothing,
    /// Deleting what is not there is an error.
    DeletesOnce,
    Panics,
    /// Gives `cp` whole paths, which can be too long.
    WholePaths,
    /// Clones what the path had when it was cloned first.
    Cached,
    /// Hard links to large files of the source.
    LinksLarge,
    /// Without the ACLs that new files get.
    WithoutDefaultLists,
    /// Without times before 1970.
    WithoutOldTimes,
    /// A thousand entries of each directory.
    FirstThousand,
    /// Hard links to symbolic links become symbolic links.
    SeparateSymbolicLinks,
    /// Gives modes to what links lead to.
    FollowsForModes,
    /// Empties what links lead to.
    FollowsToDelete,
    /// Has the source in a variable of the process.
    Shared,
    /// Looks for the source in its own graph root.
    ByName,
    /// Leaves the source open.
    LeavesOpen,
}

/// Everything in a tree, directories before what is in them.
fn walk(tree: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![tree.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if path.symlink_metadata()?.is_dir() {
            for entry in fs::read_dir(path)? {
                found.push(entry?.path());
            }
        }
    }
    Ok(found)
}

impl Way {
    /// Spoils a clone.
    fn spoil(self, source: &Path, clone: &Path) -> io::Result<()> {
        for path in walk(clone)? {
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            match self {
                Self::LinksLarge if meta.is_file() && meta.len() > 1 << 20 => {
                    fs::remove_file(&path)?;
                    fs::hard_link(source.join(path.strip_prefix(clone).unwrap()), &path)?;
                }
                Self::WithoutDefaultLists if meta.is_dir() => {
                    let _without = rustix::fs::removexattr(&path, "system.posix_acl_default");
                }
                Self::WithoutOldTimes if meta.mtime() < 0 => {
                    let zero = rustix::fs::Timespec {
                        tv_sec: 0,
                        tv_nsec: 0,
                    };
                    let times = rustix::fs::Timestamps {
                        last_access: zero,
                        last_modification: zero,
                    };
                    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
                    rustix::fs::utimensat(CWD, &path, &times, flags)?;
                }
                Self::FirstThousand if meta.is_dir() => {
                    for entry in fs::read_dir(&path)?.skip(1000) {
                        fs::remove_file(entry?.path())?;
                    }
                }
                Self::SeparateSymbolicLinks if meta.is_symlink() && meta.nlink() > 1 => {
                    let target = fs::read_link(&path)?;
                    fs::remove_file(&path)?;
                    std::os::unix::fs::symlink(target, &path)?;
                }
                Self::FollowsForModes => {
                    let _dangling = fs::set_permissions(&path, meta.permissions());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes everything in a directory, and in those that links in it lead to.
fn empty(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.is_dir() {
            empty(&path)?;
        }
        let _removed = fs::remove_file(&path).or_else(|_directory| fs::remove_dir(&path));
    }
    Ok(())
}

/// Breaks a promise.
#[derive(Debug)]
pub struct Broken(pub Way);

impl TreeDriver for Broken {
    fn name(&self) -> &'static str {
        "broken"
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        match self.0 {
            Way::Links => cp(&["--archive", "--link"], source, path),
            Way::SymbolicLink => std::os::unix::fs::symlink(source, path),
            Way::WithoutAttributes => cp(
                &["--recursive", "--no-dereference", "--preserve=links"],
                source,
                path,
            ),
            Way::WithoutLinks => cp(&["--archive", "--no-preserve=links"], source, path),
            Way::OfNothing if !source.exists() => fs::create_dir(path),
            Way::OfNothing | Way::DeletesOnce => Copies.clone_tree(source, path),
            Way::Panics => panic!("cannot clone"),
            Way::WholePaths => cp(&["--archive"], source, path),
            Way::Cached => {
                let cache = source.ancestors().nth(3).unwrap().join("cache");
                let cached = cache.join(source.file_name().unwrap());
                if !cached.exists() {
                    fs::create_dir_all(cache)?;
                    Copies.clone_tree(source, &cached)?;
                }
                Copies.clone_tree(&cached, path)
            }
            Way::Shared => {
                static SOURCE: Mutex<Option<PathBuf>> = Mutex::new(None);
                *SOURCE.lock().unwrap() = Some(source.to_owned());
                // Takes a while.
                Command::new("true").status()?;
                let source = SOURCE.lock().unwrap().clone().unwrap();
                Copies.clone_tree(&source, path)
            }
            Way::FollowsToDelete => Copies.clone_tree(source, path),
            Way::ByName => {
                let home = path.ancestors().nth(3).unwrap();
                let source = home.join("dir").join(source.file_name().unwrap());
                Copies.clone_tree(&source, path)
            }
            Way::LeavesOpen => {
                static OPEN: Mutex<Option<fs::File>> = Mutex::new(None);
                *OPEN.lock().unwrap() = Some(fs::File::open(source)?);
                Copies.clone_tree(source, path)
            }
            way => {
                Copies.clone_tree(source, path)?;
                way.spoil(source, path)
            }
        }
    }

    fn delete_tree(&self, path: &Path) -> io::Result<()> {
        match self.0 {
            Way::DeletesOnce => fs::remove_dir_all(path),
            Way::FollowsToDelete if path.exists() => empty(path),
            _ => Ok(()),
        }
    }
}

/// Cannot detach or delete one tree.
#[derive(Debug, Default)]
pub struct Stuck {
    /// The name of its directory, and the error.
    pub tree: Mutex<Option<(String, rustix::io::Errno)>>,
}

impl TreeDriver for Stuck {
    fn name(&self) -> &'static str {
        "stuck"
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        Copies.clone_tree(source, path)
    }

    fn detach_tree(&self, path: &Path) -> io::Result<()> {
        match &*self.tree.lock().unwrap() {
            Some((name, error)) if path.ends_with(name) => Err((*error).into()),
            _ => Ok(()),
        }
    }
}

/// Makes a link to the source of a clone before it leaves the copy to the store.
#[derive(Debug, Default)]
pub struct Linking {
    /// The links for which a method was called.
    pub touched: Mutex<Vec<PathBuf>>,
}

impl Linking {
    fn look(&self, path: &Path) -> io::Result<()> {
        if path.is_symlink() {
            self.touched.lock().unwrap().push(path.to_owned());
        }
        Ok(())
    }
}

impl TreeDriver for Linking {
    fn name(&self) -> &'static str {
        "linking"
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        std::os::unix::fs::symlink(source, path)?;
        Err(io::ErrorKind::Unsupported.into())
    }

    fn delete_tree(&self, path: &Path) -> io::Result<()> {
        self.look(path)
    }

    fn detach_tree(&self, path: &Path) -> io::Result<()> {
        self.look(path)
    }
}

/// What a panic carries; it panics again.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("dropped");
    }
}

/// Panics with more than a message.
#[derive(Debug)]
pub struct Bombs {
    pub has_name: bool,
}

impl TreeDriver for Bombs {
    fn name(&self) -> &'static str {
        match self.has_name {
            true => "bombs",
            false => std::panic::panic_any(Bomb),
        }
    }

    fn clone_tree(&self, _source: &Path, _path: &Path) -> io::Result<()> {
        std::panic::panic_any(Bomb)
    }
}

/// Knows its trees, by their inodes, only as long as the object lives.
#[derive(Debug, Default)]
pub struct InMemory(Mutex<HashSet<u64>>);

impl InMemory {
    fn has_made(&self, path: &Path) -> io::Result<()> {
        self.0.lock().unwrap().insert(path.metadata()?.ino());
        Ok(())
    }
}

impl TreeDriver for InMemory {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn create_tree(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        self.has_made(path)
    }

    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()> {
        if !self.0.lock().unwrap().contains(&source.metadata()?.ino()) {
            return Err(io::Error::other("not one of my trees"));
        }
        Copies.clone_tree(source, path)?;
        self.has_made(path)
    }
}
