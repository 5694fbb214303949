//! Everything that a real store shows, in the form of [`crate::model::Model::view`].

use std::collections::BTreeMap;

use graphroot::{Flag, MultiListOptions, Store};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::operation::content;

/// What the store shows at one moment.
pub(crate) async fn observe(store: &Store) -> graphroot::Result<Value> {
    let all = store.multi_list(MultiListOptions::ALL).await?;
    let (mut layers, mut images, mut containers) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for layer in &all.layers {
        let mut items = Vec::new();
        for key in layer.big_data_names() {
            let mut bytes = Vec::new();
            let mut reader = store.layer_big_data(layer.id(), key).await?;
            reader.read_to_end(&mut bytes).await.unwrap();
            items.push(json!([key, content(&bytes)]));
        }
        let diff = layer.uncompressed_digest().map(|digest| {
            json!({
                "diff": [digest.to_string(), layer.uncompressed_size()],
                "stream": [layer.compressed_digest().map(|digest| digest.to_string()), layer.compressed_size()],
                "compression": format!("{:?}", layer.compression()),
                "uids": layer.uids(),
                "gids": layer.gids(),
            })
        });
        let view = json!({
            "names": layer.names(),
            "metadata": layer.metadata(),
            "flags": flags(layer.flags()),
            "items": items,
            "parent": layer.parent(),
            "mounts": layer.mount_count(),
            "diff": diff,
        });
        let twice = layers.insert(layer.id().to_owned(), view);
        assert!(twice.is_none(), "two layers {}", layer.id());
    }
    for image in &all.images {
        let mut items = Vec::new();
        for key in image.big_data_names() {
            let bytes = store.image_big_data(image.id(), key).await?;
            items.push(item(
                key,
                &bytes,
                image.big_data_size(key),
                image.big_data_digest(key),
            ));
        }
        let digests: Vec<String> = image.digests().iter().map(ToString::to_string).collect();
        let view = json!({
            "names": image.names(),
            "metadata": image.metadata(),
            "flags": flags(image.flags()),
            "items": items,
            "history": image.names_history(),
            "layer": image.top_layer(),
            "digest": image.digest().map(|digest| digest.to_string()),
            "digests": digests,
        });
        let twice = images.insert(image.id().to_owned(), view);
        assert!(twice.is_none(), "two images {}", image.id());
    }
    for container in &all.containers {
        let mut items = Vec::new();
        for key in container.big_data_names() {
            let bytes = store.container_big_data(container.id(), key).await?;
            items.push(item(
                key,
                &bytes,
                container.big_data_size(key),
                container.big_data_digest(key),
            ));
        }
        let view = json!({
            "names": container.names(),
            "metadata": container.metadata(),
            "flags": flags(container.flags()),
            "items": items,
            "image": container.image_id(),
            "layer": container.layer_id(),
        });
        let twice = containers.insert(container.id().to_owned(), view);
        assert!(twice.is_none(), "two containers {}", container.id());
    }
    Ok(json!({"layers": layers, "images": images, "containers": containers}))
}

/// An item whose recorded size and digest are those of its content; else all of it is told.
fn item(key: &str, bytes: &[u8], size: Option<u64>, digest: Option<graphroot::Digest>) -> Value {
    let recorded = json!([digest.map(|digest| digest.to_string()), size]);
    let content = content(bytes);
    if content == recorded {
        json!([key, content])
    } else {
        json!([key, content, {"recorded": recorded}])
    }
}

fn flags(flags: BTreeMap<String, Flag>) -> Value {
    let value = |flag| match flag {
        Flag::Bool(truth) => json!(truth),
        Flag::Text(text) => json!(text),
        Flag::List(list) => json!(list),
        other => json!(format!("{other:?}")),
    };
    flags
        .into_iter()
        .map(|(name, flag)| (name, value(flag)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
