//! Images from registries, OCI layouts and archives into the store, and out of it. (Feature `pull`.)
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
//! # What to rely on
//!
//! * **Each layer once.** Layers that the store has are not fetched, nor are those that another task or process is
//!   fetching at this moment: it is waited for, and if it fails or dies, the next one takes over.
//! * **Streams.** A blob flows from the connection into the unpacker; it touches the disk only as the layer's files.
//!   Layers are unpacked side by side, also those of one image, and become visible from the bottom up.
//! * **Verified.** Manifests, configs, blobs and their uncompressed forms have the digests that they should have, or
//!   nothing of them is kept.
//! * **Interruptions.** Connections that break are made again from where they broke. With
//!   [`PullOptions::keep_partial`] a pull that was killed goes on where it was, too.
//! * **Records.** What is written is what Podman writes when it pulls the same image: IDs, names, digests, manifests.
//!   Either side reuses the other's layers.

mod archive_destination;
mod archive_writer;
mod auth;
mod context;
mod destination;
mod docker_archive;
mod document;
mod download;
mod files;
mod layers;
mod layout;
mod layout_writer;
mod manifest;
mod options;
mod partial;
mod platform;
mod progress;
mod puller;
mod push;
mod reference;
mod registry;
mod registry_options;
mod repository;
mod response;
mod retry;
mod sign_in;
mod source;
mod spool;
mod tarball;
mod tls;
mod upload;

pub use options::{PullOptions, PushOptions};
pub use platform::Platform;
pub use progress::{BlobState, Event, Events, ImageState, Progress};
pub use puller::{Pulled, Puller};
pub use push::{Pushed, push};
pub use reference::{ImageRef, RegistryRef};
pub use registry_options::{ClientIdentity, Credentials, RegistryOptions, TlsOptions, Transport};
