//! Lists of items: `layers`, `storage-layers`, `images`, `images-by-digest`, `containers`.

use std::collections::HashMap;

use graphroot::{Container, Digest, Image, Layer};

use super::layer_tree::{LayerNode, print};
use crate::call::Call;
use crate::flags::{QUICK, QUIET_IDS, TREE};
use crate::outcome::{CommandError, DONE, Outcome};
use crate::output::Output;

/// The images and containers that use each layer.
#[derive(Default)]
pub(crate) struct LayerUsers {
    images: HashMap<String, Vec<Image>>,
    containers: HashMap<String, Container>,
}

impl LayerUsers {
    /// Reads all images and containers. If one kind cannot be read, layers are listed without it.
    pub(crate) async fn read(call: &Call) -> Result<Self, CommandError> {
        let store = call.store()?;
        let mut users = Self::default();
        for image in store.images().await.unwrap_or_default() {
            for layer in image
                .top_layer()
                .into_iter()
                .chain(image.mapped_top_layers().iter().map(String::as_str))
            {
                users
                    .images
                    .entry(layer.to_owned())
                    .or_default()
                    .push(image.clone());
            }
        }
        for container in store.containers().await.unwrap_or_default() {
            users
                .containers
                .insert(container.layer_id().to_owned(), container);
        }
        Ok(users)
    }

    fn images_of(&self, layer: &Layer) -> &[Image] {
        self.images.get(layer.id()).map_or(&[], Vec::as_slice)
    }
}

pub(crate) async fn layers(call: &Call, out: &mut Output) -> Outcome {
    let layers = call.store()?.layers().await?;
    if call.json() {
        out.json_or_null(&layers)?;
        return DONE;
    }
    let tree = call.flags.is_on(&TREE);
    let ids_only = call.flags.is_on(&QUICK) && !tree;
    let users = if ids_only {
        LayerUsers::default()
    } else {
        LayerUsers::read(call).await?
    };
    if tree {
        let nodes = layers.iter().map(|layer| node(layer, &users)).collect();
        return print(out, nodes).and(DONE);
    }
    for layer in &layers {
        out.line(layer.id())?;
        if ids_only {
            continue;
        }
        for name in layer.names() {
            out.line(format!("\tname: {name}"))?;
        }
        for image in users.images_of(layer) {
            out.line(format!("\timage: {}", image.id()))?;
            for name in image.names() {
                out.line(format!("\t\tname: {name}"))?;
            }
        }
        if let Some(container) = users.containers.get(layer.id()) {
            out.line(format!("\tcontainer: {}", container.id()))?;
            for name in container.names() {
                out.line(format!("\t\tname: {name}"))?;
            }
        }
    }
    DONE
}

fn node(layer: &Layer, users: &LayerUsers) -> LayerNode {
    let mut notes: Vec<String> = layer.names().iter().map(|name| format!("name: {name}")).collect();
    if let Some(path) = layer.mount_point() {
        notes.push(format!("mount: {}", path.display()));
    }
    for image in users.images_of(layer) {
        notes.push(format!("image: {}", image.id()));
        notes.extend(image.names().iter().map(|name| format!("image name: {name}")));
    }
    if let Some(container) = users.containers.get(layer.id()) {
        notes.push(format!("container: {}", container.id()));
        notes.extend(
            container
                .names()
                .iter()
                .map(|name| format!("container name: {name}")),
        );
    }
    LayerNode {
        parent: layer.parent().unwrap_or("(base)").to_owned(),
        id: layer.id().to_owned(),
        notes,
    }
}

pub(crate) async fn storage_layers(call: &Call, out: &mut Output) -> Outcome {
    let mut layers = call.store()?.graph_driver().list_layers().await?;
    layers.sort_unstable();
    if call.json() {
        out.json(&layers)?;
        return DONE;
    }
    for layer in layers {
        out.line(layer)?;
    }
    DONE
}

pub(crate) async fn images(call: &Call, out: &mut Output) -> Outcome {
    let images = call.store()?.images().await?;
    if call.json() {
        out.json_or_null(&images)?;
        return DONE;
    }
    list_images(call, out, &images)
}

pub(crate) async fn images_by_digest(call: &Call, out: &mut Output) -> Outcome {
    let digest: Digest = call.arg(0).parse()?;
    let images = call.store()?.images_by_digest(&digest).await?;
    if call.json() {
        out.json(&images)?;
        return DONE;
    }
    list_images(call, out, &images)
}

fn list_images(call: &Call, out: &mut Output, images: &[Image]) -> Outcome {
    for image in images {
        out.line(image.id())?;
        if call.flags.is_on(&QUIET_IDS) {
            continue;
        }
        for name in image.names() {
            out.line(format!("\tname: {name}"))?;
        }
        for digest in image.digests() {
            out.line(format!("\tdigest: {digest}"))?;
        }
        for key in image.big_data_names() {
            out.line(format!("\tdata: {key}"))?;
        }
    }
    DONE
}

pub(crate) async fn containers(call: &Call, out: &mut Output) -> Outcome {
    let containers = call.store()?.containers().await?;
    if call.json() {
        out.json(&containers)?;
        return DONE;
    }
    for container in containers {
        out.line(container.id())?;
        for name in container.names() {
            out.line(format!("\tname: {name}"))?;
        }
        for key in container.big_data_names() {
            out.line(format!("\tdata: {key}"))?;
        }
    }
    DONE
}
