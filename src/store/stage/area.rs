//! Where the content of a new layer goes before the layer exists, and how it gets there.

use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use crate::archive::apply::marks::LayerMarks;
use crate::archive::apply::pipeline::{self, Applied, ApplyOptions, Content, Inflow, Source, Target};
use crate::archive::apply::shared_files::SharedFiles;
use crate::bridge::{self, Detached};
use crate::compression::Compression;
use crate::digest::Digest;
use crate::driver::{CreateOptions, LayerTree, Staged};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::options::LayerOptions;
use crate::record::big_data;
use crate::store::inner::Inner;
use crate::store::layer_store::new_layer::{FromDiffer, StagedItem, StagedTarSplit, Unpacked};
use crate::store::stage::differ_output::DifferOutput;
use crate::whiteout::WhiteoutFormat;

/// A staging directory of the driver, and one for what goes beside the layer.
#[derive(Debug)]
pub(crate) struct Area {
    place: Detached<Place>,
    /// The driver's directory.
    path: PathBuf,
    sync: bool,
    may_link: bool,
}

/// In the order in which it is dropped: a tree in which something is open cannot be removed with every driver.
#[derive(Debug)]
struct Place {
    target: Target,
    staged: Box<dyn Staged>,
    tar_split: StagedTarSplit,
    /// The file for the tar-split.
    file: File,
    permit: OwnedSemaphorePermit,
}

/// Whose the files of a layer are.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerOwners {
    pub(crate) mappings: IdMappings,
    /// The mappings of the parent's files, if they are others.
    pub(crate) parent: Option<IdMappings>,
    /// They are those of what was written in mounts that map owners, as in a container's layer. The rest of it has none.
    pub(crate) from_mount: bool,
}

/// Content that a differ has put together, for [`Store::apply_staged_layer`](crate::Store::apply_staged_layer). Dropped, it
/// is removed.
#[derive(Debug)]
pub struct StagedContent {
    pub(crate) unpacked: Detached<Unpacked>,
    pub(crate) path: PathBuf,
    pub(crate) sync: bool,
}

/// A file whose content becomes a big data item.
#[derive(Debug)]
pub(crate) struct ItemFile {
    pub(crate) key: Cow<'static, str>,
    pub(crate) file: File,
}

impl Area {
    /// An empty one for a layer on `below`. Waits until one more layer may be unpacked; takes no store lock.
    pub(crate) async fn make(
        inner: &Arc<Inner>,
        below: Option<String>,
        owners: LayerOwners,
        options: &LayerOptions,
    ) -> Result<Self> {
        let permit = inner.unpack_permit().await?;
        let sync = inner.sync_content() && !options.volatile;
        let create = CreateOptions {
            read_write: options.writeable,
            mappings: match owners.from_mount {
                true => IdMappings::default(),
                false => owners.mappings.clone(),
            },
            parent_mappings: owners.parent,
            storage_opt: options.storage_opt.clone(),
            mount_label: options.mount_label.clone().unwrap_or_default(),
            durable: sync,
        };
        let inner = Arc::clone(inner);
        let owners = owners.mappings;
        bridge::run(move || {
            let mut temp = TempDir::create(&inner.dirs.layers_tmp())?;
            let path = temp.addition();
            let staged = inner.driver().stage(below.as_deref(), &create)?;
            let (file, mut target) = (create_tar_split(&path)?, target_of(staged.tree(), owners)?);
            if let Some(dir) = staged.unpack_dir() {
                target.dir = dir.try_clone().during("duplicating a directory handle")?;
            }
            Ok(Self {
                path: staged.path(),
                // Files of others are not written to, nor changed for being stored otherwise.
                may_link: !create.read_write && !staged.stores_by_digest(),
                place: Detached::new(Place {
                    staged,
                    tar_split: StagedTarSplit { path, temp },
                    file,
                    target,
                    permit,
                }),
                sync,
            })
        })
        .await
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether its files may be hard links to those of other layers.
    pub(crate) fn may_link(&self) -> bool {
        self.may_link
    }

    /// Unpacks a stream of which nothing is known.
    pub(crate) async fn unpack(self, diff: Source<'_>) -> Result<StagedContent> {
        self.unpack_with(Inflow::Blob(diff), ApplyOptions::default())
            .await
    }

    /// Unpacks a stream. Of the options, where the tar-split goes and what is synced are set here.
    pub(crate) async fn unpack_with(self, diff: Inflow<'_>, options: ApplyOptions) -> Result<StagedContent> {
        let Self {
            place, path, sync, ..
        } = self;
        let Place {
            staged,
            tar_split,
            file,
            target,
            permit,
        } = place.into_inner();
        let options = ApplyOptions {
            // What is recorded of a part of a stream is of no use.
            tar_split: options.selection.is_none().then_some(file),
            sync,
            ..options
        };
        // The permit goes with what is unpacked: the thread may be busy for a moment after this future was dropped.
        let guard = (staged, tar_split, permit);
        let (applied, (staged, tar_split, _permit)) =
            pipeline::apply_inflow(diff, target, options, guard).await?;
        Ok(StagedContent {
            unpacked: Detached::new(Unpacked {
                staged,
                tar_split,
                applied,
                fitted_to: None,
                from_differ: None,
            }),
            path,
            sync,
        })
    }

    /// Has `write` write the content, and sync it.
    pub(crate) async fn write<T: Send + 'static>(
        self,
        write: impl FnOnce(&dyn Staged) -> Result<T> + Send + 'static,
    ) -> Result<(StagedContent, T)> {
        let Self {
            place, path, sync, ..
        } = self;
        bridge::run(move || {
            let Place {
                staged,
                tar_split,
                permit: _permit,
                ..
            } = place.into_inner();
            let written = write(&*staged)?;
            let content = StagedContent {
                unpacked: Detached::new(Unpacked {
                    staged,
                    tar_split,
                    applied: nothing_unpacked(&DifferOutput::default()),
                    fitted_to: None,
                    from_differ: None,
                }),
                path,
                sync,
            };
            Ok((content, written))
        })
        .await
    }

    /// Takes what was written into the directory for the content.
    pub(crate) async fn finish(self, output: DifferOutput) -> Result<StagedContent> {
        let Self {
            place, path, sync, ..
        } = self;
        let applied = nothing_unpacked(&output);
        let content = bridge::run(move || {
            let Place {
                staged,
                tar_split,
                target,
                ..
            } = place.into_inner();
            if sync {
                rustix::fs::syncfs(&target.dir).during("syncing a staged layer")?;
            }
            Ok(StagedContent {
                unpacked: Detached::new(Unpacked {
                    staged,
                    tar_split,
                    applied,
                    fitted_to: None,
                    from_differ: None,
                }),
                path,
                sync,
            })
        })
        .await?;
        content.describe(output, false, Vec::new()).await
    }
}

/// What unpacking would have found out.
fn nothing_unpacked(output: &DifferOutput) -> Applied {
    Applied {
        compression: Compression::None,
        compressed_digest: Digest::sha256(""),
        compressed_size: 0,
        diff_digest: Digest::sha256(""),
        diff_size: 0,
        uids: output.uids.clone(),
        gids: output.gids.clone(),
        content_size: 0,
        entries: 0,
        marks: LayerMarks::default(),
        shared: SharedFiles::default(),
    }
}

impl StagedContent {
    /// What unpacking found out, in place of which the record says what `output` says.
    pub(crate) async fn describe(
        self,
        output: DifferOutput,
        has_tar_split: bool,
        files: Vec<ItemFile>,
    ) -> Result<Self> {
        if output.uncompressed_digest.is_some() && output.size.is_none() {
            return Err(ErrorKind::InvalidInput.err("a differ that knows a diff ID but no size"));
        }
        let Self { unpacked, path, sync } = self;
        let unpacked = bridge::run(move || {
            let mut unpacked = unpacked.into_inner();
            let dir = unpacked.tar_split.temp.addition();
            let mut items = Vec::new();
            let mut add = |key: &str, content: &mut dyn std::io::Read| {
                big_data::write_stream(&dir, key, content, sync)?;
                items.push(StagedItem {
                    key: key.to_owned(),
                    path: dir.join(&*big_data::file_name(key)?),
                });
                Ok::<_, Error>(())
            };
            for ItemFile { key, mut file } in files {
                std::io::Seek::rewind(&mut file).during("reading a temporary file")?;
                add(&key, &mut file)?;
            }
            for item in &output.big_data {
                add(&item.key, &mut &*item.data)?;
            }
            unpacked.applied.uids = output.uids;
            unpacked.applied.gids = output.gids;
            unpacked.from_differ = Some(FromDiffer {
                uncompressed_digest: output.uncompressed_digest,
                size: output.size,
                compressed_digest: output.compressed_digest,
                toc_digest: output.toc_digest,
                has_tar_split,
                items,
                copy_of: None,
            });
            Ok(Detached::new(unpacked))
        })
        .await?;
        Ok(Self { unpacked, path, sync })
    }
}

/// The file that the tar-split recorder writes to.
pub(crate) fn create_tar_split(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut open = std::fs::OpenOptions::new();
    open.read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .at("creating tar-split", path)
}

/// Describes a layer tree to the unpacker.
pub(crate) fn target_of(tree: &LayerTree, mappings: IdMappings) -> Result<Target> {
    let dir = tree
        .dir
        .try_clone()
        .map_err(|error| Error::io("duplicating a directory handle", error))?;
    let content = if tree.whiteouts == WhiteoutFormat::Apply {
        Content::TreeLayer
    } else {
        Content::Layer
    };
    Ok(Target {
        dir,
        content,
        root_entry: tree.root_entry,
        mappings,
        owner: None,
        ignore_chown_errors: tree.ignore_chown_errors,
        force_mask: tree.force_mask,
        in_user_namespace: tree.in_user_namespace,
        present: None,
    })
}
