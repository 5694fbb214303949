//! What tests of programs that use a store need: a store that cleans up after itself, and layer archives to
//! build and to look into. For those who write a driver: tests of what a [`TreeDriver`](crate::TreeDriver) promises.
//!
//! Behind the feature `test-util`. A program turns it on for its tests:
//!
//! ```toml
//! [dev-dependencies]
//! graphroot = { version = "0.1", features = ["test-util"] }
//! ```
//!
//! ```
//! use graphroot::test_util::{TarBuilder, TempStore};
//! use graphroot::{ContainerOptions, ImageBuilder, MountOptions};
//!
//! # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
//! let store = TempStore::new().await?;
//! let tar = TarBuilder::new().dir("etc").file("etc/name", "test").build();
//! let layer = store.put_image_layer(None, std::io::Cursor::new(tar)).await?;
//! let image = ImageBuilder::new().top_layer(layer.id()).build(&store).await?;
//! let container = store.create_container(Some(image.id()), ContainerOptions::default()).await?;
//! let root = store.mount_guard(container.id(), MountOptions::default()).await?;
//! assert_eq!(std::fs::read_to_string(root.join("etc/name"))?, "test");
//! # Ok(())
//! # } // unmounted and removed here
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(demo()).unwrap();
//! ```

mod read_tar;
mod tar;
mod temp_store;
mod tree_driver;

pub use read_tar::{ReadEntry, read_tar};
pub use tar::{TarBuilder, TarEntry, pax_record};
pub use temp_store::TempStore;
pub use tree_driver::{BrokenPromise, TreePromise, check_tree_driver};
