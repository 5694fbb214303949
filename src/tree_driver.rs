//! The trait for drivers that are no part of this library.

use std::fmt;
use std::fs::{DirBuilder, File};
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::DirBuilderExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// A driver of one's own: how a program makes, clones and deletes the trees that layers are.
///
/// Each layer is a directory that shows all files of the layer and of those below it. The store does everything else: it unpacks
/// into a tree, gives it its place by a rename, records it, maps owners, counts mounts, recovers what killed processes
/// have left. [`StoreOptions::tree_driver`](crate::StoreOptions::tree_driver) opens a store with such a driver. The page
/// [`tree_drivers`](crate::tree_drivers) has the promises that a driver makes, an example, and what is stable;
/// `test_util::check_tree_driver` (feature `test-util`) tests a driver for them.
///
/// What is in a tree is hostile: see there what a driver does not do with links, FIFOs, names and long paths. What says which tree
/// is which has to be on disk: other processes have objects of their own. A method must not use the store that calls it.
///
/// All methods block. They are called from finite steps on tokio's blocking pool, by several threads and processes at
/// once, but of one path a tree is never made, attached, detached or deleted by two threads at the same time; two processes may
/// attach one at the same time. `path` is absolute, in a directory that only the owner of the store may enter, unless it is a tree of
/// an additional read-only store: that may be anybody's. A panic is an error of the method.
///
/// An error is one of the call of the store, an [`ErrorKind::Io`](crate::ErrorKind::Io) that names the driver and has the
/// [`io::Error`] in its chain. What was to be made is deleted, and the store is as it was; what was to be deleted is deleted later.
pub trait TreeDriver: Send + Sync + fmt::Debug {
    /// The driver's name, 2 to 32 lower-case letters and digits, a letter first. It is also the name of its directory in the
    /// graph root and the prefix of the directories of records; those of what Podman and Go have in a graph root (`libpod`, `volumes`,
    /// `tmp` and others) are refused. It is asked for by [`StoreOptions::tree_driver`](crate::StoreOptions::tree_driver) and at each
    /// opening, and is always the same.
    fn name(&self) -> &'static str;

    /// Whether the driver works where the graph root is; `dir` is there, and is the graph root or a directory above. Nothing may be
    /// changed. The default says that it does.
    ///
    /// # Errors
    /// Why it does not work. The store is not opened then
    /// ([`ErrorKind::NotSupported`](crate::ErrorKind::NotSupported)).
    fn probe(&self, dir: &Path) -> io::Result<()> {
        let _anywhere = dir;
        Ok(())
    }

    /// Makes an empty tree at `path`, where nothing is. The store sets mode and owner of its root. The default makes a directory.
    ///
    /// # Errors
    /// What is at `path` then is deleted.
    fn create_tree(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)
    }

    /// Makes at `path`, where nothing is, a tree that has everything that the tree `source` has; the page
    /// [`tree_drivers`](crate::tree_drivers) says what that is. No file may be one of the source: what is changed in one tree
    /// does not change in the other. The source may be a tree of an additional read-only store. It does not change meanwhile, but may be deleted,
    /// which has to be an error.
    ///
    /// It is called without a lock of the store while a layer is unpacked, and with the exclusive lock of the layers while a container
    /// is created: what takes long keeps every other task and process from layers.
    ///
    /// # Errors
    /// With [`io::ErrorKind::Unsupported`] and [`io::ErrorKind::CrossesDevices`] the store copies the source itself, into a new
    /// tree of [`TreeDriver::create_tree`], by reflink where the file system has it. With any other, what is at `path`
    /// then is deleted.
    fn clone_tree(&self, source: &Path, path: &Path) -> io::Result<()>;

    /// Deletes what the tree at `path` is made of. The store removes what is still there afterwards file by file, which is all that
    /// happens by default.
    ///
    /// At `path` may be a whole tree, one that was only half made or half deleted when a process was killed, a directory that is no tree, or
    /// nothing: none of this is an error. What was attached is detached first. It is called without a lock of the store, may take long, and is called again after a failure or a kill.
    ///
    /// # Errors
    /// The tree stays where it is, hidden; the next opening of the store, and whatever else removes leftovers, calls this again.
    fn delete_tree(&self, path: &Path) -> io::Result<()> {
        let _by_the_store = path;
        Ok(())
    }

    /// Has a tree that was just cloned be on disk; without it, a power cut may leave a layer that lacks files. Called only where
    /// [`Durability`](crate::Durability) asks for it. The default syncs the whole file system; a driver whose clones are
    /// on disk when they are made does nothing.
    ///
    /// # Errors
    /// The layer is not made.
    fn sync_tree(&self, path: &Path) -> io::Result<()> {
        rustix::fs::syncfs(File::open(path)?).map_err(io::Error::from)
    }

    /// Makes the tree be seen at `path`, if it is not: for trees that are file systems of their own, which are mounted there.
    /// Called before each use of a tree, so it has to be quick where nothing is to be done. The default does nothing.
    ///
    /// The tree at a path moves by a rename of the directory at `path` after [`TreeDriver::detach_tree`]. So what says which tree it is
    /// has to be in that directory, below the mount.
    ///
    /// What is attached of an additional read-only store stays so when this store is shut down, since other stores and processes may
    /// use the same trees: the store whose trees they are detaches them.
    ///
    /// # Errors
    /// The layer cannot be used.
    fn attach_tree(&self, path: &Path) -> io::Result<()> {
        let _always_there = path;
        Ok(())
    }

    /// Undoes [`TreeDriver::attach_tree`], so that the directory at `path` can be renamed; open files may still be in the tree, and stay usable.
    /// Called also where nothing is attached, for each layer of its own when the store is shut down. The default does nothing.
    ///
    /// # Errors
    /// The layer is not made; a deletion fails, and is tried once more by the next use of the store. If that fails too, the tree stays
    /// where it is, without a record, and [`Store::garbage_collect`](crate::Store::garbage_collect) deletes it.
    fn detach_tree(&self, path: &Path) -> io::Result<()> {
        let _always_there = path;
        Ok(())
    }

    /// Whether [`TreeDriver::limit_size`] can do something. By default it cannot.
    fn limits_size(&self) -> bool {
        false
    }

    /// Limits what a container may write into the tree at `path`, a new clone or an empty tree, to `bytes` (`--storage-opt size=`).
    /// A container at its limit gets `ENOSPC` or `EDQUOT`. Called only if [`TreeDriver::limits_size`] says so.
    ///
    /// # Errors
    /// The container is not made.
    fn limit_size(&self, path: &Path, bytes: u64) -> io::Result<()> {
        let _no_limits = (path, bytes);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// What the driver reports on itself, shown with the status of the store in this order. By default nothing.
    fn status(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}

/// Runs a method of a driver; a panic is an error.
pub(crate) fn caught<T>(method: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(method)).unwrap_or_else(|panic| {
        // What a panic carries may panic itself when it is dropped.
        let panic = ManuallyDrop::new(panic);
        let said = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned());
        let said = said.unwrap_or_else(|| "without a message".to_owned());
        Err(io::Error::other(format!("the driver panicked: {said}")))
    })
}
