//! One container with its layer and its data, copied to another store.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use crate::bridge::{self, Detached};
use crate::digest::Digest;
use crate::driver::copy_mount;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::options::IdMappingOptions;
use crate::record::big_data::{self, Items as _};
use crate::record::container::ContainerRow;
use crate::record::record_trait::Record as _;
use crate::store::access::{Batch, Needs};
use crate::store::containers::ContainerPlace;
use crate::store::copy_to::layer::{Copied, Job, Outcome, layer_options};
use crate::store::copy_to::plan::SourceContainer;
use crate::store::delete::delete_container;
use crate::store::dirs::item_dir;
use crate::store::layer_store::new_layer::{NewLayer, Start};
use crate::store::stage::plan::new_layer;
use crate::store::views::Container;
use crate::sys::{at, make_private_subdir};

/// How often the files of a container that are removed while they are copied are copied anew.
const MAX_TRIES: usize = 8;

/// The data of a container, in a temporary directory of the target.
struct StagedData {
    /// `None` if the source has no directory for it.
    dir: Option<PathBuf>,
    temp: TempDir,
    row: ContainerRow,
}

impl Job {
    /// Copies a container whose image and layers are there. `is_outdated`: the target has an older copy, which is replaced
    /// when the new one is ready.
    pub(super) async fn copy_container(
        self: &Arc<Self>,
        container: &SourceContainer,
        is_outdated: bool,
    ) -> Result<Copied> {
        let to = &self.to;
        let layer = &container.layer;
        let was_mounted = self.from.mounted(&layer.row.id).await? > 0;
        let mut options = layer_options(layer).writeable(true);
        let plan = match is_outdated {
            false => to.plan_layer(layer.row.parent_id(), &options).await?,
            true => {
                let mut unnamed = options.clone();
                (unnamed.id, unnamed.names) = (None, Vec::new());
                to.plan_layer(layer.row.parent_id(), &unnamed).await?
            }
        };
        let mappings = self.from.mappings_of_layer(&layer.row).await?;
        let (owners, mapped_by_mount) = self.owners_of_container(mappings.clone(), plan.parent.as_deref());
        let staged = self.stage_tree(layer, &options, plan.parent.clone(), owners);
        let (unpacked, losses) = staged.await?;
        let unpacked = Detached::new(unpacked);
        let data = Detached::new(self.stage_data(container).await?);
        let transient = to.inner.options.transient;
        let volatile = container.volatile || transient;
        options.volatile = layer.volatile || transient;
        // The mappings of the record are those of the source in any case.
        options.id_mappings = IdMappingOptions::default();
        if is_outdated && self.is_in_use(&layer.row.id).await? {
            return Ok(Copied::InUse);
        }
        let store = to.clone();
        let needs = match is_outdated {
            true => Needs::ALL,
            false => Needs::CONTAINER_ON_IMAGE,
        };
        let row = to.in_batch(needs, async move |batch: Batch| {
            let StagedData { dir, temp, row } = data.into_inner();
            if is_outdated {
                delete_container(&batch, &store.inner.dirs, &row.id).await?;
            }
            let (_claim, ()) = batch
                .claim({
                    let id = row.layer.to_string();
                    move |_held| Ok((id.clone(), ()))
                })
                .await?;
            let announced = batch.with(|held| {
                let parent = plan.recheck(held.layers()?.table())?;
                let place = ContainerPlace::find(&store, held, Some(&row.id), &row.names, volatile)?;
                let start = Start::Unpacked(Box::new(unpacked.into_inner()));
                let new = NewLayer {
                    mapped_by_mount,
                    ..new_layer(options, parent, mappings, start)
                };
                place.announce(held, new)
            });
            let row = announced?
                .complete(&batch, &store.inner.dirs, row, |target| match dir {
                    Some(dir) => at::rename(&dir, target).at("moving the data of a container to", target),
                    None => Ok(()),
                })
                .await?;
            Ok((row, Detached::new(temp)))
        });
        let (row, temp) = row.await?;
        tracing::debug!(container = %row.id, "copied");
        drop(temp);
        Ok(Copied::There(Outcome {
            while_mounted: was_mounted,
            refreshed: is_outdated,
            losses,
        }))
    }

    /// Copies the data of a container: its items and its directory in the graph root, without what is mounted there.
    async fn stage_data(&self, container: &SourceContainer) -> Result<StagedData> {
        let source = item_dir(self.from.inner.dirs.containers(), &container.row.id)?;
        let (tmp, sync) = (self.to.inner.dirs.layers_tmp(), self.to.inner.sync_content());
        let mut row = ContainerRow::clone(&container.row);
        row.set_intent("");
        let view = Container::new(&container.row);
        let mut items = Vec::new();
        for key in &container.row.big_data_names {
            let data = self.from.read_container_item(&view, key).await?;
            row.record(key, data.len(), Digest::sha256(&data));
            items.push((key.clone(), data));
        }
        bridge::run(move || {
            let mut temp = TempDir::create(&tmp)?;
            let mut dir = copy_dir(&source, &mut temp, sync)?;
            if !items.is_empty() {
                let dir = dir.get_or_insert_with(|| temp.addition());
                make_private_subdir(dir)?;
                for (key, data) in &items {
                    // A file that has it keeps its time.
                    if big_data::read(dir, key, None)?.as_deref() != Some(&**data) {
                        big_data::write_bytes(dir, key, data, sync)?;
                    }
                }
            }
            Ok(StagedData { dir, temp, row })
        })
        .await
    }
}

/// Copies the directory of a container's data, if there is one.
fn copy_dir(source: &Path, temp: &mut TempDir, sync: bool) -> Result<Option<PathBuf>> {
    let mut tries = 0;
    loop {
        let from = match at::open_dir(source) {
            Err(Errno::NOENT) => return Ok(None),
            from => from.at("opening", source)?,
        };
        let dir = temp.addition();
        make_private_subdir(&dir)?;
        let to = at::open_dir(&dir).at("opening", &dir)?;
        tries += 1;
        match copy_mount(from.as_fd(), to.as_fd(), sync) {
            Ok(()) => return Ok(Some(dir)),
            // The container's manager has removed a file.
            Err(error) if tries < MAX_TRIES && is_missing(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn is_missing(error: &Error) -> bool {
    error.kind() == ErrorKind::Io && error.io_kind() == Some(std::io::ErrorKind::NotFound)
}
