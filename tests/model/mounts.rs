//! Mounts: which layer a key means, what a mount shows, who counts.

use serde_json::json;

use crate::model::Model;
use crate::operation::{Operation, content};
use crate::rules::{Expected, fail};

impl Model {
    /// The layer of the container, or the layer, that the key means.
    pub(crate) fn mounted_layer(&self, key: &str) -> Result<String, Vec<&'static str>> {
        let found = match self.containers.find(key) {
            Some(container) => self.layers.get(&container.layer),
            None => self.layers.find(key),
        };
        match found {
            Some(layer) => Ok(layer.common.id.clone()),
            None => fail("LayerUnknown"),
        }
    }

    /// Tells of a call whose process was killed.
    pub(crate) fn was_cut(&mut self, operation: &Operation) {
        let mounted = match operation {
            Operation::Mount(key) => self.mounted_layer(key).ok(),
            Operation::MountImage(key) => self.images.find(key).and_then(|image| image.layer.clone()),
            _ => None,
        };
        if let Some(layer) = mounted.and_then(|id| self.layers.get_mut(&id)) {
            layer.cut_mount = true;
        }
    }

    /// Mounts a layer once more.
    pub(crate) fn mount(&mut self, id: &str) -> Expected {
        let whole = self.layers.get(id).is_some_and(|layer| self.is_whole(layer));
        if !whole {
            return fail("CorruptMetadata");
        }
        let Some(layer) = self.layers.get_mut(id) else {
            return fail("LayerUnknown");
        };
        layer.mounts += 1;
        let files = layer.files.iter();
        Ok(files.map(|(name, bytes)| json!([name, content(bytes)])).collect())
    }

    /// Undoes one mount or all. Whether it is still mounted.
    pub(crate) fn unmount(&mut self, id: &str, force: bool) -> bool {
        let Some(layer) = self.layers.get_mut(id) else {
            return false;
        };
        layer.mounts = if force { 0 } else { (layer.mounts - 1).max(0) };
        layer.mounts > 0
    }
}
