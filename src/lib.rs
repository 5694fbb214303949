//! graphroot keeps container *layers*, *images* and *containers* on disk, in the same store that Podman, Buildah,
//! Skopeo and CRI-O use, and at the same time as they do. It applies and produces layer diffs, mounts layers, and
//! shares one store with every other process. It is async, on [tokio]; nothing blocks the runtime's threads.
//!
//! # Start
//!
//! [`Store::open`] opens a store, [`Store::put_layer`] unpacks a layer blob into it, [`Store::create_image`] and
//! [`Store::create_container`] build on it, [`Store::mount_guard`] shows it, [`Store::diff`] gets it out again.
//!
//! ```
//! use graphroot::{
//!     ContainerOptions, DiffOptions, Digest, ImageOptions, LayerOptions, MountOptions, Store, StoreOptions,
//! };
//! use tokio::io::AsyncReadExt;
//!
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! # let root = std::env::temp_dir().join(format!("graphroot-lib-doc-{}", std::process::id()));
//! let options = StoreOptions::new(root.join("graph"), root.join("run")).driver("vfs");
//! let options = options.driver_option("vfs.ignore_chown_errors=true"); // for who is not root
//! let store = Store::open(options).await?;
//!
//! let tar: Vec<u8> = vec![0; 1024]; // an empty archive; any AsyncRead will do, compressed or not
//! let put = store.put_layer(None, LayerOptions::default(), std::io::Cursor::new(tar.clone())).await?;
//! assert_eq!(put.layer.diff_digest(), Some(Digest::sha256(&tar)));
//!
//! let image = store.create_image(Some(put.layer.id()), ImageOptions::default().name("localhost/demo")).await?;
//! let container = store.create_container(Some(image.id()), ContainerOptions::default().name("demo")).await?;
//! let directory = store.mount_guard("demo", MountOptions::default()).await?;
//! # std::fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
//! std::fs::write(directory.join("hello"), "hello")?;
//! assert_eq!(store.changes(None, container.layer_id()).await?.len(), 1);
//!
//! let mut diff = Vec::new();
//! store.diff(None, put.layer.id(), DiffOptions::uncompressed()).await?.read_to_end(&mut diff).await?;
//! assert_eq!(diff, tar); // bit for bit
//! directory.unmount().await?;
//! # store.wipe().await?;
//! # store.shutdown().await?;
//! # std::fs::remove_dir_all(&root)?;
//! # Ok(())
//! # }
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
//! ```
//!
//! # What to rely on
//!
//! * **Sharing.** The locks are those that the Go library takes, so any number of processes of either kind can use
//!   one store at once. Formats are the Go library's; fields of records that this version does not know are kept.
//! * **Crashes and cancellation.** A future that is dropped, or a process that is killed, leaves a store that the
//!   next opener repairs by itself: nothing committed is lost, nothing half-done is visible. Each method says what
//!   dropping it means.
//! * **Power cuts.** By default a layer's content is on disk before its record is, see [`Durability`].
//! * **Hostile input.** Layer streams, names and metadata are taken for hostile: nothing is ever written outside the
//!   layer, whatever its entries are called.
//! * **Errors.** One [`Error`] with an [`ErrorKind`] to match on; `ErrorKind` has one variant for each sentinel
//!   error of the Go library.
//!
//! # Drivers
//!
//! The page [`drivers`] says what works for whom, rootless too, from which kernel on and with which options.
//!
//! # Whose things are touched
//!
//! Everybody who opens the same directories shares one store, Podman included. Two methods reach beyond what their
//! caller has made: [`Store::wipe`] deletes every container, image and layer of the store, and
//! [`Store::shutdown_force`] unmounts every layer, also under running containers of other processes. User text that
//! names something is best looked up with [`Store::image_by_name`] and its like: [`Store::image`] also takes the
//! beginning of an ID for the ID.
//!
//! # Features
//!
//! None is on by default.
//!
//! * `cli`: the command `graphroot`, a drop-in for `containers-storage`. A library has no use for it.
//! * `pull`: the module `oci`, images from registries, OCI layouts and archives into the store and out of it. Nothing
//!   of it, and none of its dependencies, is there without it.
//! * `test-util`: stores in temporary directories and small archives, for tests of programs that use a store.
//!
//! # Coming from Go
//!
//! Every method of the Go library's `Store` has its name in snake case on [`Store`]; the page [`coming_from_go`] has
//! the whole table.
//!
//! [tokio]: https://tokio.rs

#[doc = include_str!("coming_from_go.md")]
pub mod coming_from_go {}

#[doc = include_str!("drivers.md")]
pub mod drivers {}

mod archive;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod bridge;
pub mod compat;
mod compression;
pub mod config;
mod copy_content;
mod digest;
mod digest_reader;
mod driver;
mod error;
mod idmap;
mod json;
mod lock;
#[cfg(feature = "pull")]
pub mod oci;
mod options;
mod record;
#[cfg(test)]
mod skip;
mod store;
mod sys;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
mod time;
mod whiteout;

// The store, and what it is opened with.
pub use options::{
    BoxReader, ContainerBigData, ContainerOptions, DiffOptions, Durability, Flag, IdMappingOptions,
    ImageBigData, ImageOptions, LayerBigData, LayerOptions, MountOptions, MultiListOptions, Remap,
    StoreOptions,
};
pub use store::Store;

// What it holds.
pub use store::views::{Container, Image, Layer};

// What its methods give.
pub use archive::diff::changes::{Change, ChangeKind};
pub use lock::owners::LockOwner;
pub use store::big_data::{BigDataReader, ManifestDigest};
pub use store::commit::CommitOptions;
pub use store::diff_stream::DiffStream;
pub use store::digest_lock::{DigestLock, DigestLockGuard};
pub use store::graph_driver::{DiskUsage, DriverCapabilities, GraphDriver};
pub use store::image_builder::ImageBuilder;
pub use store::image_config::{History, ImageConfig, RunConfig};
pub use store::image_manifest::{Descriptor, ImageManifest};
pub use store::mount_guard::Mount;
pub use store::multi_list::MultiListResult;
pub use store::put_layer::PutLayer;
pub use store::sizes::ParentOwners;

// Content: digests, compression, owners, copies.
pub use compression::Compression;
pub use copy_content::{CopyEnd, copy_content};
pub use digest::Digest;
pub use digest_reader::DigestReader;
pub use idmap::{IdMap, IdMappings, Owner};

// Failures.
pub use error::{Error, ErrorKind, Result};

/// The README's example is compiled and run like every other.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
