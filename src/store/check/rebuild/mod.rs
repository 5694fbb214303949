//! Damaged files of records: what is wrong with each, and how they are made again.
//!
//! ```text
//! salvage     the records of a file that can still be read
//! examined    all files, with what is wrong with them and what contradicts itself
//! facts       what the directories of layers, images and containers tell; reading: the streams of layers
//! plan        the records that are put together from both; rows: those of one kind
//! ```
//!
//! What takes long is read without locks: as long as a file cannot be loaded no program changes anything, and if one has been
//! mended meanwhile everything is read again. The new files are written under the exclusive locks of all stores. Images and
//! containers come first, since their records are put together from more of what is known of layers than the records of
//! layers say. Whenever the process is killed, every file is the old one or the new one, and another repair goes on.

pub(crate) mod damage;
pub(crate) mod examined;
mod facts;
mod plan;
mod plan_containers;
mod plan_images;
mod plan_layers;
pub(crate) mod reading;
pub(crate) mod report;
mod rows;
mod salvage;

use std::collections::HashSet;
use std::path::PathBuf;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::TryStreamExt as _;

use crate::bridge::{self, run_to_completion};
use crate::driver::{Driver, FoundLayer};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::json;
use crate::record::TAR_SPLIT;
use crate::record::mount_point::MountPointRow;
use crate::record::record_trait::Record;
use crate::store::Store;
use crate::store::access::files::{StoreFiles, StoreTexts};
use crate::store::check::data::reason;
use crate::store::check::finding::{CheckedItem, ItemKind};
use crate::store::check::rebuild::examined::{Examined, ExaminedFile};
use crate::store::check::rebuild::facts::{
    LayerFacts, changed, container_notes, data_facts, documents, keys_in,
};
use crate::store::check::rebuild::plan::{Facts, Plan, plan};
use crate::store::check::rebuild::reading::{Stream, StreamReading};
use crate::store::check::rebuild::report::{RebuiltRecord, ReplacedFile};
use crate::store::check::rebuild::rows::NewFile;
use crate::store::check::strays::ids_in;
use crate::store::dirs::{Dirs, container_location, item_dir, layer_location};
use crate::store::evidence::{containers_of_other_mode, layers_of_other_mode};
use crate::sys::{at, mount, processors};

/// Bytes of a stream that one step reads.
const READ_STEP: u64 = 4 << 20;

/// Streams, or directories, that are read at the same time at the most.
const MAX_PARALLEL: usize = 8;

/// How often a rebuild begins again because the files were changed meanwhile.
const ATTEMPTS: usize = 3;

/// What was, or in a dry run would be, rebuilt.
#[derive(Debug, Default)]
pub(super) struct Rebuilt {
    pub(super) records: Vec<RebuiltRecord>,
    pub(super) files: Vec<ReplacedFile>,
}

/// What is to be read of the disk.
#[derive(Debug, Default)]
struct Wanted {
    layers: Vec<FoundLayer>,
    images: Vec<Vec<String>>,
    /// All images, whose documents tell of layers.
    documents: Vec<(PathBuf, String)>,
    containers: Vec<String>,
    facts: Facts,
}

impl Store {
    /// What is wrong with the files of records. Changes nothing.
    pub(super) async fn examine_records(&self) -> Result<Examined> {
        let files = self.hold_files(false).await?;
        bridge::run(move || Ok(Examined::of(&files.read()?))).await
    }

    /// Makes the records again that damaged files have lost, as far as the disk tells them, and resolves what contradicts
    /// itself.
    pub(super) async fn rebuild_records(&self, dry_run: bool) -> Result<Rebuilt> {
        for _ in 0..ATTEMPTS {
            let files = self.hold_files(false).await?;
            let (driver, dirs) = (self.inner.driver(), self.inner.dirs.clone());
            let transient = self.inner.options.transient;
            let (texts, examined, wanted) = bridge::run(move || {
                let texts = files.read()?;
                let examined = Examined::of(&texts);
                let wanted = wanted(&examined, &*driver, &dirs, transient)?;
                Ok((texts, examined, wanted))
            })
            .await?;
            let facts = self.gather(wanted).await?;
            let (plan, mounts) = bridge::run(move || {
                let mut plan = plan(&examined, &facts)?;
                let mounts = mounts_of(&examined, &facts.found, &mut plan)?;
                Ok((plan, mounts))
            })
            .await?;
            if dry_run {
                return Ok(Rebuilt::of(
                    plan,
                    mounts.is_some().then(|| texts.mounts.path.clone()),
                ));
            }
            let files = self.hold_files(true).await?;
            let written = bridge::run(move || write(&files, &texts, plan, mounts)).await?;
            if let Some(rebuilt) = written {
                return Ok(rebuilt);
            }
        }
        Err(ErrorKind::LoadError.err("rebuilding records that others change at the same time"))
    }

    async fn gather(&self, wanted: Wanted) -> Result<Facts> {
        let dirs = &self.inner.dirs;
        let mut facts = wanted.facts;
        let layers = wanted.layers.into_iter().map(|found| self.layer_facts(found));
        facts.layers = all(layers).await?;
        for (store, ids) in wanted.images.into_iter().enumerate() {
            let dir = if store == 0 {
                dirs.images()
            } else {
                dirs.graph_images()
            };
            let images = ids.into_iter().map(|id| {
                let dir = item_dir(dir.clone(), &id);
                bridge::run(move || data_facts(&dir?, &id))
            });
            let mut images = all(images).await?;
            images.sort_by(|one, other| one.age().cmp(&other.age()));
            facts.images.push(images);
        }
        let found = wanted.documents.into_iter();
        let found = found.map(|(dir, id)| bridge::run(move || documents(&dir, &id)));
        facts.documents = all(found).await?.into_iter().flatten().collect();
        facts.documents.sort_by(|one, other| one.image.cmp(&other.image));
        let containers = wanted.containers.into_iter().map(|id| {
            let dir = item_dir(dirs.containers(), &id);
            bridge::run(move || {
                let dir = dir?;
                Ok((data_facts(&dir, &id)?, container_notes(&dir)?))
            })
        });
        facts.containers = all(containers).await?;
        facts
            .containers
            .sort_by(|(one, _), (other, _)| one.age().cmp(&other.age()));
        Ok(facts)
    }

    /// What the stream of a layer tells, which is read; `None` if it has none.
    pub(crate) async fn read_stream_of(&self, id: &str) -> Result<Option<Stream>> {
        let (driver, path, id) = (self.inner.driver(), self.inner.dirs.tar_split(id)?, id.to_owned());
        match bridge::run(move || open_stream(&*driver, &path, &id)).await? {
            Some(reading) => read(reading).await.map(Some),
            None => Ok(None),
        }
    }

    /// What is known of a layer without a record.
    async fn layer_facts(&self, found: FoundLayer) -> Result<LayerFacts> {
        let (driver, dirs) = (self.inner.driver(), self.inner.dirs.clone());
        let (mut facts, opened) = bridge::run(move || {
            let id = found.id.as_str();
            let path = dirs.tar_split(id)?;
            let facts = LayerFacts {
                items: keys_in(&dirs.layer_data(id)?)?,
                created: match changed(&path) {
                    time if time.is_go_zero() => changed(&found.dir),
                    time => time,
                },
                stream: None,
                found,
            };
            let opened = open_stream(&*driver, &path, &facts.found.id);
            Ok((facts, opened))
        })
        .await?;
        let read = match opened {
            Ok(Some(reading)) => read(reading).await.map(Some),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        facts.stream = match read {
            Ok(stream) => stream.map(Ok),
            Err(error) => Some(Err(reason(error)?)),
        };
        Ok(facts)
    }
}

/// The results of many readings, in no order; of no more than [`MAX_PARALLEL`] at the same time.
async fn all<T>(readings: impl Iterator<Item = impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    let parallel = processors().min(MAX_PARALLEL);
    let readings = futures::stream::iter(readings).buffer_unordered(parallel);
    readings.try_collect().await
}

async fn read(reading: StreamReading) -> Result<Stream> {
    let reading = run_to_completion(reading, |reading| reading.step(READ_STEP)).await?;
    bridge::run(move || Ok(reading.into_stream())).await
}

/// The stream of a layer; `None` without a tar-split file.
fn open_stream(driver: &dyn Driver, tar_split: &std::path::Path, id: &str) -> Result<Option<StreamReading>> {
    let tar_split = match at::open_regular(tar_split) {
        Ok(tar_split) => tar_split,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io_at("opening", tar_split, error)),
    };
    Ok(Some(StreamReading::new(tar_split, driver.file_trees(id)?)))
}

/// Whether the file at a location has lost records; `evidence` says that there is what belongs to some.
fn has_lost<R: Record>(file: &ExaminedFile<R>, evidence: impl FnOnce() -> bool) -> bool {
    file.loses_records() || file.says_nothing && evidence()
}

/// What has to be read to make up for what the files have lost.
fn wanted(examined: &Examined, driver: &dyn Driver, dirs: &Dirs, transient: bool) -> Result<Wanted> {
    let mut wanted = Wanted::default();
    let facts = &mut wanted.facts;
    facts.found = driver.found_layers()?;
    for found in &mut facts.found {
        // Beside a separate image store only containers' layers have their records in the graph root.
        let is_of_container = || examined.container_rows().any(|row| row.layer == found.id);
        found.in_image_store = found
            .in_image_store
            .or_else(|| Some(dirs.image_store.is_some() && !is_of_container()));
    }
    let mut known: HashSet<&str> = examined.layer_rows().map(|(_, row)| row.id.as_str()).collect();
    let elsewhere = layers_of_other_mode(dirs, transient)?;
    known.extend(elsewhere.iter().map(String::as_str));
    let unknown: Vec<&FoundLayer> = facts
        .found
        .iter()
        .filter(|found| !known.contains(found.id.as_str()))
        .collect();
    let tar_splits: HashSet<String> = ids_in(&dirs.layers(), TAR_SPLIT)?.into_iter().collect();
    // A directory alone may have been made without records; what refers to it, or belongs to it, was made with one.
    let is_used = |found: &&FoundLayer| {
        tar_splits.contains(&found.id)
            || examined
                .image_rows()
                .any(|(_, row)| row.top_layers().any(|top| top == found.id))
            || examined.container_rows().any(|row| row.layer == found.id)
    };
    let mut lost_layers = Vec::new();
    for (location, file) in examined.layers.iter().enumerate() {
        let in_image_store = location == layer_location::IMAGE_STORE;
        let here = || {
            unknown
                .iter()
                .copied()
                .filter(|found| found.in_image_store == Some(in_image_store))
        };
        lost_layers.push(match location {
            layer_location::VOLATILE => file.loses_records(),
            _ => has_lost(file, || here().any(|found| is_used(&found))),
        });
    }
    let lost = |location: usize| lost_layers.get(location) == Some(&true);
    let is_lost = |found: &&FoundLayer| match found.in_image_store {
        Some(true) => lost(layer_location::IMAGE_STORE),
        _ => lost(layer_location::STABLE) || lost(layer_location::VOLATILE),
    };
    let damaged: HashSet<&str> = examined
        .layers
        .iter()
        .flat_map(ExaminedFile::with_dropped_fields)
        .collect();
    wanted.layers = unknown.iter().copied().filter(is_lost).cloned().collect();
    let with_damage = facts
        .found
        .iter()
        .filter(|found| damaged.contains(found.id.as_str()));
    wanted.layers.extend(with_damage.cloned());
    facts.lost_layers = lost_layers;

    let image_dirs = [dirs.images(), dirs.graph_images()];
    for (files, dir) in examined.images.iter().zip(&image_dirs) {
        let Some(file) = files.first() else { continue };
        let known: HashSet<&str> = file.rows().map(|row| row.id.as_str()).collect();
        let mut ids = ids_in(dir, "")?;
        ids.retain(|id| !known.contains(id.as_str()));
        let mut with_data = Vec::new();
        for id in ids {
            // One without data says nothing of an image.
            if !keys_in(&dir.join(&id))?.is_empty() {
                with_data.push(id);
            }
        }
        let mut images = match has_lost(file, || !with_data.is_empty()) {
            true => with_data,
            false => Vec::new(),
        };
        images.extend(file.with_dropped_fields().map(str::to_owned));
        images.retain(|id| crate::driver::check_id(id).is_ok());
        wanted.images.push(images);
    }
    if !wanted.layers.is_empty() || wanted.images.iter().any(|images| !images.is_empty()) {
        let stores = examined.images.len();
        for dir in image_dirs.iter().take(stores) {
            let ids = ids_in(dir, "")?;
            wanted
                .documents
                .extend(ids.into_iter().map(|id| (dir.join(&id), id)));
        }
    }

    let known: HashSet<&str> = examined.container_rows().map(|row| row.id.as_str()).collect();
    let elsewhere = containers_of_other_mode(dirs, transient)?;
    let mut ids = ids_in(&dirs.containers(), "")?;
    ids.retain(|id| !known.contains(id.as_str()) && !elsewhere.contains(id));
    for (location, file) in examined.containers.iter().enumerate() {
        facts.lost_containers.push(match location {
            container_location::STABLE if !transient => has_lost(file, || !ids.is_empty()),
            _ => file.loses_records(),
        });
    }
    if facts.lost_containers.contains(&true) {
        wanted.containers = ids;
    }
    let damaged = examined
        .containers
        .iter()
        .flat_map(ExaminedFile::with_dropped_fields);
    let damaged = damaged.filter(|id| crate::driver::check_id(id).is_ok());
    wanted.containers.extend(damaged.map(str::to_owned));
    Ok(wanted)
}

/// The new content of a damaged file of mount points: what can be read of it, and what is mounted. Blocking.
fn mounts_of(examined: &Examined, found: &[FoundLayer], plan: &mut Plan) -> Result<Option<Vec<u8>>> {
    let file = &examined.mounts;
    if file.contents.damage.is_empty() {
        return Ok(None);
    }
    let mut texts: Vec<Bytes> = file.contents.rows.iter().map(|row| row.text.clone()).collect();
    let known: HashSet<&str> = file.rows().map(|row| row.id.as_str()).collect();
    let mounted = mount::mounts_below(std::path::Path::new("/")).during("reading the table of mounts")?;
    let mounted: HashSet<PathBuf> = mounted.into_iter().collect();
    for layer in found.iter().filter(|layer| !known.contains(layer.id.as_str())) {
        let path = layer.dir.join("merged");
        if !mounted.contains(&path) {
            continue;
        }
        let row = MountPointRow {
            id: layer.id.clone(),
            path: path.display().to_string(),
            count: 1,
            ..MountPointRow::default()
        };
        let text = json::to_bytes(&row).map_err(|error| {
            ErrorKind::InvalidInput
                .err("encoding a mount point")
                .with_source(error)
        })?;
        texts.push(text.into());
        let mut report = RebuiltRecord::new(CheckedItem::new(ItemKind::Layer, &layer.id, false));
        report.known("it is mounted: the kernel");
        report.inferred("one user of the mount: nobody knows how many there are");
        plan.records.push(report);
    }
    Ok(Some(json::join(texts.iter())))
}

/// Writes the new files, if nothing has changed since `texts` were read. Blocking.
fn write(
    files: &StoreFiles,
    texts: &StoreTexts,
    plan: Plan,
    mounts: Option<Vec<u8>>,
) -> Result<Option<Rebuilt>> {
    if files.read()? != *texts {
        return Ok(None);
    }
    let mut replaced = Vec::new();
    let mut done = |file: &NewFile, kept: Option<PathBuf>| {
        tracing::warn!(path = %file.path.display(), "a file of records was written anew");
        replaced.push(ReplacedFile {
            path: file.path.clone(),
            kept,
        });
    };
    for (images, new) in files.images.iter().zip(&plan.images) {
        for file in new {
            done(file, images.replace(file.location, &file.content)?);
        }
    }
    for file in &plan.containers {
        done(file, files.containers.replace(file.location, &file.content)?);
    }
    for file in &plan.layers {
        done(file, files.layers.replace(file.location, &file.content)?);
    }
    if let Some(content) = mounts {
        replaced.push(ReplacedFile {
            path: files.mounts.path().to_owned(),
            kept: files.mounts.replace(&content)?,
        });
    }
    Ok(Some(Rebuilt {
        records: plan.records,
        files: replaced,
    }))
}

impl Rebuilt {
    /// What a plan would come to.
    fn of(plan: Plan, mounts: Option<PathBuf>) -> Self {
        let images = plan.images.iter().flatten();
        let files = images.chain(&plan.containers).chain(&plan.layers);
        let paths = files.map(|file| file.path.clone()).chain(mounts);
        Self {
            files: paths.map(|path| ReplacedFile { path, kept: None }).collect(),
            records: plan.records,
        }
    }
}
