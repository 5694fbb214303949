//! Tar streams in and out: compression, applying layers, the tar-split tape.

pub(crate) mod compression;
pub(crate) mod framing;
pub(crate) mod header;
pub(crate) mod pax;
pub(crate) mod sparse;
pub(crate) mod tar_split;
#[cfg(test)]
pub(crate) mod test_tar;
