//! Options: what callers say when they open a store, create something in it or ask it something.
//!
//! All structs are `Default`, have public fields, and for each field a setter that can be chained. A setter named in the
//! singular (`name`) adds one item to a list, one named in the plural (`names`) adds several. All of them can be
//! serialised; the names are those of the fields, and what is missing is the default.

mod auto_userns;
mod base64_bytes;
pub(crate) mod check;
pub(crate) mod container;
mod dedup;
pub(crate) mod diff;
pub(crate) mod driver;
pub(crate) mod flag;
pub(crate) mod id_mapping;
pub(crate) mod image;
pub(crate) mod layer;
pub(crate) mod mount;
pub(crate) mod multi_list;
mod partial_pull;
pub(crate) mod store;

pub use auto_userns::AutoUserNs;
pub use check::{CheckEvent, CheckOptions, RepairOptions};
pub use container::{ContainerBigData, ContainerOptions};
pub use dedup::{DedupHashMethod, DedupOptions};
pub use diff::DiffOptions;
pub use flag::Flag;
pub use id_mapping::IdMappingOptions;
pub use image::{ImageBigData, ImageOptions};
pub use layer::{BoxReader, LayerBigData, LayerOptions};
pub use mount::MountOptions;
pub use multi_list::MultiListOptions;
pub use partial_pull::PartialPullOptions;
pub use store::{Durability, Remap, StoreOptions};
