//! The driver options of the drivers.

use std::path::PathBuf;

use crate::driver::quota::Quota;
use crate::error::Result;
use crate::options::driver::{LayerStore, OptionString, ram_in_bytes};

/// Options of the overlay driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OverlayOptions {
    /// Mount options, joined by commas, used where the caller has none.
    pub(super) mount_options: String,
    /// Leave the driver's directory as it is instead of making it a private mount.
    pub(super) skip_mount_home: bool,
    /// Default quota of containers' layers, in bytes; 0 is none.
    pub(super) size: u64,
    /// Default quota of containers' layers, in inodes; 0 is none.
    pub(super) inodes: u64,
    /// Roots of additional image stores.
    pub(super) image_stores: Vec<PathBuf>,
    /// Additional layer stores.
    pub(super) layer_stores: Vec<LayerStore>,
    /// Go on when an owner cannot be set.
    pub(super) ignore_chown_errors: bool,
    /// Sync the whole file system before records are saved.
    pub(super) sync_filesystem: bool,
    /// The program that mounts layers in place of the kernel (fuse-overlayfs).
    pub(super) mount_program: Option<PathBuf>,
    /// Layers that are put together from parts have their contents stored by digests, below an image of the tree.
    pub(super) use_composefs: bool,
    /// Mode of every file; owners, types and real modes are kept in an attribute.
    pub(super) force_mask: Option<u32>,
}

impl OverlayOptions {
    /// The limits of containers' layers that have no others.
    pub(super) fn quota(&self) -> Quota {
        let limit = |limit| Some(limit).filter(|limit| *limit > 0);
        Quota {
            size: limit(self.size),
            inodes: limit(self.inodes),
        }
    }

    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "overlay" | "overlay2") {
                continue;
            }
            match option.key.as_str() {
                "override_kernel_check" => tracing::debug!("driver option {:?} has no effect", option.whole),
                "mountopt" => option.value.clone_into(&mut parsed.mount_options),
                "size" => {
                    parsed.size = ram_in_bytes(option.value)
                        .ok_or_else(|| option.invalid(&format!("invalid size: '{}'", option.value)))?;
                }
                "inodes" => {
                    parsed.inodes = option
                        .value
                        .parse()
                        .map_err(|error: std::num::ParseIntError| option.unparsed(&error.to_string()))?;
                }
                "imagestore" | "additionalimagestore" => {
                    parsed.image_stores.extend(option.directories(true)?);
                }
                "skip_mount_home" => parsed.skip_mount_home = option.boolean()?,
                "ignore_chown_errors" => parsed.ignore_chown_errors = option.boolean()?,
                "sync" => parsed.sync_filesystem = option.sync()?,
                "use_composefs" => parsed.use_composefs = option.boolean()?,
                "mount_program" => parsed.mount_program = option.program()?,
                "force_mask" => parsed.force_mask = option.mask()?,
                "additionallayerstore" => parsed.layer_stores.extend(option.layer_stores()?),
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
}

/// Options of the vfs driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct VfsOptions {
    /// Roots of additional image stores.
    pub(super) image_stores: Vec<PathBuf>,
    /// Go on when an owner cannot be set.
    pub(super) ignore_chown_errors: bool,
    /// Sync the whole file system before records are saved.
    pub(super) sync_filesystem: bool,
}

impl VfsOptions {
    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "vfs") {
                continue;
            }
            match option.key.as_str() {
                "imagestore" | "additionalimagestore" => {
                    parsed.image_stores.extend(option.directories(false)?);
                }
                "ignore_chown_errors" => parsed.ignore_chown_errors = option.boolean()?,
                // Compat: the Go library reads this option only with its prefix twice, `vfs.vfs.sync` or `vfs..sync`.
                "sync" | ".sync" | "vfs.sync" => parsed.sync_filesystem = option.sync()?,
                "mountopt" => return Err(option.invalid("vfs driver does not support mount options")),
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
}

/// Options of the btrfs driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct BtrfsOptions {
    /// Smallest limit that a layer may get, in bytes.
    pub(super) min_space: Option<u64>,
    /// Default limit of containers' layers, in bytes; 0 is none.
    pub(super) size: Option<u64>,
    /// Roots of additional image stores.
    pub(super) image_stores: Vec<PathBuf>,
}

impl BtrfsOptions {
    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "btrfs") {
                continue;
            }
            let bytes = || {
                let bytes = ram_in_bytes(option.value);
                bytes.ok_or_else(|| option.invalid(&format!("invalid size: '{}'", option.value)))
            };
            match option.key.as_str() {
                "min_space" => parsed.min_space = Some(bytes()?),
                "size" => parsed.size = Some(bytes()?),
                // The Go library has no such option for this driver.
                "imagestore" | "additionalimagestore" => {
                    parsed.image_stores.extend(option.directories(false)?);
                }
                "mountopt" => return Err(option.invalid("btrfs driver does not support mount options")),
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
}

/// Options of the zfs driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ZfsOptions {
    /// The dataset below which those of layers are; empty for the one that the graph root is in.
    pub(super) dataset: String,
    /// Mount options, joined by commas, used where the caller has none.
    pub(super) mount_options: String,
    /// Default limit of containers' layers, in bytes; 0 is none.
    pub(super) size: u64,
}

impl ZfsOptions {
    /// Reads the options that are for this driver.
    pub(super) fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self::default();
        for option in options {
            let option = OptionString::parse(option)?;
            if !matches!(option.driver.as_str(), "" | "zfs") {
                continue;
            }
            match option.key.as_str() {
                "fsname" => option.value.clone_into(&mut parsed.dataset),
                "mountopt" => option.value.clone_into(&mut parsed.mount_options),
                // The Go library's configuration has this option, but its driver refuses it.
                "size" => {
                    parsed.size = ram_in_bytes(option.value)
                        .ok_or_else(|| option.invalid(&format!("invalid size: '{}'", option.value)))?;
                }
                _ => return Err(option.unknown()),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn overlay(options: &[&str]) -> Result<OverlayOptions> {
        OverlayOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn vfs(options: &[&str]) -> Result<VfsOptions> {
        VfsOptions::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn options_reach_the_driver_that_they_are_for() {
        let parsed = overlay(&[
            "mountopt = nodev,metacopy=on ",
            "OVERLAY.SYNC=FileSystem",
            "overlay2.skip_mount_home=T",
        ]);
        let parsed = parsed.unwrap();
        assert_eq!(parsed.mount_options, "nodev,metacopy=on");
        assert!(parsed.sync_filesystem && parsed.skip_mount_home && !parsed.ignore_chown_errors);
        assert_eq!(
            overlay(&["vfs.nonsense=1", "btrfs.min_space=1"]).unwrap(),
            OverlayOptions::default()
        );
        assert!(overlay(&[".ignore_chown_errors=1"]).unwrap().ignore_chown_errors);
        for spelling in ["vfs.sync", "sync", "vfs..sync", "vfs.vfs.sync"] {
            assert!(
                vfs(&[&format!("{spelling}=filesystem")]).unwrap().sync_filesystem,
                "{spelling}"
            );
        }
    }

    #[test]
    fn what_is_unknown_or_cannot_be_done_is_refused_by_name() {
        let cases = [
            ("overlay.nonsense=1", ErrorKind::InvalidInput),
            ("nonsense=1", ErrorKind::InvalidInput),
            ("aufs.x=1", ErrorKind::InvalidInput),
            ("overlay.mountopt", ErrorKind::InvalidInput),
            ("overlay.sync=always", ErrorKind::InvalidInput),
            ("overlay.skip_mount_home=yes", ErrorKind::InvalidInput),
            ("overlay.size=-1", ErrorKind::InvalidInput),
            ("overlay.inodes=x", ErrorKind::InvalidInput),
            ("overlay.imagestore=relative", ErrorKind::InvalidInput),
            ("overlay.imagestore=/proc/version", ErrorKind::InvalidInput),
            ("overlay.imagestore=/does/not/exist", ErrorKind::Io),
            ("overlay.mount_program=/does/not/exist", ErrorKind::Io),
            ("overlay.mount_program=fuse-overlayfs", ErrorKind::InvalidInput),
            ("overlay.mount_program=/", ErrorKind::InvalidInput),
            ("overlay.force_mask=rwx", ErrorKind::InvalidInput),
            ("overlay.force_mask=4755", ErrorKind::InvalidInput),
            ("overlay.force_mask=0444", ErrorKind::InvalidInput),
            ("overlay.use_composefs=maybe", ErrorKind::InvalidInput),
            ("overlay.additionallayerstore=relative", ErrorKind::InvalidInput),
            ("overlay.additionallayerstore=/usr,", ErrorKind::InvalidInput),
            (
                "overlay.additionallayerstore=/proc/version",
                ErrorKind::InvalidInput,
            ),
            (
                "overlay.additionallayerstore=/usr:ref:ref",
                ErrorKind::InvalidInput,
            ),
            (
                "overlay.additionallayerstore=/usr:reference",
                ErrorKind::InvalidInput,
            ),
            ("overlay.additionallayerstore=/usr:", ErrorKind::InvalidInput),
            ("overlay.additionallayerstore=/does/not/exist", ErrorKind::Io),
            ("vfs.additionallayerstore=/usr", ErrorKind::InvalidInput),
        ];
        for (option, kind) in cases {
            let error = match option.starts_with("vfs.") {
                true => vfs(&[option]).unwrap_err(),
                false => overlay(&[option]).unwrap_err(),
            };
            assert_eq!(error.kind(), kind, "{option}");
            let named = option.split('=').next().unwrap();
            let named = named.trim_start_matches("overlay.").trim_start_matches("vfs.");
            assert!(
                error.chain().contains(named) || kind == ErrorKind::Io,
                "{}",
                error.chain()
            );
        }
        assert!(overlay(&["mount_program=", "use_composefs=false", "force_mask="]).is_ok());
        assert!(
            vfs(&["mountopt=nodev"])
                .unwrap_err()
                .chain()
                .contains("mount options")
        );
        assert_eq!(vfs(&["size=1g"]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn btrfs_has_limits_and_other_stores() {
        let btrfs = |option: &str| BtrfsOptions::parse(&[option.to_owned()]);
        let parsed = BtrfsOptions::parse(
            &["btrfs.size=1G", "Min_Space = 10m", "vfs.x=1", "imagestore=/usr/"].map(str::to_owned),
        );
        let expected = BtrfsOptions {
            min_space: Some(10 << 20),
            size: Some(1 << 30),
            image_stores: vec!["/usr".into()],
        };
        assert_eq!(parsed.unwrap(), expected);
        assert_eq!(btrfs("size=0").unwrap().size, Some(0));
        for (option, text) in [
            ("btrfs.size=-1", "invalid size: '-1'"),
            ("min_space=x", "invalid size: 'x'"),
            ("mountopt=nodev", "btrfs driver does not support mount options"),
            ("btrfs.nonsense=1", "unknown option \"nonsense\""),
        ] {
            let error = btrfs(option).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{option}");
            assert!(error.chain().contains(text), "{}", error.chain());
        }
    }

    #[test]
    fn zfs_has_a_dataset_and_limits() {
        let zfs = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(ToString::to_string).collect();
            ZfsOptions::parse(&options)
        };
        let parsed = zfs(&[
            "zfs.fsname=pool/a",
            "mountopt=nodev,noatime",
            "ZFS.Size=1G",
            "vfs.x=1",
        ]);
        let expected = ZfsOptions {
            dataset: "pool/a".into(),
            mount_options: "nodev,noatime".into(),
            size: 1 << 30,
        };
        assert_eq!(parsed.unwrap(), expected);
        for (option, text) in [
            ("zfs.size=x", "invalid size: 'x'"),
            ("zfs.imagestore=/usr", "unknown option \"imagestore\""),
        ] {
            let error = zfs(&[option]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{option}");
            assert!(error.chain().contains(text), "{}", error.chain());
        }
    }

    #[test]
    fn a_mount_program_is_a_file_and_a_mask_has_names() {
        let parsed = overlay(&["overlay.mount_program=/proc/version", "overlay.force_mask=shared"]).unwrap();
        assert_eq!(parsed.mount_program, Some(PathBuf::from("/proc/version")));
        assert_eq!(parsed.force_mask, Some(0o755));
        for (text, mask) in [("private", 0o700), ("0711", 0o711), ("750", 0o750)] {
            let parsed = overlay(&[&format!("force_mask={text}")]).unwrap();
            assert_eq!(parsed.force_mask, Some(mask), "{text}");
        }
    }

    #[test]
    fn image_stores_add_up_in_normal_form() {
        let parsed = overlay(&[
            "imagestore=/usr//,/etc/.",
            "overlay.imagestore=",
            "additionalimagestore=/var",
        ])
        .unwrap();
        assert_eq!(parsed.image_stores, ["/usr", "/etc", "/var"].map(PathBuf::from));
    }

    #[test]
    fn layer_stores_add_up_and_may_have_references() {
        let store = |path: &str, with_reference| LayerStore {
            path: path.into(),
            with_reference,
        };
        let parsed = overlay(&[
            "additionallayerstore=/usr//:ref,/etc/.",
            "overlay.additionallayerstore=",
            "overlay.additionallayerstore=/var/../etc:ref",
        ])
        .unwrap();
        assert_eq!(
            parsed.layer_stores,
            [store("/usr", true), store("/etc", false), store("/etc", true)]
        );
    }
}
