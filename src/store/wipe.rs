//! Deleting everything.

use std::collections::{HashMap, HashSet};

use crate::error::{Result, ResultExt as _};
use crate::record::intent::Companion;
use crate::record::record_trait::Record as _;
use crate::store::Store;
use crate::store::all_stores::{AllStores, remove_dirs};
use crate::store::dirs::{Dirs, check_layer_id, item_dir};

impl AllStores<'_> {
    /// Deletes all containers, then all images, then all layers. As with single items ([`intent`](crate::record::intent))
    /// the layers that go with an image or container are marked before its record goes, and its directories go after it.
    fn wipe(&mut self, dirs: &Dirs) -> Result<()> {
        self.doom_everything()?;
        self.wipe_containers(dirs)
            .context(|| "deleting all containers".into())?;
        self.wipe_images(dirs).context(|| "deleting all images".into())?;
        // Later layers have earlier ones as parents.
        let rows = self.layers.table().rows().rev();
        let layers: Vec<String> = rows.map(|row| row.id.to_string()).collect();
        if !layers.is_empty() {
            self.layers.delete_all(&layers)?;
        }
        for id in self.layers.driver.list_layers()? {
            self.layers.move_away(&id)?;
        }
        Ok(())
    }

    /// Marks the layers of images, each with one of them, and those of containers.
    fn doom_everything(&mut self) -> Result<()> {
        let table = self.layers.table();
        let mut marks: HashMap<String, String> = HashMap::new();
        for row in self.images() {
            let intent = Companion::Image(row.id.to_string()).intent();
            for top in row.top_layers() {
                let mut next = top;
                while let Some(layer) = table.get(next) {
                    // Where a layer is marked those below it are, also if the parents in damaged records form a circle.
                    if marks.contains_key(layer.id.as_str()) {
                        break;
                    }
                    marks.insert(layer.id.to_string(), intent.clone());
                    next = &layer.parent;
                }
            }
        }
        for row in self.containers.rows() {
            if let Some(layer) = table.get(&row.layer) {
                let intent = Companion::Container(row.id.to_string()).intent();
                marks.insert(layer.id.to_string(), intent);
            }
        }
        for id in marks.keys() {
            // Before anything is saved: a layer that cannot be deleted would keep the mark for ever.
            check_layer_id(&*self.layers.driver, id)?;
        }
        for (id, intent) in &marks {
            let table = self.layers.table_mut();
            table.update(id, |row| row.set_intent(intent))?;
        }
        self.layers.save()
    }

    fn wipe_containers(&mut self, dirs: &Dirs) -> Result<()> {
        let ids: Vec<String> = self.containers.rows().map(|row| row.id.to_string()).collect();
        for id in &ids {
            drop(self.containers.table_mut().remove(id));
        }
        self.containers.save()?;
        for id in &ids {
            remove_dirs(&[
                item_dir(dirs.containers(), id)?,
                item_dir(dirs.run_containers(), id)?,
            ])?;
        }
        if !ids.is_empty() {
            self.containers.rely_on(dirs.containers());
        }
        Ok(())
    }

    fn wipe_images(&mut self, dirs: &Dirs) -> Result<()> {
        let mut wiped = HashSet::new();
        // The records of the first store go last: as long as anything is left of an image it can be found and deleted again.
        for store in self.images.iter_mut().rev() {
            let ids: Vec<String> = store.records.rows().map(|row| row.id.to_string()).collect();
            for id in &ids {
                drop(store.records.table_mut().remove(id));
            }
            store.records.save()?;
            wiped.extend(ids);
        }
        let homes = self.images.iter().map(|store| store.dir.clone());
        let homes: Vec<_> = homes.chain([dirs.graph_images(), dirs.run_images()]).collect();
        for id in &wiped {
            for home in &homes {
                remove_dirs(&[item_dir(home.clone(), id)?])?;
            }
        }
        Ok(())
    }
}

/// # Deleting everything
impl Store {
    /// Deletes every container, image and layer of this store, whichever program made it: also those that Podman, Buildah or
    /// CRI-O keep in the same graph root, with what their containers hold, and whatever else the driver takes for a
    /// layer. Mounted layers are unmounted. No safety checks; a program that wants to remove only what is its own
    /// deletes that by ID.
    ///
    /// With a separate image store the images there and those in the graph root are deleted. Additional read-only
    /// stores are left alone.
    ///
    /// Takes the layer, image and container locks exclusively for one step.
    ///
    /// # Errors
    /// The first failure stops it.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background. A crash in the middle leaves each item whole or
    /// deletes it: the next user of the store deletes the layers of the images and containers that are gone.
    pub async fn wipe(&self) -> Result<()> {
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores_alone(move |all| all.wipe(&dirs)).await
    }
}
