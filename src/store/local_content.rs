//! The contents that the layers of a store have: their cache files, loaded once for all who look for content.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bridge::{self, ByteStream, FilePart};
use crate::chunked::cache::{CACHE_KEY, CacheWriter, FORMAT_KEY, LayerFormat, TOC_KEY};
use crate::chunked::local::{LayerTrees, Layers, LocalContent, LocalLayer, NoCache, open_regular};
use crate::driver::Driver;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::options::PartialPullOptions;
use crate::record::big_data;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::dirs::item_dir;
use crate::store::inner::StoreOrigin;
use crate::store::local_layers::{Entry, Known};
use crate::sys::{at, make_private_subdir, unnamed};

/// Layers whose cache files are opened in one step.
const STEP: usize = 64;

/// Bytes of memory that filters take. Those for which there is no room are read where they are.
const MAX_FILTERS: usize = 4 << 20;

/// Bytes of memory that whole cache files take besides. Those for which there is no room are read where they are, too.
const MAX_WHOLE: usize = 4 << 20;

/// Bytes of a table of contents; that of a layer that was pulled is smaller.
const MAX_TOC: u64 = 150 << 20;

/// Caches that are made anew in each process, because they cannot be stored with their layers: how many, and of tables of
/// how many bytes together.
const MAX_TEMPORARY: usize = 32;
const MAX_TEMPORARY_TOCS: u64 = 64 << 20;

/// A layer to load.
#[derive(Clone)]
struct Candidate {
    row: Arc<LayerRow>,
    /// The directory of its big data.
    dir: PathBuf,
    is_writable: bool,
}

#[derive(Debug)]
struct DriverTrees(Arc<dyn Driver>);

impl LayerTrees for DriverTrees {
    fn open_tree(&self, id: &str) -> Result<OwnedFd> {
        Ok(self.0.layer_tree(id)?.dir)
    }
}

/// A cache file just opened.
type Opened = std::result::Result<(LocalLayer, File), NoCache>;

impl Store {
    /// The contents of all layers with a table of contents, in this store and the additional ones, and of the OSTree
    /// repositories that the options name. Cache files that are
    /// missing or damaged are made, and stored with their layers where that is possible.
    ///
    /// Takes the layer lock shared for a moment, and exclusively for each cache file that is stored.
    ///
    /// # Errors
    /// Those of reading the records. A layer whose contents cannot be found out is no error.
    ///
    /// # Cancellation
    /// Cache files may have been stored.
    pub(crate) async fn local_content(&self) -> Result<LocalContent> {
        let layers = self.local_layers().await?;
        let options = PartialPullOptions::new(self.pull_options());
        Ok(LocalContent::new(layers, &options.ostree_repos).with_links(options.use_hard_links))
    }

    async fn local_layers(&self) -> Result<Arc<Layers>> {
        let mut known = self.inner.local_layers.0.lock().await;
        let candidates = self.layers_with_toc().await?;
        let is_known = |candidate: &Candidate| {
            let entry = known.layers.get(&*candidate.row.id);
            entry.is_some_and(|entry| entry.is_of(&candidate.row))
        };
        let new: Vec<Candidate> = candidates
            .iter()
            .filter(|candidate| !is_known(candidate))
            .cloned()
            .collect();
        if let Some(all) = &known.all
            && new.is_empty()
            && candidates.len() == known.layers.len()
        {
            return Ok(Arc::clone(all));
        }
        known.all = None;
        let mut old = std::mem::take(&mut known.layers);
        for Candidate { row, .. } in &candidates {
            if let Some(entry) = old.remove(&*row.id).filter(|entry| entry.is_of(row)) {
                known.layers.insert(row.id.to_string(), entry);
            }
        }
        for part in new.chunks(STEP) {
            self.load(&mut known, part.to_vec()).await?;
        }
        let entries = candidates
            .iter()
            .filter_map(|candidate| known.layers.get(&*candidate.row.id));
        let layers = entries.filter_map(|entry| entry.layer.clone()).collect();
        let trees = Box::new(DriverTrees(self.inner.driver()));
        let all = Arc::new(Layers::new(layers, trees));
        known.all = Some(Arc::clone(&all));
        Ok(all)
    }

    /// All layers of which contents may be found, the newest of each store first.
    async fn layers_with_toc(&self) -> Result<Vec<Candidate>> {
        let mut found: Vec<(Arc<LayerRow>, StoreOrigin)> = Vec::new();
        let _none: Option<()> = self
            .read_all_layer_stores(|origin, table| {
                let rows = table.rows().rev().filter(|row| {
                    let mut names = row.big_data_names.iter();
                    names.any(|name| name == CACHE_KEY || name == TOC_KEY)
                });
                found.extend(rows.map(|row| (Arc::clone(row), origin)));
                Ok(ControlFlow::Continue(()))
            })
            .await?;
        let mut seen = HashSet::new();
        let mut candidates = Vec::new();
        for (row, origin) in found {
            let dir = match origin {
                StoreOrigin::Primary => self.inner.dirs.layer_data(&row.id),
                StoreOrigin::Additional { index, .. } => {
                    let Some(store) = self.inner.additional_layers.get(index) else {
                        continue;
                    };
                    item_dir(store.dir.clone(), &row.id)
                }
            };
            // The driver finds only the first layer of an ID.
            if let Ok(dir) = dir
                && seen.insert(row.id.to_string())
            {
                candidates.push(Candidate {
                    row,
                    dir,
                    is_writable: origin.is_primary(),
                });
            }
        }
        Ok(candidates)
    }

    /// Opens the cache files of some layers, and makes those that are not there.
    async fn load(&self, known: &mut Known, part: Vec<Candidate>) -> Result<()> {
        let opened: Vec<(Candidate, Opened)> = bridge::run(move || {
            let open = |candidate: Candidate| {
                let opened = open_cache(&candidate);
                (candidate, opened)
            };
            Ok(part.into_iter().map(open).collect())
        })
        .await?;
        for (candidate, opened) in opened {
            let (layer, is_own) = (candidate.row.id.to_string(), candidate.is_writable);
            let created = candidate.row.created.clone();
            let mut entry = Entry {
                created,
                layer: None,
                filter: 0,
                whole: 0,
                temporary: None,
            };
            let loaded = match opened {
                Ok(loaded) => Some(loaded),
                Err(reason) => {
                    tracing::debug!(layer, %reason, "making the cache file of a layer");
                    let made = self.make_cache(known, candidate, &mut entry).await;
                    made.unwrap_or_else(|error| {
                        tracing::debug!(layer, error = %error.chain(), "cannot make the cache file of a layer");
                        None
                    })
                }
            };
            if let Some((mut loaded, file)) = loaded.filter(|(loaded, _)| !loaded.is_empty()) {
                let taken = |of: fn(&Entry) -> usize| known.layers.values().map(of).sum();
                let for_filter = MAX_FILTERS.saturating_sub(taken(|entry| entry.filter));
                let for_whole = MAX_WHOLE.saturating_sub(taken(|entry| entry.whole));
                (loaded, entry.filter, entry.whole) = bridge::run(move || {
                    let filter = load_filter(&mut loaded, &file, for_filter);
                    let whole = load_whole(&mut loaded, &file, for_whole);
                    Ok((loaded, filter, whole))
                })
                .await?;
                if is_own {
                    loaded.set_own();
                }
                entry.layer = Some(Arc::new(loaded));
            }
            known.layers.insert(layer, entry);
        }
        Ok(())
    }

    /// Makes the cache file of a layer from its table of contents.
    async fn make_cache(
        &self,
        known: &Known,
        candidate: Candidate,
        entry: &mut Entry,
    ) -> Result<Option<(LocalLayer, File)>> {
        let temporary = known.layers.values().filter_map(|entry| entry.temporary);
        let (count, size) = temporary.fold((0, 0), |(count, sum), size| (count + 1, sum + size));
        let room = match count < MAX_TEMPORARY {
            true => MAX_TEMPORARY_TOCS.saturating_sub(size),
            false => 0,
        };
        let limit = if candidate.is_writable {
            MAX_TOC
        } else {
            room.min(MAX_TOC)
        };
        let (dir, tmp) = (candidate.dir.clone(), self.inner.dirs.layers_tmp());
        let made = bridge::run(move || write_cache(&dir, &tmp, limit)).await?;
        let Some((file, length, toc)) = made else {
            return Ok(None);
        };
        let id = candidate.row.id.to_string();
        if candidate.is_writable {
            let copy = file.try_clone().during("reading a temporary file")?;
            let stream = ByteStream::of(FilePart::new(copy, 0, length));
            match self.set_layer_big_data(&id, CACHE_KEY, stream).await {
                Ok(()) => {
                    let opened = bridge::run(move || Ok(open_stored(&candidate))).await?;
                    return Ok(opened.ok());
                }
                Err(error) if error.kind() == ErrorKind::LayerUnknown => return Ok(None),
                Err(error) => {
                    tracing::debug!(layer = id, error = %error.chain(), "storing the cache file of a layer");
                }
            }
        }
        if toc > room {
            return Ok(None);
        }
        entry.temporary = Some(toc);
        let opened = bridge::run(move || {
            let copy = file.try_clone().during("opening a temporary file")?;
            Ok(LocalLayer::with_temporary(&id, copy, length)
                .ok()
                .map(|layer| (layer, file)))
        });
        opened.await
    }
}

/// Keeps the filter of a cache file in memory, if it takes no more than `room`; how much it takes.
fn load_filter(layer: &mut LocalLayer, file: &File, room: usize) -> usize {
    let size = layer.filter_size();
    if size > room {
        return 0;
    }
    if let Err(error) = layer.load_filter(file) {
        tracing::debug!(%error, "reading a cache file");
    }
    size
}

/// Keeps all of a cache file in memory, if it takes no more than `room`; how much it takes.
fn load_whole(layer: &mut LocalLayer, file: &File, room: usize) -> usize {
    let size = file.metadata().map_or(u64::MAX, |found| found.len());
    let Some(size) = usize::try_from(size).ok().filter(|size| *size <= room) else {
        return 0;
    };
    match layer.load_whole(file, size) {
        Ok(()) => size,
        Err(error) => {
            tracing::debug!(%error, "reading a cache file");
            0
        }
    }
}

/// Opens the cache file of a layer that has one by its record.
fn open_cache(candidate: &Candidate) -> Opened {
    match candidate.row.big_data_names.iter().any(|name| name == CACHE_KEY) {
        true => open_stored(candidate),
        false => Err(NoCache::Missing),
    }
}

/// Opens the cache file of a layer, whatever its record said.
fn open_stored(candidate: &Candidate) -> Opened {
    let name = big_data::file_name(CACHE_KEY).map_err(|_never| NoCache::Missing)?;
    LocalLayer::open(&candidate.row.id, candidate.dir.join(&*name))
}

/// Writes the cache for the table of contents among the big data in `dir` to a temporary file. Returns that, its size,
/// and that of the table; `None` if there is no table of up to `limit` bytes, or none of a layer that is stored in a
/// known way.
fn write_cache(dir: &Path, tmp: &Path, limit: u64) -> Result<Option<(File, u64, u64)>> {
    let open = |key| Ok(open_regular(&dir.join(&*big_data::file_name(key)?)));
    let Some((table, stat)) = open(TOC_KEY)? else {
        return Ok(None);
    };
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if size > limit {
        return Ok(None);
    }
    let format = match open(FORMAT_KEY)? {
        None => Some(LayerFormat::Tree),
        Some((file, _)) => {
            let mut item = Vec::new();
            file.take(4096)
                .read_to_end(&mut item)
                .during("reading how a layer is stored")?;
            LayerFormat::parse(&item)
        }
    };
    let Some(format) = format else {
        return Ok(None);
    };
    make_private_subdir(tmp)?;
    let tmp_dir = at::open_dir(tmp).at("opening the directory", tmp)?;
    let temporary = || unnamed::create(tmp_dir.as_fd()).at("making a temporary file in", tmp);
    let mut out = temporary()?;
    match CacheWriter::write_for(table.take(size), format, temporary()?, &mut out) {
        // The layer has no table that anybody understands: this is not to be found out again.
        Err(error) if error.kind() == ErrorKind::InvalidArchive => {
            tracing::debug!(error = %error.chain(), "the table of contents of a layer");
            out = temporary()?;
            CacheWriter::write_empty(temporary()?, &mut out)?;
        }
        result => result?,
    }
    let length = out.metadata().during("looking at a temporary file")?.len();
    Ok(Some((out, length, size)))
}

#[cfg(test)]
mod tests;
