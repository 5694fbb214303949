//! Images from registries, OCI layouts, directories and archives into the store, and out of it. (Feature `pull`.)
//!
//! A [`Puller`] pulls any number of images into one store at once:
//!
//! ```no_run
//! # async fn demo(store: graphroot::Store) -> graphroot::Result<()> {
//! use graphroot::oci::{ImageRef, PullOptions, Puller};
//! let puller = Puller::new(&store, PullOptions::default());
//! let images: [ImageRef; 2] = ["docker://registry.example/app:1".parse()?, "oci:/var/tmp/layout".parse()?];
//! for pulled in puller.pull_all(&images).await {
//!     println!("{}", pulled?.image.id());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! The default options accept any image, and know neither `registries.conf` nor `certs.d`. With what is configured on this
//! machine for Podman:
//!
//! ```no_run
//! # async fn demo() -> graphroot::Result<()> {
//! use graphroot::oci::{Policy, PullOptions, RegistryOptions};
//! let options = PullOptions::default()
//!     .policy(Policy::load().await?)
//!     .registry(RegistryOptions::default_for_user().await?);
//! # drop(options);
//! # Ok(())
//! # }
//! ```
//!
//! # What to rely on
//!
//! * **Each layer once.** A layer that the store has is not fetched. One that another task or process is fetching is
//!   waited for; if that fails or dies, the next one takes over.
//! * **Streams.** A blob is unpacked while it is downloaded and is not written to disk itself. The layers of an image
//!   are unpacked concurrently and become visible from the bottom up. Archives that are compressed as a whole, and
//!   compressed layers of `docker-archive:`, are decompressed into a temporary file first; and the layers of an image whose
//!   config does not name their diff IDs are transferred twice if the store does not have them.
//! * **In part.** Where the store's options ask for it
//!   ([`enable_partial_images`](crate::PartialPullOptions::enable_partial_images)), of a layer with a table of contents only
//!   the files are fetched that no layer of the store has. What comes out is the same, digests verified included. If that
//!   is not possible, the layer is pulled as a whole, and an event of `tracing` says why. With
//!   [`insecure_allow_unpredictable_image_contents`](crate::PartialPullOptions::insecure_allow_unpredictable_image_contents)
//!   that holds for layers, too, of which nobody can know the diff ID, such as all of eStargz.
//! * **Verified.** The digests of manifests, configs, blobs and uncompressed layers are verified; nothing is kept of
//!   what does not match.
//! * **Resumable downloads.** After a broken connection, a download is resumed at the first missing byte. With
//!   [`PullOptions::keep_partial`] this holds for a pull that was killed, too.
//! * **Parts of blobs.** [`Puller::blob_source`] reads ranges of a blob with few requests, several of them in flight, and
//!   says if a registry does not serve them.
//! * **Records.** A pull writes what Podman writes when it pulls the same image: IDs, names, digests, manifests. Either
//!   side reuses the other's layers.
//! * **Additional layer stores.** A layer with a table of contents that such a store offers for the image in a registry, and
//!   says to have the diff ID of, is used from there: see the page on [`drivers`](crate::drivers). Nothing is transferred
//!   and nothing unpacked for it.
//! * **Podman's configuration.** [`RegistryOptions::default_for_user`] reads `registries.conf` (mirrors, short names,
//!   registries that are blocked or insecure) and `certs.d`, and [`Policy::load`] `policy.json`. A download that fails at a
//!   mirror goes on elsewhere at the first missing byte.
//! * **Signatures.** With the feature `signatures` those that the policy wants are verified before anything of the image but
//!   its manifest is read, and those that an image has are kept as Podman keeps them. What cannot be verified is refused; so
//!   is everything of which a signature is wanted without the feature. [`Policy`] says what that is. Pushes leave signatures
//!   behind, and make none.
//! * **Logging in.** [`CredentialStore`] reads and changes what `podman login` keeps, in files and with credential helpers;
//!   [`check_credentials`] asks a registry. Pulls and pushes look in the same places.
//! * **No global state.** Credentials, TLS and time limits come with the options; no TLS implementation is chosen for
//!   the whole process.
//!
//! [`push()`] is the way out: to registries, layouts, directories and archives.

mod archive_destination;
mod archive_writer;
mod auth;
mod auth_file;
mod blob_files;
mod certificates;
mod challenge;
mod configured;
mod content_range;
mod context;
mod credential_helper;
mod credential_store;
mod destination;
mod diff_ids;
mod directory;
mod directory_writer;
mod docker_archive;
mod download;
mod files;
mod image_layers;
mod index;
mod layer_job;
mod layers;
mod layout;
mod layout_writer;
mod login;
mod manifest;
mod meter;
mod offered;
mod options;
mod partial;
mod places;
mod platform;
mod policy;
mod progress;
mod proxies;
mod puller;
mod push;
mod range_limits;
mod ranges;
mod reference;
mod registries_conf;
mod registry;
mod registry_name;
mod registry_options;
mod repository;
mod requirement;
mod response;
mod retry;
mod sign_in;
#[cfg(feature = "signatures")]
mod signatures;
mod signed_identity;
mod source;
mod spool;
mod tarball;
mod tls;
mod unique_json;
mod upload;
mod wanted;

pub use credential_store::CredentialStore;
pub use image_layers::ImageLayers;
pub use login::check_credentials;
pub use options::{PullOptions, PushOptions};
pub use platform::Platform;
pub use policy::Policy;
pub use progress::{BlobState, Event, Events, ImageState, Progress};
pub use proxies::Proxies;
pub use puller::{Pulled, Puller};
pub use push::{Pushed, push};
pub use reference::{ImageRef, RegistryRef};
pub use registries_conf::{PullSource, RegistriesConf, ShortNameMode};
pub use registry_options::{ClientIdentity, Credentials, RegistryOptions, TlsOptions, Transport};
#[cfg(feature = "signatures")]
pub use signatures::storage::SignatureStorage;
