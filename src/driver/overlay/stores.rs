//! Where layers are: the driver's home, a separate image store, additional read-only stores.
//!
//! A `lower` file names link IDs without saying in which store; each is looked for in the home, then the image store,
//! then the additional stores. Only layers in the home are mounted read-write: no lock of the other stores would keep
//! two processes from mounting the same layer.

use std::collections::HashMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::overlay::layout::{self, LINKS};
use crate::driver::overlay::link_files::{exists, read_lower};
use crate::driver::overlay::repair;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::at;

/// The overlay directories of all stores.
#[derive(Debug)]
pub(super) struct Stores {
    /// The driver's home.
    pub(super) home: PathBuf,
    /// The overlay directory of the separate image store.
    pub(super) image_store: Option<PathBuf>,
    /// The overlay directories of the additional stores.
    pub(super) additional: Vec<PathBuf>,
    /// What is known of lowers, by their link IDs. A layer that has children does not change.
    known: Mutex<HashMap<String, Known>>,
}

/// Most lowers that are remembered.
const MAX_KNOWN: usize = 4096;

/// What mounts need to know of a lower.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Index of its store in [`Stores::all`].
    home: usize,
    /// How many older generations it has.
    older: usize,
}

/// A layer's directory.
#[derive(Debug)]
pub(super) struct Located {
    /// The layer's directory.
    pub(super) dir: PathBuf,
    /// In the driver's home, not in another store.
    pub(super) own: bool,
}

/// A directory of a lower, as a path by link ID: `<home>/l/<link ID>`, or that of an older generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lower {
    /// The overlay directory that it is in.
    pub(super) home: PathBuf,
    /// The path in there.
    pub(super) path: String,
}

impl Lower {
    /// The whole path.
    pub(super) fn full(&self) -> PathBuf {
        self.home.join(&self.path)
    }
}

impl Stores {
    /// The stores in these directories.
    pub(super) fn new(home: PathBuf, image_store: Option<PathBuf>, additional: Vec<PathBuf>) -> Self {
        Self {
            home,
            image_store,
            additional,
            known: Mutex::default(),
        }
    }

    /// Every overlay directory, in the order of searches.
    pub(super) fn all(&self) -> impl Iterator<Item = &Path> {
        let first = std::iter::once(&self.home).chain(&self.image_store);
        first.chain(&self.additional).map(PathBuf::as_path)
    }

    /// Those that this driver makes layers in.
    pub(super) fn writable(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(&self.home)
            .chain(&self.image_store)
            .map(PathBuf::as_path)
    }

    /// Where a new layer goes: images' layers to the separate image store.
    pub(super) fn base(&self, read_write: bool) -> &Path {
        self.image_store
            .as_deref()
            .filter(|_| !read_write)
            .unwrap_or(&self.home)
    }

    /// Finds a layer; the caller has checked the ID.
    pub(super) fn locate(&self, id: &str) -> Result<Option<Located>> {
        for (index, home) in self.all().enumerate() {
            let dir = home.join(id);
            if exists(&dir)? {
                return Ok(Some(Located { dir, own: index == 0 }));
            }
        }
        Ok(None)
    }

    /// Finds a layer that must be there.
    pub(super) fn require(&self, id: &str) -> Result<Located> {
        layout::check_id(id)?;
        self.locate(id)?.ok_or_else(|| unknown(id))
    }

    /// Index in [`Stores::all`] of the store that has the link ID `name`.
    fn home_of_link(&self, name: &str) -> Result<Option<usize>> {
        for (index, home) in self.all().enumerate() {
            if exists(&home.join(LINKS).join(name))? {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    fn home(&self, index: usize) -> &Path {
        self.all().nth(index).unwrap_or(&self.home)
    }

    /// As [`Stores::home_of_link`], after a repair if the link ID is not found.
    fn require_link(&self, name: &str, id: &str) -> Result<usize> {
        if let Some(home) = self.home_of_link(name)? {
            return Ok(home);
        }
        for home in self.writable() {
            repair::repair(home)?;
        }
        let found = self.home_of_link(name)?;
        found.ok_or_else(|| {
            ErrorKind::CorruptMetadata.err(format!("layer {id:?}: the layer below it, {name:?}, is lost"))
        })
    }

    /// The link IDs of the layers below the layer in `dir`, topmost first.
    pub(super) fn lower_names(dir: &Path) -> Result<Vec<String>> {
        let content = read_lower(dir)?;
        Ok(layout::parse_lower(&content)?
            .into_iter()
            .map(str::to_owned)
            .collect())
    }

    /// The lowers of a mount of the layer in `dir`, topmost first: each layer followed by its older generations.
    pub(super) fn lowers(&self, id: &str, dir: &Path) -> Result<Vec<Lower>> {
        let names = Self::lower_names(dir)?;
        let mut lowers = Vec::with_capacity(names.len());
        for name in names {
            let known = self.known().get(&name).copied();
            let known = match known {
                Some(known) => known,
                None => self.examine(&name, id)?,
            };
            let home = self.home(known.home);
            let path = format!("{LINKS}/{name}");
            let older = (1..=known.older).map(|number| generation(home, &format!("{path}/.."), number));
            let older: Vec<Lower> = older.collect();
            lowers.push(Lower {
                home: home.to_owned(),
                path,
            });
            lowers.extend(older);
        }
        Ok(lowers)
    }

    /// Looks at a lower of layer `id` on disk, and remembers the result.
    fn examine(&self, name: &str, id: &str) -> Result<Known> {
        let index = self.require_link(name, id)?;
        let home = self.home(index);
        let dir = format!("{LINKS}/{name}/..");
        if exists(&home.join(&dir).join("composefs-data"))? {
            return Err(composefs(id));
        }
        let known = Known {
            home: index,
            older: generations(home, &dir)?.len(),
        };
        let mut all = self.known();
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(name.to_owned(), known);
        Ok(known)
    }

    /// Forgets what is known of lowers after a failed mount: a link ID may have been lost since. Returns whether anything
    /// was known.
    pub(super) fn forget_known(&self) -> bool {
        let mut all = self.known();
        let any = !all.is_empty();
        all.clear();
        any
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories of the files of the layers below the layer in `dir`, topmost first, without older generations.
    pub(super) fn lower_trees(&self, id: &str, dir: &Path) -> Result<Vec<PathBuf>> {
        let mut trees = Vec::new();
        for name in Self::lower_names(dir)? {
            let links = self.home(self.require_link(&name, id)?).join(LINKS);
            let links_dir = at::open_dir(&links).at("opening", &links)?;
            let target =
                at::read_link_at(links_dir.as_fd(), name.as_bytes()).at("reading link in", &links)?;
            let below = layout::parse_link_target(&target).ok_or_else(|| {
                let target = String::from_utf8_lossy(&target).into_owned();
                ErrorKind::CorruptMetadata
                    .err(format!("link ID {name:?} leads to {target:?}"))
                    .at(&links)
            })?;
            let home = links.parent().unwrap_or(&self.home);
            trees.push(home.join(below).join("diff"));
        }
        Ok(trees)
    }
}

/// The error for a layer that no store has.
pub(super) fn unknown(id: &str) -> crate::error::Error {
    ErrorKind::LayerUnknown.err(format!("locating layer {id:?} in the overlay driver"))
}

/// The error for a layer whose content is a composefs image.
pub(super) fn composefs(id: &str) -> crate::error::Error {
    ErrorKind::NotSupported.err(format!(
        "mounting layer {id:?}, which is or stands on a composefs image"
    ))
}

/// Older generations of the layer whose directory is `dir` in `home`, the youngest first.
pub(super) fn generations(home: &Path, dir: &str) -> Result<Vec<Lower>> {
    let mut found = Vec::new();
    loop {
        let next = generation(home, dir, found.len() + 1);
        if !exists(&next.full())? {
            return Ok(found);
        }
        found.push(next);
    }
}

/// The older generation of this number, from 1.
fn generation(home: &Path, dir: &str, number: usize) -> Lower {
    Lower {
        home: home.to_owned(),
        path: format!("{dir}/diff{number}"),
    }
}
