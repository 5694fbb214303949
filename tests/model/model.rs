//! What a store is, said as plainly as possible: three lists of items and how a key finds one.
//!
//! What calls do to it is in [`crate::rules`].

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::operation::{Blob, Operation, content, digest};

/// A layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) common: Common,
    pub(crate) parent: Option<String>,
    /// What it was put from; `None` for one without content.
    pub(crate) diff: Option<Diff>,
    pub(crate) mounts: i64,
    /// A process was killed while it mounted this: it may be mounted without being counted.
    pub(crate) cut_mount: bool,
    /// Everything that a mount of it shows.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// This layer and those below it, by [`Model::birth`]: an ID that is used again is another layer.
    pub(crate) chain: Vec<u64>,
    /// The IDs of these.
    pub(crate) ids: Vec<String>,
}

/// A stream that a layer was put from.
#[derive(Clone, Debug)]
pub(crate) struct Diff {
    pub(crate) tar: Vec<u8>,
    pub(crate) stream: Vec<u8>,
    pub(crate) gzip: bool,
    /// Whether it has entries with an owner, which deletions do not have.
    pub(crate) owned: bool,
}

/// An image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    pub(crate) common: Common,
    pub(crate) history: Vec<String>,
    pub(crate) layer: Option<String>,
    /// That of the first manifest which it had.
    pub(crate) digest: Option<String>,
}

/// A container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Container {
    pub(crate) common: Common,
    pub(crate) image: Option<String>,
    pub(crate) layer: String,
    /// Files in its directory.
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Whether it has a directory.
    pub(crate) has_directory: bool,
}

/// What all kinds have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Common {
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) metadata: String,
    pub(crate) flags: BTreeMap<String, Value>,
    /// Big data in the order in which keys were first set.
    pub(crate) items: Vec<(String, Vec<u8>)>,
}

impl Common {
    pub(crate) fn item(&self, key: &str) -> Option<&[u8]> {
        let found = self.items.iter().find(|(name, _)| name == key);
        found.map(|(_, bytes)| bytes.as_slice())
    }

    pub(crate) fn set_item(&mut self, key: &str, bytes: Vec<u8>) {
        match self.items.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = bytes,
            None => self.items.push((key.to_owned(), bytes)),
        }
    }

    /// Everything of it that callers see.
    fn view(&self) -> Value {
        let items: Vec<Value> = self
            .items
            .iter()
            .map(|(key, bytes)| json!([key, content(bytes)]))
            .collect();
        json!({
            "names": self.names,
            "metadata": self.metadata,
            "flags": self.flags,
            "items": items,
        })
    }
}

/// An item of one of the three kinds.
pub(crate) trait Item {
    fn common(&self) -> &Common;

    fn common_mut(&mut self) -> &mut Common;

    /// The layer by whose ID it is found too.
    fn own_layer(&self) -> Option<&str> {
        None
    }

    /// Called when names were changed by name.
    fn remember_names(&mut self) {}
}

impl Item for Layer {
    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }
}

impl Item for Image {
    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    /// Each name of the new list moves to the front in turn.
    fn remember_names(&mut self) {
        for name in &self.common.names {
            self.history.retain(|old| old != name);
            self.history.insert(0, name.clone());
        }
    }
}

impl Item for Container {
    fn common(&self) -> &Common {
        &self.common
    }

    fn common_mut(&mut self) -> &mut Common {
        &mut self.common
    }

    fn own_layer(&self) -> Option<&str> {
        Some(&self.layer)
    }
}

impl Image {
    /// Every digest by which it is found: its own, then those of its manifests.
    pub(crate) fn digests(&self) -> Vec<String> {
        let mut all: Vec<String> = self.digest.clone().into_iter().collect();
        for (key, bytes) in &self.common.items {
            let digest = digest(bytes);
            if key.starts_with("manifest") && !all.contains(&digest) {
                all.push(digest);
            }
        }
        all
    }

    /// The first manifest names the image for good.
    pub(crate) fn settle_digest(&mut self) {
        if self.digest.is_none() {
            self.digest = self.digests().into_iter().next();
        }
    }
}

/// Items of one kind, in the order of their creation.
#[derive(Clone, Debug, Default)]
pub(crate) struct Items<T>(pub(crate) Vec<T>);

impl<T: Item> Items<T> {
    pub(crate) fn get(&self, id: &str) -> Option<&T> {
        self.0.iter().find(|item| item.common().id == id)
    }

    pub(crate) fn get_mut(&mut self, id: &str) -> Option<&mut T> {
        self.0.iter_mut().find(|item| item.common().id == id)
    }

    pub(crate) fn by_name(&self, name: &str) -> Option<&T> {
        let mut items = self.0.iter();
        items.find(|item| item.common().names.iter().any(|own| own == name))
    }

    pub(crate) fn by_layer(&self, layer: &str) -> Option<&T> {
        // The latest, where several claim it.
        self.0.iter().rfind(|item| item.own_layer() == Some(layer))
    }

    /// An ID, else a name, else the ID of the item's own layer, else the beginning of exactly one ID. IDs with a space
    /// have no beginnings.
    pub(crate) fn find(&self, key: &str) -> Option<&T> {
        let by_beginning = || {
            let begins = |item: &&T| item.common().id.starts_with(key) && !item.common().id.contains(' ');
            let mut found = self.0.iter().filter(begins);
            let first = found.next().filter(|_| !key.is_empty())?;
            found.next().is_none().then_some(first)
        };
        self.get(key)
            .or_else(|| self.by_name(key))
            .or_else(|| self.by_layer(key))
            .or_else(by_beginning)
    }

    pub(crate) fn find_id(&self, key: &str) -> Option<String> {
        Some(self.find(key)?.common().id.clone())
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.0.retain(|item| item.common().id != id);
    }

    /// Gives the item its new names, which others lose.
    pub(crate) fn rename(&mut self, id: &str, mut names: Vec<String>) {
        dedupe(&mut names);
        for item in &mut self.0 {
            let own = item.common().id == id;
            let common = item.common_mut();
            if own {
                common.names.clone_from(&names);
            } else {
                common.names.retain(|name| !names.contains(name));
            }
            if own {
                item.remember_names();
            }
        }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|item| item.common().id.as_str())
    }
}

/// The first of equal names stays.
pub(crate) fn dedupe(names: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
}

/// A whole store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) layers: Items<Layer>,
    pub(crate) images: Items<Image>,
    pub(crate) containers: Items<Container>,
    /// Whether container records lie in the run root.
    pub(crate) transient: bool,
    /// Whether a layer shows what the layers below it have, rather than a copy of that.
    pub(crate) stacked: bool,
    /// How many layers there were so far.
    pub(crate) births: u64,
    /// Layers that had content when a diff was applied to them: they have more than that diff, whose digest they say.
    pub(crate) mixed: BTreeSet<String>,
}

impl Model {
    pub(crate) fn new(driver: &str, transient: bool) -> Self {
        Self {
            transient,
            stacked: driver == "overlay",
            ..Self::default()
        }
    }

    /// Whether a layer, or one below it, has more than the stream whose digest it says.
    pub(crate) fn is_mixed(&self, id: &str) -> bool {
        let layer = self.layers.get(id);
        layer.is_some_and(|layer| layer.ids.iter().any(|id| self.mixed.contains(id)))
    }

    /// Whether all layers that this one shows are still there.
    pub(crate) fn is_whole(&self, layer: &Layer) -> bool {
        let alive: BTreeSet<u64> = self
            .layers
            .0
            .iter()
            .filter_map(|layer| layer.chain.last().copied())
            .collect();
        !self.stacked || layer.chain.iter().all(|birth| alive.contains(birth))
    }

    /// Whether the driver finds a layer of each of the IDs below this one, but another than that which it was made on.
    pub(crate) fn stands_on_others(&self, layer: &Layer) -> bool {
        !self.is_whole(layer) && layer.ids.iter().all(|id| self.layers.get(id).is_some())
    }

    /// Whether something refers to what is not there.
    pub(crate) fn has_lost_references(&self) -> bool {
        let parents = self.layers.0.iter().map(|layer| layer.parent.as_ref());
        let tops = self.images.0.iter().map(|image| image.layer.as_ref());
        let own = self.containers.0.iter().map(|container| Some(&container.layer));
        let mut layers = parents.chain(tops).chain(own).flatten();
        let mut images = self
            .containers
            .0
            .iter()
            .filter_map(|container| container.image.as_ref());
        layers.any(|id| self.layers.get(id).is_none()) || images.any(|id| self.images.get(id).is_none())
    }

    /// Whether this deletes a container whose layer an image refers to: after a kill the layer stays with the image.
    pub(crate) fn deletes_layer_of_image(&self, operation: &Operation) -> bool {
        let (Operation::DeleteContainer(key) | Operation::Delete(key)) = operation else {
            return false;
        };
        let container = self.containers.find(key);
        container.is_some_and(|container| {
            let layer = Some(&container.layer);
            self.images.0.iter().any(|image| image.layer.as_ref() == layer)
        })
    }

    /// The state in which of each item what is seen has happened to it that leads to the state `after`.
    pub(crate) fn between(&self, after: &Self, seen: &Value) -> Self {
        let mut between = self.clone();
        between
            .layers
            .0
            .retain(|layer| seen["layers"].get(&layer.common.id).is_some());
        between
            .images
            .0
            .retain(|image| seen["images"].get(&image.common.id).is_some());
        let is_seen = |container: &Container| seen["containers"].get(&container.common.id).is_some();
        between.containers.0.retain(is_seen);
        for layer in &mut between.layers.0 {
            if let Some(new) = after.layers.get(&layer.common.id)
                && seen["layers"][&layer.common.id]["mounts"] == new.mounts
            {
                layer.mounts = new.mounts;
            }
        }
        between
    }

    /// Whether everything is there that an item refers to and that was there `before`. The layer of a container goes with it
    /// also if something else refers to it.
    pub(crate) fn check_references(&self, before: &Self) -> Result<(), String> {
        let layers = self
            .layers
            .0
            .iter()
            .map(|layer| (&layer.common.id, layer.parent.as_ref()));
        let images = self
            .images
            .0
            .iter()
            .map(|image| (&image.common.id, image.layer.as_ref()));
        let containers = self.containers.0.iter();
        let containers = containers.map(|container| (&container.common.id, Some(&container.layer)));
        for (id, layer) in layers.chain(images).chain(containers) {
            let is_lost =
                |layer: &&String| self.layers.get(layer).is_none() && before.layers.get(layer).is_some();
            if let Some(layer) = layer.filter(is_lost) {
                return Err(format!("{id} is there without the layer {layer}"));
            }
        }
        Ok(())
    }

    /// Everything that callers see, as [`crate::observe`] tells it of a real store.
    pub(crate) fn view(&self) -> Value {
        let with = |common: &Common, more: Value| {
            let mut view = common.view();
            view.as_object_mut()
                .unwrap()
                .append(&mut more.as_object().unwrap().clone());
            view
        };
        let layers: BTreeMap<&str, Value> = self
            .layers
            .0
            .iter()
            .map(|layer| {
                let diff = layer.diff.as_ref().map(Diff::view);
                let more = json!({"parent": layer.parent, "mounts": layer.mounts, "diff": diff});
                (layer.common.id.as_str(), with(&layer.common, more))
            })
            .collect();
        let images: BTreeMap<&str, Value> = self
            .images
            .0
            .iter()
            .map(|image| {
                let more = json!({
                    "history": image.history,
                    "layer": image.layer,
                    "digest": image.digest,
                    "digests": image.digests(),
                });
                (image.common.id.as_str(), with(&image.common, more))
            })
            .collect();
        let containers: BTreeMap<&str, Value> = self
            .containers
            .0
            .iter()
            .map(|container| {
                let more = json!({"image": container.image, "layer": container.layer});
                (container.common.id.as_str(), with(&container.common, more))
            })
            .collect();
        json!({"layers": layers, "images": images, "containers": containers})
    }
}

impl Diff {
    pub(crate) fn of(blob: &Blob) -> Self {
        Self {
            tar: blob.tar(),
            stream: blob.stream(),
            gzip: blob.gzip,
            owned: blob.files.values().any(Option::is_some),
        }
    }

    fn view(&self) -> Value {
        let owners = if self.owned { vec![0] } else { vec![] };
        json!({
            "diff": content(&self.tar),
            "stream": content(&self.stream),
            "compression": if self.gzip { "Gzip" } else { "None" },
            "uids": owners,
            "gids": owners,
        })
    }
}
