//! Deleting layers, images and containers, and everything.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Result, ResultExt as _};
use crate::store::access::AllStores;
use crate::store::{Dirs, Store, item_dir};

/// Removes directories that belong to one record; missing ones are fine.
fn remove_dirs(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs {
        crate::sys::tree::remove_tree(dir).map_err(|error| Error::io_at("removing", dir, error))?;
    }
    Ok(())
}

impl AllStores {
    /// Deletes a container, its layer and its directories. The record goes last: whatever failed or crashed before
    /// can be tried again.
    fn delete_container(&mut self, dirs: &Dirs, id: &str) -> Result<()> {
        let Some(row) = self.containers.find(id).cloned() else {
            return Err(ErrorKind::NotAContainer.err(format!("deleting container {id:?}")));
        };
        if self.layers.table().get(&row.layer).is_some() {
            self.layers.delete_all(std::slice::from_ref(&row.layer))?;
        }
        remove_dirs(&[
            item_dir(dirs.containers(), &row.id)?,
            item_dir(dirs.run_containers(), &row.id)?,
        ])?;
        drop(self.containers.table_mut().remove(&row.id));
        self.containers
            .save()
            .context(|| format!("deleting container {:?}", row.id))
    }

    /// Deletes an image's record, then its data. Its layers stay.
    fn delete_image_record(&mut self, dirs: &Dirs, id: &str) -> Result<()> {
        drop(self.images.table_mut().remove(id));
        self.images.save().context(|| format!("deleting image {id:?}"))?;
        remove_dirs(&[
            item_dir(dirs.images(), id)?,
            item_dir(dirs.graph_images(), id)?,
            item_dir(dirs.run_images(), id)?,
        ])
    }

    /// The layers that go with an image: from the top layer (and its copies with other owners) downwards, as long as
    /// nobody else needs them.
    fn layers_to_delete(&self, image: &str) -> Vec<String> {
        let table = self.layers.table();
        let Some(row) = self.images.get(image) else {
            return Vec::new();
        };
        // Only these can go, so only their children matter: a store may have many thousands of others.
        let mut chain: HashSet<&str> = HashSet::new();
        let mut next = row.layer.as_str();
        while let Some(layer) = table.get(next) {
            // Damaged records may lead in a circle.
            if !chain.insert(&layer.id) {
                break;
            }
            next = &layer.parent;
        }
        let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
        for layer in table.rows().filter(|layer| chain.contains(layer.parent.as_str())) {
            children.entry(&layer.parent).or_default().push(&layer.id);
        }
        let others: HashSet<&str> = self
            .images
            .rows()
            .filter(|other| other.id != row.id)
            .flat_map(|other| std::iter::once(&other.layer).chain(&other.mapped_layers))
            .map(String::as_str)
            .collect();
        // A layer that this store does not have (it lies in an additional store) is not ours to delete.
        let mut doomed: Vec<String> = row
            .mapped_layers
            .iter()
            .filter(|id| table.get(id).is_some())
            .cloned()
            .collect();
        let mut next = row.layer.as_str();
        while let Some(layer) = table.get(next) {
            let needed_elsewhere = others.contains(next)
                || self.containers.by_layer(next).is_some()
                || children
                    .get(next)
                    .is_some_and(|ids| ids.iter().any(|id| !doomed.iter().any(|gone| gone == id)));
            if needed_elsewhere {
                break;
            }
            doomed.push(layer.id.clone());
            next = &layer.parent;
        }
        doomed
    }
}

impl Store {
    /// Deletes a layer (an ID, name or ID prefix) that nobody uses. It is unmounted first.
    ///
    /// Takes the layer, image and container locks exclusively for one step; files are unlinked after that.
    ///
    /// # Errors
    /// [`ErrorKind::NotALayer`], [`ErrorKind::LayerHasChildren`], [`ErrorKind::LayerUsedByImage`],
    /// [`ErrorKind::LayerUsedByContainer`], naming the user.
    ///
    /// # Cancellation
    /// Nothing has happened, or the step finishes in the background. A crash in the middle is finished by the next
    /// user of the store.
    pub async fn delete_layer(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        self.write_to_all_stores(move |all| {
            let Some(id) = all.layers.table().find(&key).map(|row| row.id.clone()) else {
                return Err(ErrorKind::NotALayer.err(format!("deleting layer {key:?}")));
            };
            let used =
                |kind: ErrorKind, by: &str| Err(kind.err(format!("deleting layer {id:?}, used by {by}")));
            if let Some(child) = all.layers.table().rows().find(|row| row.parent == id) {
                return used(ErrorKind::LayerHasChildren, &child.id);
            }
            if let Some(image) = all.images.rows().find(|row| row.layer == id) {
                return used(ErrorKind::LayerUsedByImage, &image.id);
            }
            if let Some(container) = all.containers.by_layer(&id) {
                return used(ErrorKind::LayerUsedByContainer, &container.id);
            }
            all.layers.delete_all(std::slice::from_ref(&id))?;
            let mapped: Vec<String> = all
                .images
                .rows()
                .filter(|row| row.mapped_layers.contains(&id))
                .map(|row| row.id.clone())
                .collect();
            if mapped.is_empty() {
                return Ok(());
            }
            for image in mapped {
                all.images
                    .table_mut()
                    .update(&image, |row| row.mapped_layers.retain(|layer| *layer != id))?;
            }
            all.images.save()
        })
        .await
    }

    /// Deletes an image (an ID, name or ID prefix) that no container uses, and its layers from the top downwards as
    /// long as nothing else needs them. Returns the IDs of those layers. With `commit` false nothing is deleted, only
    /// the list is returned.
    ///
    /// # Errors
    /// [`ErrorKind::NotAnImage`], [`ErrorKind::ImageUsedByContainer`] naming the container.
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete_image(&self, id: &str, commit: bool) -> Result<Vec<String>> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| {
            let Some(id) = all.images.find(&key).map(|row| row.id.clone()) else {
                return Err(ErrorKind::NotAnImage.err(format!("deleting image {key:?}")));
            };
            if let Some(user) = all.containers.rows().find(|row| row.image == id) {
                let what = format!("deleting image {id:?}, used by {}", user.id);
                return Err(ErrorKind::ImageUsedByContainer.err(what));
            }
            let layers = all.layers_to_delete(&id);
            if commit {
                all.delete_image_record(&dirs, &id)?;
                all.layers.delete_all(&layers)?;
            }
            Ok(layers)
        })
        .await
    }

    /// Deletes a container (an ID, name, ID prefix, or the ID of its layer), its layer and its directories. A layer
    /// that is missing already is tolerated.
    ///
    /// # Errors
    /// [`ErrorKind::NotAContainer`], [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete_container(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| all.delete_container(&dirs, &key))
            .await
    }

    /// Deletes the container, image or layer with this ID, name or ID prefix, looked for in this order, without
    /// asking who uses it: layers may be left without a parent, images and containers without a layer.
    ///
    /// # Errors
    /// [`ErrorKind::LayerUnknown`] if there is none.
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn delete(&self, id: &str) -> Result<()> {
        let key = id.to_owned();
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| {
            if let Some(row) = all.containers.find(&key).cloned() {
                if all.layers.table().get(&row.layer).is_none() {
                    let what = format!(
                        "deleting container {:?}, whose layer {:?} is missing",
                        row.id, row.layer
                    );
                    return Err(ErrorKind::NotALayer.err(what));
                }
                return all.delete_container(&dirs, &row.id);
            }
            if let Some(id) = all.images.find(&key).map(|row| row.id.clone()) {
                return all.delete_image_record(&dirs, &id);
            }
            match all.layers.table().find(&key).map(|row| row.id.clone()) {
                Some(id) => all.layers.delete_all(&[id]),
                None => Err(ErrorKind::LayerUnknown.err(format!("deleting {key:?}"))),
            }
        })
        .await
    }

    /// Deletes every container, image and layer, and whatever else the driver takes for a layer. No safety checks.
    ///
    /// # Errors
    /// The first failure stops it.
    ///
    /// # Cancellation
    /// As [`Store::delete_layer`].
    pub async fn wipe(&self) -> Result<()> {
        let dirs = self.inner.dirs.clone();
        self.write_to_all_stores(move |all| {
            let containers: Vec<String> = all.containers.rows().map(|row| row.id.clone()).collect();
            for id in &containers {
                remove_dirs(&[
                    item_dir(dirs.containers(), id)?,
                    item_dir(dirs.run_containers(), id)?,
                ])?;
                drop(all.containers.table_mut().remove(id));
            }
            if !containers.is_empty() {
                all.containers.save()?;
            }
            let images: Vec<String> = all.images.rows().map(|row| row.id.clone()).collect();
            for id in &images {
                drop(all.images.table_mut().remove(id));
            }
            if !images.is_empty() {
                all.images.save()?;
            }
            for id in &images {
                remove_dirs(&[
                    item_dir(dirs.images(), id)?,
                    item_dir(dirs.graph_images(), id)?,
                    item_dir(dirs.run_images(), id)?,
                ])?;
            }
            // Later layers stand on earlier ones.
            let layers: Vec<String> = all
                .layers
                .table()
                .rows()
                .rev()
                .map(|row| row.id.clone())
                .collect();
            if !layers.is_empty() {
                all.layers.delete_all(&layers)?;
            }
            for id in all.layers.driver.list_layers()? {
                all.layers.move_away(&id)?;
            }
            Ok(())
        })
        .await
    }
}
