//! graphroot keeps container *layers*, *images* and *containers* on disk, in the same store that Podman, Buildah,
//! Skopeo and CRI-O use, and at the same time as they do. It applies and produces layer diffs, mounts layers, and
//! shares one store with every other process. It is async, on [tokio]; nothing blocks the runtime's threads.
//!
//! Linux only, from 5.11 on. The driver `overlay` needs root or a user namespace, `vfs` works for ordinary users too; the build
//! needs a C compiler.
//!
//! # Start
//!
//! [`Store::open`] opens a store, [`Store::put_image_layer`] unpacks a layer blob into it, [`ImageBuilder`] makes an image
//! of layers, [`Store::create_container`] a container of an image, [`Store::mount_guard`] shows its files,
//! [`Store::commit`] makes an image of it, and [`Store::diff`] gets a layer out again.
//!
//! ```
//! use graphroot::{ContainerOptions, DiffOptions, Digest, ImageBuilder, MountOptions, Store, StoreOptions};
//! use tokio::io::AsyncReadExt as _;
//!
//! #[tokio::main(flavor = "current_thread")]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let home = std::env::temp_dir().join(format!("graphroot-doc-{}", std::process::id()));
//!     let options = StoreOptions::new(home.join("graph"), home.join("run"))
//!         .driver("vfs") // StoreOptions::default_for_user().await? has the roots of Podman 5.8
//!         .driver_option("vfs.ignore_chown_errors=true"); // without root all files belong to you
//!     let store = Store::open(options).await?;
//!
//!     let tar: Vec<u8> = vec![0; 1024]; // an empty archive; any AsyncRead will do, compressed or not
//!     let layer = store.put_image_layer(None, std::io::Cursor::new(tar.clone())).await?;
//!     assert_eq!(layer.uncompressed_digest(), Some(Digest::sha256(&tar)));
//!     let image = ImageBuilder::new().top_layer(layer.id()).name("localhost/demo:1").build(&store).await?;
//!
//!     let container = store.create_container(Some(image.id()), ContainerOptions::default()).await?;
//!     let root = store.mount_guard(container.id(), MountOptions::default()).await?;
//!     assert_eq!(std::fs::read_dir(&root)?.count(), 0);
//!     root.unmount().await?;
//!
//!     let mut diff = Vec::new();
//!     let mut stream = store.diff(None, layer.id(), DiffOptions::uncompressed()).await?;
//!     stream.read_to_end(&mut diff).await?;
//!     assert_eq!(diff, tar); // bit for bit
//!
//!     store.delete_container(container.id()).await?;
//!     store.delete_image(image.id()).await?; // and the layers that nothing else uses
//!     Ok(std::fs::remove_dir_all(&home)?)
//! }
//! ```
//!
//! # What to rely on
//!
//! * **Sharing.** The locks are those that the Go library takes, so any number of processes of either kind can use
//!   one store at once. Formats are the Go library's; fields of records that this version does not know are kept.
//! * **Crashes and cancellation.** A future that is dropped, or a process that is killed, leaves a store that the
//!   next opener repairs by itself: nothing committed is lost, nothing half-done is visible (but
//!   [`Store::apply_diff`] changes a layer that is mounted file by file). The section *Cancellation* of a method says
//!   what dropping its future does.
//! * **Power cuts.** By default what a record says is on disk before the record is, with every driver and on every file
//!   system. [`Durability`] tells what survives a cut right after success.
//! * **Hostile input.** Layer streams, names and metadata are treated as untrusted: nothing is ever written outside the
//!   layer, whatever its entries are called.
//! * **Errors.** One [`Error`] with an [`ErrorKind`] to match on; `ErrorKind` has one variant for each sentinel
//!   error of the Go library.
//!
//! # Drivers
//!
//! The page [`drivers`] says what works for whom, rootless too, from which kernel on and with which options. A program can
//! bring a driver of its own: the page [`tree_drivers`] says how.
//!
//! # Layers with a table of contents
//!
//! Layers can be written as zstd:chunked blobs, of which single files can be fetched. A [`ChunkedDiffer`] makes a layer of
//! such a blob and fetches only what no layer of the store has; it is the library's own [`Differ`], and pulls use it where
//! [`PartialPullOptions::enable_partial_images`] is set ([`StoreOptions::partial_pulls`], or `storage.conf`). A
//! [`ConvertingDiffer`] gives a layer a table that has none. The module [`chunked`] reads the tables of contents of such blobs
//! and of eStargz.
//!
//! # Whose things are touched
//!
//! All programs that open the same directories share one store, Podman included. Two methods reach beyond what their
//! caller has made: [`Store::wipe`] deletes every container, image and layer of the store, and
//! [`Store::shutdown_force`] unmounts every layer, also under running containers of other processes. User text that
//! names something is best looked up with [`Store::image_by_name`] and its like: [`Store::image`] also takes the
//! beginning of an ID for the ID.
//!
//! The directory `overlay` of a store becomes a mount point when a layer is mounted for the first time (unless the option
//! `overlay.skip_mount_home` is set): it cannot be deleted (`EBUSY`) until [`Store::shutdown`] or `graphroot shutdown` has
//! removed that mount.
//!
//! # Features
//!
//! None is on by default.
//!
//! * `cli`: the command `graphroot`, a drop-in for `containers-storage`. A library has no use for it.
//! * `pull`: the module `oci`, images from registries, OCI layouts, `dir:` directories and archives into the store and out of
//!   it. Nothing of it, and none of its dependencies, is there without it.
//! * `signatures`: signatures that `policy.json` wants of images are verified and kept with the images; brings `pull`. Without
//!   it, a pull refuses every image of which a signature is wanted.
//! * `test-util`: the module `test_util`, stores that unmount and remove themselves and a builder of tar archives, for
//!   tests of programs that use a store.
//! * `bench`, `fuzz`: what the benchmarks of the parts and the fuzz targets reach in by; no part of the API.
//!
//! # Debug builds
//!
//! cargo does not optimise dependencies in debug builds, so decompressing, hashing and copying take eight times as long.
//! The README has the lines for the `Cargo.toml` of your program that change that.
//!
//! # Coming from Go
//!
//! All 89 methods of the Go library's `Store` have their names in snake case on [`Store`]; the page
//! [`coming_from_go`] has the whole table.
//!
//! [tokio]: https://tokio.rs

#[doc = include_str!("coming_from_go.md")]
pub mod coming_from_go {}

#[doc = include_str!("drivers.md")]
pub mod drivers {}

#[doc = include_str!("tree_drivers.md")]
pub mod tree_drivers {}

mod archive;
#[cfg(feature = "bench")]
#[doc(hidden)]
pub mod bench;
mod bridge;
pub mod chunked;
pub mod compat;
mod compression;
pub mod config;
mod copy_content;
mod digest;
mod digest_reader;
mod driver;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod idmap;
mod json;
mod lock;
#[cfg(feature = "pull")]
pub mod oci;
mod options;
mod record;
mod selinux;
#[cfg(test)]
mod skip;
mod store;
mod sys;
#[cfg(any(test, feature = "test-util"))]
pub mod test_util;
mod time;
mod tree_driver;
mod whiteout;

// The store, and what it is opened with.
pub use options::{
    AutoUserNs, BoxReader, CheckEvent, CheckOptions, ContainerBigData, ContainerOptions, DedupHashMethod,
    DedupOptions, DiffOptions, Durability, Flag, IdMappingOptions, ImageBigData, ImageOptions, LayerBigData,
    LayerOptions, MountOptions, MultiListOptions, PartialPullOptions, Remap, RepairOptions, StoreOptions,
};
pub use store::Store;
pub use tree_driver::TreeDriver;

// What it holds.
pub use store::views::{Container, Image, Layer};

// What its methods give.
pub use archive::diff::changes::{Change, ChangeKind};
pub use archive::verify::difference::{AttributeChange, Difference, DifferenceKind};
pub use lock::owners::LockOwner;
pub use store::additional_layer::{AdditionalBlob, AdditionalLayer};
pub use store::big_data::{BigDataReader, ManifestDigest};
pub use store::check::finding::{CheckedItem, DataProblem, Finding, ItemKind, Problem};
pub use store::check::rebuild::damage::RecordDamage;
pub use store::check::rebuild::report::{RebuiltRecord, ReplacedFile};
pub use store::check::repair_report::{Kept, KeptReason, RepairFailure, RepairReport};
pub use store::check::report::{CheckReport, StoreProblem};
pub use store::check::strays::{Stray, StrayKind};
pub use store::chunked_differ::{ChunkedDiffer, Savings};
pub use store::commit::CommitOptions;
pub use store::converting_differ::ConvertingDiffer;
pub use store::copy_to::options::{CopyEvent, CopyOptions};
pub use store::copy_to::report::{CopiedItem, CopyReport, DifferentItem, LostContent};
pub use store::dedup::DedupResult;
pub use store::diff_stream::DiffStream;
pub use store::digest_lock::{DigestLock, DigestLockGuard};
pub use store::graph_driver::{DiskUsage, DriverCapabilities, GraphDriver};
pub use store::heal::options::{HealEvent, HealOptions};
pub use store::heal::report::{HealFailure, HealReport, Healed, HealedHow, NotHealed};
pub use store::heal::source::{BlobParts, HealSource, WantedContent, WantedDocument, WantedImage};
pub use store::image_builder::ImageBuilder;
pub use store::image_config::{History, ImageConfig, RunConfig};
pub use store::image_manifest::{Descriptor, ImageManifest};
pub use store::mount_guard::Mount;
pub use store::multi_list::MultiListResult;
pub use store::put_layer::PutLayer;
pub use store::sizes::ParentOwners;
pub use store::stage::area::StagedContent;
pub use store::stage::differ::{Differ, StagingArea};
pub use store::stage::differ_output::DifferOutput;
pub use store::staged_layers::{StagedLayer, StagingOptions};
pub use store::temporary_directory::TemporaryDirectory;
pub use store::userns::sub_id_mappings;

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
