//! The tree of a layer whose stream is not known, such as that of a container, copied as it is to another store.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use crate::bridge;
use crate::driver::{Driver, Loss, NewTree, OwnFiles, Remaps, ShownTree, remap, update};
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::options::LayerOptions;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::hit;
use crate::store::copy_to::layer::Job;
use crate::store::copy_to::plan::SourceLayer;
use crate::store::deleted::ReadLayers;
use crate::store::layer_store::locked::files_of;
use crate::store::layer_store::new_layer::{Unpacked, mappings_of, mappings_on_disk};
use crate::store::stage::area::{Area, LayerOwners};
use crate::sys::mount::without_mounts;
use crate::whiteout::WhiteoutFormat;

/// A layer with what it stands on.
#[derive(Clone)]
pub(super) struct Standing {
    pub(super) row: Arc<LayerRow>,
    pub(super) parent: Option<Arc<LayerRow>>,
    /// Those that its files have inside the container.
    pub(super) mappings: IdMappings,
}

/// Whose the files are that a layer shows.
pub(super) struct OnDisk {
    /// Of its own.
    pub(super) own: IdMappings,
    /// Of the layers below it.
    pub(super) below: IdMappings,
}

/// A layer's tree, and whose its files are.
pub(super) struct Opened {
    pub(super) shown: ShownTree,
    pub(super) on_disk: OnDisk,
}

impl Standing {
    pub(super) async fn find(store: &Store, row: &Arc<LayerRow>) -> Result<Self> {
        let parent = match row.parent_id() {
            None => None,
            Some(id) => {
                let found = store.read_all_layer_stores(|_, table| Ok(hit(table.get(id).map(Arc::clone))));
                Some(found.await?.ok_or_else(|| {
                    crate::ErrorKind::LayerUnknown.err(format!("locating parent layer {id:?}"))
                })?)
            }
        };
        Ok(Self {
            row: Arc::clone(row),
            parent,
            mappings: store.mappings_of_layer(row).await?,
        })
    }

    fn parent_mappings(&self) -> IdMappings {
        self.parent.as_deref().map(mappings_of).unwrap_or_default()
    }

    /// Opens what the layer shows. The layer lock is held shared meanwhile.
    pub(super) async fn open(&self, store: &Store) -> Result<Opened> {
        let (guard, driver) = (store.read_layers().await?, store.inner.driver());
        let standing = self.clone();
        bridge::run(move || {
            let opened = files_of(&standing.row.id, standing.open_in(&*driver));
            drop(guard);
            opened
        })
        .await
    }

    fn open_in(&self, driver: &dyn Driver) -> Result<Opened> {
        let id = &self.row.id;
        let root = driver.mount_private(id)?;
        let own = match driver.is_fixed(id)? {
            true => None,
            false => Some(driver.layer_tree(id)?),
        };
        let in_user_namespace = own.as_ref().is_some_and(|own| own.in_user_namespace);
        let is_whole = own
            .as_ref()
            .is_some_and(|own| own.whiteouts == WhiteoutFormat::Apply);
        // Other drivers mount what a layer shows, here without what is mounted in it elsewhere.
        let (root, one_mount) = match is_whole.then(|| without_mounts(root.as_fd())) {
            None | Some(Ok(None)) => (root, false),
            Some(Ok(Some(uncovered))) => (uncovered, false),
            Some(Err(error)) => {
                tracing::warn!(layer = %id, %error, "leaving out what mounts in a layer hide");
                (root, true)
            }
        };
        let own = own.filter(|own| own.whiteouts != WhiteoutFormat::Apply);
        let parent = self.parent.as_ref().map(|row| row.id.as_str());
        let on_disk = match &own {
            Some(_) => self.on_disk(driver, root.as_fd())?,
            None => OnDisk {
                own: self.mappings.clone(),
                below: self.mappings.clone(),
            },
        };
        let complete = own.is_some() && driver.overlay_diff(id, parent)?.is_some();
        Ok(Opened {
            shown: ShownTree {
                own: own.map(|tree| OwnFiles {
                    dir: tree.dir,
                    whiteouts: tree.whiteouts,
                    complete,
                }),
                root,
                counts_names: !driver.shifts_new_files(),
                one_mount,
                in_user_namespace,
            },
            on_disk,
        })
    }

    /// Whose the files are where the driver keeps those of a layer apart.
    fn on_disk(&self, driver: &dyn Driver, root: BorrowedFd<'_>) -> Result<OnDisk> {
        let mappings = &self.mappings;
        if driver.shifts_new_files() {
            let row = LayerRow {
                uid_map: mappings.uids.clone(),
                gid_map: mappings.gids.clone(),
                ..LayerRow::clone(&self.row)
            };
            let all = mappings_on_disk(driver, &row, root)?;
            return Ok(OnDisk {
                own: all.clone(),
                below: all,
            });
        }
        let is_mapped_by_mount = !mappings.is_identity() && driver.supports_shifting(mappings);
        Ok(OnDisk {
            own: mappings.clone(),
            below: match is_mapped_by_mount {
                true => self.parent_mappings(),
                false => mappings.clone(),
            },
        })
    }
}

impl Job {
    /// Copies the tree of a layer into the target, on `parent`, with everything that belongs to it. Returns what cannot be
    /// there.
    pub(super) async fn stage_tree(
        &self,
        layer: &SourceLayer,
        options: &LayerOptions,
        parent: Option<Arc<LayerRow>>,
        owners: LayerOwners,
    ) -> Result<(Unpacked, Vec<Loss>)> {
        let standing = Standing::find(&self.from, &layer.row).await?;
        let read = ReadLayers::new(
            self.from.clone(),
            Arc::clone(&standing.row),
            standing.parent.clone(),
        );
        let copied = self.copy_tree(&standing, options, parent, owners).await;
        let (content, stores_by_digest, losses) = match copied {
            Err(error) => return Err(read.explain(error).await),
            Ok(copied) => match read.deletion().await {
                Some(deletion) => return Err(deletion),
                None => copied,
            },
        };
        let unpacked = self.describe(content, layer, false, stores_by_digest).await?;
        Ok((unpacked, losses))
    }

    async fn copy_tree(
        &self,
        standing: &Standing,
        options: &LayerOptions,
        parent: Option<Arc<LayerRow>>,
        owners: LayerOwners,
    ) -> Result<(crate::StagedContent, bool, Vec<Loss>)> {
        let Opened { shown, on_disk } = standing.open(&self.from).await?;
        let to = &self.to;
        let driver = to.inner.driver();
        let below = match owners.from_mount {
            // What the layer shows of its parent is mapped by its mounts.
            true => parent.as_deref().map(mappings_of).unwrap_or_default(),
            false => owners.mappings.clone(),
        };
        let own = owners.mappings.clone();
        let area = Area::make(
            &to.inner,
            parent.as_ref().map(|row| row.id.to_string()),
            owners,
            options,
        );
        let area = area.await?;
        let stores_by_digest = !options.writeable && !area.may_link();
        let durable = to.inner.sync_content() && !options.volatile;
        let guard = to.read_layers().await?;
        let base = bridge::run(move || {
            let base = parent
                .map(|parent| files_of(&parent.id, driver.mount_private(&parent.id)))
                .transpose();
            drop(guard);
            base
        });
        let base = base.await?;
        let (content, losses) = area
            .write(move |staged| {
                let is_whole = staged.tree().whiteouts == WhiteoutFormat::Apply;
                let remaps = Remaps {
                    own: remap(on_disk.own, own.clone()),
                    below: remap(on_disk.below, own.clone()),
                    base: match is_whole {
                        // The tree was made with the new owners.
                        true => None,
                        false => remap(below, own),
                    },
                    base_own: None,
                };
                let ignored = staged.unpack_dir().map(|dir| dir.try_clone()).transpose();
                let ignored = ignored.during("duplicating a directory handle")?;
                let new = NewTree {
                    tree: staged.tree(),
                    below: base.as_ref().map(|base| base.as_fd()),
                    ignored: ignored.as_ref().map(|dir| dir.as_fd()),
                    durable,
                };
                update(&shown, &new, &remaps)
            })
            .await?;
        Ok((content, stores_by_digest, losses))
    }
}
