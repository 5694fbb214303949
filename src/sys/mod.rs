//! Every system call that needs more than a line, and all unsafe code of the crate.

pub(crate) mod at;
pub(crate) mod xattr;
