//! Records of layers that images have and that are lost.
//!
//! The config of the image tells the digest of the layer's content, by its place. The layer below is the one with which the
//! digest gives the layer's ID, as image programs compute IDs; else the one that the driver's files name; else the only one
//! whose content, down to the lowest layer, is that which the config names.

use std::collections::{BTreeMap, HashSet};

use crate::bridge;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::idmap::IdMappings;
use crate::options::IdMappingOptions;
use crate::record::layer::LayerRow;
use crate::store::Store;
use crate::store::access::Needs;
use crate::store::dirs::{check_layer_id, layer_location};
use crate::store::heal::report::NotHealed;
use crate::store::heal::usage::{Usage, Use};
use crate::store::layer_identity::LayerIdentity;
use crate::time::Time;

impl Store {
    /// Makes a record for the layer `id`. Returns the layer below.
    pub(super) async fn restore_record(&self, id: &str, usage: &Usage) -> Result<Option<String>, NotHealed> {
        let used = usage.get(id).ok_or(NotHealed::UnknownContent)?;
        if used.is_copy {
            return Err(NotHealed::Copy);
        }
        let [diff_id] = used.diff_ids.as_slice() else {
            return Err(NotHealed::UnknownContent);
        };
        let parent = self.parent_of_missing(id, used, diff_id, usage).await;
        let parent = parent.map_err(NotHealed::Failed)?;
        let mut row = LayerRow {
            id: id.into(),
            parent: parent.as_deref().unwrap_or_default().into(),
            created: Time::now(),
            diff_digest: diff_id.clone().into(),
            // Until the stream was seen.
            diff_size: -1,
            ..LayerRow::default()
        };
        if let [blob] = used.blobs.as_slice() {
            row.compressed_digest = blob.digest.clone().into();
            row.compressed_size = i64::try_from(blob.size).unwrap_or(-1);
            row.compression = Compression::of_media_type(&blob.media_type).as_i64();
        }
        let mappings = self.mappings_of_missing(id, parent.as_deref(), usage);
        let mappings = mappings.map_err(NotHealed::Failed)?;
        (row.uid_map, row.gid_map) = (mappings.uids, mappings.gids);
        self.put_record(row).await.map_err(NotHealed::Failed)?;
        Ok(parent)
    }

    /// Adds to a record that was made what the stream of the layer tells, if that is there and right.
    pub(super) async fn complete_record(&self, id: &str) -> Result<()> {
        let layer = self.layer(id).await?;
        if layer.row().diff_size >= 0 {
            return Ok(());
        }
        let Some(stream) = self.read_stream_of(id).await? else {
            return Ok(());
        };
        let (id, now) = (id.to_owned(), layer.row().clone());
        let completed = self.step(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            if stream.digest.as_ref() == now.diff_digest.valid() && *layers.get(&id)? == now {
                layers.table_mut().update(&id, |row| {
                    row.diff_size = i64::try_from(stream.size).unwrap_or(-1);
                    row.uids = stream.uids.iter().copied().collect();
                    row.gids = stream.gids.iter().copied().collect();
                })?;
            }
            Ok(())
        });
        completed.await
    }

    async fn put_record(&self, row: LayerRow) -> Result<()> {
        let put = self.step(Needs::LAYERS, move |held| {
            let layers = held.layers()?;
            check_layer_id(&*layers.driver, &row.id)?;
            let location = match layers.inner.options.image_store {
                Some(_) => layer_location::IMAGE_STORE,
                None => layer_location::STABLE,
            };
            drop(layers.table_mut().insert(row, location)?);
            Ok(())
        });
        put.await
    }

    async fn parent_of_missing(
        &self,
        id: &str,
        used: &Use,
        diff_id: &Digest,
        usage: &Usage,
    ) -> Result<Option<String>> {
        if used.below.is_empty() {
            return Ok(None);
        }
        let identity = LayerIdentity::DiffId(diff_id.clone());
        // As all of them have been named, whether they have records or not.
        let computed = used.below.iter().fold(None, |below: Option<String>, diff_id| {
            Some(LayerIdentity::DiffId(diff_id.clone()).layer_id(below.as_deref()))
        });
        let known = usage.layers.keys().cloned();
        let by_id = known
            .chain(computed)
            .find(|parent| identity.layer_id(Some(parent)) == id);
        if by_id.is_some() {
            return Ok(by_id);
        }
        let has_content = |parent: &str| usage.diff_ids_up_to(parent).as_ref() == Some(&used.below);
        // If that has no record either, what is made for it is compared with the config in its turn.
        if let Some(parent) = self.parent_by_driver(id, usage).await?
            && (has_content(&parent) || !usage.layers.contains_key(&parent))
        {
            return Ok(Some(parent));
        }
        let mut found = usage
            .layers
            .keys()
            .filter(|parent| has_content(parent) && usage.get(parent).is_some_and(|parent| !parent.is_copy));
        match (found.next(), found.next()) {
            (Some(parent), None) => Ok(Some(parent.clone())),
            (None, _) => {
                let what = format!("the layer below {id:?} has no record either, or other content");
                Err(ErrorKind::LayerUnknown.err(what))
            }
            (Some(_), Some(_)) => {
                let what = format!("more than one layer may be the one below {id:?}");
                Err(ErrorKind::CorruptMetadata.err(what))
            }
        }
    }

    /// The layer below one without a record, as the driver's files of it, or of one that stands on it, say.
    async fn parent_by_driver(&self, id: &str, usage: &Usage) -> Result<Option<String>> {
        let children = usage.layers.values().filter(|layer| layer.parent() == Some(id));
        let children: HashSet<String> = children.map(|layer| layer.id().to_owned()).collect();
        let (driver, id) = (self.inner.driver(), id.to_owned());
        bridge::run(move || {
            let mut votes: BTreeMap<String, usize> = BTreeMap::new();
            for layer in driver.found_layers()? {
                let below = layer.below.unwrap_or_default();
                let parent = match () {
                    () if layer.id == id => below.first(),
                    () if children.contains(&layer.id) => {
                        below.iter().skip_while(|below| **below != id).nth(1)
                    }
                    () => None,
                };
                if let Some(parent) = parent {
                    *votes.entry(parent.clone()).or_default() += 1;
                }
            }
            let most = votes.into_iter().max_by_key(|(_, votes)| *votes);
            Ok(most.map(|(parent, _)| parent))
        })
        .await
    }

    /// The owners in a layer without a record: those of the layer below, or of the lowest ones that images have.
    fn mappings_of_missing(&self, id: &str, parent: Option<&str>, usage: &Usage) -> Result<IdMappings> {
        let child = || {
            let mut on_it = usage.layers.values().filter(|layer| layer.parent() == Some(id));
            on_it.find(|layer| usage.get(layer.id()).is_some_and(|used| !used.is_copy))
        };
        let like = parent.and_then(|parent| usage.layers.get(parent)).or_else(child);
        match like {
            Some(layer) => Ok(IdMappings {
                uids: layer.uid_map().to_vec(),
                gids: layer.gid_map().to_vec(),
            }),
            None => self.choose_mappings(&IdMappingOptions::default(), None),
        }
    }
}
