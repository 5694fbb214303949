//! Where a store lies and how it behaves.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};
use crate::idmap::{IdMap, IdMappings};
use crate::options::partial_pull::PartialPullOptions;
use crate::tree_driver::{TreeDriver, caught};

/// How much is forced to disk before a call reports success, with every driver and in a separate image store too.
///
/// | after a power cut | `None` | `Default` | `Full` |
/// |---|---|---|---|
/// | the files of records can be read | yes | yes | yes |
/// | a recorded layer has its content, its tar-split and its big data | no | yes | yes |
/// | a recorded image or container has its layer and its big data | no | yes | yes |
/// | what was being made or deleted is gone after the next open | most of it | yes | yes |
/// | a new layer, image or container is there, if the cut comes right after success | no | on some file systems | yes |
/// | a deletion, new names, metadata or big data, likewise | no | on some file systems | yes |
/// | a file set in a container's directory, likewise | no | no | yes |
/// | volatile layers and containers, mount counts, what containers write, run directories | no | no | no |
///
/// `Default` relies on file systems that write changes of names in the order in which they are made (ext4 with a
/// journal, xfs): there the sync of a record takes everything before it along, and a record of which a call says that it
/// is saved can be lost for a few seconds. On all others (btrfs, f2fs, whatever is not known) and between file systems
/// each directory is synced before the record that relies on it, and each record right after it was saved; there the
/// third column is that of `Full` but for the files in a container's directory.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// Metadata files as the Go library does by default (data synced, so never torn), layer content not at all: a
    /// power cut soon after a success may leave a recorded layer with missing content.
    None,
    /// Layer content is on disk before its record is: a recorded layer is a whole layer, also after a power cut.
    #[default]
    Default,
    /// As `Default`, and the directory of a record is synced after its last save: what a call has made or changed survives
    /// a power cut right after success, on every file system.
    Full,
}

impl Durability {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Default => "default",
            Self::Full => "full",
        }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Durability {
    type Err = Error;

    /// Reads `none`, `default` or `full`.
    fn from_str(text: &str) -> Result<Self, Error> {
        [Self::None, Self::Default, Self::Full]
            .into_iter()
            .find(|durability| durability.name() == text)
            .ok_or_else(|| {
                ErrorKind::InvalidInput.err(format!("durability {text:?}; known are none, default and full"))
            })
    }
}

/// Where a store lies and how it behaves. Start with [`StoreOptions::default_for_user`] or [`StoreOptions::new`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreOptions {
    /// Directory of everything that survives a reboot.
    pub graph_root: PathBuf,
    /// Directory of everything that does not, such as mount counts; on a tmpfs where possible.
    pub run_root: PathBuf,
    /// Directory for images and their layers, if they shall lie apart from the containers.
    pub image_store: Option<PathBuf>,
    /// Name of the driver (`overlay`, `btrfs`, `zfs`, `vfs`, or that of [`StoreOptions::tree_driver`]); `None`: what is on disk already, else the first of
    /// [`StoreOptions::driver_priority`] that works here. The page [`drivers`](crate::drivers) says what works where.
    pub driver: Option<String>,
    /// Drivers to try, in this order; empty: the library's own order.
    pub driver_priority: Vec<String>,
    /// Options of the driver, each `[driver.]key=value`; see the page [`drivers`](crate::drivers).
    pub driver_options: Vec<String>,
    /// Owner mapping of layers that have no parent and ask for none.
    pub id_mappings: IdMappings,
    /// Options for pulling images, as `storage.conf` has them: see [`PartialPullOptions`], which
    /// [`StoreOptions::partial_pulls`] sets.
    pub pull_options: BTreeMap<String, String>,
    /// Keep container records in the run root only.
    pub transient: bool,
    /// Never mount a container's layer without syncing, not even if the container may be lost
    /// ([`ContainerOptions::volatile`](crate::ContainerOptions::volatile)).
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
    /// How many layers are unpacked at the same time; more have to wait. Each takes a thread and a few MiB of memory.
    /// 0: 64.
    pub max_unpacks: usize,
    /// See [`StoreOptions::tree_driver`].
    #[serde(skip)]
    pub(crate) tree_driver: Option<OwnDriver>,
}

/// A driver of the program; equal to itself alone.
#[derive(Clone, Debug)]
pub(crate) struct OwnDriver(pub(crate) Arc<dyn TreeDriver>);

impl PartialEq for OwnDriver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for OwnDriver {}

impl StoreOptions {
    /// Options for the store in these two directories, which are created if missing.
    pub fn new(graph_root: impl Into<PathBuf>, run_root: impl Into<PathBuf>) -> Self {
        Self {
            graph_root: graph_root.into(),
            run_root: run_root.into(),
            ..Self::default()
        }
    }

    /// Sets [`StoreOptions::graph_root`].
    #[must_use]
    pub fn graph_root(mut self, graph_root: impl Into<PathBuf>) -> Self {
        self.graph_root = graph_root.into();
        self
    }

    /// Sets [`StoreOptions::run_root`].
    #[must_use]
    pub fn run_root(mut self, run_root: impl Into<PathBuf>) -> Self {
        self.run_root = run_root.into();
        self
    }

    /// Sets [`StoreOptions::image_store`].
    #[must_use]
    pub fn image_store(mut self, image_store: impl Into<PathBuf>) -> Self {
        self.image_store = Some(image_store.into());
        self
    }

    /// Sets [`StoreOptions::driver`].
    #[must_use]
    pub fn driver(mut self, driver: impl Into<String>) -> Self {
        self.driver = Some(driver.into());
        self
    }

    /// Brings a driver of one's own, and names it ([`StoreOptions::driver`]): see the page
    /// [`tree_drivers`](crate::tree_drivers). With the name taken out again the driver is only known: what is on disk
    /// decides, and a new store gets this driver unless [`StoreOptions::driver_priority`] says otherwise.
    ///
    /// A store that this process has open already keeps the driver object with which it was opened, also if another one, or one of
    /// another type, has the same name; only a warning ([`tracing`]) tells. So all of a process should share one `Arc`. The
    /// name alone says to whom a root on disk belongs: programs that make trees in different ways need different names.
    ///
    /// It is no part of the options as JSON.
    #[must_use]
    pub fn tree_driver(mut self, driver: Arc<dyn TreeDriver>) -> Self {
        // Opening asks again, and tells of a panic.
        self.driver = caught(|| Ok(driver.name().to_owned())).ok();
        self.tree_driver = Some(OwnDriver(driver));
        self
    }

    /// Adds to [`StoreOptions::driver_priority`].
    #[must_use]
    pub fn driver_priority(mut self, driver_priority: impl IntoIterator<Item: Into<String>>) -> Self {
        self.driver_priority
            .extend(driver_priority.into_iter().map(Into::into));
        self
    }

    /// Adds one to [`StoreOptions::driver_options`].
    #[must_use]
    pub fn driver_option(mut self, driver_option: impl Into<String>) -> Self {
        self.driver_options.push(driver_option.into());
        self
    }

    /// Adds to [`StoreOptions::driver_options`].
    #[must_use]
    pub fn driver_options(mut self, driver_options: impl IntoIterator<Item: Into<String>>) -> Self {
        self.driver_options
            .extend(driver_options.into_iter().map(Into::into));
        self
    }

    /// Sets [`StoreOptions::id_mappings`].
    #[must_use]
    pub fn id_mappings(mut self, id_mappings: IdMappings) -> Self {
        self.id_mappings = id_mappings;
        self
    }

    /// Adds one to [`StoreOptions::pull_options`].
    #[must_use]
    pub fn pull_option(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.pull_options.insert(key.into(), value.into());
        self
    }

    /// Adds to [`StoreOptions::pull_options`].
    #[must_use]
    pub fn pull_options(mut self, pull_options: impl IntoIterator<Item = (String, String)>) -> Self {
        self.pull_options.extend(pull_options);
        self
    }

    /// Sets those of [`StoreOptions::pull_options`] that are about partial pulls, all of them.
    #[must_use]
    pub fn partial_pulls(mut self, options: PartialPullOptions) -> Self {
        self.pull_options.extend(options.pairs());
        self
    }

    /// Sets [`StoreOptions::transient`].
    #[must_use]
    pub fn transient(mut self, transient: bool) -> Self {
        self.transient = transient;
        self
    }

    /// Sets [`StoreOptions::disable_volatile`].
    #[must_use]
    pub fn disable_volatile(mut self, disable_volatile: bool) -> Self {
        self.disable_volatile = disable_volatile;
        self
    }

    /// Sets [`StoreOptions::root_auto_userns_user`].
    #[must_use]
    pub fn root_auto_userns_user(mut self, root_auto_userns_user: impl Into<String>) -> Self {
        self.root_auto_userns_user = Some(root_auto_userns_user.into());
        self
    }

    /// Sets [`StoreOptions::auto_userns_min_size`].
    #[must_use]
    pub fn auto_userns_min_size(mut self, auto_userns_min_size: u32) -> Self {
        self.auto_userns_min_size = auto_userns_min_size;
        self
    }

    /// Sets [`StoreOptions::auto_userns_max_size`].
    #[must_use]
    pub fn auto_userns_max_size(mut self, auto_userns_max_size: u32) -> Self {
        self.auto_userns_max_size = auto_userns_max_size;
        self
    }

    /// Sets [`StoreOptions::remap`].
    #[must_use]
    pub fn remap(mut self, remap: Remap) -> Self {
        self.remap = remap;
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
    pub fn lock_timeout(mut self, lock_timeout: impl Into<Option<Duration>>) -> Self {
        self.lock_timeout = lock_timeout.into();
        self
    }

    /// Sets [`StoreOptions::max_unpacks`].
    #[must_use]
    pub fn max_unpacks(mut self, count: usize) -> Self {
        self.max_unpacks = count;
        self
    }
}

impl StoreOptions {
    /// The fields, by name, in which these options differ from those of a store that lies in the same roots. A driver
    /// that is not named is no wish.
    pub(crate) fn differing(&self, open: &Self) -> Vec<&'static str> {
        let Self {
            graph_root: _,
            run_root: _,
            image_store,
            driver: _,
            driver_priority,
            driver_options,
            id_mappings,
            pull_options,
            transient,
            disable_volatile,
            root_auto_userns_user,
            auto_userns_min_size,
            auto_userns_max_size,
            remap,
            durability,
            lock_timeout,
            max_unpacks,
            tree_driver,
        } = self;
        [
            ("image_store", *image_store != open.image_store),
            ("driver_priority", *driver_priority != open.driver_priority),
            ("driver_options", *driver_options != open.driver_options),
            ("id_mappings", *id_mappings != open.id_mappings),
            ("pull_options", *pull_options != open.pull_options),
            ("transient", *transient != open.transient),
            ("disable_volatile", *disable_volatile != open.disable_volatile),
            (
                "root_auto_userns_user",
                *root_auto_userns_user != open.root_auto_userns_user,
            ),
            (
                "auto_userns_min_size",
                *auto_userns_min_size != open.auto_userns_min_size,
            ),
            (
                "auto_userns_max_size",
                *auto_userns_max_size != open.auto_userns_max_size,
            ),
            ("remap", *remap != open.remap),
            ("durability", *durability != open.durability),
            ("lock_timeout", *lock_timeout != open.lock_timeout),
            ("max_unpacks", *max_unpacks != open.max_unpacks),
            (
                "tree_driver",
                tree_driver.is_some() && *tree_driver != open.tree_driver,
            ),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// What the keys `remap-uids`, `remap-gids`, `remap-user` and `remap-group` of old `storage.conf` files say.
///
/// The Go library has removed them, so that opening a store does not apply them either. A caller who wants them can
/// set [`StoreOptions::id_mappings`].
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
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

impl Remap {
    /// Sets [`Remap::uids`].
    #[must_use]
    pub fn uids(mut self, uids: impl Into<Vec<IdMap>>) -> Self {
        self.uids = uids.into();
        self
    }

    /// Sets [`Remap::gids`].
    #[must_use]
    pub fn gids(mut self, gids: impl Into<Vec<IdMap>>) -> Self {
        self.gids = gids.into();
        self
    }

    /// Sets [`Remap::user`].
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Sets [`Remap::group`].
    #[must_use]
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }
}
