//! Two trees, or an overlay diff, become a list of changes or a tar stream.

pub(crate) mod changes;
pub(crate) mod export;
pub(crate) mod lowers;
pub(crate) mod walk;
