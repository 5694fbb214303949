//! Named data of layers, images and containers, on disk beside their records.

mod containers;
mod images;
mod item;
mod layers;
mod reader;

pub use images::ManifestDigest;
pub use reader::BigDataReader;
