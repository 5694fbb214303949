//! Labels of SELinux: how one is written, the pair that a container gets, and levels that no two containers share. Pure.
//!
//! Source of the formats and of what the options do: the library `opencontainers/selinux` (`go-selinux/label`), by which the
//! Go library labels containers.

mod label;
mod levels;

pub(crate) use label::{LabelPair, Policy};
pub(crate) use levels::Levels;
