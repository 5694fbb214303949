//! Stub.
pub(crate) mod temp_dir;
