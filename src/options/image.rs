//! What a new image is.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::options::base64_bytes;
use crate::options::flag::Flag;

/// Options of [`Store::create_image`](crate::Store::create_image).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageOptions {
    /// ID of the new image; `None`: a random one. Clients use the hexadecimal part of the config's digest.
    pub id: Option<String>,
    /// Names of the new image, unique among images.
    pub names: Vec<String>,
    /// Metadata of the caller.
    pub metadata: String,
    /// When the image was made; `None`: now.
    pub creation_date: Option<SystemTime>,
    /// A digest by which the image can be found besides those of its manifests.
    pub digest: Option<Digest>,
    /// Big data items, such as the manifest (key `manifest`) and the config (its digest as key).
    pub big_data: Vec<ImageBigData>,
    /// Names that it had before, newest first.
    pub names_history: Vec<String>,
    /// Flags of the caller.
    pub flags: BTreeMap<String, Flag>,
}

impl ImageOptions {
    /// Sets [`ImageOptions::id`].
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds one to [`ImageOptions::names`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Adds to [`ImageOptions::names`].
    #[must_use]
    pub fn names(mut self, names: impl IntoIterator<Item: Into<String>>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Sets [`ImageOptions::metadata`].
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sets [`ImageOptions::creation_date`].
    #[must_use]
    pub fn creation_date(mut self, creation_date: impl Into<Option<SystemTime>>) -> Self {
        self.creation_date = creation_date.into();
        self
    }

    /// Sets [`ImageOptions::digest`].
    #[must_use]
    pub fn digest(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.digest = digest.into();
        self
    }

    /// Adds one to [`ImageOptions::big_data`]; its recorded digest is the SHA-256 of `data`.
    #[must_use]
    pub fn big_data(mut self, key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.big_data.push(ImageBigData::new(key, data));
        self
    }

    /// As [`ImageOptions::big_data`] with an item that may say its digest.
    #[must_use]
    pub fn big_data_item(mut self, item: ImageBigData) -> Self {
        self.big_data.push(item);
        self
    }

    /// Adds to [`ImageOptions::names_history`].
    #[must_use]
    pub fn names_history(mut self, names_history: impl IntoIterator<Item: Into<String>>) -> Self {
        self.names_history
            .extend(names_history.into_iter().map(Into::into));
        self
    }

    /// Adds one to [`ImageOptions::flags`].
    #[must_use]
    pub fn flag(mut self, name: impl Into<String>, flag: impl Into<Flag>) -> Self {
        self.flags.insert(name.into(), flag.into());
        self
    }

    /// Adds to [`ImageOptions::flags`].
    #[must_use]
    pub fn flags(mut self, flags: impl IntoIterator<Item = (String, Flag)>) -> Self {
        self.flags.extend(flags);
        self
    }
}

/// A big data item for a new image.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageBigData {
    /// Its key.
    pub key: String,
    /// Its content; base64 where it is serialised.
    #[serde(with = "base64_bytes")]
    pub data: Bytes,
    /// The digest to record; `None`: SHA-256 of the content.
    #[serde(default)]
    pub digest: Option<Digest>,
}

impl ImageBigData {
    /// An item with this key and this content.
    pub fn new(key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            data: data.into(),
            digest: None,
        }
    }

    /// Sets [`ImageBigData::key`].
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets [`ImageBigData::data`].
    #[must_use]
    pub fn data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = data.into();
        self
    }

    /// Sets [`ImageBigData::digest`].
    #[must_use]
    pub fn digest(mut self, digest: impl Into<Option<Digest>>) -> Self {
        self.digest = digest.into();
        self
    }
}
