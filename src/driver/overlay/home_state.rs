//! State that all driver objects of one home share in this process: how often each layer is mounted, and the results of
//! probes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::error::{IoContext as _, Result};
use crate::sys::mount::{is_live_mount, is_mount_point, unmount_lazily};

/// The state of one home and run root.
#[derive(Debug, Default)]
pub(super) struct HomeState {
    /// Uses of each mount target by this process. Held during mounts and unmounts, so that no two tasks mount a layer
    /// twice.
    mounts: Mutex<HashMap<PathBuf, u64>>,
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

    /// Locks the counters.
    pub(super) fn mounts(&self) -> Mounts<'_> {
        Mounts(self.mounts.lock().unwrap_or_else(PoisonError::into_inner))
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

/// The counters, locked.
#[derive(Debug)]
pub(super) struct Mounts<'a>(MutexGuard<'a, HashMap<PathBuf, u64>>);

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
        let known = self.0.get(merged).copied();
        Ok(Some(if mounted { known.unwrap_or(1) } else { 0 }))
    }

    /// Sets how often a layer is in use.
    pub(super) fn set(&mut self, merged: PathBuf, count: u64) {
        if count == 0 {
            self.0.remove(&merged);
        } else {
            self.0.insert(merged, count);
        }
    }
}
