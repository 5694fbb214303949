//! Layers, images and containers as the store returns them: immutable views of records, cheap to clone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::compression::Compression;
use crate::digest::Digest;
use crate::idmap::IdMap;
use crate::options::Flag;
use crate::record::big_data::{Items as _, Recorded};
use crate::record::container::{ContainerRow, MOUNT_LABEL, PROCESS_LABEL};
use crate::record::image::ImageRow;
use crate::record::intent;
use crate::record::layer::LayerRow;
use crate::record::raw_digest::RawDigest;

/// Serialises a view as its record, in the JSON of the Go library and its record files.
macro_rules! serialize_record {
    ($($view:ty),*) => {$(
        impl serde::Serialize for $view {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                self.row.serialize(serializer)
            }
        }
    )*};
}

serialize_record!(Layer, Image, Container);

/// A layer at the time of the query. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Layer {
    row: Arc<LayerRow>,
    mount: Option<Arc<MountState>>,
    read_only: bool,
}

/// The mount point of a layer and its mount count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountState {
    pub(crate) path: PathBuf,
    pub(crate) count: u64,
}

fn digest(text: &RawDigest) -> Option<Digest> {
    text.valid().cloned()
}

fn flags(raw: &BTreeMap<String, serde_json::Value>) -> BTreeMap<String, Flag> {
    use serde_json::Value;
    let convert = |value: &Value| match value {
        Value::Bool(truth) => Flag::Bool(*truth),
        Value::Array(items) if items.iter().all(Value::is_string) => Flag::List(
            items
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect(),
        ),
        Value::String(text) => Flag::Text(text.clone()),
        other => Flag::Text(other.to_string()),
    };
    raw.iter()
        .filter(|(name, _)| *name != intent::FLAG)
        .map(|(name, value)| (name.clone(), convert(value)))
        .collect()
}

/// The first digits of an ID, as many as programs print.
fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

impl Layer {
    /// Its record.
    pub(crate) fn row(&self) -> &LayerRow {
        &self.row
    }

    pub(crate) fn new(row: &Arc<LayerRow>, mount: Option<Arc<MountState>>, read_only: bool) -> Self {
        Self {
            row: Arc::clone(row),
            mount,
            read_only,
        }
    }

    /// Its ID, usually 64 hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// The first 12 characters of its ID, as Podman prints it. Lookups find the layer by them, unless another ID begins
    /// likewise.
    pub fn short_id(&self) -> &str {
        short(self.id())
    }

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// The ID of the parent layer; `None` for a base layer.
    pub fn parent(&self) -> Option<&str> {
        self.row.parent_id()
    }

    /// The metadata text of the caller.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// The SELinux label of its mounts, if it has one.
    pub fn mount_label(&self) -> Option<&str> {
        Some(self.row.mount_label.as_str()).filter(|label| !label.is_empty())
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// The digest of the blob that it was unpacked from, compressed or not.
    pub fn compressed_digest(&self) -> Option<Digest> {
        digest(&self.row.compressed_digest)
    }

    /// The size of that blob in bytes; `None` if it is not known.
    pub fn compressed_size(&self) -> Option<u64> {
        self.compressed_digest()?;
        u64::try_from(self.row.compressed_size).ok()
    }

    /// The digest of the uncompressed tar stream: the diff ID.
    pub fn uncompressed_digest(&self) -> Option<Digest> {
        digest(&self.row.diff_digest)
    }

    /// The size of the uncompressed tar stream in bytes; `None` if it is not known.
    pub fn uncompressed_size(&self) -> Option<u64> {
        self.uncompressed_digest()?;
        u64::try_from(self.row.diff_size).ok()
    }

    /// The digest of the table of contents that it was made from; set for partially pulled layers only.
    pub fn toc_digest(&self) -> Option<Digest> {
        digest(&self.row.toc_digest)
    }

    /// The compression of the blob that it was unpacked from.
    pub fn compression(&self) -> Compression {
        Compression::from_i64(self.row.compression).unwrap_or_default()
    }

    /// The user IDs of the owners in the diff, as container IDs, sorted.
    pub fn uids(&self) -> &[u32] {
        &self.row.uids
    }

    /// The group IDs of the owners in the diff, as container IDs, sorted.
    pub fn gids(&self) -> &[u32] {
        &self.row.gids
    }

    /// The user ID mapping with which its files are stored; empty for none.
    pub fn uid_map(&self) -> &[IdMap] {
        &self.row.uid_map
    }

    /// The group ID mapping with which its files are stored; empty for none.
    pub fn gid_map(&self) -> &[IdMap] {
        &self.row.gid_map
    }

    /// The flags of its record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// The keys of its big data items, in the order in which they were first set.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// Its mount count, over all processes.
    pub fn mount_count(&self) -> u64 {
        self.mount.as_ref().map_or(0, |mount| mount.count)
    }

    /// Its mount point; `None` if it is not mounted.
    pub fn mount_point(&self) -> Option<&Path> {
        self.mount.as_ref().map(|mount| mount.path.as_path())
    }

    /// Whether it belongs to an additional store, which is read-only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}

/// An image at the time of the query. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Image {
    row: Arc<ImageRow>,
    read_only: bool,
}

impl Image {
    /// Its record.
    pub(crate) fn row(&self) -> &ImageRow {
        &self.row
    }

    pub(crate) fn new(row: &Arc<ImageRow>, read_only: bool) -> Self {
        Self {
            row: Arc::clone(row),
            read_only,
        }
    }

    /// Its ID: by convention the hexadecimal part of the digest of its config.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// The first 12 characters of its ID, as `podman images` prints it.
    pub fn short_id(&self) -> &str {
        short(self.id())
    }

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// Its former names, newest first.
    pub fn names_history(&self) -> &[String] {
        &self.row.names_history
    }

    /// The ID of its top layer; `None` for an image without layers.
    pub fn top_layer(&self) -> Option<&str> {
        Some(self.row.layer.as_str()).filter(|layer| !layer.is_empty())
    }

    /// The IDs of the ID-mapped copies of its top layer.
    pub fn mapped_top_layers(&self) -> &[String] {
        &self.row.mapped_layers
    }

    /// The digest given at its creation, or that of its first manifest.
    pub fn digest(&self) -> Option<Digest> {
        digest(&self.row.digest)
    }

    /// Every digest under which it is found: [`Image::digest`] and those of all its manifests.
    pub fn digests(&self) -> Vec<Digest> {
        self.row.digests()
    }

    /// The metadata text of the caller.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// The keys of its big data items.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// The recorded size of a big data item in bytes.
    pub fn big_data_size(&self, key: &str) -> Option<u64> {
        self.row
            .big_data_sizes
            .get(key)
            .and_then(|size| u64::try_from(*size).ok())
    }

    /// The recorded digest of a big data item.
    pub fn big_data_digest(&self, key: &str) -> Option<Digest> {
        self.row.big_data_digests.get(key).and_then(digest)
    }

    /// The flags of its record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// Whether it belongs to an additional store, which is read-only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}

/// A container at the time of the query. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Container {
    row: Arc<ContainerRow>,
}

impl Container {
    /// Its record.
    pub(crate) fn row(&self) -> &ContainerRow {
        &self.row
    }

    pub(crate) fn new(row: &Arc<ContainerRow>) -> Self {
        Self { row: Arc::clone(row) }
    }

    /// Its ID.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// The first 12 characters of its ID, as `podman ps` prints it.
    pub fn short_id(&self) -> &str {
        short(self.id())
    }

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// The ID of its image; `None` for a container without an image.
    pub fn image_id(&self) -> Option<&str> {
        Some(self.row.image.as_str()).filter(|image| !image.is_empty())
    }

    /// The ID of its read-write layer.
    pub fn layer_id(&self) -> &str {
        &self.row.layer
    }

    /// The metadata text of the caller.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// The keys of its big data items.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// The recorded size of a big data item in bytes.
    pub fn big_data_size(&self, key: &str) -> Option<u64> {
        self.row
            .big_data_sizes
            .get(key)
            .and_then(|size| u64::try_from(*size).ok())
    }

    /// The recorded digest of a big data item.
    pub fn big_data_digest(&self, key: &str) -> Option<Digest> {
        self.row.big_data_digests.get(key).and_then(digest)
    }

    /// What the record says about a big data item.
    pub(crate) fn recorded_big_data(&self, key: &str) -> Option<Recorded> {
        self.row.recorded(key)
    }

    /// The user ID mapping that it was created with.
    pub fn uid_map(&self) -> &[IdMap] {
        &self.row.uid_map
    }

    /// The group ID mapping that it was created with.
    pub fn gid_map(&self) -> &[IdMap] {
        &self.row.gid_map
    }

    /// The flags of its record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// The SELinux label of its processes, from the flag `ProcessLabel`.
    pub fn process_label(&self) -> Option<&str> {
        self.row.label(PROCESS_LABEL)
    }

    /// The SELinux label of its files, from the flag `MountLabel`.
    pub fn mount_label(&self) -> Option<&str> {
        self.row.label(MOUNT_LABEL)
    }

    /// The mount options of its layer, from the flag `MountOpts`.
    pub fn mount_opts(&self) -> Vec<String> {
        match self.flags().remove("MountOpts") {
            Some(Flag::List(options)) => options,
            _ => Vec::new(),
        }
    }

    /// Whether its record and content may be lost in a crash, from the flag `Volatile`.
    pub fn volatile(&self) -> bool {
        self.row
            .flags
            .get("Volatile")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false)
    }
}
