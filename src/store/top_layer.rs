//! The layer of an image on which containers with some owners stand.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::idmap::IdMappings;
use crate::options::IdMappingOptions;
use crate::record::image::ImageRow;
use crate::record::intent::Companion;
use crate::record::layer::LayerRow;
use crate::store::access::Held;
use crate::store::layer_store::new_layer::{NewLayer, Start};

/// The layer on which a container of an image stands.
pub(crate) enum TopLayer {
    /// `None`: the image has no layer.
    Found(Option<Arc<LayerRow>>),
    /// It has to be made, and recorded in the image, which is not held exclusively.
    NeedsImages,
}

/// The layer to use as the image's top layer with these owners; `None` for an image without a
/// layer. If no candidate has them and the driver cannot map at mount time, a copy of the top layer with the wanted
/// owners is made and recorded in the image.
pub(crate) fn mapped_top_layer(
    held: &mut Held,
    image: &ImageRow,
    image_is_primary: bool,
    wanted: &IdMappingOptions,
) -> Result<TopLayer> {
    if image.layer.is_empty() {
        return Ok(TopLayer::Found(None));
    }
    let wanted_maps = IdMappings {
        uids: wanted.uid_map.clone(),
        gids: wanted.gid_map.clone(),
    };
    let shifting = held.layers()?.driver.supports_shifting(&wanted_maps);
    let fits = |row: &LayerRow| {
        let unmapped = row.uid_map.is_empty() && row.gid_map.is_empty();
        if shifting && unmapped {
            return true;
        }
        if (wanted.host_uid_mapping && !row.uid_map.is_empty())
            || (wanted.host_gid_mapping && !row.gid_map.is_empty())
        {
            return false;
        }
        row.uid_map == wanted.uid_map && row.gid_map == wanted.gid_map
    };
    // A store-independent candidate whose parent is in no store cannot be mounted.
    let candidates: Vec<(Arc<LayerRow>, bool)> = image
        .top_layers()
        .filter_map(|id| held.layer(id))
        .filter(|(row, _)| row.parent.is_empty() || held.layer(&row.parent).is_some())
        .collect();
    if let Some((row, _)) = candidates.iter().find(|(row, _)| fits(row)) {
        return Ok(TopLayer::Found(Some(Arc::clone(row))));
    }
    let Some((base, base_is_primary)) = candidates.into_iter().next() else {
        return Err(ErrorKind::LayerUnknown.err(format!("locating the top layer of image {:?}", image.id)));
    };
    if !image_is_primary || !base_is_primary {
        return Ok(TopLayer::Found(Some(base)));
    }
    if !held.can_change_images() {
        return Ok(TopLayer::NeedsImages);
    }
    let parent = held.layer(&base.parent).map(|(row, _)| row);
    let mappings = if shifting {
        IdMappings::default()
    } else {
        wanted_maps
    };
    let copy = held
        .layers()?
        .create(NewLayer {
            id: String::new(),
            names: Vec::new(),
            parent,
            start: Start::Template(Arc::clone(&base)),
            mount_label: base.mount_label.clone(),
            writeable: false,
            mappings,
            mapped_by_mount: false,
            metadata: String::new(),
            flags: BTreeMap::new(),
            big_data: Vec::new(),
            storage_opt: BTreeMap::new(),
            volatile: false,
            companion: Some(Companion::Image(image.id.to_string())),
        })
        .context(|| format!("creating an ID-mapped copy of layer {:?}", base.id))?;
    let images = held.images()?;
    let noted = images
        .table_mut()
        .update(&image.id, |row| row.mapped_layers.push(copy.id.to_string()))
        .and_then(|_| images.save());
    if let Err(error) = noted {
        // The failed save may have come far enough to be seen: the next user of the store decides on the copy.
        return Err(error.context(format!("registering ID-mapped layer with image {:?}", image.id)));
    }
    let layers = held.layers()?;
    layers.mark(&[copy.id.to_string()], None)?;
    layers.save()?;
    Ok(TopLayer::Found(Some(copy)))
}
