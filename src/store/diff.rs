//! What a layer changes: as a list, as a size and as a tar stream.
//!
//! A layer that came in as a stream goes out as the same bytes: its tar-split file is replayed with the layer's
//! files. Others (containers' layers) are made of what the driver says has changed.
//!
//! The trees are opened under the layer lock; then the lock is released and the stream needs none, so that a slow
//! reader delays no writer. If a layer is deleted meanwhile, the error says so.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use crate::archive::apply::origins::Origins;
use crate::archive::diff::changes::{Change, Counted, changes_size};
use crate::bridge::{self, run_to_completion};
use crate::compression::Compression;
use crate::driver::LayerUse;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::options::DiffOptions;
use crate::record::container::ContainerRow;
use crate::record::layer::LayerRow;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::access::{Needs, hit};
use crate::store::additional_blob::StoredBlob;
use crate::store::deleted::ReadLayers;
use crate::store::diff_stream::{ChangeSearch, Comparison, DiffSource, DiffStream, check_compression};
use crate::store::inner::StoreOrigin;
use crate::store::layer_store::locked::files_of;
use crate::store::layer_store::new_layer::mappings_of;
use crate::store::tree_search::COMPARED_ENTRIES;
use crate::sys::at;
use crate::sys::tree::UsageWalk;

/// What has changed, and the tree with it. Each step is bounded, so that a large layer keeps no thread from others, and a
/// caller that goes away ends the search with the current step.
async fn find_changes(comparison: Comparison) -> Result<(Vec<Change>, OwnedFd)> {
    let (search, tree) = bridge::run(move || comparison.search()).await?;
    let search = run_to_completion(search, ChangeSearch::step).await?;
    bridge::run(move || Ok((search.into_changes(), tree))).await
}

/// Bytes in everything below a directory but directories. In bounded steps, as [`find_changes`].
async fn size_of_tree(dir: OwnedFd) -> Result<u64> {
    const DOING: &str = "measuring a layer";
    let walk = bridge::run(move || UsageWalk::new(dir.as_fd()).during(DOING)).await?;
    let step = |walk: &mut UsageWalk| walk.step(COMPARED_ENTRIES as u64).during(DOING);
    Ok(run_to_completion(walk, step).await?.usage.size)
}

/// Bytes in the files of the tree that were added or changed. In bounded steps, as [`find_changes`].
async fn size_of_changes(changes: Vec<Change>, tree: OwnedFd) -> Result<u64> {
    let mut state = (changes, tree, Counted::new());
    let (mut start, mut size) = (0, 0u64);
    while start < state.0.len() {
        let step = move || {
            let (changes, tree, seen) = &mut state;
            let part = changes.get(start..).unwrap_or_default();
            let part = part.get(..COMPARED_ENTRIES).unwrap_or(part);
            let size = changes_size(tree.as_fd(), part, seen);
            Ok((size, state))
        };
        let part;
        (part, state) = bridge::run(step).await?;
        size = size.saturating_add(part);
        start += COMPARED_ENTRIES;
    }
    Ok(size)
}

/// The two layers of a comparison.
struct Pair {
    to: Arc<LayerRow>,
    /// `None`: against nothing.
    from: Option<Arc<LayerRow>>,
    /// Whether `from` is what the layer was made on.
    direct: bool,
    home: StoreOrigin,
}

/// # What a layer changes
impl Store {
    /// Resolves the two ends. An empty or unknown `from` means the layer's parent, as in the Go library; an unknown one
    /// is an error only where there is no parent to fall back on.
    async fn pair(&self, from: Option<&str>, to: &str) -> Result<Pair> {
        let find = async |key: &str| {
            self.read_all_layer_stores(|home, table| {
                Ok(hit(table.find(key).map(|row| (Arc::clone(row), home))))
            })
            .await
        };
        let Some((to, home)) = find(to).await? else {
            return Err(LayerRow::unknown(to));
        };
        let asked = match from.filter(|from| !from.is_empty()) {
            Some(from) => {
                let asked = find(from).await?.map(|(row, _)| row);
                if asked.is_none() && to.parent.is_empty() {
                    return Err(LayerRow::unknown(from));
                }
                asked
            }
            None => None,
        };
        let mappings = self.mappings_of_layer(&to).await?;
        let to = match mappings == mappings_of(&to) {
            true => to,
            false => Arc::new(LayerRow {
                uid_map: mappings.uids,
                gid_map: mappings.gids,
                ..LayerRow::clone(&to)
            }),
        };
        let direct = asked.as_ref().is_none_or(|row| row.id == to.parent);
        let from = match asked {
            Some(row) => Some(row),
            None if to.parent.is_empty() => None,
            None => {
                // Exactly that one: another layer may have the ID of a lost parent for a name.
                let parent = self
                    .read_all_layer_stores(|_, table| Ok(hit(table.get(&to.parent).map(Arc::clone))))
                    .await?;
                let missing =
                    || ErrorKind::LayerUnknown.err(format!("locating parent layer {:?}", to.parent));
                Some(parent.ok_or_else(missing)?)
            }
        };
        Ok(Pair {
            to,
            from,
            direct,
            home,
        })
    }

    /// The mappings of a layer. Those of a container's layer may be in the container's record only: there the Go library before
    /// 1.64 has those that a mount maps.
    pub(crate) async fn mappings_of_layer(&self, layer: &LayerRow) -> Result<IdMappings> {
        let own = mappings_of(layer);
        if !own.is_identity() || layer.has_diff() {
            return Ok(own);
        }
        let of_container = |container: &ContainerRow| IdMappings {
            uids: container.uid_map.clone(),
            gids: container.gid_map.clone(),
        };
        self.read_container_store(|table| {
            let container = table.by_layer(&layer.id);
            Ok(container.map_or(own, |container| of_container(container)))
        })
        .await
    }

    /// Opens the trees to compare; mounts what has to be mounted.
    async fn comparison(&self, pair: &Pair) -> Result<Comparison> {
        let (to, from) = (Arc::clone(&pair.to), pair.from.clone());
        let opened = self.step(Needs::LAYERS.with_graph(), move |held| {
            let driver = &held.layers()?.driver;
            files_of(&to.id, Comparison::open(driver, &to, from.as_deref()))
        });
        self.explained(pair, opened.await).await
    }

    /// The layers that a comparison reads.
    fn read_layers_of(&self, pair: &Pair) -> ReadLayers {
        ReadLayers::new(self.clone(), Arc::clone(&pair.to), pair.from.clone())
    }

    /// The result of reading two layers, which is [`ErrorKind::LayerUnknown`] if one was deleted meanwhile.
    async fn explained<T>(&self, pair: &Pair, result: Result<T>) -> Result<T> {
        let layers = self.read_layers_of(pair);
        match result {
            Ok(value) => layers.deletion().await.map_or(Ok(value), Err),
            Err(error) => Err(layers.explain(error).await),
        }
    }

    /// What has to be done to layer `from` to make it look like layer `to`, sorted by path. Without `from`, and also
    /// if `from` is not known and `to` has a parent, the parent of `to` is meant.
    ///
    /// A directory that was deleted and made again is no deleted one: what it had and has no more is listed as deleted.
    ///
    /// Takes the graph lock and the layer lock exclusively while the trees are opened.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn changes(&self, from: Option<&str>, to: &str) -> Result<Vec<Change>> {
        let pair = self.pair(from, to).await?;
        let comparison = self.comparison(&pair).await?;
        let changes = find_changes(comparison).await.map(|(changes, _tree)| changes);
        self.explained(&pair, changes).await
    }

    /// Bytes in the files that [`Store::changes`] adds or changes, hard links counted once: what they take, without the
    /// headers of a tar stream. It is measured, by reading the whole tree where the driver does not keep changes apart.
    ///
    /// The size of a layer's tar stream is another one: [`Layer::uncompressed_size`](crate::Layer::uncompressed_size)
    /// as recorded, [`DiffStream::size`] for a stream.
    ///
    /// Locks as [`Store::changes`].
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn diff_size(&self, from: Option<&str>, to: &str) -> Result<u64> {
        let pair = self.pair(from, to).await?;
        let size = match self.comparison(&pair).await? {
            // Everything in the layer's own tree has changed.
            Comparison::OverlayDiff(upper, _) => size_of_tree(upper.dir).await,
            trees @ Comparison::Trees { .. } => match find_changes(trees).await {
                Ok((changes, tree)) => size_of_changes(changes, tree).await,
                Err(error) => Err(error),
            },
        };
        self.explained(&pair, size).await
    }

    /// The tar stream that makes layer `from` look like layer `to`; without `from` (or with one that is not known, if
    /// `to` has a parent) the parent of `to` is meant.
    ///
    /// Against its parent, a layer that came in as a stream comes out as exactly the same uncompressed bytes: they
    /// have its diff ID. By default the stream is compressed as the blob was that the layer came from; recompressed
    /// bytes differ from that blob, but are the same each time. All processors compress, up to eight. Memory does not
    /// grow with the layer: one or two blocks are held for each processor, of 384 KiB for gzip and of 4 MiB for zstd. For
    /// zstd:chunked they are of 1 MiB, and the table of contents grows with the number of files, by some 300 bytes for each.
    ///
    /// zstd:chunked cuts files into the same chunks as the Go library, so that these are shared between images that
    /// either side has pushed. A layer that the Go library could not pull by its table of contents (with a path twice or
    /// one through `..`, sparse files, links to devices, a global header) becomes plain zstd; see [`DiffStream::annotations`].
    ///
    /// The layer lock is taken shared (for a diff that is not recorded: exclusively) while files are opened, and not
    /// held afterwards. If the layer is deleted while the stream is being read, reading fails with
    /// [`ErrorKind::LayerUnknown`]. An error while reading means that the bytes so far must be discarded.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::NotSupported`] for a compression that can only be read (bzip2, xz),
    /// [`ErrorKind::InvalidInput`] for a level that the compression does not have, or an offset beyond the end (where the size is not known beforehand, from the
    /// stream), [`ErrorKind::Io`]. Damage found later is an `io::Error` of the stream that names the file.
    ///
    /// # Cancellation
    /// Dropping the stream ends the work behind it.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::DiffOptions;
    /// let mut diff = store.diff(None, "base", DiffOptions::uncompressed()).await?;
    /// let mut file = tokio::fs::File::create("base.tar").await.expect("a writable directory");
    /// tokio::io::copy(&mut diff, &mut file).await.expect("a sound layer");
    /// // A part, as an HTTP server sends it for `Range: bytes=1000-1999`.
    /// let part = store.diff(None, "base", DiffOptions::uncompressed().range(1000..=1999)).await?;
    /// println!("Content-Length: {:?}, of {:?}", part.remaining(), part.size());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn diff(&self, from: Option<&str>, to: &str, options: DiffOptions) -> Result<DiffStream> {
        let pair = self.pair(from, to).await?;
        let recorded = || Compression::from_i64(pair.to.compression).unwrap_or_default();
        let compression = options.compression.unwrap_or_else(recorded);
        check_compression(compression, options.level)?;
        let replayable = if pair.direct {
            self.open_recorded(&pair).await?
        } else {
            None
        };
        let source = match replayable {
            Some(source) => source,
            None => DiffSource::Comparison(self.comparison(&pair).await?),
        };
        source.stream(self.read_layers_of(&pair), compression, &options)
    }

    /// The uncompressed stream that a layer (an exact ID) came from, if that is known.
    /// Files whose content is in the stream are offered to `origins`. The layer lock is taken shared only.
    pub(crate) async fn recorded_diff(&self, id: &str, origins: &Arc<Origins>) -> Result<Option<DiffStream>> {
        let pair = self.pair(None, id).await?;
        let source = match self.open_recorded(&pair).await? {
            Some(DiffSource::Replay {
                tar_split,
                trees,
                size,
                origins: _,
            }) => DiffSource::Replay {
                tar_split,
                trees,
                size,
                origins: Some(Arc::clone(origins)),
            },
            Some(other) => other,
            None => return Ok(None),
        };
        let layers = self.read_layers_of(&pair);
        source
            .stream(layers, Compression::None, &DiffOptions::uncompressed())
            .map(Some)
    }

    /// Opens what gives the stream that a layer came from: the blob in an additional layer store in which its files are, or
    /// its tar-split file and its trees. `None` if it has neither.
    async fn open_recorded(&self, pair: &Pair) -> Result<Option<DiffSource>> {
        let guard = match pair.home {
            StoreOrigin::Primary => self.read_layers().await?,
            StoreOrigin::Additional { index, .. } => {
                self.inner.additional_layers[index].records.read().await?
            }
        };
        let file_name = format!("{}.tar-split.gz", pair.to.id);
        let path: PathBuf = match pair.home {
            StoreOrigin::Primary => self.inner.dirs.tar_split(&pair.to.id)?,
            StoreOrigin::Additional { index, .. } => self.inner.additional_layers[index].dir.join(file_name),
        };
        let (driver, id, row) = (self.inner.driver(), pair.to.id.clone(), Arc::clone(&pair.to));
        // A record that says nothing about the size has 0, which is the size of no archive.
        let size = u64::try_from(pair.to.diff_size).ok().filter(|size| *size > 0);
        bridge::run(move || {
            if guard.get(&id).is_none() {
                return Err(LayerRow::unknown(&id));
            }
            if let Some(dir) = files_of(&id, driver.additional_layer(&id))? {
                let blob = StoredBlob::open(LayerUse::begin(&dir), &row)?;
                return Ok(Some(DiffSource::Blob { blob, size }));
            }
            let tar_split = match at::open_regular(&path) {
                Ok(tar_split) => tar_split,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::io_at("opening", path, error)),
            };
            let trees = files_of(&id, driver.file_trees(&id))?;
            Ok(Some(DiffSource::Replay {
                tar_split,
                trees,
                size,
                origins: None,
            }))
        })
        .await
    }
}
