//! Which images have a layer, and at which place: by that their manifests and configs tell its digests.

use std::collections::{HashMap, HashSet};

use crate::digest::Digest;
use crate::error::Result;
use crate::store::Store;
use crate::store::heal::source::WantedImage;
use crate::store::image_manifest::Descriptor;
use crate::store::views::{Image, Layer};

/// What images say of a layer.
#[derive(Clone, Debug, Default)]
pub(super) struct Use {
    pub(super) images: Vec<WantedImage>,
    /// The blobs that manifests name for it.
    pub(super) blobs: Vec<Descriptor>,
    /// The digests that configs name for it: one, unless images contradict each other.
    pub(super) diff_ids: Vec<Digest>,
    /// The digests of the layers below it, the lowest first, by the same configs.
    pub(super) below: Vec<Digest>,
    /// It is a top layer made of another one, with other owners, or below such a layer.
    pub(super) is_copy: bool,
}

/// All layers of the store that images have.
#[derive(Debug, Default)]
pub(super) struct Usage {
    pub(super) layers: HashMap<String, Layer>,
    uses: HashMap<String, Use>,
}

fn add<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

pub(super) fn wanted_image(image: &Image) -> WantedImage {
    WantedImage {
        names: image.names().to_vec(),
        digest: image.digest(),
    }
}

/// What an image has; `None` if that is damaged. What was not read for another reason may name the layers.
fn unless_damaged<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_passing() => Err(error),
        Err(_damaged) => Ok(None),
    }
}

impl Usage {
    pub(super) async fn of(store: &Store) -> Result<Self> {
        let mut usage = Self::default();
        for layer in store.layers().await? {
            // The first with an ID is the one that is used.
            usage.layers.entry(layer.id().to_owned()).or_insert(layer);
        }
        for image in store.images().await? {
            let manifest = unless_damaged(store.manifest_of(&image).await)?;
            let config = match &manifest {
                Some(manifest) => unless_damaged(store.config_of(&image, manifest).await)?,
                None => None,
            };
            let diff_ids = config.map(|config| config.diff_ids).unwrap_or_default();
            let blobs = manifest.map(|manifest| manifest.layers).unwrap_or_default();
            if let Some(top) = image.top_layer() {
                usage.add_chain(&image, top, &diff_ids, &blobs, false);
            }
            for top in image.mapped_top_layers() {
                usage.add_chain(&image, top, &diff_ids, &blobs, true);
            }
        }
        Ok(usage)
    }

    /// Notes what an image says of the layer `top` and those below it.
    fn add_chain(&mut self, image: &Image, top: &str, diff_ids: &[Digest], blobs: &[Descriptor], copy: bool) {
        let (chain, ends) = self.chain(top);
        let count = diff_ids.len();
        // Layers that are not those of the config have other places.
        let fits = match ends {
            true => chain.len() == count,
            false => chain.len() <= count,
        };
        for (index, id) in chain.iter().enumerate() {
            let used = self.uses.entry(id.clone()).or_default();
            add(&mut used.images, wanted_image(image));
            // Only the top one: those below it are the image's own.
            used.is_copy |= copy && index == 0;
            let Some(place) = count.checked_sub(index + 1).filter(|_| fits) else {
                continue;
            };
            if let Some(diff_id) = diff_ids.get(place) {
                add(&mut used.diff_ids, diff_id.clone());
                used.below = diff_ids.get(..place).unwrap_or_default().to_vec();
            }
            if blobs.len() == count
                && let Some(blob) = blobs.get(place)
            {
                add(&mut used.blobs, blob.clone());
            }
        }
    }

    /// A layer and those below it, the nearest first, and whether the last is the lowest one; it has no record otherwise.
    fn chain(&self, top: &str) -> (Vec<String>, bool) {
        let (mut chain, mut seen) = (Vec::new(), HashSet::new());
        let mut next = Some(top.to_owned());
        while let Some(id) = next.take() {
            if !seen.insert(id.clone()) {
                return (chain, false);
            }
            let layer = self.layers.get(&id);
            chain.push(id);
            let Some(layer) = layer else {
                return (chain, false);
            };
            next = layer.parent().map(str::to_owned);
        }
        (chain, true)
    }

    /// What images say of a layer; `None` if none has it.
    pub(super) fn get(&self, id: &str) -> Option<&Use> {
        self.uses.get(id)
    }

    /// The layers below one, nearest first. Ends where one has no record.
    pub(super) fn below(&self, id: &str) -> Vec<String> {
        let (mut chain, _ends) = self.chain(id);
        chain.remove(0);
        chain
    }

    /// The digests of a layer and of those below it, the lowest first; `None` if one is not known.
    pub(super) fn diff_ids_up_to(&self, id: &str) -> Option<Vec<Digest>> {
        let (chain, ends) = self.chain(id);
        let ids = chain.iter().rev();
        let digests = ids.map(|id| self.layers.get(id)?.uncompressed_digest());
        digests.collect::<Option<Vec<_>>>().filter(|_| ends)
    }
}
