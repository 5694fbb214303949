//! Creating and finding containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::options::{ContainerOptions, Flag, IdMappingOptions};
use crate::record::big_data::{self, Items as _};
use crate::record::container::{ContainerRow, MOUNT_LABEL, PROCESS_LABEL};
use crate::record::inline_id::InlineId;
use crate::record::intent::Companion;
use crate::record::record_trait::Record as _;
use crate::record::{lost, unknown_item};
use crate::selinux::{LabelPair, Levels};
use crate::store::access::in_flight::{Flight, Note};
use crate::store::access::{Batch, Held, Needs};
use crate::store::all_stores::remove_dirs;
use crate::store::dirs::{Dirs, container_location, item_dir, layer_location};
use crate::store::evidence::containers_of_other_mode;
use crate::store::ids::random_id;
use crate::store::layer_steps::create_announced;
use crate::store::layer_store::create::Announced;
use crate::store::layer_store::new_layer::{NewLayer, Start, flags_json};
use crate::store::top_layer::{TopLayer, mapped_top_layer};
use crate::store::views::Container;
use crate::store::{Store, images};
use crate::sys;
use crate::sys::presence::is_there;
use crate::time::Time;

/// # Containers
impl Store {
    /// Creates a container from an image (an ID, name or ID prefix), or from nothing, with a layer of its own.
    ///
    /// Takes the layer and container locks exclusively and the image lock shared for one step; the image lock exclusively if a
    /// copy of the image's top layer with other owners has to be made. With mappings `userns.lock` is held meanwhile, before
    /// that the locks of [`Store::changes`] for a moment if the size of an automatic user namespace has to be found out.
    ///
    /// # Errors
    /// [`ErrorKind::ImageUnknown`], [`ErrorKind::DuplicateId`], [`ErrorKind::DuplicateName`],
    /// [`ErrorKind::InvalidMappings`], [`ErrorKind::InvalidInput`] if only one of the two labels is given, or where SELinux is
    /// on an option for them is unknown. With
    /// [`ContainerOptions::auto_userns`] [`ErrorKind::NoAvailableIds`], [`ErrorKind::InvalidMappings`] if the image needs more
    /// IDs than are allowed, [`ErrorKind::InvalidInput`] for a file with its users or groups that is too large or no regular
    /// file.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background.
    pub async fn create_container(
        &self,
        image: Option<&str>,
        options: ContainerOptions,
    ) -> Result<Container> {
        let mut options = options;
        if options.process_label.as_deref().unwrap_or("").is_empty()
            != options.mount_label.as_deref().unwrap_or("").is_empty()
        {
            return Err(ErrorKind::InvalidInput
                .err("ProcessLabel and Mountlabel must either not be specified or both specified"));
        }
        for id in [&options.id, &options.layer_id].into_iter().flatten() {
            crate::driver::check_id(id)?;
        }
        let asked = |options: &ContainerOptions| IdMappings {
            uids: options.id_mappings.uid_map.clone(),
            gids: options.id_mappings.gid_map.clone(),
        };
        asked(&options).validate()?;
        let auto = match options.auto_userns.take() {
            None => None,
            Some(auto) => Some((self.auto_userns_size(image, &auto).await?, auto)),
        };
        let _userns = match asked(&options).is_identity() && auto.is_none() {
            true => None,
            false => Some(
                self.inner
                    .userns_lock
                    .exclusive(self.inner.options.lock_timeout)
                    .await?,
            ),
        };
        if let Some((size, auto)) = auto {
            let chosen = self.allocate_userns(size, auto).await?;
            chosen.validate()?;
            options.id_mappings = IdMappingOptions::mapped(chosen.uids, chosen.gids);
        }
        let new = NewContainer {
            store: self.clone(),
            image: image.map(str::to_owned),
            options,
        };
        let needs = Needs::CONTAINER_ON_IMAGE;
        let attempt = async |needs: Needs, new: NewContainer| {
            let row = self.in_batch(needs, async move |batch: Batch| new.create(&batch).await);
            row.await
        };
        let row = match attempt(needs, new.clone()).await? {
            Some(row) => row,
            // A copy of the top layer has to be recorded in the image.
            None => {
                let row = attempt(needs.with_images_to_change(), new).await?;
                row.ok_or_else(|| ErrorKind::InvalidMappings.err("mapping the top layer of an image"))?
            }
        };
        Ok(Container::new(&row))
    }

    /// The container with this ID, name or ID prefix, or whose layer has this ID.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container(&self, id: &str) -> Result<Container> {
        self.read_container_store(|table| table.require(id).map(Container::new))
            .await
    }

    /// All containers.
    ///
    /// Takes the container lock shared for a moment.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn containers(&self) -> Result<Vec<Container>> {
        self.read_container_store(|table| Ok(table.rows().map(Container::new).collect()))
            .await
    }

    /// The container whose own layer is this one (an ID, name or ID prefix).
    ///
    /// Takes the layer lock and the container lock shared for a moment each.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`], [`ErrorKind::ContainerUnknown`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn container_by_layer(&self, id: &str) -> Result<Container> {
        let layer = self.layer(id).await?;
        self.read_container_store(|table| {
            table
                .by_layer(layer.id())
                .map(Container::new)
                .ok_or_else(|| ContainerRow::unknown(id))
        })
        .await
    }
}

/// A container that is to be created.
#[derive(Clone)]
struct NewContainer {
    store: Store,
    image: Option<String>,
    options: ContainerOptions,
}

/// A container whose layer has an incomplete record, and what its own record says.
struct Begun {
    image: InlineId,
    labels: LabelPair,
    volatile: bool,
    announced: AnnouncedContainer,
}

impl NewContainer {
    /// Creates the layer, then the record, then takes the mark off the layer. `None` if the images must be held exclusively.
    #[expect(clippy::future_not_send, reason = "steps stay on one thread")]
    async fn create(self, batch: &Batch) -> Result<Option<Arc<ContainerRow>>> {
        let claim = |id: &str| {
            batch.claim({
                let id = id.to_owned();
                move |_held| Ok((id.clone(), ()))
            })
        };
        // Whoever deletes the container waits until it is complete.
        let given = match &self.options.layer_id {
            Some(id) => Some(claim(id).await?),
            None => None,
        };
        let Some(begun) = batch.with(|held| self.begin(held))? else {
            return Ok(None);
        };
        let _claim = match given {
            Some(claim) => claim,
            // Nobody else knows the ID.
            None => claim(&begun.announced.layer.id).await?,
        };
        let Begun {
            image,
            labels,
            volatile,
            announced,
        } = begun;
        let options = &self.options;
        let id = announced.place.id.clone();
        let row = new_row(options, &id, image, &announced.layer.id, labels, volatile);
        let items = options.big_data.iter().map(|item| (&*item.key, &*item.data));
        let row = announced
            .complete(batch, &self.store.inner.dirs, row, |dir| {
                images::write_items(dir, items)
            })
            .await?;
        Ok(Some(row))
    }

    fn begin(&self, held: &mut Held) -> Result<Option<Begun>> {
        let options = &self.options;
        let found = self
            .image
            .as_deref()
            .map(|key| held.find_image(key))
            .transpose()?;
        let top = match &found {
            Some((image, primary)) => match mapped_top_layer(held, image, *primary, &options.id_mappings)? {
                TopLayer::Found(top) => top,
                TopLayer::NeedsImages => return Ok(None),
            },
            None => None,
        };
        let mappings = self.store.wanted_mappings(&options.id_mappings, top.as_deref())?;
        let shifts = held.layers()?.driver.supports_shifting(&mappings);
        let mapped_by_mount = options.id_mappings.host_uid_mapping || shifts;
        for item in &options.big_data {
            drop(big_data::file_name(&item.key)?);
        }
        let volatile = options.volatile || self.store.inner.options.transient;
        let wanted = options.id.as_deref();
        let place = ContainerPlace::find(&self.store, held, wanted, &options.names, volatile)?;
        let labels = self.labels(held)?;
        let new = NewLayer {
            id: options.layer_id.clone().unwrap_or_default(),
            names: Vec::new(),
            parent: top,
            start: Start::Empty,
            mount_label: labels.mount.clone(),
            writeable: true,
            mappings,
            mapped_by_mount,
            metadata: String::new(),
            flags: std::collections::BTreeMap::new(),
            big_data: Vec::new(),
            storage_opt: options.storage_opt.clone(),
            volatile,
            companion: None,
        };
        let image = found.map(|(image, _)| image.id.clone()).unwrap_or_default();
        Ok(Some(Begun {
            image,
            labels,
            volatile,
            announced: place.announce(held, new)?,
        }))
    }

    /// The labels that the caller has given, or new ones with a level that no container of the store has. The layer store stays
    /// locked until the new one is recorded.
    fn labels(&self, held: &mut Held) -> Result<LabelPair> {
        let options = &self.options;
        if let Some(process) = options.process_label.as_ref().filter(|label| !label.is_empty()) {
            return Ok(LabelPair {
                process: process.clone(),
                mount: options.mount_label.clone().unwrap_or_default(),
            });
        }
        let Some(policy) = sys::selinux::policy() else {
            return Ok(LabelPair::default());
        };
        let mut levels = Levels::default();
        for layer in held.layers()?.table().rows() {
            levels.add(&layer.mount_label);
        }
        for container in held.containers()?.rows() {
            for label in [MOUNT_LABEL, PROCESS_LABEL]
                .into_iter()
                .filter_map(|flag| container.label(flag))
            {
                levels.add(label);
            }
        }
        policy.label(&options.label_opts, &levels, sys::random::number()?)
    }
}

/// Where everything of a new container goes.
pub(crate) struct ContainerPlace {
    id: String,
    location: usize,
    /// Those of its data, which do not exist.
    dirs: [PathBuf; 2],
    _note: Note,
}

impl ContainerPlace {
    /// Checks that nothing is in the way of a new container.
    pub(crate) fn find(
        store: &Store,
        held: &mut Held,
        wanted: Option<&str>,
        names: &[String],
        volatile: bool,
    ) -> Result<Self> {
        let taken = |id: &str| Err(ErrorKind::DuplicateId.err(format!("creating container with ID {id:?}")));
        if let Some(id) = wanted
            && (held.containers()?.get(id).is_some() || held.in_flight.has(id))
        {
            return taken(id);
        }
        for name in names {
            let owner = held.containers()?.by_name(name).map(|row| row.id.to_string());
            if let Some(owner) = owner.or_else(|| held.in_flight.creates_named(name)) {
                let what = format!(
                    "the container name {name:?} is already in use by {owner}. You have to remove that container to be able to reuse that name"
                );
                return Err(ErrorKind::DuplicateName.err(what));
            }
        }
        let id = match wanted {
            None => {
                let containers = held.containers()?;
                random_id(|id| containers.get(id).is_some())?
            }
            Some(id) => id.to_owned(),
        };
        let all = &store.inner.dirs;
        let dirs = [
            item_dir(all.containers(), &id)?,
            item_dir(all.run_containers(), &id)?,
        ];
        let location = if volatile {
            container_location::VOLATILE
        } else {
            container_location::STABLE
        };
        let transient = store.inner.options.transient;
        check_not_lost(all, transient, held, &id)?;
        let (layers, containers) = held.layers_and_containers()?;
        containers.ensure_written(location)?;
        if transient {
            // Who opens the store in the other mode looks for these files beside the layer and directory made here. Writers
            // of containers have another lock there.
            layers.ensure_written(layer_location::STABLE)?;
            containers.ensure_there(container_location::STABLE)?;
        } else {
            // Also for a volatile one: a directory that a killed process leaves is no sign then that this file was lost.
            containers.ensure_written(container_location::STABLE)?;
        }
        // What a killed process has left under this ID does not belong to the new container.
        remove_dirs(&dirs)?;
        let note = held.in_flight.note(Flight::Creation {
            id: id.clone(),
            names: names.to_vec(),
        });
        Ok(Self {
            id,
            location,
            dirs,
            _note: note,
        })
    }

    /// Enters the incomplete record of the container's layer, marked as going with it.
    pub(crate) fn announce(self, held: &mut Held, layer: NewLayer) -> Result<AnnouncedContainer> {
        let new = NewLayer {
            companion: Some(Companion::Container(self.id.clone())),
            ..layer
        };
        let layer = held.layers()?.announce(new);
        let layer = layer.context(|| format!("creating container {:?}", self.id))?;
        Ok(AnnouncedContainer { place: self, layer })
    }
}

/// A container whose layer has an incomplete record.
pub(crate) struct AnnouncedContainer {
    pub(crate) place: ContainerPlace,
    pub(crate) layer: Announced,
}

impl AnnouncedContainer {
    /// Makes the layer, then the data and the record `row`, then takes the mark off the layer. `write` writes the data to a
    /// directory, which it makes.
    #[expect(clippy::future_not_send, reason = "steps stay on one thread")]
    pub(crate) async fn complete(
        self,
        batch: &Batch,
        all: &Dirs,
        row: ContainerRow,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Arc<ContainerRow>> {
        let ContainerPlace {
            id,
            location,
            dirs,
            _note,
        } = self.place;
        let failed = |error: Error| error.context(format!("creating container {id:?}"));
        let layer = create_announced(batch, self.layer).await.map_err(failed)?;
        let layer = [layer.id.to_string()];
        let mut inserted = false;
        let mut recorded = batch.with(|held| {
            write(&dirs[0])?;
            let containers = held.containers()?;
            drop(containers.table_mut().insert(row, location)?);
            inserted = true;
            containers.rely_on(dirs[0].clone());
            containers.rely_on(all.containers());
            Ok(())
        });
        if recorded.is_ok() {
            recorded = batch.save().await;
        }
        batch.with(|held| {
            let (layers, containers) = held.layers_and_containers()?;
            if let Err(error) = recorded {
                // A failed save may have come far enough to be seen: the layer goes only when the record has gone.
                if inserted {
                    drop(containers.table_mut().remove(&id));
                }
                let undone = containers
                    .save()
                    .and_then(|()| layers.delete_all(&layer))
                    .and_then(|()| remove_dirs(&dirs));
                if let Err(error) = undone {
                    tracing::warn!(container = id, error = %error.chain(), "cannot clean up after a failed creation");
                }
                return Err(failed(error));
            }
            layers.mark(&layer, None)
        })?;
        if let Err(error) = batch.save().await {
            // The container is there; the next user of the store takes the mark off.
            tracing::warn!(container = id, error = %error.chain(), "cannot take the mark off the layer of a container yet");
        }
        let row = batch.with(|held| Ok(held.containers()?.get(&id).map(Arc::clone)))?;
        row.ok_or_else(|| ContainerRow::unknown(&id))
    }
}

/// Refuses a new container `id` where the records of others have been lost: with the new record in the file it would look
/// as if there had been none.
fn check_not_lost(dirs: &Dirs, transient: bool, held: &mut Held, id: &str) -> Result<()> {
    let containers = held.containers()?;
    // In transient mode a reboot takes the records and leaves the directories.
    let Some(file) = containers
        .unwritten(container_location::STABLE)
        .filter(|_| !transient)
    else {
        return Ok(());
    };
    // Killed programs leave directories of volatile containers, whose records are in a file of their own.
    let unknown = match containers.unwritten(container_location::VOLATILE) {
        Some(_none_written) => {
            let elsewhere = containers_of_other_mode(dirs, false)?;
            let known = |id: &str| containers.get(id).is_some() || elsewhere.contains(id);
            unknown_item(&dirs.containers(), known)?
        }
        None => is_there(&dirs.containers().join(id))?.then(|| id.to_owned()),
    };
    let Some(name) = unknown else {
        return Ok(());
    };
    let file = file.to_owned();
    match held.layer_without_container()? {
        Some(layer) => Err(lost(&file, &format!("{name:?} beside it and layer {layer:?}"))),
        None => Ok(()),
    }
}

/// The record of a new container.
fn new_row(
    options: &ContainerOptions,
    id: &str,
    image: InlineId,
    layer: &str,
    labels: LabelPair,
    volatile: bool,
) -> ContainerRow {
    let mut row = ContainerRow {
        id: id.into(),
        names: options.names.clone(),
        image,
        layer: layer.into(),
        metadata: options.metadata.clone(),
        created: Time::now(),
        uid_map: options.id_mappings.uid_map.clone(),
        gid_map: options.id_mappings.gid_map.clone(),
        flags: flags_json(container_flags(options, labels, volatile)),
        ..ContainerRow::default()
    };
    for item in &options.big_data {
        row.record(&item.key, item.data.len(), Digest::sha256(&item.data));
    }
    row
}

fn container_flags(
    options: &ContainerOptions,
    labels: LabelPair,
    volatile: bool,
) -> std::collections::BTreeMap<String, Flag> {
    let mut flags = options.flags.clone();
    flags.insert(PROCESS_LABEL.into(), Flag::Text(labels.process));
    flags.insert(MOUNT_LABEL.into(), Flag::Text(labels.mount));
    if !options.mount_opts.is_empty() {
        flags.insert("MountOpts".into(), Flag::List(options.mount_opts.clone()));
    }
    if volatile {
        flags.insert("Volatile".into(), Flag::Bool(true));
    }
    flags
}
