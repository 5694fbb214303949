//! Tar streams in and out: compression, applying layers, the tar-split tape.

pub(crate) mod changes;
pub(crate) mod compression;
pub(crate) mod export;
pub(crate) mod framing;
pub(crate) mod header;
mod lookup;
mod lowers;
mod path;
pub(crate) mod pax;
pub(crate) mod replay;
pub(crate) mod sink;
pub(crate) mod sparse;
pub(crate) mod tar_split;
mod tar_writer;
#[cfg(test)]
pub(crate) mod test_tar;
mod walk;
