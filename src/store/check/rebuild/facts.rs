//! What is on disk of layers, images and containers, apart from their records. Blocking.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use crate::digest::{Digest, Hasher};
use crate::driver::FoundLayer;
use crate::error::{Error, IoContext as _, Result};
use crate::record::big_data::{self, Items};
use crate::store::check::data::reason;
use crate::store::check::rebuild::reading::Stream;
use crate::store::image_config::ImageConfig;
use crate::store::image_manifest::{Descriptor, ImageManifest};
use crate::store::layer_identity::LayerIdentity;
use crate::sys::presence::is_dir;
use crate::sys::{at, list_dir_if_there, temporary_names};
use crate::time::Time;

/// Bytes of a manifest, a config or another document that is read.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Bytes that are read at a time.
const READ_SIZE: usize = 256 * 1024;

/// What is known of a layer without a record.
#[derive(Debug)]
pub(super) struct LayerFacts {
    pub(super) found: FoundLayer,
    pub(super) created: Time,
    /// What its stream tells; `Err` says why that cannot be read. `None` without a tar-split file.
    pub(super) stream: Option<Result<Stream, String>>,
    /// Keys of its big data.
    pub(super) items: Vec<String>,
}

/// A big data item.
#[derive(Debug)]
pub(super) struct ItemFacts {
    pub(super) key: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
    changed: SystemTime,
}

/// What is known of an image or container without a record.
#[derive(Debug)]
pub(super) struct DataFacts {
    pub(super) id: String,
    /// The oldest first.
    pub(super) items: Vec<ItemFacts>,
    pub(super) created: Time,
}

/// The documents of an image.
#[derive(Debug)]
pub(super) struct ImageDocuments {
    pub(super) image: String,
    pub(super) manifest: ImageManifest,
    pub(super) config: ImageConfig,
}

/// What the documents of images tell of layers.
#[derive(Debug, Default)]
pub(super) struct ImageLayers {
    /// The parent and the diff ID of layers with the IDs that image programs give them.
    pub(super) by_id: HashMap<String, (Option<String>, Digest)>,
    /// Blobs by the digests of what they are when they are uncompressed.
    pub(super) blobs: HashMap<Digest, Descriptor>,
}

/// What programs have written down of a container.
#[derive(Debug, Default)]
pub(super) struct ContainerNotes {
    /// The container's layer, and where that stands.
    pub(super) layer: Option<(String, &'static str)>,
    pub(super) image: Option<(String, &'static str)>,
    pub(super) name: Option<(String, &'static str)>,
    /// The SELinux label of its mounts.
    pub(super) mount_label: Option<String>,
    /// Whether Podman has made it.
    pub(super) of_podman: bool,
}

impl DataFacts {
    /// What the oldest is the first by.
    pub(super) fn age(&self) -> impl Ord {
        (self.created.since_epoch(), &self.id)
    }

    /// Records the big data items of an image or container.
    pub(super) fn record_items<R: Items>(&self, row: &mut R) {
        for item in &self.items {
            let size = usize::try_from(item.size).unwrap_or(usize::MAX);
            row.record(&item.key, size, item.digest.clone());
        }
    }
}

/// When something was last changed; Go's zero time if that cannot be told.
pub(super) fn changed(path: &Path) -> Time {
    let metadata = std::fs::symlink_metadata(path);
    metadata
        .and_then(|metadata| metadata.modified())
        .map_or_else(|_| Time::default(), Time::from)
}

/// The key of the item in a file with this name.
fn key_of(name: &str) -> Option<String> {
    let decoded = name
        .strip_prefix('=')
        .and_then(|encoded| STANDARD.decode(encoded).ok())
        .and_then(|key| String::from_utf8(key).ok());
    let is_of = |key: &&str| big_data::file_name(key).is_ok_and(|file| file == name);
    let key = decoded.as_deref().filter(is_of).or(Some(name).filter(is_of));
    key.map(str::to_owned)
}

/// The files of big data items in a directory, with their keys. What killed writers leave is no item.
fn item_files(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in list_dir_if_there(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_file = entry.file_type().at("listing", dir)?.is_file();
        if !is_file || temporary_names::is_temporary(&name) || big_data::is_waiting(&name) {
            continue;
        }
        if let Some(key) = name.to_str().and_then(key_of) {
            found.push((key, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// The keys of the items in a directory.
pub(super) fn keys_in(dir: &Path) -> Result<Vec<String>> {
    Ok(item_files(dir)?.into_iter().map(|(key, _)| key).collect())
}

/// Reads what is in the directory of an image or container. An item that cannot be read is passed over.
pub(super) fn data_facts(dir: &Path, id: &str) -> Result<DataFacts> {
    let mut items = Vec::new();
    for (key, path) in item_files(dir)? {
        match read_item(key, &path) {
            Ok(item) => items.push(item),
            Err(error) => {
                let reason = reason(Error::io_at("reading", &path, error))?;
                tracing::warn!(reason, "cannot read an item of big data");
            }
        }
    }
    items.sort_by(|one, other| (one.changed, &one.key).cmp(&(other.changed, &other.key)));
    Ok(DataFacts {
        id: id.to_owned(),
        items,
        created: changed(dir),
    })
}

fn read_item(key: String, path: &Path) -> std::io::Result<ItemFacts> {
    let mut file = at::open_regular(path)?;
    let changed = file.metadata()?.modified()?;
    let (mut hasher, mut size, mut buffer) = (Hasher::sha256(), 0u64, vec![0; READ_SIZE]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hasher.update(buffer.get(..count).unwrap_or_default());
        size += count as u64;
    }
    Ok(ItemFacts {
        key,
        size,
        digest: hasher.finish(),
        changed,
    })
}

/// A small file, if it can be read.
fn document(path: &Path) -> Result<Option<Bytes>> {
    match at::read_regular(path, MAX_DOCUMENT).at("reading", path) {
        Ok(content) => Ok(Some(content.into())),
        Err(error) => reason(error).map(|_unreadable| None),
    }
}

/// The manifest and the config of an image, whose data is in `dir`, if it has them.
pub(super) fn documents(dir: &Path, id: &str) -> Result<Option<ImageDocuments>> {
    let files: HashMap<String, PathBuf> = match item_files(dir) {
        Ok(files) => files.into_iter().collect(),
        Err(error) => return reason(error).map(|_unreadable| None),
    };
    let read = |key: &str| match files.get(key) {
        Some(path) => document(path),
        None => Ok(None),
    };
    let mut manifests: Vec<&String> = files.keys().filter(|key| key.starts_with("manifest")).collect();
    manifests.sort();
    for key in manifests {
        let Some(Ok(manifest)) = read(key)?.map(ImageManifest::parse) else {
            continue;
        };
        let digest = manifest.config.digest.clone();
        let Some(content) = read(digest.as_str())? else {
            continue;
        };
        let mut hasher = Hasher::like(&digest);
        hasher.update(&content);
        if hasher.finish() == digest
            && let Ok(config) = ImageConfig::parse(content, digest)
        {
            let image = id.to_owned();
            return Ok(Some(ImageDocuments {
                image,
                manifest,
                config,
            }));
        }
    }
    Ok(None)
}

/// What the documents of all these images tell of layers.
pub(super) fn layers_of(documents: &[ImageDocuments]) -> ImageLayers {
    let mut layers = ImageLayers::default();
    for image in documents {
        let mut parent: Option<String> = None;
        for (index, diff_id) in image.config.diff_ids.iter().enumerate() {
            let id = LayerIdentity::DiffId(diff_id.clone()).layer_id(parent.as_deref());
            layers
                .by_id
                .insert(id.clone(), (parent.replace(id), diff_id.clone()));
            if let Some(blob) = image.manifest.layers.get(index)
                && image.manifest.layers.len() == image.config.diff_ids.len()
            {
                layers.blobs.insert(diff_id.clone(), blob.clone());
            }
        }
    }
    layers
}

/// What Podman and Buildah have written into the directory of a container.
pub(super) fn container_notes(dir: &Path) -> Result<ContainerNotes> {
    #[derive(Deserialize)]
    struct Root {
        path: String,
    }
    #[derive(Default, Deserialize)]
    struct Linux {
        #[serde(rename = "mountLabel")]
        mount_label: Option<String>,
    }
    #[derive(Deserialize)]
    struct Spec {
        root: Option<Root>,
        linux: Option<Linux>,
    }
    #[derive(Deserialize)]
    struct Builder {
        #[serde(rename = "image-id")]
        image: Option<String>,
        #[serde(rename = "container-name")]
        name: Option<String>,
        #[serde(rename = "mountpoint")]
        mount_point: Option<String>,
    }
    const SPEC: &str = "userdata/config.json";
    const BUILDER: &str = "userdata/buildah.json";
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    // `<home>/<layer ID>/merged`, or with vfs `<home>/dir/<layer ID>`.
    let layer_in = |path: &str| {
        let path = Path::new(path);
        let dir = match path.file_name()?.to_str()? {
            "merged" => path.parent()?,
            _ => path,
        };
        Some(dir.file_name()?.to_str()?.to_owned())
    };
    let mut notes = ContainerNotes::default();
    if let Some(builder) = document(&dir.join(BUILDER))?
        && let Ok(builder) = serde_json::from_slice::<Builder>(&builder)
    {
        let layer = some(builder.mount_point).and_then(|path| layer_in(&path));
        notes.layer = layer.map(|layer| (layer, BUILDER));
        notes.image = some(builder.image).map(|image| (image, BUILDER));
        notes.name = some(builder.name).map(|name| (name, BUILDER));
    }
    if let Some(spec) = document(&dir.join(SPEC))?
        && let Ok(spec) = serde_json::from_slice::<Spec>(&spec)
    {
        let layer = spec.root.and_then(|root| layer_in(&root.path));
        notes.layer = layer.map(|layer| (layer, SPEC)).or(notes.layer);
        notes.mount_label = some(spec.linux.unwrap_or_default().mount_label);
        notes.of_podman = true;
    }
    // What it makes before the container is started for the first time.
    for name in ["shm", "artifacts"] {
        notes.of_podman |= is_dir(&dir.join("userdata").join(name))?;
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_names_of_their_files() {
        for key in [
            "config",
            "manifest",
            "sha256:0123",
            "Capital",
            "a/b=",
            "=x",
            "zstd-chunked-manifest",
        ] {
            if let Ok(name) = big_data::file_name(key) {
                assert_eq!(key_of(&name).as_deref(), Some(key), "{name}");
            }
        }
        for name in ["Two words", "=no base 64", "=YQ=="] {
            assert_eq!(key_of(name), None, "{name}");
        }
    }

    #[test]
    fn containers_are_known_by_what_programs_have_written() {
        let tmp = tempfile::tempdir().unwrap();
        let data = tmp.path().join("userdata");
        std::fs::create_dir(&data).unwrap();
        assert!(container_notes(tmp.path()).unwrap().layer.is_none());
        std::fs::write(
            data.join("buildah.json"),
            r#"{"image-id":"i","container-name":"n","mountpoint":"/s/vfs/dir/v"}"#,
        )
        .unwrap();
        let notes = container_notes(tmp.path()).unwrap();
        assert_eq!(notes.layer.unwrap().0, "v");
        assert_eq!(
            (notes.image.unwrap().0, notes.name.unwrap().0),
            ("i".into(), "n".into())
        );
        assert!(!notes.of_podman);
        std::fs::write(
            data.join("config.json"),
            r#"{"root":{"path":"/s/overlay/l/merged"}}"#,
        )
        .unwrap();
        let notes = container_notes(tmp.path()).unwrap();
        assert!(notes.of_podman && notes.layer.unwrap().0 == "l");
        std::fs::write(data.join("config.json"), "{").unwrap();
        assert!(!container_notes(tmp.path()).unwrap().of_podman);
    }
}
