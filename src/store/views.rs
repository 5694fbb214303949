//! What the store tells about a layer, image or container: cheap, immutable views of records.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::compression::Compression;
use crate::digest::Digest;
use crate::idmap::IdMap;
use crate::options::Flag;
use crate::record::big_data::{Items as _, Recorded};
use crate::record::container::ContainerRow;
use crate::record::image::ImageRow;
use crate::record::layer::LayerRow;
use crate::record::raw_digest::RawDigest;

/// Serialised as the record that the Go library's JSON shows and its files hold.
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

/// A layer as it was when it was asked for. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Layer {
    row: Arc<LayerRow>,
    mount: Option<Arc<MountState>>,
    read_only: bool,
}

/// Where a layer is mounted and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MountState {
    pub(crate) path: PathBuf,
    pub(crate) count: i64,
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
        .map(|(name, value)| (name.clone(), convert(value)))
        .collect()
}

impl Layer {
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

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// ID of the layer below, if there is one.
    pub fn parent(&self) -> Option<&str> {
        Some(self.row.parent.as_str()).filter(|parent| !parent.is_empty())
    }

    /// The caller's metadata.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// The SELinux label it is mounted with, or empty.
    pub fn mount_label(&self) -> &str {
        &self.row.mount_label
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// Digest of the blob that it was made from, as it came in.
    pub fn compressed_digest(&self) -> Option<Digest> {
        digest(&self.row.compressed_digest)
    }

    /// Size in bytes of that blob; `None` if it is not known.
    pub fn compressed_size(&self) -> Option<u64> {
        self.compressed_digest()?;
        u64::try_from(self.row.compressed_size).ok()
    }

    /// Digest of the uncompressed tar stream: the diff ID.
    pub fn diff_digest(&self) -> Option<Digest> {
        digest(&self.row.diff_digest)
    }

    /// Size in bytes of the uncompressed tar stream; `None` if it is not known.
    pub fn diff_size(&self) -> Option<u64> {
        self.diff_digest()?;
        u64::try_from(self.row.diff_size).ok()
    }

    /// Digest of the table of contents that it was made from, for partially pulled layers.
    pub fn toc_digest(&self) -> Option<Digest> {
        digest(&self.row.toc_digest)
    }

    /// Compression of the blob that it was made from.
    pub fn compression(&self) -> Compression {
        Compression::from_i64(self.row.compression).unwrap_or_default()
    }

    /// User IDs that own something in the diff, sorted, inside the container.
    pub fn uids(&self) -> &[u32] {
        &self.row.uids
    }

    /// Group IDs that own something in the diff, sorted, inside the container.
    pub fn gids(&self) -> &[u32] {
        &self.row.gids
    }

    /// User ID ranges baked into its files; empty for none.
    pub fn uid_map(&self) -> &[IdMap] {
        &self.row.uid_map
    }

    /// Group ID ranges baked into its files; empty for none.
    pub fn gid_map(&self) -> &[IdMap] {
        &self.row.gid_map
    }

    /// Flags of the record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// Keys of its big data items, in the order in which they were first set.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// How often it is mounted, over all processes.
    pub fn mount_count(&self) -> i64 {
        self.mount.as_ref().map_or(0, |mount| mount.count)
    }

    /// Where it is mounted, if it is.
    pub fn mount_point(&self) -> Option<&Path> {
        self.mount.as_ref().map(|mount| mount.path.as_path())
    }

    /// Whether it lies in a store that this one only reads.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}

/// An image as it was when it was asked for. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Image {
    row: Arc<ImageRow>,
    read_only: bool,
}

impl Image {
    pub(crate) fn new(row: &Arc<ImageRow>, read_only: bool) -> Self {
        Self {
            row: Arc::clone(row),
            read_only,
        }
    }

    /// Its ID; clients use the hexadecimal part of the config's digest.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// Names that it had, newest first.
    pub fn names_history(&self) -> &[String] {
        &self.row.names_history
    }

    /// ID of its top layer, if it has one.
    pub fn top_layer(&self) -> Option<&str> {
        Some(self.row.layer.as_str()).filter(|layer| !layer.is_empty())
    }

    /// IDs of copies of the top layer with other owners.
    pub fn mapped_top_layers(&self) -> &[String] {
        &self.row.mapped_layers
    }

    /// The digest given by hand, or that of its first manifest.
    pub fn digest(&self) -> Option<Digest> {
        digest(&self.row.digest)
    }

    /// Every digest by which it can be found: [`Image::digest`] and those of all its manifests.
    pub fn digests(&self) -> Vec<Digest> {
        self.row.digests()
    }

    /// The caller's metadata.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// When it was made.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// Keys of its big data items.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// Recorded size in bytes of a big data item.
    pub fn big_data_size(&self, key: &str) -> Option<u64> {
        self.row
            .big_data_sizes
            .get(key)
            .and_then(|size| u64::try_from(*size).ok())
    }

    /// Recorded digest of a big data item.
    pub fn big_data_digest(&self, key: &str) -> Option<Digest> {
        self.row.big_data_digests.get(key).and_then(digest)
    }

    /// Flags of the record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// Whether it lies in a store that this one only reads.
    pub fn read_only(&self) -> bool {
        self.read_only
    }
}

/// A container as it was when it was asked for. Cheap to clone. Serialised as its record.
#[derive(Clone, Debug)]
pub struct Container {
    row: Arc<ContainerRow>,
}

impl Container {
    pub(crate) fn new(row: &Arc<ContainerRow>) -> Self {
        Self { row: Arc::clone(row) }
    }

    /// Its ID.
    pub fn id(&self) -> &str {
        &self.row.id
    }

    /// Its names.
    pub fn names(&self) -> &[String] {
        &self.row.names
    }

    /// ID of the image that it was made from, if there is one.
    pub fn image_id(&self) -> Option<&str> {
        Some(self.row.image.as_str()).filter(|image| !image.is_empty())
    }

    /// ID of its own layer.
    pub fn layer_id(&self) -> &str {
        &self.row.layer
    }

    /// The caller's metadata.
    pub fn metadata(&self) -> &str {
        &self.row.metadata
    }

    /// When it was created.
    pub fn created(&self) -> SystemTime {
        self.row.created.system_time()
    }

    /// Keys of its big data items.
    pub fn big_data_names(&self) -> &[String] {
        &self.row.big_data_names
    }

    /// Recorded size in bytes of a big data item.
    pub fn big_data_size(&self, key: &str) -> Option<u64> {
        self.row
            .big_data_sizes
            .get(key)
            .and_then(|size| u64::try_from(*size).ok())
    }

    /// Recorded digest of a big data item.
    pub fn big_data_digest(&self, key: &str) -> Option<Digest> {
        self.row.big_data_digests.get(key).and_then(digest)
    }

    /// What the record says about a big data item.
    pub(crate) fn recorded_big_data(&self, key: &str) -> Option<Recorded> {
        self.row.recorded(key)
    }

    /// User ID ranges asked for.
    pub fn uid_map(&self) -> &[IdMap] {
        &self.row.uid_map
    }

    /// Group ID ranges asked for.
    pub fn gid_map(&self) -> &[IdMap] {
        &self.row.gid_map
    }

    /// Flags of the record.
    pub fn flags(&self) -> BTreeMap<String, Flag> {
        flags(&self.row.flags)
    }

    /// Options of every mount of it.
    pub fn mount_opts(&self) -> Vec<String> {
        match self.flags().remove("MountOpts") {
            Some(Flag::List(options)) => options,
            _ => Vec::new(),
        }
    }

    /// Whether record and content may be lost in a crash.
    pub fn volatile(&self) -> bool {
        self.row
            .flags
            .get("Volatile")
            .and_then(serde_json::Value::as_bool)
            .unwrap_or(false)
    }
}
