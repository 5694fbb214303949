//! One layer, copied to another store: its stream is unpacked there, and its record and data follow.

use std::borrow::Cow;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;

use crate::archive::apply::origins::Origins;
use crate::archive::apply::pipeline::{ApplyOptions, Inflow, TarChunks};
use crate::bridge::{self, CHUNK};
use crate::chunked::cache::{CACHE_KEY, FORMAT_KEY};
use crate::driver::Loss;
use crate::error::{Error, Result};
use crate::idmap::IdMappings;
use crate::options::{IdMappingOptions, LayerOptions};
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::{Batch, Needs};
use crate::store::chunked_differ::AS_NAMED;
use crate::store::copy_to::options::{CopyEvent, CopyOptions};
use crate::store::copy_to::plan::SourceLayer;
use crate::store::diff_stream::DiffStream;
use crate::store::layer_steps::create_layer;
use crate::store::layer_store::new_layer::{Unpacked, mappings_of};
use crate::store::stage::area::{Area, ItemFile, LayerOwners, StagedContent};
use crate::store::stage::differ_output::DifferOutput;

/// What is needed to copy something.
pub(super) struct Job {
    pub(super) from: Store,
    pub(super) to: Store,
    pub(super) options: CopyOptions,
}

/// What copying an item has come to.
pub(super) enum Copied {
    There(Outcome),
    /// It was deleted from the source, or something that it needs.
    Gone,
    /// It is a container that is mounted in the target, which keeps its older copy.
    InUse,
}

/// What there is to tell of an item that was copied.
#[derive(Default)]
pub(super) struct Outcome {
    /// It is a container that was mounted.
    pub(super) while_mounted: bool,
    /// It is a container that replaces an older one.
    pub(super) refreshed: bool,
    /// What the target cannot have of it.
    pub(super) losses: Vec<Loss>,
}

/// The options for a layer that is a copy of `layer`; what they don't say, its record does.
pub(super) fn layer_options(layer: &SourceLayer) -> LayerOptions {
    let row = &layer.row;
    let mut options = LayerOptions::default()
        .id(row.id.as_str())
        .names(row.names.iter().map(String::as_str))
        .volatile(layer.volatile)
        .id_mappings(IdMappingOptions {
            host_uid_mapping: row.uid_map.is_empty(),
            host_gid_mapping: row.gid_map.is_empty(),
            uid_map: row.uid_map.clone(),
            gid_map: row.gid_map.clone(),
        });
    options.mount_label = Some(row.mount_label.clone()).filter(|label| !label.is_empty());
    options
}

/// The chunks of a diff, each of a size that is unpacked at a time.
fn chunks(job: Arc<Job>, layer: String, diff: DiffStream) -> TarChunks<'static> {
    Box::pin(diff.flat_map(move |chunk| {
        let mut parts = Vec::new();
        match chunk {
            Err(error) => parts.push(Err(Error::io("reading the diff of a layer", error))),
            Ok(mut chunk) => {
                job.options.tell(|| CopyEvent::Read {
                    layer: layer.clone(),
                    bytes: chunk.len() as u64,
                });
                while !chunk.is_empty() {
                    parts.push(Ok(chunk.split_to(chunk.len().min(CHUNK))));
                }
            }
        }
        futures::stream::iter(parts)
    }))
}

impl Job {
    /// Unpacks the stream that a layer came from in the target, on `below`, with everything that belongs to it.
    async fn stage(
        self: &Arc<Self>,
        layer: &SourceLayer,
        options: &LayerOptions,
        below: Option<String>,
        owners: LayerOwners,
        (diff, origins): (DiffStream, Arc<Origins>),
    ) -> Result<Unpacked> {
        let row = &layer.row;
        let area = Area::make(&self.to.inner, below, owners, options).await?;
        let stores_by_digest = !options.writeable && !area.may_link();
        let apply = ApplyOptions {
            uncompressed_digest: row.diff_digest.valid().cloned(),
            verify: true,
            origins: Some(origins),
            ..ApplyOptions::default()
        };
        let stream = chunks(Arc::clone(self), row.id.to_string(), diff);
        let content = area.unpack_with(Inflow::Tar(stream), apply).await?;
        self.describe(content, layer, true, stores_by_digest).await
    }

    /// Adds what the source has of the layer beside its content.
    pub(super) async fn describe(
        &self,
        content: StagedContent,
        layer: &SourceLayer,
        has_tar_split: bool,
        stores_by_digest: bool,
    ) -> Result<Unpacked> {
        let mut row = LayerRow::clone(&layer.row);
        let mut output = DifferOutput::default();
        let mut files = Vec::new();
        let mut is_as_named = !stores_by_digest;
        for key in &layer.row.big_data_names {
            let opened = self.from.open_layer_file(Arc::clone(&layer.row), layer.home, key);
            let (file, size) = opened.await?;
            if key == FORMAT_KEY {
                is_as_named &= size == AS_NAMED.len() as u64 && read(file).await? == AS_NAMED;
                // Where the driver stores contents by their digests, it changes that.
                output = output.big_data(FORMAT_KEY, Bytes::from_static(AS_NAMED));
            } else {
                let key = Cow::Owned(key.clone());
                files.push(ItemFile { key, file });
            }
        }
        if !is_as_named {
            // It says where in the directory of the driver contents are. Whoever needs it makes it anew.
            files.retain(|item| item.key != CACHE_KEY);
            row.big_data_names.retain(|key| key != CACHE_KEY);
        }
        let content = content.describe(output, has_tar_split, files).await?;
        let mut unpacked = content.unpacked.into_inner();
        unpacked.become_copy_of(row);
        Ok(unpacked)
    }

    /// Copies a layer that is no container's. `parent_there` waits until the one below it is there; `false` means that it was
    /// deleted from the source.
    pub(super) async fn copy_layer(
        self: &Arc<Self>,
        layer: &SourceLayer,
        parent_there: impl Future<Output = bool>,
    ) -> Result<Copied> {
        let (to, row) = (&self.to, &layer.row);
        let options = layer_options(layer);
        // Before anything is made in the target.
        let origins = Arc::new(Origins::new(false, None));
        let Some(diff) = self.from.recorded_diff(&row.id, &origins).await? else {
            return match parent_there.await {
                true => self.copy_unrecorded(layer, options).await,
                false => Ok(Copied::Gone),
            };
        };
        let mut parent_there = Some(parent_there);
        let parent = row.parent_id();
        let (below, owners) = if to.stages_apart() {
            let owners = LayerOwners {
                mappings: to.choose_mappings(&options.id_mappings, None)?,
                ..LayerOwners::default()
            };
            (None, owners)
        } else {
            if let Some(there) = parent_there.take()
                && !there.await
            {
                return Ok(Copied::Gone);
            }
            let plan = to.plan_layer(parent, &options).await?;
            (plan.parent_id(), plan.owners())
        };
        let staged = self.stage(layer, &options, below, owners, (diff, origins));
        let unpacked = bridge::Detached::new(staged.await?);
        if let Some(there) = parent_there
            && !there.await
        {
            return Ok(Copied::Gone);
        }
        let plan = to.plan_layer(parent, &options).await?;
        to.commit_unpacked(plan, options, unpacked.into_inner()).await?;
        Ok(Copied::There(Outcome::default()))
    }

    /// Copies a layer of which nobody knows the stream, and whose parent is there.
    async fn copy_unrecorded(&self, layer: &SourceLayer, options: LayerOptions) -> Result<Copied> {
        let to = &self.to;
        let plan = to.plan_layer(layer.row.parent_id(), &options).await?;
        let staged = self.stage_tree(layer, &options, plan.parent.clone(), plan.owners());
        let (unpacked, losses) = staged.await?;
        let unpacked = bridge::Detached::new(unpacked);
        let made = to.in_batch(Needs::LAYERS, async move |batch: Batch| {
            let new = batch.with(|held| plan.layer(held.layers()?, options, unpacked.into_inner()))?;
            create_layer(&batch, new).await
        });
        made.await?;
        Ok(Copied::There(Outcome {
            losses,
            ..Outcome::default()
        }))
    }

    /// The owners of the files of a container's layer in the target, and whether its mounts map those of all others.
    pub(super) fn owners_of_container(
        &self,
        mappings: IdMappings,
        parent: Option<&LayerRow>,
    ) -> (LayerOwners, bool) {
        let driver = self.to.inner.driver();
        if !mappings.is_identity() && driver.supports_shifting(&mappings) {
            let owners = LayerOwners {
                mappings: match driver.shifts_new_files() {
                    true => IdMappings::default(),
                    false => mappings,
                },
                parent: None,
                from_mount: true,
            };
            return (owners, true);
        }
        let parent = parent.map(mappings_of).filter(|parent| *parent != mappings);
        let owners = LayerOwners {
            mappings,
            parent,
            from_mount: false,
        };
        (owners, false)
    }
}

/// All of a small file.
async fn read(mut file: File) -> Result<Vec<u8>> {
    use std::io::Read as _;
    bridge::run(move || {
        let mut content = Vec::new();
        let read = file.read_to_end(&mut content);
        read.map_err(|error| Error::io("reading a big data item", error))?;
        Ok(content)
    })
    .await
}
