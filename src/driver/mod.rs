//! Storage drivers: how the files of layers are stored and mounted.
//!
//! [`contract`] is what every driver does, [`select`] chooses one, and `conformance` tests each of them in the same way.

mod btrfs;
mod config;
#[cfg(test)]
pub(crate) mod conformance;
mod contract;
mod copy;
mod copy_data;
mod copy_entry;
mod copy_walk;
mod filesystem_type;
#[cfg(test)]
mod go_tests;
mod home_state;
mod layer_copy;
mod layer_id;
mod layer_use;
mod mount_flags;
mod new_owners;
pub(crate) mod options;
mod overlay;
mod program;
mod project_quotas;
mod quota;
pub(crate) mod select;
mod staged_tree;
mod temporary_mount;
mod tree_adapter;
mod tree_home;
mod unpack_dir;
mod update;
mod vfs;
mod zfs;

pub use crate::driver::contract::{DiskUsage, DriverCapabilities};

pub(crate) use crate::driver::config::DriverConfig;
pub(crate) use crate::driver::contract::{
    CreateOptions, Driver, FoundLayer, LayerTree, Leftover, LeftoverKind, MountOptions, MountState,
    OverlayDiff, Staged, Standing, StandingDamage,
};
pub(crate) use crate::driver::copy::copy_mount;
pub(crate) use crate::driver::layer_copy::{Copied, LayerCopy};
pub(crate) use crate::driver::layer_id::{check_id, is_usual_id};
pub(crate) use crate::driver::layer_use::LayerUse;
pub(crate) use crate::driver::new_owners::NewOwners;
pub(crate) use crate::driver::update::{
    Loss, NewTree, OwnFiles, Remaps, ShownTree, Trial, difference, remap, update,
};
