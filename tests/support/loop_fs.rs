//! File systems in files, mounted by the kernel's loop driver, and on devices.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::peers::Run as _;
use super::root::unmount_below;

/// A mounted file system.
#[derive(Debug)]
pub(crate) struct LoopFs {
    target: PathBuf,
}

/// Makes a file system of `kind` (`btrfs`, `ext4`, `xfs`) in a new sparse file.
pub(crate) fn format(kind: &str, image: &Path, size: u64) {
    std::fs::File::create_new(image).unwrap().set_len(size).unwrap();
    format_on(kind, image);
}

/// Makes a file system of `kind` in a file or on a device.
pub(crate) fn format_on(kind: &str, image: &Path) {
    let quiet = if kind == "ext4" { "-qF" } else { "-q" };
    Command::new(format!("mkfs.{kind}")).arg(quiet).arg(image).run();
}

impl LoopFs {
    /// Mounts the file system in a file or on a device on the new directory `target`.
    pub(crate) fn mount(image: &Path, target: &Path) -> Self {
        Self::mount_with("defaults", image, target)
    }

    /// The same with these options.
    pub(crate) fn mount_with(options: &str, image: &Path, target: &Path) -> Self {
        std::fs::create_dir_all(target).unwrap();
        Command::new("mount")
            .args(["-o", options])
            .arg(image)
            .arg(target)
            .run();
        Self {
            target: target.to_owned(),
        }
    }

    /// The directory on which it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        // What the driver has mounted in it goes first.
        let unmounted = Command::new("umount")
            .words("--quiet --recursive")
            .arg(&self.target)
            .stderr(std::process::Stdio::null())
            .status();
        if !unmounted.is_ok_and(|status| status.success()) {
            // A mount namespace that another test has made may still have what is mounted in it.
            unmount_below(&self.target);
        }
    }
}
