//! State that all driver objects of one home share in this process: how often each layer is mounted, and the results of
//! probes.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{IoContext as _, Result};
use crate::sys::mount::{is_live_mount, is_mount_point, unmount_lazily};

/// The state of one home and run root.
#[derive(Debug, Default)]
pub(super) struct HomeState {
    /// Uses of each mount target by this process. Held for a moment only.
    mounts: Mutex<HashMap<PathBuf, u64>>,
    /// Layers that are being mounted or unmounted, so that no two tasks mount one twice.
    busy: Mutex<HashSet<String>>,
    /// One of them is so no more.
    freed: Condvar,
    /// Held while the home is made a mount of its own, and while a probe has something mounted in it.
    private: Mutex<()>,
    /// Results of probes, by the names of their cache files.
    features: Mutex<HashMap<String, bool>>,
}

/// Home, run root, and their state, which lives as long as a driver object uses it.
type Entry = (PathBuf, PathBuf, Weak<HomeState>);

/// The state of every home in use.
static SHARED: Mutex<Vec<Entry>> = Mutex::new(Vec::new());

impl HomeState {
    /// The state of a home and a run root.
    pub(super) fn of(home: &Path, run_home: &Path) -> Arc<Self> {
        let mut known = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|(_home, _run_home, shared)| shared.strong_count() > 0);
        let found = known
            .iter()
            .find(|(other, run, _)| other == home && run == run_home);
        if let Some(shared) = found.and_then(|(_home, _run_home, shared)| shared.upgrade()) {
            return shared;
        }
        let shared = Arc::new(Self::default());
        known.push((home.to_owned(), run_home.to_owned(), Arc::downgrade(&shared)));
        shared
    }

    /// The counters of a layer, with nobody else mounting or unmounting it.
    pub(super) fn mounts(&self, layer: &str) -> Mounts<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.freed.wait_while(busy, |busy| busy.contains(layer));
        let mut busy = free.unwrap_or_else(PoisonError::into_inner);
        busy.insert(layer.to_owned());
        Mounts {
            home: self,
            layer: layer.to_owned(),
        }
    }

    /// Keeps others from making the home a mount of its own, and from probing.
    pub(super) fn lock_private(&self) -> MutexGuard<'_, ()> {
        self.private.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mount targets that this process has left mounted without a use.
    pub(super) fn unused(&self) -> Vec<PathBuf> {
        let counts = self.counts();
        let unused = counts.iter().filter(|(_target, count)| **count == 0);
        unused.map(|(target, _count)| target.clone()).collect()
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<PathBuf, u64>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The result of a probe, if this process has it.
    pub(super) fn feature(&self, name: &str) -> Option<bool> {
        self.features
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .copied()
    }

    /// Remembers a probe's result.
    pub(super) fn set_feature(&self, name: &str, works: bool) {
        self.features
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name.to_owned(), works);
    }
}

/// The counters of one layer, locked.
#[derive(Debug)]
pub(super) struct Mounts<'a> {
    home: &'a HomeState,
    layer: String,
}

impl Drop for Mounts<'_> {
    fn drop(&mut self) {
        let mut busy = self.home.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.remove(&self.layer);
        drop(busy);
        self.home.freed.notify_all();
    }
}

impl Mounts<'_> {
    /// How often a layer is in use; `None` if there is no such directory. A mount that another process has made counts
    /// once: a mount and an unmount by this process leave it, and a second unmount ends it. Uses of a mount that another
    /// process has ended count nothing. `program`: a mount program may serve the mount.
    pub(super) fn count(&self, merged: &Path, program: bool) -> Result<Option<u64>> {
        let look = if program { is_live_mount } else { is_mount_point };
        let mounted = match look(merged) {
            Ok(mounted) => mounted,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            // The program that serves it has died: the mount is of no use, and keeps a new one from being made.
            Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {
                tracing::warn!(path = %merged.display(), "detaching a mount whose program has died");
                unmount_lazily(merged).at("detaching a dead mount from", merged)?;
                false
            }
            Err(error) => return Err(error).at("looking for a mount at", merged),
        };
        let known = self.home.counts().get(merged).copied();
        Ok(Some(if mounted { known.unwrap_or(1) } else { 0 }))
    }

    /// Says that a layer is mounted by this process without a use.
    pub(super) fn set_unused(&mut self, merged: PathBuf) {
        self.home.counts().insert(merged, 0);
    }

    /// Sets how often a layer is in use.
    pub(super) fn set(&mut self, merged: PathBuf, count: u64) {
        let mut counts = self.home.counts();
        if count == 0 {
            counts.remove(&merged);
        } else {
            counts.insert(merged, count);
        }
    }
}
