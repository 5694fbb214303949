//! Tar streams in and out: compression, applying layers, the tar-split tape.

pub(crate) mod apply;
mod aufs;
pub(crate) mod compression;
mod deletions;
mod durable;
mod extract;
pub(crate) mod framing;
pub(crate) mod header;
mod ledger;
mod metadata;
mod parents;
mod path;
mod pax;
mod payload;
mod prune;
mod seen;
mod sent;
mod sparse;
mod tape;
pub(crate) mod tar_split;
#[cfg(test)]
pub(crate) mod test_tar;
#[cfg(test)]
mod tests;
