//! What a new container is.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::options::auto_userns::AutoUserNs;
use crate::options::base64_bytes;
use crate::options::flag::Flag;
use crate::options::id_mapping::IdMappingOptions;

/// Options of [`Store::create_container`](crate::Store::create_container).
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerOptions {
    /// ID of the new container; `None`: a random one.
    pub id: Option<String>,
    /// Names of the new container, unique among containers.
    pub names: Vec<String>,
    /// ID of the container's own layer; `None`: a random one.
    pub layer_id: Option<String>,
    /// Metadata of the caller.
    pub metadata: String,
    /// Owner mapping.
    pub id_mappings: IdMappingOptions,
    /// Owner mapping that is chosen by the library, in place of [`ContainerOptions::id_mappings`].
    pub auto_userns: Option<AutoUserNs>,
    /// SELinux label of its processes. Both labels or neither.
    pub process_label: Option<String>,
    /// SELinux label of its files. Both labels or neither.
    pub mount_label: Option<String>,
    /// How labels that are not given are chosen where SELinux is on: `disable`, or `user:`, `role:`, `type:`, `level:` or
    /// `filetype:` with a value.
    pub label_opts: Vec<String>,
    /// Options for every mount of it, such as `nodev`.
    pub mount_opts: Vec<String>,
    /// Record and content may be lost in a crash: mounted without syncing.
    pub volatile: bool,
    /// Storage options of the driver: `size` (bytes, or with a unit: `10G`) and `inodes` limit what the container may write.
    /// Only overlay has them, on file systems with project quotas.
    pub storage_opt: BTreeMap<String, String>,
    /// Big data items to store with the container.
    pub big_data: Vec<ContainerBigData>,
    /// Flags of the caller. `ProcessLabel`, `MountLabel`, `MountOpts` and `Volatile` are the library's.
    pub flags: BTreeMap<String, Flag>,
}

impl ContainerOptions {
    /// Sets [`ContainerOptions::id`].
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Adds one to [`ContainerOptions::names`].
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Adds to [`ContainerOptions::names`].
    #[must_use]
    pub fn names(mut self, names: impl IntoIterator<Item: Into<String>>) -> Self {
        self.names.extend(names.into_iter().map(Into::into));
        self
    }

    /// Sets [`ContainerOptions::layer_id`].
    #[must_use]
    pub fn layer_id(mut self, layer_id: impl Into<String>) -> Self {
        self.layer_id = Some(layer_id.into());
        self
    }

    /// Sets [`ContainerOptions::metadata`].
    #[must_use]
    pub fn metadata(mut self, metadata: impl Into<String>) -> Self {
        self.metadata = metadata.into();
        self
    }

    /// Sets [`ContainerOptions::id_mappings`].
    #[must_use]
    pub fn id_mappings(mut self, id_mappings: IdMappingOptions) -> Self {
        self.id_mappings = id_mappings;
        self
    }

    /// Sets [`ContainerOptions::auto_userns`].
    #[must_use]
    pub fn auto_userns(mut self, auto_userns: AutoUserNs) -> Self {
        self.auto_userns = Some(auto_userns);
        self
    }

    /// Sets [`ContainerOptions::process_label`].
    #[must_use]
    pub fn process_label(mut self, process_label: impl Into<String>) -> Self {
        self.process_label = Some(process_label.into());
        self
    }

    /// Sets [`ContainerOptions::mount_label`].
    #[must_use]
    pub fn mount_label(mut self, mount_label: impl Into<String>) -> Self {
        self.mount_label = Some(mount_label.into());
        self
    }

    /// Adds one to [`ContainerOptions::label_opts`].
    #[must_use]
    pub fn label_opt(mut self, label_opt: impl Into<String>) -> Self {
        self.label_opts.push(label_opt.into());
        self
    }

    /// Adds to [`ContainerOptions::label_opts`].
    #[must_use]
    pub fn label_opts(mut self, label_opts: impl IntoIterator<Item: Into<String>>) -> Self {
        self.label_opts.extend(label_opts.into_iter().map(Into::into));
        self
    }

    /// Adds one to [`ContainerOptions::mount_opts`].
    #[must_use]
    pub fn mount_opt(mut self, mount_opt: impl Into<String>) -> Self {
        self.mount_opts.push(mount_opt.into());
        self
    }

    /// Adds to [`ContainerOptions::mount_opts`].
    #[must_use]
    pub fn mount_opts(mut self, mount_opts: impl IntoIterator<Item: Into<String>>) -> Self {
        self.mount_opts.extend(mount_opts.into_iter().map(Into::into));
        self
    }

    /// Sets [`ContainerOptions::volatile`].
    #[must_use]
    pub fn volatile(mut self, volatile: bool) -> Self {
        self.volatile = volatile;
        self
    }

    /// Adds one to [`ContainerOptions::storage_opt`].
    #[must_use]
    pub fn storage_opt(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.storage_opt.insert(key.into(), value.into());
        self
    }

    /// Adds one to [`ContainerOptions::big_data`].
    #[must_use]
    pub fn big_data(mut self, key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        self.big_data.push(ContainerBigData::new(key, data));
        self
    }

    /// Adds one to [`ContainerOptions::flags`].
    #[must_use]
    pub fn flag(mut self, name: impl Into<String>, flag: impl Into<Flag>) -> Self {
        self.flags.insert(name.into(), flag.into());
        self
    }

    /// Adds to [`ContainerOptions::flags`].
    #[must_use]
    pub fn flags(mut self, flags: impl IntoIterator<Item = (String, Flag)>) -> Self {
        self.flags.extend(flags);
        self
    }
}

/// A big data item for a new container.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerBigData {
    /// Its key.
    pub key: String,
    /// Its content; base64 where it is serialised.
    #[serde(with = "base64_bytes")]
    pub data: Bytes,
}

impl ContainerBigData {
    /// An item with this key and this content.
    pub fn new(key: impl Into<String>, data: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            data: data.into(),
        }
    }

    /// Sets [`ContainerBigData::key`].
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Sets [`ContainerBigData::data`].
    #[must_use]
    pub fn data(mut self, data: impl Into<Bytes>) -> Self {
        self.data = data.into();
        self
    }
}
