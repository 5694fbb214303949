//! tar-split: everything of a tar stream that is no file content, so that the stream can be reproduced bit for bit.

pub(crate) mod crc;
pub(crate) mod format;
pub(crate) mod recorder;
pub(crate) mod replay;
