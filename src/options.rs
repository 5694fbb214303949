//! What callers say when they open a store or create something in it.
//!
//! All option structs are `Default`, have public fields and setters that can be chained.

pub(crate) mod driver;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::io::AsyncRead;

use crate::compression::Compression;
use crate::digest::Digest;
use crate::idmap::{IdMap, IdMappings};

/// How much is forced to disk before a call reports success.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Metadata files as the Go library does by default (data synced, so never torn), layer content not at all: a
    /// power cut soon after a success may leave a recorded layer with missing content.
    None,
    /// Layer content is on disk before its record is: a recorded layer is a whole layer, also after a power cut.
    #[default]
    Default,
    /// As `Default`, and the directories in which a new layer and its record get their names are synced as well, so
    /// that a layer survives a power cut right after success, on every file system.
    Full,
}

/// Where a store lies and how it behaves. Start with [`StoreOptions::default_for_user`] or [`StoreOptions::new`].
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct StoreOptions {
    /// Directory of everything that survives a reboot.
    pub graph_root: PathBuf,
    /// Directory of everything that does not, such as mount counts; on a tmpfs where possible.
    pub run_root: PathBuf,
    /// Directory for images and their layers, if they shall lie apart from the containers.
    pub image_store: Option<PathBuf>,
    /// Name of the driver (`overlay`, `vfs`); `None`: what is on disk already, else the first of
    /// [`StoreOptions::driver_priority`] that works here. The page [`drivers`](crate::drivers) says what works where.
    pub driver: Option<String>,
    /// Drivers to try, in this order; empty: the library's own order.
    pub driver_priority: Vec<String>,
    /// Options of the driver, each `[driver.]key=value`; see the page [`drivers`](crate::drivers).
    pub driver_options: Vec<String>,
    /// Owner mapping of layers that have no parent and ask for none.
    pub id_mappings: IdMappings,
    /// Options for pulling images, carried for the caller.
    pub pull_options: BTreeMap<String, String>,
    /// Keep container records in the run root only.
    pub transient: bool,
    /// Never mount a container's layer without syncing, not even if the container may be lost
    /// ([`ContainerOptions::volatile`]).
    pub disable_volatile: bool,
    /// Whose ranges of `/etc/subuid` and `/etc/subgid` root's automatic user namespaces use; `None`: `containers`.
    pub root_auto_userns_user: Option<String>,
    /// Smallest size of an automatic user namespace; 0: 1024.
    pub auto_userns_min_size: u32,
    /// Largest size of an automatic user namespace that is not asked for by size; 0: 65536.
    pub auto_userns_max_size: u32,
    /// What the removed keys of `storage.conf` ask for, carried for the caller.
    pub remap: Remap,
    /// What is synced when.
    pub durability: Durability,
    /// How long a call may wait for another process's lock; `None` waits for ever, as the Go library does.
    pub lock_timeout: Option<Duration>,
}

/// What the keys `remap-uids`, `remap-gids`, `remap-user` and `remap-group` of old `storage.conf` files say.
///
/// The Go library has removed them, so that opening a store does not apply them either. A caller who wants them can
/// set [`StoreOptions::id_mappings`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remap {
    /// User ID ranges.
    pub uids: Vec<IdMap>,
    /// Group ID ranges.
    pub gids: Vec<IdMap>,
    /// Whose ranges of `/etc/subuid` to use.
    pub user: Option<String>,
    /// Whose ranges of `/etc/subgid` to use.
    pub group: Option<String>,
}

impl StoreOptions {
    /// Options for the store in these two directories, which are created if missing.
    pub fn new(graph_root: impl Into<PathBuf>, run_root: impl Into<PathBuf>) -> Self {
        Self {
            graph_root: graph_root.into(),
            run_root: run_root.into(),
            ..Self::default()
        }
    }

    /// Sets [`StoreOptions::driver`].
    #[must_use]
    pub fn driver(mut self, name: impl Into<String>) -> Self {
        self.driver = Some(name.into());
        self
    }

    /// Adds one option to [`StoreOptions::driver_options`].
    #[must_use]
    pub fn driver_option(mut self, option: impl Into<String>) -> Self {
        self.driver_options.push(option.into());
        self
    }

    /// Sets [`StoreOptions::durability`].
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets [`StoreOptions::lock_timeout`].
    #[must_use]
    pub fn lock_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.lock_timeout = timeout;
        self
    }
}

/// Owner mapping wanted for a layer or container.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMappingOptions {
    /// User IDs are those of the host: no mapping, whatever the parent has.
    pub host_uid_mapping: bool,
    /// Group IDs are those of the host: no mapping, whatever the parent has.
    pub host_gid_mapping: bool,
    /// User ID ranges; empty: inherit.
    pub uid_map: Vec<IdMap>,
    /// Group ID ranges; empty: inherit.
    pub gid_map: Vec<IdMap>,
}

impl IdMappingOptions {
    /// Asks for exactly these ranges.
    pub fn mapped(uid_map: Vec<IdMap>, gid_map: Vec<IdMap>) -> Self {
        Self {
            uid_map,
            gid_map,
            ..Self::default()
        }
    }
}

/// How to mount a layer, a container's layer or an image.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct MountOptions {
    /// SELinux label of the mount; `None`: the layer's own.
    pub label: Option<String>,
    /// Options as in `mount -o`, one each, besides a container's own. If there are none at all, those that the
    /// driver is configured with count.
    pub options: Vec<String>,
}

impl MountOptions {
    /// Sets [`MountOptions::label`].
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Adds one option to [`MountOptions::options`].
    #[must_use]
    pub fn option(mut self, option: impl Into<String>) -> Self {
        self.options.push(option.into());
        self
    }
}

/// A layer stream or big data item on its way in.
pub type BoxReader = Pin<Box<dyn AsyncRead + Send>>;

/// Options of [`Store::create_layer`](crate::Store::create_layer) and [`Store::put_layer`](crate::Store::put_layer).
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct LayerOptions {
    /// ID of the new layer; empty: a random one.
    pub id: String,
    /// Names of the new layer, unique among layers.
    pub names: Vec<String>,
    /// SELinux label to mount it with.
    pub mount_label: String,
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
        self.id = id.into();
        self
    }

    /// Adds a name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Sets [`LayerOptions::writeable`].
    #[must_use]
    pub fn writeable(mut self, writeable: bool) -> Self {
        self.writeable = writeable;
        self
    }

    /// Sets [`LayerOptions::uncompressed_digest`] and demands that the stream has it.
    #[must_use]
    pub fn verify_diff_digest(mut self, digest: Digest) -> Self {
        self.uncompressed_digest = Some(digest);
        self.verify = true;
        self
    }
}

/// A flag of a record: the JSON values that survive a rewrite by the Go library unchanged.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flag {
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// A list of texts.
    List(Vec<String>),
}

impl From<bool> for Flag {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<&str> for Flag {
    fn from(value: &str) -> Self {
        Self::Text(value.into())
    }
}

impl From<Vec<String>> for Flag {
    fn from(value: Vec<String>) -> Self {
        Self::List(value)
    }
}

/// A big data item for a new layer.
#[derive(Clone, Debug)]
pub struct LayerBigData {
    /// Its key.
    pub key: String,
    /// Its content.
    pub data: bytes::Bytes,
}

/// Options of [`Store::create_image`](crate::Store::create_image).
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// ID of the new image; empty: a random one. Clients use the hexadecimal part of the config's digest.
    pub id: String,
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
        self.id = id.into();
        self
    }

    /// Adds a name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }

    /// Adds a big data item; its recorded digest is the SHA-256 of `data`.
    #[must_use]
    pub fn big_data(mut self, key: impl Into<String>, data: impl Into<bytes::Bytes>) -> Self {
        self.big_data.push(ImageBigData {
            key: key.into(),
            data: data.into(),
            digest: None,
        });
        self
    }
}

/// A big data item for a new image.
#[derive(Clone, Debug)]
pub struct ImageBigData {
    /// Its key.
    pub key: String,
    /// Its content.
    pub data: bytes::Bytes,
    /// The digest to record; `None`: SHA-256 of the content.
    pub digest: Option<Digest>,
}

/// Options of [`Store::create_container`](crate::Store::create_container).
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct ContainerOptions {
    /// ID of the new container; empty: a random one.
    pub id: String,
    /// Names of the new container, unique among containers.
    pub names: Vec<String>,
    /// ID of the container's own layer; empty: a random one.
    pub layer_id: String,
    /// Metadata of the caller.
    pub metadata: String,
    /// Owner mapping.
    pub id_mappings: IdMappingOptions,
    /// SELinux label of its processes. Both labels or neither.
    pub process_label: Option<String>,
    /// SELinux label of its files. Both labels or neither.
    pub mount_label: Option<String>,
    /// Options for every mount of it, such as `nodev`.
    pub mount_opts: Vec<String>,
    /// Record and content may be lost in a crash: mounted without syncing.
    pub volatile: bool,
    /// Storage options of the driver, such as `size`.
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
        self.id = id.into();
        self
    }

    /// Adds a name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.names.push(name.into());
        self
    }
}

/// A big data item for a new container.
#[derive(Clone, Debug)]
pub struct ContainerBigData {
    /// Its key.
    pub key: String,
    /// Its content.
    pub data: bytes::Bytes,
}

/// Options of [`Store::diff`](crate::Store::diff).
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Compression of the stream; `None`: what the layer's blob had when it came in.
    pub compression: Option<Compression>,
}

impl DiffOptions {
    /// The stream as the diff ID names it.
    pub fn uncompressed() -> Self {
        Self {
            compression: Some(Compression::None),
        }
    }

    /// The stream compressed in this way.
    pub fn compressed(compression: Compression) -> Self {
        Self {
            compression: Some(compression),
        }
    }
}

/// Which kinds [`Store::multi_list`] lists.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MultiListOptions {
    /// Images.
    pub images: bool,
    /// Layers.
    pub layers: bool,
    /// Containers.
    pub containers: bool,
}

impl MultiListOptions {
    /// All three kinds.
    pub const ALL: Self = Self {
        images: true,
        layers: true,
        containers: true,
    };
}
