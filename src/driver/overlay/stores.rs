//! Where layers are: the driver's home, a separate image store, additional read-only stores.
//!
//! The files of a layer name those below it without saying in which store they are; each is looked for in the home, then
//! the image store, then the additional stores. `lower-layers` decides; without it the link IDs of `lower` lead to the IDs.
//! Only layers in the home are mounted read-write: no lock of the other stores would keep
//! two processes from mounting the same layer.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::FileType;
use rustix::io::Errno;

use crate::driver::layer_use::check_type;
use crate::driver::overlay::composefs::Image;
use crate::driver::overlay::layout::{self, LINKS, LOWER, LOWER_LAYERS, parse_lower, parse_lower_layers};
use crate::driver::overlay::link_files::{exists, read_additional_layer, read_lower, read_lower_layers};
use crate::driver::overlay::repair;
use crate::driver::overlay::survey::Survey;
use crate::error::{ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::sys::clean_path;

/// The overlay directories of all stores.
#[derive(Debug)]
pub(super) struct Stores {
    /// The driver's home.
    pub(super) home: PathBuf,
    /// The overlay directory of the separate image store.
    pub(super) image_store: Option<PathBuf>,
    /// The overlay directories of the additional stores.
    pub(super) additional: Vec<PathBuf>,
    /// The directories of the additional layer stores.
    layer_stores: Vec<PathBuf>,
    /// What is known of lowers, by their IDs. A layer that has children does not change.
    known: Mutex<HashMap<String, Known>>,
}

/// Most lowers that are remembered.
const MAX_KNOWN: usize = 4096;

/// What mounts need to know of a lower.
#[derive(Clone, Debug)]
struct Known {
    /// Its directory, which another layer of the same ID may have replaced since.
    stamp: Stamp,
    /// Its directory in an additional layer store.
    elsewhere: Option<Arc<Path>>,
    /// Its tree is in an image.
    has_image: bool,
    /// How many older generations it has.
    older: usize,
}

/// Device, inode and time of change of a directory.
type Stamp = (u64, u64, i64, u64);

/// A layer's directory.
#[derive(Debug)]
pub(super) struct Located {
    /// The layer's directory.
    pub(super) dir: PathBuf,
    /// In the driver's home, not in another store.
    pub(super) own: bool,
}

/// A directory of a lower: `<home>/<ID>/diff`, or that of an older generation.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lower {
    /// The overlay directory that it is in.
    home: PathBuf,
    /// The path in there. It may be a symbolic link: paths in additional layer stores have colons, which not all ways to mount
    /// can take.
    path: String,
    /// Where that leads, in an additional layer store.
    elsewhere: Option<Arc<Path>>,
    /// The layer's directory, if its tree is in an image there; the path leads to its contents then.
    image: Option<PathBuf>,
}

impl Lower {
    /// The directory at a path in an overlay directory.
    pub(super) fn new(home: &Path, path: String) -> Self {
        Self {
            home: home.to_owned(),
            path,
            elsewhere: None,
            image: None,
        }
    }

    /// Whether it is an older generation of a layer.
    pub(super) fn is_older(&self) -> bool {
        !self.path.ends_with("/diff")
    }

    /// The directory of a layer whose tree is in an image.
    pub(super) fn image(&self) -> Option<&Path> {
        self.image.as_deref()
    }

    /// The whole path.
    pub(super) fn full(&self) -> PathBuf {
        self.home.join(&self.path)
    }

    /// The directory to mount elsewhere for [`Lower::seen_at`].
    pub(super) fn root(&self) -> &Path {
        self.elsewhere.as_deref().unwrap_or(&self.home)
    }

    /// The whole path where [`Lower::root`] is mounted at `target`.
    pub(super) fn seen_at(&self, target: &Path) -> PathBuf {
        match &self.elsewhere {
            Some(_root) => target.to_owned(),
            None => target.join(&self.path),
        }
    }
}

impl Stores {
    /// The stores in these directories.
    pub(super) fn new(
        home: PathBuf,
        image_store: Option<PathBuf>,
        additional: Vec<PathBuf>,
        layer_stores: Vec<PathBuf>,
    ) -> Self {
        Self {
            home,
            image_store,
            additional,
            layer_stores,
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

    /// Repairs the link IDs of all stores that can be written.
    pub(super) fn repair(&self) -> Result<Survey> {
        repair::repair(self.all(), self.writable().count())
    }

    /// The IDs of the layers below the layer `id` in `dir`, topmost first.
    pub(super) fn lower_ids(&self, id: &str, dir: &Path) -> Result<Vec<String>> {
        let owned = |ids: Vec<&str>| ids.into_iter().map(str::to_owned).collect();
        let ids: Vec<String> = match read_lower_layers(dir)? {
            Some(content) => parse_lower_layers(&content)
                .map(owned)
                .context(|| format!("reading {}", dir.join(LOWER_LAYERS).display()))?,
            None => match read_lower(dir)? {
                Some(content) => {
                    let names =
                        parse_lower(&content).context(|| format!("reading {}", dir.join(LOWER).display()))?;
                    self.ids_of_links(id, &names)?
                }
                None => Vec::new(),
            },
        };
        let mut seen = HashSet::from([id]);
        match ids.iter().find(|below| !seen.insert(below.as_str())) {
            None => Ok(ids),
            Some(twice) => {
                let what = format!("layer {id:?} has layer {twice:?} below it twice, or stands on itself");
                Err(ErrorKind::CorruptMetadata.err(what))
            }
        }
    }

    /// The IDs of the layers with these link IDs, after a repair if one is not found.
    fn ids_of_links(&self, id: &str, names: &[&str]) -> Result<Vec<String>> {
        let found: Vec<Option<String>> = names
            .iter()
            .map(|name| self.id_of_link(name))
            .collect::<Result<_>>()?;
        let survey = match found.iter().all(Option::is_some) {
            true => None,
            false => Some(self.repair()?),
        };
        let lost = |name: &&str| {
            ErrorKind::CorruptMetadata.err(format!(
                "layer {id:?}: the layer below it, {name:?}, is lost: no such file or directory"
            ))
        };
        let repaired = |name: &str| survey.as_ref()?.id_of(name).map(str::to_owned);
        let ids = names.iter().zip(found);
        ids.map(|(name, found)| found.or_else(|| repaired(name)).ok_or_else(|| lost(name)))
            .collect()
    }

    /// The ID of a layer that is there, by its symbolic link in `l/`.
    fn id_of_link(&self, name: &str) -> Result<Option<String>> {
        for home in self.all() {
            let link = home.join(LINKS).join(name);
            let target = match rustix::fs::readlink(&link, Vec::new()) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::NOTDIR) => continue,
                Err(error) => return Err(error).at("reading link", link),
            };
            let Some(id) = layout::parse_link_target(target.as_bytes()) else {
                let what = format!("link ID {name:?} leads to {:?}", target.to_string_lossy());
                return Err(ErrorKind::CorruptMetadata.err(what).at(link));
            };
            if self.locate(id)?.is_some() {
                return Ok(Some(id.to_owned()));
            }
        }
        Ok(None)
    }

    /// The lowers of a mount of the layer in `dir`, topmost first: each layer followed by its older generations.
    pub(super) fn lowers(&self, id: &str, dir: &Path) -> Result<Vec<Lower>> {
        let ids = self.lower_ids(id, dir)?;
        let mut lowers = Vec::with_capacity(ids.len());
        for below in &ids {
            let (home, stamp) = self.find_stamp(below)?.ok_or_else(|| lost(id, below))?;
            let known = self.known().get(below).cloned();
            let known = match known.filter(|known| known.stamp == stamp) {
                Some(known) => known,
                None => self.examine(home, below, stamp, id)?,
            };
            let older = (1..=known.older).map(|number| generation(home, below, number));
            if let Some(dir) = &known.elsewhere {
                // The program that serves it may have ended.
                check_type(dir, FileType::Directory)
                    .context(|| format!("layer {id:?}: the layer below it, {below:?}"))?;
            }
            lowers.push(Lower {
                elsewhere: known.elsewhere,
                image: known.has_image.then(|| home.join(below)),
                ..Lower::new(home, format!("{below}/diff"))
            });
            lowers.extend(older);
        }
        Ok(lowers)
    }

    /// The store of a layer, and the stamp of its directory.
    fn find_stamp(&self, id: &str) -> Result<Option<(&Path, Stamp)>> {
        for home in self.all() {
            let dir = home.join(id);
            match rustix::fs::stat(&dir) {
                Ok(stat) => {
                    let stamp = (stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
                    return Ok(Some((home, stamp)));
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {}
                Err(error) => return Err(error).at("looking at", dir),
            }
        }
        Ok(None)
    }

    /// Looks at a lower of layer `id` on disk, and remembers the result.
    fn examine(&self, home: &Path, below: &str, stamp: Stamp, id: &str) -> Result<Known> {
        let dir = home.join(below);
        let has_image = Image::exists(&dir)?;
        let elsewhere = self.elsewhere(&dir)?;
        if elsewhere.is_none() && !exists(&dir.join("diff"))? {
            let what = format!("layer {id:?}: the layer below it, {below:?}, has lost its files");
            return Err(ErrorKind::CorruptMetadata.err(what));
        }
        let known = Known {
            stamp,
            elsewhere: elsewhere.map(Arc::from),
            has_image,
            older: generations(home, below)?.len(),
        };
        let mut all = self.known();
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(below.to_owned(), known.clone());
        Ok(known)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directories of the layers below the layer in `dir`, topmost first.
    pub(super) fn lower_dirs(&self, id: &str, dir: &Path) -> Result<Vec<PathBuf>> {
        let ids = self.lower_ids(id, dir)?;
        ids.iter()
            .map(|below| {
                let place = self.locate(below)?.ok_or_else(|| lost(id, below))?;
                Ok(place.dir)
            })
            .collect()
    }

    /// Where the own files of the layer in `dir` are, without older generations.
    pub(super) fn tree(&self, dir: &Path) -> Result<PathBuf> {
        Ok(self.elsewhere(dir)?.unwrap_or_else(|| dir.join("diff")))
    }

    /// Where the own files of the layer in `dir` are in an additional layer store; `None` if they are in the layer's own
    /// directory.
    ///
    /// A symbolic link is followed if the layer was made of one in an additional layer store. The link of a layer in an
    /// additional image store, which others may have made, has to lead into an additional layer store of this driver: it
    /// could make any directory of the machine the content of an image.
    pub(super) fn elsewhere(&self, dir: &Path) -> Result<Option<PathBuf>> {
        let link = dir.join("diff");
        let target = match rustix::fs::readlink(&link, Vec::new()) {
            Ok(target) => PathBuf::from(OsString::from_vec(target.into_bytes())),
            Err(Errno::INVAL | Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error).at("reading link", link),
        };
        let refused = |reason: String| Err(ErrorKind::CorruptMetadata.err(reason).at(&link));
        if !target.is_absolute() {
            return refused(format!("linkpath must be absolute (got: {target:?}):"));
        }
        if read_additional_layer(dir)?
            .map(|layer| layer.join("diff"))
            .as_ref()
            != Some(&target)
        {
            return refused(format!("leads to {target:?}, which the layer was not made of:"));
        }
        let is_writable = self.writable().any(|home| dir.parent() == Some(home));
        let plain = clean_path(&target).at("making absolute", &target)?;
        if !is_writable && !self.layer_stores.iter().any(|store| plain.starts_with(store)) {
            return refused(format!(
                "leads to {target:?}, which is in no additional layer store:"
            ));
        }
        Ok(Some(target))
    }
}

/// The error for a layer below that no store has.
fn lost(id: &str, below: &str) -> crate::error::Error {
    ErrorKind::CorruptMetadata.err(format!(
        "layer {id:?}: the layer below it, {below:?}, is lost: no such file or directory"
    ))
}

/// The error for a layer that no store has.
pub(super) fn unknown(id: &str) -> crate::error::Error {
    ErrorKind::LayerUnknown.err(format!("locating layer {id:?} in the overlay driver"))
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
    Lower::new(home, format!("{dir}/diff{number}"))
}
