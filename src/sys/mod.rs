//! Every system call that needs more than a line, and all unsafe code of the crate.

pub(crate) mod at;
pub(crate) mod atomic;
pub(crate) mod mount;
pub(crate) mod ofd;
pub(crate) mod privilege;
pub(crate) mod tree;
pub(crate) mod userns;
pub(crate) mod xattr;
