//! Calls of the store as data: they can be printed, sent to another process, and asked of the model too.

use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use std::path::Path;

use graphroot::{
    ContainerOptions, ErrorKind, Flag, IdMap, IdMappingOptions, ImageOptions, LayerOptions, Store,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::support::store::names_in;
use crate::support::tar::{Header, Tar};

/// What a call returned: a value, or the kind of its error.
pub(crate) type Outcome = Result<Value, String>;

/// One call.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Operation {
    CreateLayer {
        parent: Option<String>,
        new: New,
        writeable: bool,
    },
    PutLayer {
        parent: Option<String>,
        new: New,
        blob: Blob,
    },
    /// With the ID that follows from the content.
    PutImageLayer {
        parent: Option<String>,
        blob: Blob,
    },
    ApplyDiff {
        key: String,
        blob: Blob,
    },
    CreateImage {
        layer: Option<String>,
        new: New,
    },
    CreateContainer {
        image: Option<String>,
        new: New,
        layer_id: String,
    },
    /// As [`Operation::CreateContainer`], for other owners than those of the image's layer.
    CreateMapped {
        image: String,
        new: New,
        map: (u32, u32, u32),
    },
    /// As [`Operation::PutLayer`], for other owners than those of the layer below.
    PutMapped {
        parent: String,
        new: New,
        blob: Blob,
        map: (u32, u32, u32),
    },
    DeleteLayer(String),
    DeleteImage {
        key: String,
        commit: bool,
    },
    DeleteContainer(String),
    Delete(String),
    Names {
        key: String,
        change: NameChange,
        names: Vec<String>,
    },
    SetMetadata {
        key: String,
        metadata: String,
    },
    SetLayerData {
        key: String,
        item: String,
        data: Data,
    },
    SetImageData {
        key: String,
        item: String,
        data: Data,
    },
    SetContainerData {
        key: String,
        item: String,
        data: Data,
    },
    SetContainerFile {
        key: String,
        file: String,
        data: Data,
    },
    Ask {
        what: Question,
        key: String,
        item: String,
    },
    Mount(String),
    Unmount {
        key: String,
        force: bool,
    },
    MountImage(String),
    UnmountImage {
        key: String,
        force: bool,
    },
    GarbageCollect,
    Shutdown {
        force: bool,
    },
    Wipe,
}

/// What layers, images and containers are created with.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct New {
    /// Empty: the library chooses.
    pub(crate) id: String,
    pub(crate) names: Vec<String>,
    pub(crate) metadata: String,
    pub(crate) flags: BTreeMap<String, String>,
    pub(crate) items: Vec<(String, Data)>,
    pub(crate) volatile: bool,
}

/// Bytes that are short to print: one of a kind, and how many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Data {
    pub(crate) fill: u8,
    pub(crate) length: usize,
}

impl Data {
    pub(crate) fn bytes(self) -> Vec<u8> {
        vec![b'a' + self.fill; self.length]
    }
}

/// A layer's tar: one entry for each name, a file with this content or a deletion, then hard links to files that are there.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Blob {
    pub(crate) files: BTreeMap<String, Option<Data>>,
    /// Names and what they lead to.
    #[serde(default)]
    pub(crate) links: BTreeMap<String, String>,
    pub(crate) gzip: bool,
    /// The stream ends in the middle.
    pub(crate) cut: bool,
}

impl Blob {
    pub(crate) fn tar(&self) -> Vec<u8> {
        let mut tar = Tar::new();
        for (name, data) in &self.files {
            tar = match data {
                Some(data) => tar.file(name, data.bytes()),
                None => tar.entry(Header::new(b'0', format!(".wh.{name}"))),
            };
        }
        for (name, target) in &self.links {
            // Not the mode that files have.
            tar = tar.entry(Header::hard_link(name, target).mode(0o600));
        }
        tar.build()
    }

    /// Bytes in its files.
    pub(crate) fn size(&self) -> usize {
        self.files.values().flatten().map(|data| data.length).sum()
    }

    /// Makes its changes to the files of a layer.
    pub(crate) fn change(&self, files: &mut BTreeMap<String, Vec<u8>>) {
        for (name, data) in &self.files {
            match data {
                Some(data) => files.insert(name.clone(), data.bytes()),
                None => files.remove(name),
            };
        }
        for (name, target) in &self.links {
            if let Some(bytes) = files.get(target).cloned() {
                files.insert(name.clone(), bytes);
            }
        }
    }

    /// The stream as it is sent.
    pub(crate) fn stream(&self) -> Vec<u8> {
        let mut bytes = self.tar();
        if self.gzip {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).unwrap();
            bytes = gzip.finish().unwrap();
        }
        if self.cut {
            // In the first header, or in the trailer of the compressed stream.
            bytes.truncate(if self.gzip { bytes.len() - 4 } else { 300 });
        }
        bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NameChange {
    Set,
    Add,
    Remove,
}

/// Calls that change nothing. The item is a big data key, the name of a file, or a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Question {
    Lookup,
    Exists,
    Names,
    Metadata,
    Layer,
    Image,
    Container,
    ContainerByLayer,
    ImagesByTopLayer,
    ImagesByDigest,
    LayersByDiffDigest,
    LayerSize,
    Mounted,
    ListLayerData,
    LayerData,
    ListImageData,
    ImageData,
    ImageDataSize,
    ImageDataDigest,
    ListContainerData,
    ContainerData,
    ContainerDataSize,
    ContainerDataDigest,
    ContainerFile,
}

/// Short for content in results: what it is and how much.
pub(crate) fn content(bytes: &[u8]) -> Value {
    json!([digest(bytes), bytes.len()])
}

pub(crate) fn digest(bytes: impl AsRef<[u8]>) -> String {
    graphroot::Digest::sha256(bytes).to_string()
}

/// An operation says with an empty ID that it gives none.
fn given(id: &str) -> Option<String> {
    Some(id.to_owned()).filter(|id| !id.is_empty())
}

fn layer_options(new: &New) -> LayerOptions {
    let mut options = LayerOptions::default();
    options.id = given(&new.id);
    options.names.clone_from(&new.names);
    options.metadata.clone_from(&new.metadata);
    options.flags = flags(new);
    options.volatile = new.volatile;
    for (key, data) in &new.items {
        options = options.big_data(key, data.bytes());
    }
    options
}

fn flags(new: &New) -> BTreeMap<String, Flag> {
    let pairs = new.flags.iter();
    pairs
        .map(|(name, value)| (name.clone(), value.as_str().into()))
        .collect()
}

fn image_options(new: &New) -> ImageOptions {
    let mut options = ImageOptions::default();
    options.id = given(&new.id);
    options.names.clone_from(&new.names);
    options.metadata.clone_from(&new.metadata);
    options.flags = flags(new);
    for (key, data) in &new.items {
        options = options.big_data(key, data.bytes());
    }
    options
}

fn container_options(new: &New, layer_id: &str) -> ContainerOptions {
    let mut options = ContainerOptions::default();
    options.id = given(&new.id);
    options.names.clone_from(&new.names);
    options.metadata.clone_from(&new.metadata);
    options.flags = flags(new);
    options.volatile = new.volatile;
    options.layer_id = given(layer_id);
    for (key, data) in &new.items {
        options = options.big_data(key, data.bytes());
    }
    options
}

/// Sorted, where the order of a list has no meaning.
fn ids<'a>(ids: impl Iterator<Item = &'a str>) -> Value {
    let mut ids: Vec<&str> = ids.collect();
    ids.sort_unstable();
    json!(ids)
}

impl Operation {
    /// Its kind.
    pub(crate) fn name(&self) -> String {
        let text = match self {
            Self::Ask { what, .. } => format!("Ask{what:?}"),
            Self::Names { change, .. } => format!("{change:?}Names"),
            other => format!("{other:?}"),
        };
        let end = text.find(|c: char| !c.is_ascii_alphanumeric());
        text[..end.unwrap_or(text.len())].to_owned()
    }

    /// Whether it changes one item after the other.
    pub(crate) fn is_stepwise(&self) -> bool {
        matches!(self, Self::Shutdown { .. } | Self::Wipe)
    }

    /// Makes the call. A failure that no model expects is told with its whole text.
    pub(crate) async fn run(&self, store: &Store) -> Outcome {
        self.call(store).await.map_err(|error| match error.kind() {
            ErrorKind::Io | ErrorKind::CorruptMetadata => format!("{:?} ({})", error.kind(), error.chain()),
            kind => format!("{kind:?}"),
        })
    }

    async fn call(&self, store: &Store) -> graphroot::Result<Value> {
        let done = json!(null);
        Ok(match self {
            Self::CreateLayer {
                parent,
                new,
                writeable,
            } => {
                let options = layer_options(new).writeable(*writeable);
                json!(store.create_layer(parent.as_deref(), options).await?.id())
            }
            Self::PutLayer { parent, new, blob } => {
                let stream = Cursor::new(blob.stream());
                let put = store.put_layer(parent.as_deref(), layer_options(new), stream);
                let put = put.await?;
                json!([put.layer.id(), put.size])
            }
            Self::PutImageLayer { parent, blob } => {
                let stream = Cursor::new(blob.stream());
                let put = store.put_image_layer(parent.as_deref(), stream);
                json!(put.await?.id())
            }
            Self::ApplyDiff { key, blob } => {
                json!(store.apply_diff(key, Cursor::new(blob.stream())).await?)
            }
            Self::CreateImage { layer, new } => {
                json!(
                    store
                        .create_image(layer.as_deref(), image_options(new))
                        .await?
                        .id()
                )
            }
            Self::CreateContainer { image, new, layer_id } => {
                let options = container_options(new, layer_id);
                let made = store.create_container(image.as_deref(), options).await?;
                json!([made.id(), made.layer_id()])
            }
            Self::CreateMapped { image, new, map } => {
                let map = vec![IdMap::new(map.0, map.1, map.2)];
                let mut options = container_options(new, "");
                options.id_mappings.uid_map.clone_from(&map);
                options.id_mappings.gid_map = map;
                json!(store.create_container(Some(image), options).await?.id())
            }
            Self::PutMapped {
                parent,
                new,
                blob,
                map,
            } => {
                let map = vec![IdMap::new(map.0, map.1, map.2)];
                let options = layer_options(new).id_mappings(IdMappingOptions::mapped(map.clone(), map));
                let stream = Cursor::new(blob.stream());
                json!(store.put_layer(Some(parent), options, stream).await?.layer.id())
            }
            Self::DeleteLayer(key) => json!(store.delete_layer(key).await?),
            Self::DeleteImage { key, commit } => json!(if *commit {
                store.delete_image(key).await?
            } else {
                store.layers_deleted_with_image(key).await?
            }),
            Self::DeleteContainer(key) => json!(store.delete_container(key).await?),
            Self::Delete(key) => json!(store.delete(key).await?),
            Self::Names { key, change, names } => {
                match change {
                    NameChange::Set => store.set_names(key, names).await?,
                    NameChange::Add => store.add_names(key, names).await?,
                    NameChange::Remove => store.remove_names(key, names).await?,
                }
                done
            }
            Self::SetMetadata { key, metadata } => json!(store.set_metadata(key, metadata).await?),
            Self::SetLayerData { key, item, data } => {
                store
                    .set_layer_big_data(key, item, Cursor::new(data.bytes()))
                    .await?;
                done
            }
            Self::SetImageData { key, item, data } => {
                store.set_image_big_data(key, item, data.bytes(), None).await?;
                done
            }
            Self::SetContainerData { key, item, data } => {
                store.set_container_big_data(key, item, data.bytes()).await?;
                done
            }
            Self::SetContainerFile { key, file, data } => {
                let set = store.set_container_directory_file(key, file, data.bytes());
                json!(set.await?)
            }
            Self::Ask { what, key, item } => ask(store, *what, key, item).await?,
            Self::Mount(key) => listing(&store.mount(key, Default::default()).await?),
            Self::Unmount { key, force } => {
                if *force {
                    store.unmount_all(key).await?;
                    json!(false)
                } else {
                    json!(store.unmount(key).await? > 0)
                }
            }
            Self::MountImage(key) => listing(&store.mount_image(key, Default::default()).await?),
            Self::UnmountImage { key, force } => {
                if *force {
                    store.unmount_image_all(key).await?;
                    json!(false)
                } else {
                    json!(store.unmount_image(key).await? > 0)
                }
            }
            Self::GarbageCollect => json!(store.garbage_collect().await?),
            Self::Wipe => json!(store.wipe().await?),
            Self::Shutdown { force } => {
                if *force {
                    ids(store.shutdown_force().await?.iter().map(String::as_str))
                } else {
                    store.shutdown().await?;
                    json!([])
                }
            }
        })
    }
}

/// What a mounted layer shows.
fn listing(dir: &Path) -> Value {
    let names = names_in(dir).into_iter();
    names
        .map(|name| {
            let bytes = std::fs::read(dir.join(&name)).unwrap();
            json!([name, content(&bytes)])
        })
        .collect()
}

async fn ask(store: &Store, what: Question, key: &str, item: &str) -> graphroot::Result<Value> {
    let given = || item.parse::<graphroot::Digest>().unwrap();
    Ok(match what {
        Question::Lookup => json!(store.lookup(key).await?),
        Question::Exists => json!(store.exists(key).await?),
        Question::Names => json!(store.names(key).await?),
        Question::Metadata => json!(store.metadata(key).await?),
        Question::Layer => json!(store.layer(key).await?.id()),
        Question::Image => json!(store.image(key).await?.id()),
        Question::Container => json!(store.container(key).await?.id()),
        Question::ContainerByLayer => json!(store.container_by_layer(key).await?.id()),
        Question::ImagesByTopLayer => ids(store
            .images_by_top_layer(key)
            .await?
            .iter()
            .map(graphroot::Image::id)),
        Question::ImagesByDigest => ids(store
            .images_by_digest(&given())
            .await?
            .iter()
            .map(graphroot::Image::id)),
        Question::LayersByDiffDigest => ids(store
            .layers_by_uncompressed_digest(&given())
            .await?
            .iter()
            .map(graphroot::Layer::id)),
        Question::LayerSize => json!(store.layer_size(key).await?),
        Question::Mounted => json!(store.mounted(key).await?),
        Question::ListLayerData => json!(store.list_layer_big_data(key).await?),
        Question::LayerData => {
            let mut bytes = Vec::new();
            let mut reader = store.layer_big_data(key, item).await?;
            reader.read_to_end(&mut bytes).await.unwrap();
            content(&bytes)
        }
        Question::ListImageData => json!(store.list_image_big_data(key).await?),
        Question::ImageData => content(&store.image_big_data(key, item).await?),
        Question::ImageDataSize => json!(store.image_big_data_size(key, item).await?),
        Question::ImageDataDigest => {
            json!(store.image_big_data_digest(key, item).await?.to_string())
        }
        Question::ListContainerData => json!(store.list_container_big_data(key).await?),
        Question::ContainerData => content(&store.container_big_data(key, item).await?),
        Question::ContainerDataSize => json!(store.container_big_data_size(key, item).await?),
        Question::ContainerDataDigest => {
            json!(store.container_big_data_digest(key, item).await?.to_string())
        }
        Question::ContainerFile => content(&store.from_container_directory(key, item).await?),
    })
}
