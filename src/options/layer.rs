//! What a new layer is.

use std::collections::BTreeMap;
use std::pin::Pin;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncRead;

use crate::digest::Digest;
use crate::options::base64_bytes;
use crate::options::flag::Flag;
use crate::options::id_mapping::IdMappingOptions;

/// A layer stream or big data item on its way in.
pub type BoxReader = Pin<Box<dyn AsyncRead + Send>>;

/// Options of [`Store::create_layer`](crate::Store::create_layer) and [`Store::put_layer`](crate::Store::put_layer).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LayerOptions {
    /// ID of the new layer; `None`: a random one.
    pub id: Option<String>,
    /// Names of the new layer, unique among layers.
    pub names: Vec<String>,
    /// SELinux label to mount it with.
    pub mount_label: Option<String>,
    /// A container's own layer rather than an image's.
    pub writeable: bool,
    /// Metadata of the caller.
    pub metadata: String,
    /// Owner mapping.
    pub id_mappings: IdMappingOptions,
    /// ID of a layer whose content the new layer starts with; a child of the layer that becomes the parent.
    pub template: Option<String>,
    /// Digest of the stream as it is sent or, if only a decompressed form of it is sent, of what it came from.
    pub original_digest: Option<Digest>,
    /// Size in bytes of what [`LayerOptions::original_digest`] names.
    pub original_size: Option<u64>,
    /// Digest of the uncompressed stream (the diff ID), if known.
    pub uncompressed_digest: Option<Digest>,
    /// Compute the digests given above and refuse the layer if they differ. Without it they are taken as true, as
    /// the Go library does, which saves the hashing.
    pub verify: bool,
    /// The record may be lost in a crash.
    pub volatile: bool,
    /// Big data items to store with the layer.
    pub big_data: Vec<LayerBigData>,
    /// Flags of the caller, kept with the record. The name `incomplete` is the library's.
    pub flags: BTreeMap<String, Flag>,
    /// Storage options of the driver for this layer, such as `size`.
    pub storage_opt: BTreeMap<String, String>,
}

impl LayerOptions {
    /// Sets [`LayerOptions::id`].
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds one to [`LayerOptions::names`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Adds to [`LayerOptions::names`].
    #[must_use]
    pub fn names(mut self, names: impl IntoIterator<Item: Into<String>>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Sets [`LayerOptions::mount_label`].
    #[must_use]
    pub fn mount_label(mut self, mount_label: impl Into<String>) -> Self {
        self.mount_label = Some(mount_label.into());
        self
    }

    /// Sets [`LayerOptions::writeable`].
    #[must_use]
    pub fn writeable(mut self, writeable: bool) -> Self {
        self.writeable = writeable;
        self
    }

    /// Sets [`LayerOptions::metadata`].
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sets [`LayerOptions::id_mappings`].
    #[must_use]
    pub fn id_mappings(mut self, id_mappings: IdMappingOptions) -> Self {
        self.id_mappings = id_mappings;
        self
    }

    /// Sets [`LayerOptions::template`].
    #[must_use]
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.template = Some(template.into());
        self
    }

    /// Sets [`LayerOptions::original_digest`].
    #[must_use]
    pub fn original_digest(mut self, original_digest: impl Into<Option<Digest>>) -> Self {
        self.original_digest = original_digest.into();
        self
    }

    /// Sets [`LayerOptions::original_size`].
    #[must_use]
    pub fn original_size(mut self, original_size: impl Into<Option<u64>>) -> Self {
        self.original_size = original_size.into();
        self
    }

    /// Sets [`LayerOptions::uncompressed_digest`].
    #[must_use]
    pub fn uncompressed_digest(mut self, uncompressed_digest: impl Into<Option<Digest>>) -> Self {
        self.uncompressed_digest = uncompressed_digest.into();
        self
    }

    /// Sets [`LayerOptions::verify`].
    #[must_use]
    pub fn verify(mut self, verify: bool) -> Self {
        self.verify = verify;
        self
    }

    /// Sets [`LayerOptions::original_digest`] and demands that the stream, as it is sent, has it. A stream that has
    /// another one is refused with [`ErrorKind::DigestMismatch`](crate::ErrorKind::DigestMismatch), whose text names
    /// both; the store is then as before. Digests that other options give are verified too.
    #[must_use]
    pub fn verify_original_digest(mut self, digest: Digest) -> Self {
        self.original_digest = Some(digest);
        self.verify = true;
        self
    }

    /// Sets [`LayerOptions::uncompressed_digest`] (the diff ID) and demands that the stream has it, as
    /// [`LayerOptions::verify_original_digest`] does for the stream as it is sent.
    #[must_use]
    pub fn verify_uncompressed_digest(mut self, digest: Digest) -> Self {
        self.uncompressed_digest = Some(digest);
        self.verify = true;
        self
    }

    /// Sets [`LayerOptions::volatile`].
    #[must_use]
    pub fn volatile(mut self, volatile: bool) -> Self {
        self.volatile = volatile;
        self
    }

    /// Adds one to [`LayerOptions::big_data`].
    #[must_use]
    pub fn big_data(mut self, key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.big_data.push(LayerBigData::new(key, data));
        self
    }

    /// Adds one to [`LayerOptions::flags`].
    #[must_use]
    pub fn flag(mut self, name: impl Into<String>, flag: impl Into<Flag>) -> Self {
        self.flags.insert(name.into(), flag.into());
        self
    }

    /// Adds to [`LayerOptions::flags`].
    #[must_use]
    pub fn flags(mut self, flags: impl IntoIterator<Item = (String, Flag)>) -> Self {
        self.flags.extend(flags);
        self
    }

    /// Adds one to [`LayerOptions::storage_opt`].
    #[must_use]
    pub fn storage_opt(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage_opt.insert(key.into(), value.into());
        self
    }
}

/// A big data item for a new layer.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerBigData {
    /// Its key.
    pub key: String,
    /// Its content; base64 where it is serialised.
    #[serde(with = "base64_bytes")]
    pub data: Bytes,
}

impl LayerBigData {
    /// An item with this key and this content.
    pub fn new(key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            data: data.into(),
        }
    }

    /// Sets [`LayerBigData::key`].
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets [`LayerBigData::data`].
    #[must_use]
    pub fn data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = data.into();
        self
    }
}
