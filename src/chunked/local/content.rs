//! Finds contents by digest.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};

use super::layer::{CacheBytes, LocalLayer, is_regular, size_of};
use super::open_files::{OpenFiles, Use};
use super::ostree::OstreeRepos;
use super::parents::{Parents, split};
use super::place::{OSTREE, Place, WHOLE};
use crate::archive::apply::origins::{FindContent, LocalFile};
use crate::archive::path::clean;
use crate::chunked::cache::{Key, Location};
use crate::error::Result;
use crate::sys::at;

/// Opens the directories of layers' own files.
pub(crate) trait LayerTrees: Send + Sync + fmt::Debug {
    /// Opens that of a layer. No lock is held: the layer may be gone, or be deleted meanwhile.
    ///
    /// # Errors
    /// If there is none any more.
    fn open_tree(&self, id: &str) -> Result<OwnedFd>;
}

/// The layers of a store whose contents can be found.
#[derive(Debug)]
pub(crate) struct Layers {
    layers: Vec<Arc<LocalLayer>>,
    trees: Box<dyn LayerTrees>,
    open: OpenFiles,
    parents: Parents,
    /// The layer in which something was found last: files of one layer often come from one other.
    last: AtomicUsize,
}

/// Contents that are on this machine already. Its methods block; a clone is cheap and the same.
#[derive(Clone, Debug)]
pub(crate) struct LocalContent {
    layers: Arc<Layers>,
    repos: Arc<OstreeRepos>,
    /// Whether files are wanted that are the same in more than their content.
    links: bool,
    /// Files that are known to have other content than they should.
    wrong: Option<Arc<WrongFiles>>,
}

/// Files of a layer.
#[derive(Debug)]
struct WrongFiles {
    layer: String,
    /// Their names, cleaned.
    names: BTreeSet<Vec<u8>>,
}

impl Layers {
    /// These layers, looked at in this order.
    pub(crate) fn new(layers: Vec<Arc<LocalLayer>>, trees: Box<dyn LayerTrees>) -> Self {
        Self {
            layers,
            trees,
            open: OpenFiles::default(),
            parents: Parents::default(),
            last: AtomicUsize::new(0),
        }
    }

    /// The first part of a file with this digest that `fits`.
    fn find(&self, sum: &[u8; 32], fits: impl Fn(&Found<'_>) -> Option<Place>) -> Option<Place> {
        let key = Key::new(sum);
        let last = self.last.load(Ordering::Relaxed);
        let others = (0..self.layers.len()).filter(|number| *number != last);
        let found = std::iter::once(last).chain(others).find_map(|number| {
            let layer = self.layers.get(number)?;
            Some((number, self.find_in(number, layer, &key, &fits)?))
        });
        let (number, place) = found?;
        self.last.store(number, Ordering::Relaxed);
        Some(place)
    }

    fn find_in(
        &self,
        number: usize,
        layer: &LocalLayer,
        key: &Key,
        fits: impl Fn(&Found<'_>) -> Option<Place>,
    ) -> Option<Place> {
        if !layer.cache.may_have(key) || layer.is_stale() {
            return None;
        }
        let file = layer.cache_file(&self.open)?;
        let found = layer.cache.visit(&file, key, |location| {
            let found = Found {
                layers: self,
                number,
                layer,
                cache: &file,
                location,
            };
            fits(&found).map_or(ControlFlow::Continue(()), ControlFlow::Break)
        });
        found.unwrap_or_else(|error| {
            tracing::debug!(layer = layer.id, %error, "reading a cache file");
            None
        })
    }

    /// A regular file that has this content as a whole, and whose status `fits`.
    fn find_whole(
        &self,
        sum: &[u8; 32],
        size: u64,
        wrong: Option<&WrongFiles>,
        fits: impl Fn(&Stat) -> bool,
    ) -> Option<Place> {
        self.find(sum, |found| {
            // A chunk at the start of a larger file has another length, or another size on disk.
            let location = found.location;
            if (location.offset, location.length) != (0, size) || found.is_one_of(wrong) {
                return None;
            }
            found.place_if(WHOLE, |stat| size_of(stat) == size && fits(stat))
        })
    }

    /// Whether it is in a layer of the store itself.
    fn is_own(&self, place: Place) -> bool {
        self.layers.get(place.layer()).is_some_and(|layer| layer.is_own())
    }

    fn tree(&self, layer: &LocalLayer) -> Option<Arc<File>> {
        self.open.get(layer.number, Use::Directory, || {
            match self.trees.open_tree(&layer.id) {
                Ok(tree) => Some(tree.into()),
                Err(error) => {
                    tracing::debug!(layer = layer.id, error = %error.chain(), "opening a layer to look for content");
                    layer.set_stale();
                    None
                }
            }
        })
    }

    /// The directory of a file of a layer, in which the name may be anything, and the file's name there. It is not outside of
    /// the layer; at the name there may be anything.
    fn parent<'n>(&self, layer: &LocalLayer, name: &'n [u8]) -> Option<(Arc<File>, &'n [u8])> {
        let (path, base) = split(name)?;
        let dir = self.parents.get(layer.number, path, || {
            let tree = self.tree(layer)?;
            at::open_dir_in_root(tree.as_fd(), path).ok().map(File::from)
        });
        Some((dir?, base))
    }

    fn open(&self, place: Place, size: u64) -> Option<(File, u64)> {
        let layer = self.layers.get(place.layer())?;
        let cache = layer.cache_file(&self.open)?;
        let name = layer.cache.name(&cache, place.name).ok()??;
        let (dir, name) = self.parent(layer, &name)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*dir, name, flags, Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let fits = match place.is_whole() {
            true => size_of(&stat) == size,
            false => is_within(place.offset, size, &stat),
        };
        (is_regular(&stat) && fits).then(|| (file.into(), place.offset))
    }
}

impl LocalContent {
    /// What is in these layers, and in the OSTree repositories with these directories.
    pub(crate) fn new(layers: Arc<Layers>, repos: &[PathBuf]) -> Self {
        Self {
            layers,
            repos: Arc::new(OstreeRepos::new(repos)),
            links: false,
            wrong: None,
        }
    }

    /// Without these files of a layer, which have other content than they should. The names are clean.
    pub(crate) fn without(self, layer: String, names: BTreeSet<Vec<u8>>) -> Self {
        let wrong = Some(Arc::new(WrongFiles { layer, names }));
        Self { wrong, ..self }
    }

    /// Whether files of the store's own layers may get hard links; not without this.
    pub(crate) fn with_links(self, links: bool) -> Self {
        Self { links, ..self }
    }

    /// Whether files may get hard links.
    pub(crate) fn links(&self) -> bool {
        self.links
    }

    /// Whether nothing can be found.
    pub(crate) fn is_empty(&self) -> bool {
        self.layers.layers.is_empty() && self.repos.is_empty()
    }

    /// Where a regular file with this content is: one of exactly this size, which is there. An empty one is not looked
    /// for.
    ///
    /// The sum can also be a fingerprint (see [`cache`](crate::chunked::cache)), for a file that is the same in everything
    /// but its times.
    pub(crate) fn find(&self, sum: &[u8; 32], size: u64) -> Option<Place> {
        if size == 0 {
            return None;
        }
        let in_layers = self.layers.find_whole(sum, size, self.wrong(), |_stat| true);
        in_layers.or_else(|| self.repos.find(sum, size))
    }

    /// As [`LocalContent::find`]; where files may get hard links, rather one whose status is `like` another one's.
    pub(crate) fn find_like(&self, sum: &[u8; 32], size: u64, like: impl Fn(&Stat) -> bool) -> Option<Place> {
        let found = match self.links && size > 0 {
            true => self.layers.find_whole(sum, size, self.wrong(), like),
            false => None,
        };
        found.or_else(|| self.find(sum, size))
    }

    /// Where a part of a regular file with this content is, or a whole one.
    pub(crate) fn find_chunk(&self, sum: &[u8; 32], size: u64) -> Option<Place> {
        if size == 0 {
            return None;
        }
        self.layers.find(sum, |found| {
            let Location { offset, length, .. } = found.location;
            match length {
                _ if found.is_one_of(self.wrong()) => None,
                0 => found.place_if(0, |stat| size_of(stat).checked_sub(offset) == Some(size)),
                _ if length == size => found.place_if(0, |stat| is_within(offset, size, stat)),
                _ => None,
            }
        })
    }

    fn wrong(&self) -> Option<&WrongFiles> {
        self.wrong.as_deref()
    }

    /// Whether the file that was found may get hard links.
    pub(crate) fn may_link(&self, place: Place) -> bool {
        self.links && place.source != OSTREE && self.layers.is_own(place)
    }

    /// Opens what was found: the file, and at which of its bytes the content begins. `None` if it is not there any more.
    pub(crate) fn open(&self, place: Place, size: u64) -> Option<(File, u64)> {
        match place.source {
            OSTREE => Some((self.repos.open(place, size)?, 0)),
            _ => self.layers.open(place, size),
        }
    }
}

/// A location in the cache file of a layer.
struct Found<'a> {
    layers: &'a Layers,
    number: usize,
    layer: &'a LocalLayer,
    cache: &'a CacheBytes,
    location: Location,
}

impl Found<'_> {
    fn is_one_of(&self, wrong: Option<&WrongFiles>) -> bool {
        let Some(wrong) = wrong.filter(|wrong| wrong.layer == self.layer.id) else {
            return false;
        };
        let name = self.layer.cache.name(self.cache, self.location.name);
        let mut cleaned = Vec::new();
        name.is_ok_and(|name| {
            name.is_some_and(|name| {
                clean(&name, &mut cleaned);
                wrong.names.contains(&cleaned)
            })
        })
    }

    /// The place, if there is a regular file that `fits`.
    fn place_if(&self, flags: u32, fits: impl Fn(&Stat) -> bool) -> Option<Place> {
        let name = self.layer.cache.name(self.cache, self.location.name).ok()??;
        let (dir, name) = self.layers.parent(self.layer, &name)?;
        let stat = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        if !is_regular(&stat) || !fits(&stat) {
            return None;
        }
        let number = u32::try_from(self.number)
            .ok()
            .filter(|number| number & WHOLE == 0)?;
        Some(Place {
            source: number | flags,
            name: self.location.name,
            offset: self.location.offset,
        })
    }
}

fn is_within(offset: u64, length: u64, stat: &Stat) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= size_of(stat))
}

impl FindContent for LocalContent {
    fn find(&self, sum: &[u8; 32], size: u64, fits: &dyn Fn(&Stat) -> bool) -> Option<LocalFile> {
        let place = self.layers.find_whole(sum, size, self.wrong(), fits)?;
        let (file, _start) = self.open(place, size)?;
        let may_link = self.may_link(place);
        Some(LocalFile { file, may_link })
    }
}
