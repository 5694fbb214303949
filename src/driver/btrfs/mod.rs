//! The btrfs driver: every layer is a subvolume, and one on a parent begins as a snapshot of it, which takes no space and no
//! time that grows with its content.
//!
//! ```text
//! <graph root>/btrfs/          0700, on a btrfs
//!   subvolumes/ID/             a subvolume: the complete tree of the layer; writable also for layers of images
//!   quotas/ID                  the limit of a container's layer: bytes, as decimal digits
//!   tempdirs/                  staged and deleted subvolumes, each with its lock
//! ```
//!
//! The form is that of the Go library, which has no `tempdirs`: it neither looks into it nor removes it. A layer is mounted by
//! telling its path. Everything goes through the kernel's interface; no program is started.
//!
//! A layer whose owners differ from those of its parent is a snapshot that gets other owners, file by file, in `tempdirs`;
//! so is what is unpacked. Both are then renamed to their places. A crash leaves a whole subvolume, or a temporary
//! directory that the next open removes. What a layer without other owners is made of has no record yet that says it is
//! complete, and is replaced or removed.
//!
//! Making subvolumes and snapshots of one's own takes no privilege. Destroying one as a whole and limits on space take
//! `CAP_SYS_ADMIN` in the initial user namespace: elsewhere subvolumes are removed file by file, and limits are refused.

mod driver;
mod home;
mod limits;
mod state;
#[cfg(test)]
mod tests;

pub(super) use state::Btrfs;
