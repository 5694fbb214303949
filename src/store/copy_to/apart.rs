//! Whether a path leads into the directories of a store.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;

use crate::bridge;
use crate::error::{IoContext as _, Result};
use crate::store::Store;
use crate::sys::mount::{PlaceOnDisk, place_on_disk};
use crate::sys::presence::is_dir;
use crate::sys::{at, clean_path, tree};

/// A directory, and where it is whatever mounts lead there.
struct Place {
    dir: OwnedFd,
    path: PathBuf,
    /// `None` if the kernel does not say.
    on_disk: Option<PlaceOnDisk>,
}

impl Place {
    fn of(path: &Path) -> Result<Self> {
        let dir = at::open_dir(path).at("opening", path)?;
        let link = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string());
        let real = fs::read_link(&link).at("reading", link)?;
        Ok(Self {
            on_disk: place_on_disk(dir.as_fd(), &real).at("finding the mount of", path)?,
            dir,
            path: path.to_owned(),
        })
    }

    fn identity(&self, dir: &OwnedFd) -> Result<(u64, u64)> {
        let stat = rustix::fs::fstat(dir).at("looking above", &self.path)?;
        Ok(tree::identity(&stat))
    }

    /// Whether this directory is `other`, or lies in it. A mount of a directory in `other` does too.
    fn lies_in(&self, other: &Self) -> Result<bool> {
        if let (Some(ours), Some(theirs)) = (&self.on_disk, &other.on_disk)
            && ours.device == theirs.device
            && ours.path.starts_with(&theirs.path)
        {
            return Ok(true);
        }
        let wanted = other.identity(&other.dir)?;
        let mut above = self.dir.try_clone().at("looking at", &self.path)?;
        let mut known = self.identity(&above)?;
        while known != wanted {
            above = rustix::fs::openat(&above, "..", tree::DIR_FLAGS, Mode::empty())
                .at("opening what is above", &self.path)?;
            let next = self.identity(&above)?;
            if next == known {
                return Ok(false);
            }
            known = next;
        }
        Ok(true)
    }
}

impl Store {
    /// Whether a path leads into the directories of this store (the graph root, the run root and the separate image store),
    /// whatever links and mounts are on the way. What of the path does not exist would be made in what does.
    ///
    /// Takes no lock.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    ///
    /// # Cancellation
    /// No effect.
    pub async fn contains(&self, path: &Path) -> Result<bool> {
        let dirs = &self.inner.dirs;
        let mut roots = vec![dirs.graph_root.clone(), dirs.run_root.clone()];
        roots.extend(dirs.image_store.clone());
        let path = path.to_owned();
        bridge::run(move || {
            let roots = roots
                .iter()
                .map(|root| Place::of(root))
                .collect::<Result<Vec<_>>>()?;
            // As a store resolves `..`, and as the kernel does.
            let clean = clean_path(&path).at("making absolute", &path)?;
            for mut path in [clean, path] {
                while !is_dir(&path)? && path.pop() {}
                if path.as_os_str().is_empty() {
                    path.push(".");
                }
                let place = Place::of(&path)?;
                for root in &roots {
                    if place.lies_in(root)? {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        })
        .await
    }
}
