//! Removing a large tree on several processors at once.
//!
//! It removes what can be removed at the first try, gives up on every directory in which something cannot (a mount, an
//! immutable file, a missing permission), and reports nothing. The caller removes the rest afterwards, and so finds the
//! reason.
//!
//! All threads share one stack of directories that are still to be emptied. A directory is open from the moment it is
//! listed until its last subdirectory is removed; since the newest is taken first, the number of open directories is
//! about the depth of the tree times the number of threads. A crash leaves part of the tree.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use rustix::fs::{AtFlags, FileType, RawDir};
use rustix::io::Errno;

use crate::sys::processors::processors;
use crate::sys::tree::dir::{is_dot, listing_buffer, open_on_same_mount};
use crate::sys::tree::subvolumes;

/// Entries that one thread removes before it starts another: fewer take less time than the start of a thread.
const ALONE: usize = 256;

/// More threads only wait for each other in the kernel.
const MAX_THREADS: usize = 4;

/// Subdirectories of one directory that are noted; the others are left.
const MAX_WIDE: usize = 4096;

/// Deeper directories are left.
const MAX_DEEP: usize = 64;

/// A directory whose subdirectories are being removed.
struct Node {
    /// `None` for the one that holds the tree.
    above: Option<Arc<Self>>,
    name: CString,
    dir: OwnedFd,
    depth: usize,
    /// Subdirectories that are still there.
    left: AtomicUsize,
}

/// A directory to be removed.
struct Task {
    above: Arc<Node>,
    name: CString,
}

struct State {
    tasks: Vec<Task>,
    /// Threads that work on a task, and may add tasks.
    busy: usize,
    helpers: usize,
}

struct Work {
    state: Mutex<State>,
    changed: Condvar,
    removed: AtomicUsize,
    max_helpers: usize,
    may_have_subvolumes: bool,
}

/// Removes what can be removed of directory `name` in `parent`.
pub(super) fn remove(parent: BorrowedFd<'_>, name: &CStr) {
    let processors = processors();
    if processors > 1 {
        remove_with(parent, name, processors.min(MAX_THREADS) - 1);
    }
}

fn remove_with(parent: BorrowedFd<'_>, name: &CStr, max_helpers: usize) {
    let Ok(dir) = parent.try_clone_to_owned() else {
        return;
    };
    let holder = Arc::new(Node {
        above: None,
        name: CString::default(),
        dir,
        depth: 0,
        left: AtomicUsize::new(1),
    });
    let first = Task {
        above: holder,
        name: name.to_owned(),
    };
    let work = Work {
        state: Mutex::new(State {
            tasks: vec![first],
            busy: 0,
            helpers: 0,
        }),
        changed: Condvar::new(),
        removed: AtomicUsize::new(0),
        max_helpers,
        may_have_subvolumes: subvolumes::may_have(parent),
    };
    std::thread::scope(|scope| work.serve(scope));
}

impl Work {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until the stack is empty and no thread can add to it.
    fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut buffer = listing_buffer();
        let mut found = Vec::new();
        let mut state = self.state();
        loop {
            if let Some(task) = state.tasks.pop() {
                state.busy += 1;
                let help = state.helpers < self.max_helpers
                    && !state.tasks.is_empty()
                    && self.removed.load(Ordering::Relaxed) >= ALONE;
                state.helpers += usize::from(help);
                drop(state);
                if help {
                    let spawned = std::thread::Builder::new()
                        .name("graphroot-remove".into())
                        .spawn_scoped(scope, || self.serve(scope));
                    if let Err(error) = spawned {
                        tracing::debug!(%error, "removing a tree on fewer threads");
                    }
                }
                self.empty(task, &mut buffer, &mut found);
                state = self.state();
                state.busy -= 1;
                let waiting = found.len();
                state.tasks.append(&mut found);
                if waiting > 0 || state.busy == 0 {
                    self.changed.notify_all();
                }
            } else if state.busy == 0 {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Unlinks the entries of a directory that are no directories, and collects the directories; if there are none, the
    /// directory is removed.
    fn empty(&self, task: Task, buffer: &mut [MaybeUninit<u8>], found: &mut Vec<Task>) {
        let Task { above, name } = task;
        let depth = above.depth + 1;
        let opened = match depth {
            ..=MAX_DEEP => open_on_same_mount(above.dir.as_fd(), &name),
            _ => Err(Errno::LOOP),
        };
        let Ok(dir) = opened else {
            return finish(above);
        };
        if self.may_have_subvolumes && subvolumes::destroy(above.dir.as_fd(), &name, &dir) {
            return finish(above);
        }
        let names = self.unlink_all(dir.as_fd(), buffer);
        let node = Arc::new(Node {
            above: Some(above),
            name,
            dir,
            depth,
            left: AtomicUsize::new(names.len().max(1)),
        });
        if names.is_empty() {
            return finish(node);
        }
        found.extend(names.into_iter().map(|name| Task {
            above: Arc::clone(&node),
            name,
        }));
    }

    fn unlink_all(&self, dir: BorrowedFd<'_>, buffer: &mut [MaybeUninit<u8>]) -> Vec<CString> {
        let mut names = Vec::new();
        let mut removed = 0;
        let mut entries = RawDir::new(dir, buffer);
        while let Some(Ok(entry)) = entries.next() {
            let name = entry.file_name();
            if is_dot(name) {
                continue;
            }
            let is_dir = entry.file_type() == FileType::Directory
                || rustix::fs::unlinkat(dir, name, AtFlags::empty()) == Err(Errno::ISDIR);
            removed += 1;
            // Many are empty.
            if is_dir && rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).is_err() {
                names.push(name.to_owned());
                if names.len() >= MAX_WIDE {
                    break;
                }
            }
        }
        self.removed.fetch_add(removed, Ordering::Relaxed);
        names
    }
}

/// Counts one subdirectory of `node` as done. After the last one the directory is removed, and counted in the one above.
fn finish(node: Arc<Node>) {
    let mut node = node;
    while node.left.fetch_sub(1, Ordering::AcqRel) == 1 {
        let Some(above) = &node.above else { return };
        // Fails where something was left behind.
        rustix::fs::unlinkat(&above.dir, &*node.name, AtFlags::REMOVEDIR).ok();
        let above = Arc::clone(above);
        node = above;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::at;
    use std::fs;
    use std::path::Path;

    /// Makes `wide` files and directories on each of `deep` levels; returns how many files there are.
    fn grow(dir: &Path, wide: usize, deep: usize) -> usize {
        fs::create_dir(dir).unwrap();
        let mut files = 0;
        for index in 0..wide {
            fs::write(dir.join(format!("file-{index}")), "x").unwrap();
            files += 1;
            if deep > 1 {
                files += grow(&dir.join(format!("dir-{index}")), wide, deep - 1);
            }
        }
        files
    }

    fn clear(dir: &Path, helpers: usize) {
        let parent = at::open_dir(dir.parent().unwrap()).unwrap();
        let name = CString::new(dir.file_name().unwrap().to_str().unwrap()).unwrap();
        remove_with(parent.as_fd(), &name, helpers);
    }

    #[test]
    fn whole_trees_go_on_any_number_of_threads() {
        for helpers in [0, 1, 3] {
            let tmp = tempfile::tempdir().unwrap();
            let (tree, beside) = (tmp.path().join("tree"), tmp.path().join("beside"));
            assert!(grow(&tree, 5, 5) > 4 * ALONE);
            grow(&beside, 2, 2);
            std::os::unix::fs::symlink(&beside, tree.join("link")).unwrap();
            clear(&tree, helpers);
            assert!(!tree.exists());
            assert_eq!(
                fs::read_dir(&beside).unwrap().count(),
                4,
                "links are not followed"
            );
        }
    }

    #[test]
    fn what_is_too_deep_or_no_directory_is_left() {
        let tmp = tempfile::tempdir().unwrap();
        let file = tmp.path().join("file");
        fs::write(&file, "").unwrap();
        clear(&file, 1);
        assert!(file.exists());
        clear(&tmp.path().join("missing"), 1);

        let mut deep = tmp.path().join("deep");
        let top = deep.clone();
        for _ in 0..MAX_DEEP + 3 {
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("file"), "").unwrap();
            deep.push("d");
        }
        clear(&top, 1);
        assert!(!top.join("file").exists());
        let mut levels = 0;
        let mut at = top.clone();
        while at.exists() {
            levels += 1;
            at.push("d");
        }
        assert_eq!(levels, MAX_DEEP + 3, "the way down to what is left");
        crate::sys::tree::remove_tree(&top).unwrap();
        assert!(!top.exists());
    }
}
