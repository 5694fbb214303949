//! The type of the file system that a driver's directory is on.

use std::path::Path;

use crate::error::{IoContext as _, Result};

/// The type of a file system, as `statfs` returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilesystemType(i128);

/// Names as reports show them.
const NAMES: [(i128, &str); 20] = [
    (0x6175_6673, "aufs"),
    (0x9123_683e, "btrfs"),
    (0x28cd_3d45, "cramfs"),
    (0xf15f, "ecryptfs"),
    (0xe0f5_e1e2, "erofs"),
    (0xef53, "extfs"),
    (0xf2f5_2010, "f2fs"),
    (0x4750_4653, "gpfs"),
    (0x72b6, "jffs2"),
    (0x3153_464a, "jfs"),
    (0x6969, "nfs"),
    (0x794c_7630, "overlayfs"),
    (0x8584_58f6, "ramfs"),
    (0x5265_4973, "reiserfs"),
    (0x517b, "smb"),
    (0x7371_7368, "squashfs"),
    (0x0102_1994, "tmpfs"),
    (0xa501_fcf5, "vxfs"),
    (0x5846_5342, "xfs"),
    (0x2fc1_2fc1, "zfs"),
];

/// Network file systems on which overlay does not work in a user namespace: nfs, smb, acfs, afs, ceph, cifs, gpfs,
/// ibrix, kafs, lustre, ncp, nfsd, ocfs2, panfs, prlfs, smb2, snfs, vboxsf, vxfs.
const NETWORK: [i128; 19] = [
    0x6969,
    0x517b,
    0x6163_6673,
    0x5346_414f,
    0x00c3_6400,
    0xff53_4d42,
    0x4750_4653,
    0x0131_11a8,
    0x6b41_4653,
    0x0bd0_0bd0,
    0x564c,
    0x6e66_7364,
    0x7461_636f,
    0xaad7_aaea,
    0x7c7c_6673,
    0xfe53_4d42,
    0xbeef_dead,
    0x786f_4256,
    0xa501_fcf5,
];

impl FilesystemType {
    /// The type of the file system of `path`.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let stat = rustix::fs::statfs(path).at("looking up the file system of", path)?;
        // The field is signed on some architectures; only its low half is the type.
        Ok(Self(i128::from(stat.f_type) & 0xffff_ffff))
    }

    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        NAMES
            .iter()
            .find(|(magic, _name)| *magic == self.0)
            .map_or("<unknown>", |(_magic, name)| name)
    }

    /// Whether overlay cannot work on it at all.
    pub(super) fn refuses_overlay(self) -> bool {
        matches!(self.name(), "aufs" | "overlayfs" | "ecryptfs")
    }

    /// Whether it is a network file system.
    pub(super) fn is_network(self) -> bool {
        NETWORK.contains(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_names() {
        assert_eq!(FilesystemType(0xef53).name(), "extfs");
        assert_eq!(FilesystemType(1).name(), "<unknown>");
        assert!(
            FilesystemType(0x794c_7630).refuses_overlay() && !FilesystemType(0x5846_5342).refuses_overlay()
        );
        assert!(FilesystemType(0xfe53_4d42).is_network() && !FilesystemType(0xef53).is_network());
        assert_ne!(
            FilesystemType::of(Path::new("/proc")).unwrap(),
            FilesystemType::of(Path::new("/dev")).unwrap()
        );
    }
}
