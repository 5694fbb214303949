//! graphroot (under construction)
pub(crate) mod archive;
pub(crate) mod bridge;
pub mod digest;
pub(crate) mod driver;
pub mod error;
pub mod idmap;
pub(crate) mod lock;
pub(crate) mod record;
pub(crate) mod sys;
pub(crate) mod whiteout;
