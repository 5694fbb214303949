//! OSTree repositories: files are found by the digest of their content, where the repository links to it by that.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{CWD, Mode, OFlags};

use super::layer::{is_regular, size_of};
use super::place::{OSTREE, Place};
use crate::digest::hex;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct OstreeRepos {
    roots: Vec<PathBuf>,
    /// Which repository has which content, of those that were found.
    found: Mutex<Vec<(u32, [u8; 32])>>,
}

impl OstreeRepos {
    /// Repositories that are named by an absolute path; what another one means would depend on the process.
    pub(super) fn new(roots: &[PathBuf]) -> Self {
        let (roots, relative): (Vec<_>, Vec<_>) = roots.iter().cloned().partition(|root| root.is_absolute());
        if !relative.is_empty() {
            tracing::warn!(
                ?relative,
                "OSTree repositories without an absolute path are not used"
            );
        }
        Self {
            roots,
            found: Mutex::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// A file with this content.
    pub(super) fn find(&self, sum: &[u8; 32], size: u64) -> Option<Place> {
        let fits = |repo: &usize| {
            let path = self.path(*repo, sum);
            let stat = path.and_then(|path| rustix::fs::stat(path).ok());
            stat.is_some_and(|stat| is_regular(&stat) && size_of(&stat) == size)
        };
        let repo = (0..self.roots.len()).find(fits)?;
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let name = u32::try_from(found.len()).ok()?;
        found.push((u32::try_from(repo).ok()?, *sum));
        Some(Place {
            source: OSTREE,
            name,
            offset: 0,
        })
    }

    /// Opens what was found.
    pub(super) fn open(&self, place: Place, size: u64) -> Option<File> {
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (repo, sum) = *found.get(place.name as usize)?;
        drop(found);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = self.path(repo as usize, &sum)?;
        let file: OwnedFd = rustix::fs::openat(CWD, path, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        (is_regular(&stat) && size_of(&stat) == size).then(|| file.into())
    }

    fn path(&self, repo: usize, sum: &[u8; 32]) -> Option<PathBuf> {
        let hex = hex(sum);
        let (head, tail) = hex.split_at(2);
        let root = self.roots.get(repo)?;
        Some(root.join(format!("objects/{head}/{tail}.payload-link")))
    }
}
