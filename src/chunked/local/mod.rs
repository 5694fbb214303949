//! Contents that are on this machine already: in other layers, and in OSTree repositories.
//!
//! [`LocalContent`] finds them by digest, in the [cache files](crate::chunked::cache) of layers. What it finds may be
//! gone or another content by the time it is read: whoever reads it verifies what is made of it.

mod content;
mod layer;
#[cfg(test)]
mod measure;
mod open_files;
mod ostree;
mod parents;
mod place;
#[cfg(test)]
mod tests;

pub(crate) use content::{LayerTrees, Layers, LocalContent};
pub(crate) use layer::{LocalLayer, NoCache, open_regular};
pub(crate) use place::Place;
