//! A [`Driver`](crate::driver::Driver) on top of a [`TreeDriver`](crate::tree_driver::TreeDriver), which belongs to a program
//! that uses this library.
//!
//! ```text
//! <graph root>/NAME/           0700
//!   .graphroot-tree-driver     says that the directory is one of such a driver
//!   dir/ID/                    the complete tree of a layer; writable also for layers of images
//!   tempdirs/                  staged and deleted trees, each with its lock
//! ```
//!
//! Every tree is made in `tempdirs` and renamed to its place, and is deleted in `tempdirs` after a rename: what is in `dir` is
//! always whole, and whatever the driver does when a process is killed, the next opening finds the lock free and
//! has the driver delete what is there.

mod calls;
mod driver;
mod state;

pub(super) use calls::Calls;
pub(super) use state::{TreeAdapter, marked_homes};
