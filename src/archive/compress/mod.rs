//! Decoding what comes in, compressing what goes out.

pub(crate) mod blob_reader;
pub(crate) mod buffers;
pub(crate) mod decode;
mod deflate_blocks;
pub(crate) mod format;
pub(crate) mod gzip;
pub(crate) mod hash_queue;
mod pace;
pub(crate) mod parallel;
pub(crate) mod stream_hash;
pub(crate) mod zstd_frames;
