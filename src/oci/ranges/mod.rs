//! Ranges of blobs: of registries, and of the files of layouts and archives.
//!
//! [`RegistryBlob`] reads them from a registry: `transfer` cuts the ranges into requests (`wanted`) and has several of
//! them in flight (`request`); their answers are taken apart in order (`answer`, `multipart`). A [`MeteredBlob`] is
//! another source whose bytes are counted.

mod answer;
mod metered_blob;
mod multipart;
mod registry_blob;
mod request;
mod transfer;
mod wanted;

pub(crate) use metered_blob::MeteredBlob;
pub(crate) use registry_blob::RegistryBlob;
