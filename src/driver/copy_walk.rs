//! Walking through a tree that is copied, on several threads.
//!
//! All threads share one stack of directories that are still to be copied. A directory is open from the moment it is listed
//! until its last subdirectory is complete; since the newest is taken first, the number of open directories is about the
//! depth of the tree times the number of threads. What is deeper than [`MAX_DEEP`] is copied by one thread, which holds a
//! bounded number of directories open. A crash leaves part of the copy.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Scope;

use rustix::fs::{AtFlags, Mode, Stat};
use rustix::io::Errno;

use crate::driver::copy_entry::{Failure, Files, Pair, Result, Rules, Worker, owner, parent_length};
use crate::error::{Error, Result as CrateResult};
use crate::sys::at;
use crate::sys::processors;
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::tree::{self, DIR_FLAGS, DirStack};

/// Entries that one thread copies before it starts another: fewer take less time than the start of a thread.
const ALONE: usize = 64;

/// More threads only wait for each other in the kernel.
const MAX_THREADS: usize = 8;

/// Deeper directories are copied by the thread that has found them.
const MAX_DEEP: usize = 32;

/// Bytes of names that one thread takes of a directory at a time.
const MAX_NAMES: usize = 4096;

/// Places in which contents are looked for.
const MAX_CONTENTS: usize = 32;

/// Entries after which the progress is told.
const TOLD_EVERY: usize = 1000;

/// A directory whose copy is not complete.
struct Node {
    /// `None` for the root.
    above: Option<Arc<Self>>,
    /// From the root.
    path: Vec<u8>,
    stat: Stat,
    source: OwnedFd,
    target: OwnedFd,
    depth: usize,
    /// Lists of names and subdirectories that are not copied yet.
    left: AtomicUsize,
}

/// Work for one thread.
enum Task {
    /// A subdirectory.
    Directory {
        above: Arc<Node>,
        name: CString,
        stat: Stat,
    },
    /// Names in a directory, each with a zero byte at its end.
    Names(Arc<Node>, Vec<u8>),
}

#[derive(Default)]
struct State {
    tasks: Vec<Task>,
    /// Threads that work on a task, and may add tasks.
    busy: usize,
    helpers: usize,
    /// The first failure, and where.
    failed: Option<(Vec<u8>, Failure)>,
    /// Of threads that have ended.
    sync_tracker: SyncTracker,
}

struct Walk<'a> {
    rules: &'a Rules<'a>,
    to: BorrowedFd<'a>,
    durable: bool,
    state: Mutex<State>,
    changed: Condvar,
    copied: AtomicUsize,
    max_helpers: usize,
}

/// Copies the tree below `from` into the empty directory `to`.
pub(super) fn run(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    rules: &Rules<'_>,
    durable: bool,
) -> CrateResult<()> {
    run_on(from, to, rules, durable, processors().min(MAX_THREADS))
}

fn run_on(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    rules: &Rules<'_>,
    durable: bool,
    threads: usize,
) -> CrateResult<()> {
    let walk = Walk {
        rules,
        to,
        durable,
        state: Mutex::new(State {
            sync_tracker: SyncTracker::new(durable),
            ..State::default()
        }),
        changed: Condvar::new(),
        copied: AtomicUsize::new(0),
        max_helpers: threads.saturating_sub(1),
    };
    let root = Node::root(from, to).map_err(|error| Error::io("copying \"/\"", error))?;
    walk.state().tasks.push(Task::Names(Arc::new(root), Vec::new()));
    std::thread::scope(|scope| walk.serve(scope));
    let state = walk.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, failure)) = state.failed {
        let path = String::from_utf8_lossy(&path).into_owned();
        return Err(failure.into_error(format!("copying \"/{path}\"")));
    }
    state.sync_tracker.commit(to)
}

impl Node {
    fn root(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<Self> {
        let open = |dir: BorrowedFd<'_>| rustix::fs::openat(dir, c".", DIR_FLAGS, Mode::empty());
        Ok(Self {
            above: None,
            path: Vec::new(),
            stat: rustix::fs::fstat(from)?,
            source: open(from)?,
            target: open(to)?,
            depth: 0,
            left: AtomicUsize::new(1),
        })
    }

    fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + name.len() + 1);
        path.extend_from_slice(&self.path);
        push(&mut path, name);
        path
    }
}

/// Adds a name to a path.
fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// The last name of a path.
fn base_of(path: &[u8]) -> Result<CString> {
    let base = path.get(parent_length(path)..).unwrap_or_default();
    Ok(CString::new(base.strip_prefix(b"/").unwrap_or(base)).map_err(|_zero| Errno::INVAL)?)
}

impl Walk<'_> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until the stack is empty and no thread can add to it, or something has failed.
    fn serve<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) {
        let mut worker = Worker::new(self.rules, self.to, self.durable);
        let mut buffer = tree::listing_buffer();
        let mut found = Vec::new();
        let mut state = self.state();
        loop {
            if state.failed.is_some() {
                state.tasks.clear();
            }
            if let Some(task) = state.tasks.pop() {
                state.busy += 1;
                let help = state.helpers < self.max_helpers
                    && !state.tasks.is_empty()
                    && self.copied.load(Ordering::Relaxed) >= ALONE;
                state.helpers += usize::from(help);
                drop(state);
                if help {
                    let spawned = std::thread::Builder::new()
                        .name("graphroot-copy".into())
                        .spawn_scoped(scope, || self.serve(scope));
                    if let Err(error) = spawned {
                        tracing::debug!(%error, "copying a tree on fewer threads");
                    }
                }
                let mut at = Vec::new();
                let done = self.work(&mut worker, task, &mut buffer, &mut found, &mut at);
                state = self.state();
                state.busy -= 1;
                if let Err(failure) = done
                    && state.failed.is_none()
                {
                    state.failed = Some((at, failure));
                }
                let waiting = found.len();
                state.tasks.append(&mut found);
                if waiting > 0 || state.busy == 0 || state.failed.is_some() {
                    self.changed.notify_all();
                }
            } else if state.busy == 0 {
                state.sync_tracker.add(worker.sync_tracker);
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Does one task, and collects what has to be done further down. `at` is the path of what failed.
    fn work(
        &self,
        worker: &mut Worker<'_>,
        task: Task,
        buffer: &mut [MaybeUninit<u8>],
        found: &mut Vec<Task>,
        at: &mut Vec<u8>,
    ) -> Result<()> {
        let (node, mut names) = match task {
            Task::Directory { above, name, stat } => {
                *at = above.path_of(name.to_bytes());
                let (source, target) = self.make_dir(above.source.as_fd(), above.target.as_fd(), &name)?;
                let node = Node {
                    path: at.clone(),
                    stat,
                    source,
                    target,
                    depth: above.depth + 1,
                    left: AtomicUsize::new(1),
                    above: Some(above),
                };
                (Arc::new(node), Vec::new())
            }
            Task::Names(node, names) => (node, names),
        };
        at.clone_from(&node.path);
        if names.is_empty() {
            names = tree::list_names(node.source.as_fd(), buffer)?;
        }
        if names.len() > MAX_NAMES {
            let end = names.iter().skip(MAX_NAMES).position(|byte| *byte == 0);
            let rest = names.split_off(MAX_NAMES + end.map_or(0, |end| end + 1));
            if !rest.is_empty() {
                node.left.fetch_add(1, Ordering::Relaxed);
                found.push(Task::Names(Arc::clone(&node), rest));
            }
        }
        let contents = self.contents(&node.path);
        let dirs = Pair {
            source: node.source.as_fd(),
            target: node.target.as_fd(),
            contents: &contents,
        };
        while let Some(name) = tree::last_name(&names) {
            *at = node.path_of(name.to_bytes());
            let stat = rustix::fs::statat(dirs.source, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if !tree::is_directory(&stat) {
                worker.entry(&dirs, name, at, &stat)?;
            } else if node.depth < MAX_DEEP {
                node.left.fetch_add(1, Ordering::Relaxed);
                found.push(Task::Directory {
                    above: Arc::clone(&node),
                    name: name.to_owned(),
                    stat,
                });
            } else {
                self.alone(worker, &dirs, name, stat, buffer, at)?;
            }
            tree::pop_name(&mut names);
            self.count();
        }
        drop(contents);
        self.finish(worker, node, at)
    }

    /// The directory at `path` in the places in which contents are looked for.
    fn contents(&self, path: &[u8]) -> Vec<OwnedFd> {
        let mut dirs = Vec::new();
        let path = if path.is_empty() { b"." } else { path };
        for place in self.rules.contents.iter().take(MAX_CONTENTS) {
            // Where it cannot be opened, contents are read from the tree itself.
            dirs.extend(at::open_dir_without_links(place.as_fd(), path).ok().flatten());
        }
        dirs
    }

    /// Copies the directory `name` with everything below it.
    fn alone(
        &self,
        worker: &mut Worker<'_>,
        dirs: &Pair<'_>,
        name: &CStr,
        stat: Stat,
        buffer: &mut [MaybeUninit<u8>],
        path: &mut Vec<u8>,
    ) -> Result<()> {
        let (below, copy) = self.make_dir(dirs.source, dirs.target, name)?;
        let (mut source, mut target) = (DirStack::new(below), DirStack::new(copy));
        let mut names = tree::list_names(source.current()?, buffer)?;
        let mut stat = stat;
        let mut above: Vec<(Vec<u8>, Stat)> = Vec::new();
        loop {
            let Some(name) = tree::last_name(&names) else {
                // The directory is complete: nothing changes its times any more.
                let Some(outer) = above.pop() else {
                    worker.finish(source.current()?, target.current()?, &stat, None)?;
                    return self.drop_unchanged(dirs.target, name, &stat);
                };
                let (Some(left), Some(copy)) = (source.leave_open()?, target.leave_open()?) else {
                    return Err(Errno::BADF.into());
                };
                worker.finish(left.as_fd(), copy.as_fd(), &stat, None)?;
                drop(copy);
                self.drop_unchanged(target.current()?, &base_of(path)?, &stat)?;
                path.truncate(parent_length(path));
                (names, stat) = outer;
                continue;
            };
            push(path, name.to_bytes());
            let inner = rustix::fs::statat(source.current()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if tree::is_directory(&inner) {
                let (below, copy) = self.make_dir(source.current()?, target.current()?, name)?;
                source.enter(below)?;
                target.enter(copy)?;
                tree::pop_name(&mut names);
                let listed = tree::list_names(source.current()?, buffer)?;
                above.push((
                    std::mem::replace(&mut names, listed),
                    std::mem::replace(&mut stat, inner),
                ));
            } else {
                let dirs = Pair {
                    source: source.current()?,
                    target: target.current()?,
                    contents: &[],
                };
                worker.entry(&dirs, name, path, &inner)?;
                path.truncate(parent_length(path));
                tree::pop_name(&mut names);
            }
            self.count();
        }
    }

    /// Counts one part of a directory as copied. After the last one the directory gets what belongs to itself, and is counted
    /// in the one above.
    fn finish(&self, worker: &Worker<'_>, node: Arc<Node>, at: &mut Vec<u8>) -> Result<()> {
        let mut node = node;
        while node.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            at.clone_from(&node.path);
            let (source, target) = (node.source.as_fd(), node.target.as_fd());
            let Some(above) = &node.above else {
                // What only hides others has the root that it is put below.
                if !self.rules.only_changed {
                    let owner = self.rules.owner_of_root(&node.stat)?;
                    worker.finish(source, target, &node.stat, Some(owner))?;
                }
                return Ok(());
            };
            worker.finish(source, target, &node.stat, None)?;
            self.drop_unchanged(above.target.as_fd(), &base_of(&node.path)?, &node.stat)?;
            let above = Arc::clone(above);
            node = above;
        }
        Ok(())
    }

    /// Removes the copy of a directory that has no new owner, and nothing in it that has.
    fn drop_unchanged(&self, above: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
        if !self.rules.only_changed || self.rules.owner_of(stat)? != owner(stat) {
            return Ok(());
        }
        match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
            removed => Ok(removed?),
        }
    }

    /// Makes a directory in the copy, if it is none of the tree itself. Returns the one that is copied, and it.
    fn make_dir(
        &self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
    ) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
        if self.rules.files != Files::Present {
            rustix::fs::mkdirat(target, name, Mode::RWXU)?;
        }
        let copy = rustix::fs::openat(target, name, DIR_FLAGS, Mode::empty())?;
        let below = match self.rules.one_mount {
            false => rustix::fs::openat(source, name, DIR_FLAGS, Mode::empty())?,
            true => match tree::open_on_same_mount(source, name) {
                // As empty as the copy.
                Err(Errno::XDEV) => rustix::fs::openat(target, name, DIR_FLAGS, Mode::empty())?,
                below => below?,
            },
        };
        Ok((below, copy))
    }

    fn count(&self) {
        let copied = self.copied.fetch_add(1, Ordering::Relaxed) + 1;
        if self.rules.owners.is_some() && copied.is_multiple_of(TOLD_EVERY) {
            tracing::info!(files = copied, "giving the files of a layer other owners");
        }
    }
}
