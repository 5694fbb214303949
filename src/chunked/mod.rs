//! Layer blobs with a table of contents, of which single files can be fetched.

pub(crate) mod annotations;
pub(crate) mod writer;
