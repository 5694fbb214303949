//! The way in: a layer stream becomes a layer.
//!
//! ```text
//! shared locks:     parent known? ID and names free?
//! no store lock:    stream → decode → frame → unpack under a locked staging directory; tar-split beside it
//! exclusive lock:   checked again → record (incomplete) → renames → record (complete)
//! ```
//!
//! Dropped or killed at any point, the staging directories are unlocked and the next open removes them; a record
//! that is already there is marked incomplete and removed by the next user of the lock.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::io::AsyncRead;
use tracing::Instrument as _;

use crate::archive::apply::pipeline::{self, ApplyOptions, Target};
use crate::bridge;
use crate::driver::{CreateOptions, LayerTree};
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::lock::temp_dir::TempDir;
use crate::options::{BoxReader, IdMappingOptions, LayerOptions};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::layer_store::{LayerStore, NewLayer, StagedTarSplit, Start, Unpacked, mappings_of};
use crate::store::stage::commit;
use crate::store::views::Layer;

/// What [`Store::put_layer`] made.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct PutLayer {
    /// The new layer.
    pub layer: Layer,
    /// Bytes in the files that the stream brought, hard links counted once.
    pub size: u64,
}

impl Store {
    /// Creates a layer on `parent` (an ID, name or ID prefix) without content.
    ///
    /// Takes the layer and container locks for a moment, then the layer lock exclusively for one step.
    ///
    /// # Errors
    /// [`ErrorKind::DuplicateId`], [`ErrorKind::DuplicateName`], [`ErrorKind::LayerUnknown`] (the parent or the
    /// template), [`ErrorKind::ParentIsContainer`], [`ErrorKind::UnsafePath`] (an impossible ID),
    /// [`ErrorKind::InvalidMappings`].
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn create_layer(&self, parent: Option<&str>, options: LayerOptions) -> Result<Layer> {
        let plan = self.plan_layer(parent, &options).await?;
        let start_from = options.template.clone();
        let row = self
            .write_to_layer_store(move |layers| {
                let parent = plan.recheck(layers)?;
                let start = match start_from {
                    Some(template) => Start::Template(layers.find(&template)?),
                    None => Start::Empty,
                };
                layers.create(new_layer(options, parent, plan.mappings, start))
            })
            .await?;
        Ok(Layer::new(&row, None, false))
    }

    /// Creates a layer on `parent` (an ID, name or ID prefix) from a tar stream, compressed or not (gzip, zstd,
    /// bzip2, xz; told apart by their first bytes).
    ///
    /// The stream is unpacked while it arrives, outside every store lock; several layers can be put at once. The
    /// layer becomes visible as a whole at the end. With [`Durability::Default`](crate::Durability::Default) its
    /// content is on disk before it does.
    ///
    /// # Errors
    /// As [`Store::create_layer`], and [`ErrorKind::InvalidArchive`] naming the entry, [`ErrorKind::DigestMismatch`]
    /// (with [`LayerOptions::verify`]), [`ErrorKind::Io`] for what `diff` or the disk reports. The store is then as
    /// before.
    ///
    /// # Cancellation
    /// Nothing remains, except that a commit that has begun finishes in the background.
    ///
    /// ```no_run
    /// # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
    /// use graphroot::LayerOptions;
    /// let blob = tokio::fs::File::open("layer.tar.gz").await.expect("a layer blob");
    /// let put = store.put_layer(None, LayerOptions::default().name("base"), blob).await?;
    /// println!("{} has diff ID {:?}", put.layer.id(), put.layer.diff_digest());
    /// # Ok(())
    /// # }
    /// ```
    pub async fn put_layer(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        diff: impl AsyncRead + Send + 'static,
    ) -> Result<PutLayer> {
        let span = tracing::info_span!("put_layer", parent, id = options.id);
        self.put_layer_boxed(parent, options, Box::pin(diff))
            .instrument(span)
            .await
    }

    async fn put_layer_boxed(
        &self,
        parent: Option<&str>,
        options: LayerOptions,
        diff: BoxReader,
    ) -> Result<PutLayer> {
        if options.template.is_some() {
            return Err(ErrorKind::InvalidInput.err("a layer cannot have both a template and a diff"));
        }
        let plan = self.plan_layer(parent, &options).await?;
        let below = plan.parent_id();
        let unpacked = self.unpack(below, &plan.mappings, &options, diff).await?;
        self.commit(plan, options, unpacked).await
    }

    /// Unpacks a stream into a staging directory of the driver, for a layer on `below`. Takes no store lock.
    pub(super) async fn unpack(
        &self,
        below: Option<String>,
        mappings: &IdMappings,
        options: &LayerOptions,
        diff: BoxReader,
    ) -> Result<Unpacked> {
        let _permit = Arc::clone(&self.inner.unpackers)
            .acquire_owned()
            .await
            .map_err(|closed| {
                ErrorKind::Cancelled
                    .err("waiting for a free unpacker")
                    .with_source(closed)
            })?;
        let create = CreateOptions {
            read_write: options.writeable,
            mappings: mappings.clone(),
            mount_label: options.mount_label.clone(),
            storage_opt: options.storage_opt.clone(),
            durable: self.inner.sync_content() && !options.volatile,
        };
        let inner = Arc::clone(&self.inner);
        let owners = mappings.clone();
        let (staged, tar_split, file, target) = bridge::run(move || {
            let mut temp = TempDir::create(&inner.dirs.layers_tmp())?;
            let path = temp.addition();
            let staged = inner.driver().stage(below.as_deref(), &create)?;
            let (file, target) = (create_tar_split(&path)?, target_of(&staged.content, owners)?);
            Ok((staged, StagedTarSplit { path, temp }, file, target))
        })
        .await?;
        let apply_options = ApplyOptions {
            tar_split: Some(file),
            original_digest: options.original_digest.clone(),
            original_size: options.original_size,
            uncompressed_digest: options.uncompressed_digest.clone(),
            verify: options.verify,
            sync: self.inner.sync_content() && !options.volatile,
        };
        let (applied, (staged, tar_split)) =
            pipeline::apply(diff, target, apply_options, (staged, tar_split)).await?;
        Ok(Unpacked {
            staged,
            tar_split,
            applied,
        })
    }

    /// Makes an unpacked diff a layer.
    pub(super) async fn commit(
        &self,
        plan: LayerPlan,
        options: LayerOptions,
        unpacked: Unpacked,
    ) -> Result<PutLayer> {
        let size = unpacked.applied.content_size;
        let row = commit::commit(&self.inner, plan, options, unpacked).await?;
        Ok(PutLayer {
            layer: Layer::new(&row, None, false),
            size,
        })
    }

    /// Stacks several layers on `parent` (an ID, name or ID prefix), the first one lowest, each as
    /// [`Store::put_layer`] would.
    ///
    /// All streams are unpacked at the same time where the driver keeps layers apart (overlay); a driver whose layers
    /// are whole trees (vfs) takes one after the other. Either way a layer becomes visible only after the one below
    /// it.
    ///
    /// # Errors
    /// As [`Store::put_layer`]. Layers below the one that failed may have been created; they are named in
    /// [`Store::layers`] and can be deleted.
    ///
    /// # Cancellation
    /// As [`Store::put_layer`]; layers that are there already stay.
    pub async fn put_layers(
        &self,
        parent: Option<&str>,
        layers: Vec<(LayerOptions, BoxReader)>,
    ) -> Result<Vec<PutLayer>> {
        let mut below = parent.map(str::to_owned);
        let mut done = Vec::with_capacity(layers.len());
        if !self.inner.driver().stages_apart() {
            for (options, diff) in layers {
                let put = self.put_layer_boxed(below.as_deref(), options, diff).await?;
                below = Some(put.layer.id().to_owned());
                done.push(put);
            }
            return Ok(done);
        }
        let first = layers
            .first()
            .map(|(options, _)| options.clone())
            .unwrap_or_default();
        let base = self.plan_layer(below.as_deref(), &first).await?;
        // Owners are inherited upwards, so they are known before the layers are.
        let mut mappings = base.mappings.clone();
        let mut unpacking = tokio::task::JoinSet::new();
        for (index, (options, diff)) in layers.into_iter().enumerate() {
            if index > 0 && options.id_mappings != IdMappingOptions::default() {
                mappings = self.choose_mappings(&options.id_mappings, None)?;
            }
            let (store, mappings) = (self.clone(), mappings.clone());
            let on = base.parent_id();
            unpacking.spawn(
                async move {
                    let unpacked = store.unpack(on, &mappings, &options, diff).await;
                    unpacked.map(|unpacked| (index, options, unpacked))
                }
                .in_current_span(),
            );
        }
        // The set aborts what is left in it when this future is dropped or fails.
        let mut waiting = std::collections::BTreeMap::new();
        while let Some(joined) = unpacking.join_next().await {
            let (index, options, unpacked) = match joined {
                Ok(result) => result?,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_aborted) => return Err(ErrorKind::Cancelled.err("the runtime is shutting down")),
            };
            waiting.insert(index, (options, unpacked));
            while let Some((options, unpacked)) = waiting.remove(&done.len()) {
                let plan = self.plan_layer(below.as_deref(), &options).await?;
                let put = self.commit(plan, options, unpacked).await?;
                below = Some(put.layer.id().to_owned());
                done.push(put);
            }
        }
        Ok(done)
    }

    /// Unpacks a tar stream into an existing layer (an ID, name or ID prefix) of the primary store and records its
    /// digests and sizes there. Returns the bytes in the files that it brought.
    ///
    /// Holds the layer lock exclusively until the stream ends: [`Store::put_layer`] is the better way for a new
    /// layer.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::InvalidArchive`], [`ErrorKind::Io`]. The record is then as before,
    /// but files that came before the fault are in the layer.
    ///
    /// # Cancellation
    /// As a failure.
    pub async fn apply_diff(&self, to: &str, diff: impl AsyncRead + Send + 'static) -> Result<u64> {
        let guard = self.inner.layers.write().await?;
        let inner = Arc::clone(&self.inner);
        let key = to.to_owned();
        let (layers, row, tar_split, file, target) = bridge::run(move || {
            let layers = LayerStore::enter(inner, guard)?;
            let row = layers.find(&key)?;
            let content = layers.driver.content(&row.id)?;
            let mut temp = TempDir::create(&layers.inner.dirs.layers_tmp())?;
            let path = temp.addition();
            let (file, target) = (create_tar_split(&path)?, target_of(&content, mappings_of(&row))?);
            Ok((layers, row, StagedTarSplit { path, temp }, file, target))
        })
        .await?;
        let options = ApplyOptions {
            tar_split: Some(file),
            sync: self.inner.sync_content(),
            ..ApplyOptions::default()
        };
        let (applied, (layers, tar_split)) =
            pipeline::apply(Box::pin(diff), target, options, (layers, tar_split)).await?;
        bridge::run(move || {
            layers.leave(|layers| {
                let path = layers.inner.dirs.tar_split(&row.id)?;
                std::fs::rename(&tar_split.path, &path).at("moving tar-split to", &path)?;
                layers.table_mut().update(&row.id, |row| {
                    crate::store::layer_store::record_applied(row, &applied);
                })?;
                layers.save_content()?;
                drop(tar_split);
                Ok(applied.content_size)
            })
        })
        .await
    }

    /// Checks the request under shared locks and finds the parent and the owners to use.
    pub(super) async fn plan_layer(&self, parent: Option<&str>, options: &LayerOptions) -> Result<LayerPlan> {
        if !options.id.is_empty() {
            crate::driver::check_id(&options.id)?;
        }
        let mut found = None;
        let free = |table: &_| LayerStore::check_free(table, &options.id, &options.names);
        match parent {
            None => free(&*self.unlocked_layers().await?)?,
            Some(key) => {
                found = self
                    .read_all_layer_stores(|home, table| {
                        if !home.read_only() {
                            free(table)?;
                        }
                        Ok(match table.find(key) {
                            Some(row) => ControlFlow::Break((Arc::clone(row), home.read_only())),
                            None => ControlFlow::Continue(()),
                        })
                    })
                    .await?;
                let Some((row, _)) = &found else {
                    return Err(ErrorKind::LayerUnknown.err(format!("locating parent layer {key:?}")));
                };
                let used = self
                    .read_container_store(|table| Ok(table.by_layer(&row.id).is_some()))
                    .await?;
                if used {
                    return Err(ErrorKind::ParentIsContainer.err(format!("creating a layer on {key:?}")));
                }
            }
        }
        let mappings = self.choose_mappings(&options.id_mappings, found.as_ref().map(|(row, _)| &**row))?;
        let (parent, parent_read_only) = match found {
            Some((row, read_only)) => (Some(row), read_only),
            None => (None, false),
        };
        Ok(LayerPlan {
            parent,
            parent_read_only,
            mappings,
        })
    }

    /// The owners to bake into a layer: what was asked for, else the parent's, else the store's; none at all where
    /// the driver maps them when it mounts.
    pub(crate) fn choose_mappings(
        &self,
        wanted: &IdMappingOptions,
        parent: Option<&LayerRow>,
    ) -> Result<IdMappings> {
        let inherited = parent.map_or_else(|| self.inner.options.id_mappings.clone(), mappings_of);
        let choose = |host: bool, asked: &Vec<_>, inherited: Vec<_>| match (host, asked.is_empty()) {
            (true, _) => Vec::new(),
            (false, false) => asked.clone(),
            (false, true) => inherited,
        };
        let mappings = IdMappings {
            uids: choose(wanted.host_uid_mapping, &wanted.uid_map, inherited.uids),
            gids: choose(wanted.host_gid_mapping, &wanted.gid_map, inherited.gids),
        };
        mappings.validate()?;
        if mappings.is_identity() || self.inner.driver().supports_shifting(&mappings) {
            return Ok(IdMappings::default());
        }
        Ok(mappings)
    }
}

/// What was found out before the work began; checked again under the exclusive lock.
#[derive(Debug)]
pub(crate) struct LayerPlan {
    parent: Option<Arc<LayerRow>>,
    /// A parent in an additional store cannot be checked again, and need not be: nobody here can delete it.
    parent_read_only: bool,
    /// The owners to bake in.
    pub(super) mappings: IdMappings,
}

impl LayerPlan {
    /// ID of the parent.
    pub(super) fn parent_id(&self) -> Option<String> {
        self.parent.as_ref().map(|row| row.id.to_string())
    }

    /// The layer to make of what was unpacked, if that is still possible.
    pub(crate) fn layer(
        self,
        layers: &LayerStore,
        options: LayerOptions,
        unpacked: Unpacked,
    ) -> Result<NewLayer> {
        let parent = self.recheck(layers)?;
        let start = Start::Unpacked(Box::new(unpacked));
        Ok(new_layer(options, parent, self.mappings, start))
    }

    fn recheck(&self, layers: &LayerStore) -> Result<Option<Arc<LayerRow>>> {
        let Some(parent) = &self.parent else {
            return Ok(None);
        };
        if self.parent_read_only {
            return Ok(Some(Arc::clone(parent)));
        }
        let Some(row) = layers.table().get(&parent.id) else {
            let what = format!(
                "parent layer {:?} was deleted while the layer was made",
                parent.id
            );
            return Err(ErrorKind::LayerUnknown.err(what));
        };
        if row.uid_map != parent.uid_map || row.gid_map != parent.gid_map {
            let what = format!(
                "parent layer {:?} changed its ID mappings while the layer was made",
                parent.id
            );
            return Err(ErrorKind::InvalidMappings.err(what));
        }
        Ok(Some(Arc::clone(row)))
    }
}

fn new_layer(
    options: LayerOptions,
    parent: Option<Arc<LayerRow>>,
    mappings: IdMappings,
    start: Start,
) -> NewLayer {
    NewLayer {
        id: options.id,
        names: options.names,
        parent,
        start,
        mount_label: options.mount_label,
        writeable: options.writeable,
        mappings,
        metadata: options.metadata,
        flags: options.flags,
        big_data: options.big_data,
        storage_opt: options.storage_opt,
        volatile: options.volatile,
    }
}

fn create_tar_split(path: &std::path::Path) -> Result<std::fs::File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut open = std::fs::OpenOptions::new();
    open.read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .at("creating tar-split", path)
}

/// Describes a driver's tree to the unpacker.
fn target_of(content: &LayerTree, mappings: IdMappings) -> Result<Target> {
    let dir = content
        .dir
        .try_clone()
        .map_err(|error| Error::io("duplicating a directory handle", error))?;
    Ok(Target {
        dir,
        form: content.form,
        root_entry: content.root_entry,
        mappings,
        owner: None,
        ignore_chown_errors: content.ignore_chown_errors,
        force_mask: content.force_mask,
        in_user_namespace: content.in_user_namespace,
    })
}
