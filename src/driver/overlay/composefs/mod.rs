//! composefs: layers whose contents are stored by their digests, below an image of the tree.
//!
//! ```text
//! <layer ID>/diff/<2 digits>/<62 digits>   0000  a content, by its SHA-256 sum; verified by the kernel (fs-verity) where the
//!                                                file system can do that
//! <layer ID>/composefs-data/               0700
//!   composefs.blob                         0644  an EROFS image of the tree: everything but contents, of which it says where
//!                                                they are, and their fs-verity digests
//! ```
//!
//! A layer is one of these because it has the directory, whatever the driver's options say. With the option
//! `use_composefs` layers that are put together from parts become such ones: they are unpacked as all others and fitted to
//! the layers below; then [`convert()`] moves contents to their places and writes the image. So the tree is that of an ordinary layer,
//! whiteouts included. An image is part of an overlay mount as a plain directory is: deletions and opaque directories are in it in the
//! kernel's form, as in a directory. (The Go library hands the table of contents to the program `mkcomposefs`, which makes
//! images that show such marks instead of acting on them; it has no way to write deletions.)
//!
//! The image is written by [`erofs`], byte for byte as `mkcomposefs` does it, and not by that program or by the crate
//! `composefs`: both hide marks of overlayfs from the kernel, and the crate names contents by their fs-verity
//! digests, which the Go library does not, and which not every file system has.
//!
//! A mount attaches each image below `composefs-layers/` while it is made ([`images`]); the directories of contents are
//! data-only layers at its bottom; before Linux 6.5 each is the layer below its image.

mod convert;
mod erofs;
mod image;
mod images;
mod layout;
mod name_hash;
mod node;
#[cfg(test)]
mod tests;

pub(super) use convert::{Converted, convert};
pub(super) use image::{Image, is_supported, open_root};
pub(super) use images::Images;
