//! graphroot (under construction)
pub(crate) mod bridge;
pub mod error;
pub mod idmap;
pub(crate) mod sys;
pub(crate) mod whiteout;
