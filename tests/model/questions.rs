//! What calls that change nothing return.

use serde_json::json;

use crate::model::{Diff, Item, Items, Model};
use crate::operation::{Question, content, digest};
use crate::rules::{Expected, fail};

impl Model {
    /// What the store answers. Asking for a container's directory makes it.
    pub(crate) fn ask(&mut self, what: Question, key: &str, item: &str) -> Expected {
        let id_of = |found: Option<String>, kind| found.map_or_else(|| fail(kind), |id| Ok(json!(id)));
        let sorted = |mut ids: Vec<&str>| {
            ids.sort_unstable();
            json!(ids)
        };
        match what {
            Question::Lookup => id_of(self.any(key).map(|common| common.id.clone()), "LayerUnknown"),
            Question::Exists => Ok(json!(self.any(key).is_some())),
            Question::Names => self
                .any(key)
                .map_or_else(|| fail("LayerUnknown"), |common| Ok(json!(common.names))),
            Question::Metadata => self
                .any(key)
                .map_or_else(|| fail("NotAnId"), |common| Ok(json!(common.metadata))),
            Question::Layer => id_of(self.layers.find_id(key), "LayerUnknown"),
            Question::Image => id_of(self.images.find_id(key), "ImageUnknown"),
            Question::Container => id_of(self.containers.find_id(key), "ContainerUnknown"),
            Question::ContainerByLayer => {
                let layer = self
                    .layers
                    .find_id(key)
                    .map_or_else(|| fail("LayerUnknown"), Ok)?;
                let found = self.containers.by_layer(&layer);
                id_of(
                    found.map(|container| container.common.id.clone()),
                    "ContainerUnknown",
                )
            }
            Question::ImagesByTopLayer => {
                let layer = self
                    .layers
                    .find_id(key)
                    .map_or_else(|| fail("LayerUnknown"), Ok)?;
                let images = self.images.0.iter();
                let on_it = images.filter(|image| image.layer.as_ref() == Some(&layer));
                Ok(sorted(on_it.map(|image| image.common.id.as_str()).collect()))
            }
            Question::ImagesByDigest => {
                let images = self.images.0.iter();
                let found = images.filter(|image| image.digests().iter().any(|digest| digest == item));
                Ok(sorted(found.map(|image| image.common.id.as_str()).collect()))
            }
            Question::LayersByDiffDigest => {
                let layers = self.layers.0.iter();
                let same = |diff: &Diff| digest(&diff.tar) == item;
                let found: Vec<&str> = layers
                    .filter(|layer| layer.diff.as_ref().is_some_and(same))
                    .map(|layer| layer.common.id.as_str())
                    .collect();
                Ok(sorted(found))
            }
            Question::LayerSize => {
                let layer = self.layers.find(key).map_or_else(|| fail("LayerUnknown"), Ok)?;
                Ok(json!(layer.diff.as_ref().map(|diff| diff.tar.len())))
            }
            Question::Mounted => {
                let id = self.mounted_layer(key)?;
                Ok(json!(self.layers.get(&id).map(|layer| layer.mounts)))
            }
            Question::ListLayerData => list_items(&self.layers, "LayerUnknown", key),
            Question::ListImageData => list_items(&self.images, "ImageUnknown", key),
            Question::ListContainerData => list_items(&self.containers, "ContainerUnknown", key),
            Question::LayerData => get_item(&self.layers, "LayerUnknown", key, item).map(content),
            Question::ImageData => get_item(&self.images, "ImageUnknown", key, item).map(content),
            Question::ContainerData => get_item(&self.containers, "ContainerUnknown", key, item).map(content),
            Question::ImageDataSize => size(get_item(&self.images, "", key, item)),
            Question::ContainerDataSize => size(get_item(&self.containers, "", key, item)),
            Question::ImageDataDigest => item_digest(get_item(&self.images, "", key, item)),
            Question::ContainerDataDigest => item_digest(get_item(&self.containers, "", key, item)),
            Question::ContainerFile => {
                let container = self.container_directory(key)?;
                if item.contains("..") {
                    return fail("UnsafePath");
                }
                let found = container.files.get(item);
                found.map_or_else(|| fail("Io"), |bytes| Ok(content(bytes)))
            }
        }
    }
}

fn list_items<T: Item>(items: &Items<T>, unknown: &'static str, key: &str) -> Expected {
    let found = items.find(key).map_or_else(|| fail(unknown), Ok)?;
    let keys: Vec<&str> = found.common().items.iter().map(|(key, _)| key.as_str()).collect();
    Ok(json!(keys))
}

fn get_item<'a, T: Item>(
    items: &'a Items<T>,
    unknown: &'static str,
    key: &str,
    item: &str,
) -> Result<&'a [u8], Vec<&'static str>> {
    let or_empty = |kind| {
        let mut kinds = vec![kind];
        kinds.extend(item.is_empty().then_some("InvalidBigDataName"));
        kinds
    };
    let found = items.find(key).ok_or_else(|| or_empty(unknown))?;
    found.common().item(item).ok_or_else(|| or_empty("NotFound"))
}

fn size(item: Result<&[u8], Vec<&'static str>>) -> Expected {
    item.map_or_else(|_| fail("SizeUnknown"), |bytes| Ok(json!(bytes.len())))
}

fn item_digest(item: Result<&[u8], Vec<&'static str>>) -> Expected {
    item.map_or_else(|_| fail("DigestUnknown"), |bytes| Ok(json!(digest(bytes))))
}
