//! Tar streams in and out: compression, applying layers, the tar-split tape.

pub(crate) mod tar_split;
