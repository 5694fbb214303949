//! One layer: its stream, its own tree, whether it can be mounted.
//!
//! The layer's files are opened under its lock and read without it, in bounded steps.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt as _;

use crate::archive::path::clean;
use crate::archive::verify::comparison::{Compared, TreeCheck};
use crate::archive::verify::expected_tree::ExpectedTree;
use crate::archive::verify::item_comparison::Comparing;
use crate::archive::verify::layer_reading::{LayerContent, LayerReading};
use crate::archive::verify::overlay_marks::Marks;
use crate::bridge::{self, run_to_completion};
use crate::chunked::cache::CACHE_KEY;
use crate::digest::{Digest, Hasher};
use crate::driver::{Driver, OverlayDiff};
use crate::error::{Error, IoContext as _, Result, ResultExt as _};
use crate::options::{CheckEvent, CheckOptions, DiffOptions};
use crate::record::TAR_SPLIT;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::check::data;
use crate::store::check::finding::Problem;
use crate::store::inner::StoreOrigin;
use crate::store::layer_store::locked::files_of;
use crate::store::layer_store::new_layer::mappings_on_disk;
use crate::sys::{at, privilege};

/// Bytes of a stream that one step reads.
const READ_STEP: u64 = 4 << 20;

/// Names, or pieces of files, that one step compares.
const COMPARED: usize = 512;

/// What was found out about a layer.
#[derive(Debug, Default)]
pub(super) struct LayerResult {
    pub(super) problems: Vec<Problem>,
    /// The tree is still to be compared, with those of the layers below.
    pub(super) wants_whole_tree: bool,
}

/// What a layer's stream is made of.
enum Source {
    /// The tar-split file, where the files are found, and the layer's own changes if the driver keeps them apart.
    TarSplit {
        tar_split: File,
        trees: Vec<OwnedFd>,
        own: Option<OverlayDiff>,
        comparing: Box<Comparing>,
    },
    /// The blob in an additional layer store.
    Blob,
    Missing,
}

/// What is not compared in layers of this driver, and how the owners in the tree `root` are read.
pub(super) fn comparing(
    driver: &Arc<dyn Driver>,
    row: &LayerRow,
    root: &OwnedFd,
    ignore_times: bool,
) -> Result<Comparing> {
    let tree = driver.layer_tree(&row.id)?;
    let masked = tree.force_mask.is_some();
    Ok(Comparing {
        mappings: mappings_on_disk(&**driver, row, root.as_fd())?,
        ignore_owners: tree.ignore_chown_errors || masked,
        ignore_modes: masked,
        ignore_types: masked,
        ignore_times,
        in_user_namespace: tree.in_user_namespace,
        checked: !privilege::overrides_modes(),
    })
}

fn path_of(name: &[u8]) -> PathBuf {
    let mut path = Vec::new();
    clean(name, &mut path);
    PathBuf::from(std::ffi::OsString::from_vec(path))
}

/// Asks a driver something about a layer, and once more if it fails: what fails only once is no damage of the layer. Nor is it if
/// the driver does not work at all, which is the outer error.
pub(super) fn ask<T>(driver: &dyn Driver, question: impl Fn() -> Result<T>) -> Result<Result<T>> {
    match question() {
        Err(error) => {
            driver
                .check_works()
                .context(|| format!("checking layers ({})", error.chain()))?;
            Ok(question())
        }
        answered => Ok(answered),
    }
}

impl Store {
    /// Everything of one layer that needs no other one.
    pub(super) async fn check_layer(
        &self,
        home: StoreOrigin,
        row: &Arc<LayerRow>,
        options: &CheckOptions,
    ) -> Result<LayerResult> {
        let mut result = LayerResult::default();
        if options.layer_data {
            for key in &row.big_data_names {
                let opened = self.open_layer_item(Arc::clone(row), home, key).await;
                let found = data::of_layer(key, opened).await?;
                // Whoever needs it next makes it.
                let is_remade = |problem: &Problem| key == CACHE_KEY && data::is_missing(problem);
                result
                    .problems
                    .extend(found.filter(|problem| !is_remade(problem)));
            }
        }
        if options.layer_digests && !row.diff_digest.is_empty() {
            self.check_stream(home, row, options, &mut result).await?;
        }
        if options.layer_mountable && !home.read_only() {
            let (id, options) = (row.id.clone(), Needs::LAYERS.with_graph());
            let mounted = self.step(options, move |held| {
                let driver = &held.layers()?.driver;
                ask(&**driver, || files_of(&id, driver.mount_private(&id)).map(drop))
            });
            if let Err(error) = mounted.await? {
                let reason = data::reason(error)?;
                result.problems.push(Problem::NotMountable { reason });
            }
        }
        options.tell(|| CheckEvent::Done {
            layer: row.id.to_string(),
            findings: result.problems.len(),
        });
        Ok(result)
    }

    /// The path of a layer's tar-split file.
    pub(super) fn tar_split_of(&self, home: StoreOrigin, id: &str) -> Result<PathBuf> {
        match home {
            StoreOrigin::Primary => self.inner.dirs.tar_split(id),
            StoreOrigin::Additional { index, .. } => {
                crate::driver::check_id(id)?;
                let store = self.inner.additional_layers.get(index);
                let dir = store.map(|store| store.dir.clone()).unwrap_or_default();
                Ok(dir.join(format!("{id}{TAR_SPLIT}")))
            }
        }
    }

    /// Whether times of files may be others: hard links share them.
    pub(super) fn ignores_times(&self) -> bool {
        let pull_options = self.inner.options.pull_options.iter();
        let mut linking = pull_options.filter(|(key, _)| key.contains("use_hard_links"));
        linking.any(|(_, value)| value == "true")
    }

    async fn open_stream(&self, home: StoreOrigin, row: &Arc<LayerRow>) -> Result<Result<Source>> {
        let path = match self.tar_split_of(home, &row.id) {
            Ok(path) => path,
            Err(error) => return Ok(Err(error)),
        };
        let (row, driver, ignore_times) = (Arc::clone(row), self.inner.driver(), self.ignores_times());
        // While it is held the layer stays.
        let held = match home {
            StoreOrigin::Primary => Some(self.read_layers().await?),
            StoreOrigin::Additional { .. } => None,
        };
        let open = move |driver: &Arc<dyn Driver>, row: &LayerRow, path: &Path| {
            let id = &*row.id;
            if files_of(id, driver.additional_layer(id))?.is_some() {
                return Ok(Source::Blob);
            }
            let tar_split = match at::open_regular(path) {
                Ok(tar_split) => tar_split,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Source::Missing),
                Err(error) => return Err(Error::io_at("opening", path, error)),
            };
            let trees = files_of(id, driver.file_trees(id))?;
            let own = driver.overlay_diff(id, row.parent_id()).unwrap_or_else(|error| {
                tracing::debug!(layer = id, error = %error.chain(), "the layer's own changes cannot be told apart");
                None
            });
            let comparing = match &own {
                Some(own) => comparing(driver, row, &own.dir, ignore_times)?,
                None => Comparing::default(),
            };
            Ok(Source::TarSplit {
                tar_split,
                trees,
                own,
                comparing: Box::new(comparing),
            })
        };
        let opened = bridge::run(move || ask(&*driver, || open(&driver, &row, &path))).await;
        drop(held);
        opened
    }

    /// The stream of a layer, and its own tree if that is to be compared.
    async fn check_stream(
        &self,
        home: StoreOrigin,
        row: &Arc<LayerRow>,
        options: &CheckOptions,
        result: &mut LayerResult,
    ) -> Result<()> {
        let Some(expected) = row.diff_digest.valid() else {
            let text = row.diff_digest.as_str().to_owned();
            let reason = text
                .parse::<Digest>()
                .err()
                .map(|error| error.chain().to_string());
            let reason = reason.unwrap_or_default();
            result.problems.push(Problem::InvalidDigest { text, reason });
            return Ok(());
        };
        let unreadable = |error: Error| {
            let reason = data::reason(error)?;
            Ok::<_, Error>(Problem::DiffUnreadable { reason })
        };
        let (tar_split, trees, own, comparing) = match self.open_stream(home, row).await? {
            Ok(Source::TarSplit {
                tar_split,
                trees,
                own,
                comparing,
            }) => (tar_split, trees, own, comparing),
            Ok(Source::Missing) => {
                result.problems.push(Problem::TarSplitMissing);
                return Ok(());
            }
            Ok(Source::Blob) => {
                match self.hash_blob(row, expected).await {
                    Ok((digest, size)) => {
                        compare_stream(row, expected, Some(digest), Some(size), &mut result.problems);
                    }
                    Err(error) => result.problems.push(unreadable(error)?),
                }
                return Ok(());
            }
            Err(error) => {
                result.problems.push(unreadable(error)?);
                return Ok(());
            }
        };
        let wants_own_tree = options.layer_contents && own.is_some();
        let limit = u64::try_from(row.diff_size).ok().filter(|size| *size > 0);
        let reading = LayerReading::contents(tar_split, trees, expected, limit, wants_own_tree);
        let mut content = match read_to_end(reading, &row.id, options).await {
            Ok(content) => content,
            Err(error) => {
                result.problems.push(unreadable(error)?);
                return Ok(());
            }
        };
        if content.expected.is_none() && !content.damaged.is_empty() {
            content.expected = self.tree_of_headers(home, row, options).await?;
        }
        for file in &content.damaged {
            // The Go library does not keep what a later entry of the same archive replaces.
            let tree = content.expected.as_ref();
            if tree.is_some_and(|tree| !tree.keeps(&file.name, file.crc)) {
                continue;
            }
            result.problems.push(Problem::FileModified {
                path: path_of(&file.name),
                reason: file.error.chain().to_string(),
            });
        }
        compare_stream(row, expected, content.digest, content.size, &mut result.problems);
        result.wants_whole_tree = options.layer_contents && own.is_none();
        if let (Some(own), Some(expected)) = (own, content.expected) {
            let marks = Marks {
                lowers: own.lowers,
                namespace: own.namespace,
            };
            let compared = compare_tree(own.dir, Arc::new(expected), *comparing, Some(marks)).await;
            match compared {
                Ok(compared) => tell_differences(&compared, &mut result.problems),
                Err(error) => result.problems.push(unreadable(error)?),
            }
        }
        Ok(())
    }

    /// Digest and size of the stream of a layer in an additional layer store.
    async fn hash_blob(&self, row: &LayerRow, like: &Digest) -> Result<(Digest, u64)> {
        let mut diff = self.diff(None, &row.id, DiffOptions::uncompressed()).await?;
        let (mut hasher, mut size, mut buffer) = (Hasher::like(like), 0u64, vec![0; 256 * 1024]);
        loop {
            let count = diff.read(&mut buffer).await.during("reading the diff")?;
            if count == 0 {
                return Ok((hasher.finish(), size));
            }
            hasher.update(buffer.get(..count).unwrap_or_default());
            size += count as u64;
        }
    }
}

/// Compares digest and size of a stream with the record.
fn compare_stream(
    row: &LayerRow,
    expected: &Digest,
    found: Option<Digest>,
    size: Option<u64>,
    problems: &mut Vec<Problem>,
) {
    if let Some(found) = found.filter(|found| found != expected) {
        let expected = expected.clone();
        problems.push(Problem::IncorrectDigest { expected, found });
    }
    // A record that says nothing has 0, which is the size of no archive.
    if let Some(found) = size
        && row.diff_size > 0
        && u64::try_from(row.diff_size) != Ok(found)
    {
        problems.push(Problem::IncorrectSize {
            expected: row.diff_size,
            found,
        });
    }
}

/// Reads a layer's stream.
pub(super) async fn read_to_end(
    mut reading: LayerReading,
    id: &str,
    options: &CheckOptions,
) -> Result<LayerContent> {
    loop {
        let (more, count);
        (more, count, reading) = bridge::run(move || {
            let before = reading.bytes_read();
            let more = reading.step(READ_STEP)?;
            Ok((more, reading.bytes_read() - before, reading))
        })
        .await?;
        options.tell(|| CheckEvent::Read {
            layer: id.to_owned(),
            bytes: count,
        });
        if !more {
            return bridge::run(move || Ok(reading.into_content())).await;
        }
    }
}

/// Compares a tree.
pub(super) async fn compare_tree(
    root: OwnedFd,
    expected: Arc<ExpectedTree>,
    comparing: Comparing,
    marks: Option<Marks>,
) -> Result<Compared> {
    let check = bridge::run(move || TreeCheck::new(root.as_fd(), expected, comparing, marks)).await?;
    let check = run_to_completion(check, |check| check.step(COMPARED)).await?;
    bridge::run(move || Ok(check.into_compared())).await
}

/// The problems that differences of trees are.
pub(super) fn tell_differences(compared: &Compared, problems: &mut Vec<Problem>) {
    let differences = compared.differences.iter().cloned();
    problems.extend(differences.map(Problem::ContentModified));
    if compared.more > 0 {
        problems.push(Problem::MoreModified { count: compared.more });
    }
}
