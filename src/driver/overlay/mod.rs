//! The overlay driver: a layer is a directory of changes, put on top of those below by the kernel's overlayfs.
//!
//! [`layout`] shows what is on disk, [`build`] and [`staged`] how it comes there, [`mounting`] how it is mounted;
//! [`composefs`] is about layers with an image of their tree.
//!
//! Where the kernel cannot mount layers a mount program does ([`program`]): if the option names one, if the store has
//! been used with one before, or if the kernel's overlay does not work here and the program is installed. Without a
//! program whiteouts are in the kernel's form, with one they are files as in the layer's tar stream: the program may be
//! used because the user cannot make devices.
//!
//! Locks: as [`crate::driver::contract`] says. In addition, a mutex of this process is held while a layer is mounted or
//! unmounted, because uses are counted per process.

mod additional_layers;
mod build;
mod composefs;
mod driver;
mod examine;
mod id_mapped;
mod layer;
mod layout;
mod link_files;
mod lower_mounts;
mod lower_stack;
mod mount;
mod mounting;
mod open;
mod owners;
mod private_mount;
mod probe;
mod program;
mod program_traces;
mod repair;
mod staged;
mod state;
mod stores;
mod survey;
#[cfg(test)]
mod tests;

pub(crate) use crate::driver::overlay::state::Overlay;
