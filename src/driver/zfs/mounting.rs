//! Mounting datasets, and unmounting them. Uses are counted per process.
//!
//! Where the kernel has zfs it mounts them, as the Go library has it do: their property `mountpoint` is `legacy`, and a dataset may be
//! mounted at several places, writable or not. What is only looked at, or written without a mount target, gets a
//! [temporary mount](temporary_mount) without a path.
//!
//! With zfs-fuse only its daemon can mount a dataset, at the place that the property `mountpoint` says, and once. There the
//! property of a layer is its mount target (with `canmount=noauto`, so that the daemon does not mount it by itself), and
//! what is looked at is mounted there too.
//!
//! When a file system goes, the daemon waits, for ever and with everything else, until all files in it are closed; and that a file is
//! closed is told to it in a request that the kernel throws away with the file system if it was not read yet. So a mount
//! stays until nobody uses it, at the latest until the layer is removed or the driver is shut down after the last use, and a copy of the mount
//! keeps the file system until the daemon has read such requests.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount_change};

use crate::driver::contract::MountOptions;
use crate::driver::mount_flags::{self, Sorted};
use crate::driver::temporary_mount;
use crate::driver::zfs::datasets::Datasets;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::at;
use crate::sys::mount::{clone_mount, is_mount_point, set_flags, type_and_source, unmount_lazily};

/// How often a mount is made again that somebody else unmounts before it can be opened.
const MAX_RACES: u32 = 100;

/// How often, and how far apart, the unmount of what was in use a moment ago is tried.
const MAX_BUSY: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// How many answers of a daemon are waited for before a file system goes: what the kernel tells it without waiting for an answer gets to
/// it a few requests at a time.
const ANSWERS: u32 = 16;

/// What a mount is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Who mounts datasets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mounter {
    Kernel,
    /// A daemon, which the program asks.
    Daemon,
}

impl Mounter {
    /// The one that is here.
    pub(super) fn find() -> Result<Self> {
        const KNOWN: &str = "/proc/filesystems";
        let known = std::fs::read_to_string(KNOWN).at("reading", KNOWN)?;
        let has_zfs = known
            .lines()
            .any(|line| line.split_whitespace().next_back() == Some("zfs"));
        Ok(if has_zfs { Self::Kernel } else { Self::Daemon })
    }

    /// The properties of a dataset that is to be mounted at `target`.
    pub(super) fn properties(self, target: &Path) -> Result<Vec<String>> {
        match self {
            Self::Kernel => Ok(vec!["mountpoint=legacy".to_owned()]),
            Self::Daemon => Ok(vec![mountpoint(target)?, "canmount=noauto".to_owned()]),
        }
    }

    /// Mounts a dataset at `target`, which is there.
    pub(super) fn mount(
        self,
        datasets: &Datasets,
        name: &str,
        target: &Path,
        options: &Sorted,
        label: &str,
    ) -> Result<()> {
        let flags = options.flags;
        match self {
            Self::Kernel => by_kernel(name, target, options, label)?,
            Self::Daemon => {
                if !label.is_empty() || !options.data.is_empty() {
                    let what = format!(
                        "mount options {:?} and a label ({label:?}) with zfs-fuse",
                        options.data
                    );
                    return Err(ErrorKind::NotSupported.err(what));
                }
                by_daemon(datasets, name, target)?;
                if !flags.is_empty() {
                    set_flags(target, flags).at("setting the flags of the mount at", target)?;
                }
            }
        }
        match options.propagation {
            Some(flags) => mount_change(target, flags).at("setting the propagation of", target),
            None => Ok(()),
        }
    }

    /// Unmounts what is mounted at a target; `false` if it is in use and stays.
    pub(super) fn unmount(self, target: &Path) -> Result<bool> {
        if self == Self::Kernel {
            return unmount_lazily(target).at("unmounting", target).map(|()| true);
        }
        for _ in 0..MAX_BUSY {
            match rustix::fs::statfs(target) {
                Err(Errno::NOENT) => return Ok(true),
                // The daemon is dead.
                Err(_) => return unmount_lazily(target).at("unmounting", target).map(|()| true),
                Ok(_) => {}
            }
            // Others may close files until the very moment of the unmount.
            let kept = match clone_mount(target) {
                Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::NOENT)) => {
                    return Ok(true);
                }
                // Older than Linux 5.2, or a seccomp filter.
                kept => kept.ok(),
            };
            let unmounted = rustix::mount::unmount(target, UnmountFlags::NOFOLLOW);
            if let Some(kept) = kept {
                (0..ANSWERS)
                    .take_while(|_| rustix::fs::fstatfs(&kept).is_ok())
                    .for_each(drop);
            }
            match unmounted {
                Err(Errno::BUSY) => thread::sleep(BUSY_PAUSE),
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => return Ok(true),
                Err(error) => return Err(error).at("unmounting", target),
            }
        }
        Ok(false)
    }

    /// Opens the root directory of a dataset. `target` is where a daemon mounts it.
    pub(super) fn open(
        self,
        datasets: &Datasets,
        name: &str,
        target: &Path,
        temp_dirs: &Path,
        access: Access,
    ) -> Result<OwnedFd> {
        if self == Self::Kernel {
            let options = mount_flags::sort(match access {
                Access::Read => Some("ro"),
                Access::Write => None,
            })?;
            return temporary_mount::open(temp_dirs, |target| by_kernel(name, target, &options, ""));
        }
        for _ in 0..MAX_RACES {
            if !is_mounted(target)? {
                make_target(target)?;
                by_daemon(datasets, name, target)?;
            }
            let dir = at::open_dir(target).at("opening", target)?;
            let found = type_and_source(dir.as_fd()).at("looking up the file system of", target)?;
            if found.is_some_and(|(_kind, source)| source == name) {
                return Ok(dir);
            }
        }
        Err(Error::io_at(
            "opening the mount of a layer, which somebody unmounts each time, at",
            target,
            Errno::BUSY,
        ))
    }

    /// Removes the mount target of a layer that is not mounted.
    pub(super) fn remove_target(target: &Path) {
        match rustix::fs::rmdir(target) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => tracing::debug!(target = %target.display(), %error, "mount target stays"),
        }
    }
}

/// The property by which a daemon mounts a dataset at `target`.
pub(super) fn mountpoint(target: &Path) -> Result<String> {
    let text = target.to_str().filter(|text| !text.contains(char::is_control));
    text.map(|text| format!("mountpoint={text}")).ok_or_else(|| {
        ErrorKind::InvalidInput
            .err("a path that zfs cannot be told:")
            .at(target)
    })
}

/// Makes the directory at which a layer is mounted.
pub(super) fn make_target(target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).at("creating", target)
}

/// Whether something is mounted at a target that may not be there.
pub(super) fn is_mounted(target: &Path) -> Result<bool> {
    match is_mount_point(target) {
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(false)
        }
        looked => looked.at("looking for a mount at", target),
    }
}

fn by_kernel(name: &str, target: &Path, options: &Sorted, label: &str) -> Result<()> {
    // A file system that is mounted read-only somewhere could be mounted writable nowhere else.
    let flags = options.flags.difference(MountFlags::RDONLY);
    let mut data = options.data.clone();
    if !label.is_empty() {
        data.push(format!("context=\"{label}\""));
    }
    let data = CString::new(data.join(","))
        .map_err(|_zero| ErrorKind::InvalidInput.err(format!("mount options {data:?}")))?;
    rustix::mount::mount(name, target, "zfs", flags, &*data)
        .map_err(|error| Error::io_at(format!("creating zfs mount: {name} at"), target, error))?;
    if options.flags.contains(MountFlags::RDONLY)
        && let Err(error) = set_flags(target, options.flags)
    {
        unmount_lazily(target).at("unmounting", target)?;
        return Err(error).at("remounting zfs mount read-only:", target);
    }
    Ok(())
}

/// Has the daemon mount a dataset.
fn by_daemon(datasets: &Datasets, name: &str, target: &Path) -> Result<()> {
    let mut asked = datasets.mount(name)?;
    if asked.as_ref().is_err_and(|refusal| refusal.has_no_mountpoint()) {
        // As one that was made where the kernel mounts.
        datasets.set(name, "canmount=noauto")?;
        datasets.set(name, &mountpoint(target)?)?;
        asked = datasets.mount(name)?;
    }
    match asked {
        Err(refusal) if !refusal.is_mounted() => {
            return Err(refusal
                .into_error()
                .context(format!("creating zfs mount: {name}")));
        }
        _ => {}
    }
    if is_mounted(target)? {
        return Ok(());
    }
    let what = format!("creating zfs mount: zfs claims to have mounted {name}, and nothing is at");
    Err(ErrorKind::Io.err(what).at(target))
}

/// Options of the file system itself. It passes over others without a word.
const OWN_OPTIONS: [&str; 13] = [
    "acl",
    "noacl",
    "posixacl",
    "xattr",
    "noxattr",
    "dirxattr",
    "saxattr",
    "setuid",
    "nosetuid",
    "devices",
    "nodevices",
    "nbmand",
    "nonbmand",
];

/// The options of a mount: the caller's, or without any the driver's.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for options that there are not.
pub(super) fn sort_options(options: &MountOptions, usual: &str) -> Result<Sorted> {
    let sorted = match options.options.is_empty() {
        true => mount_flags::sort([usual]),
        false => mount_flags::sort(options.options.iter().map(String::as_str)),
    }?;
    match sorted
        .data
        .iter()
        .find(|option| !OWN_OPTIONS.contains(&option.as_str()))
    {
        Some(option) => {
            Err(ErrorKind::InvalidInput.err(format!("mount option {option:?} with the zfs driver")))
        }
        None => Ok(sorted),
    }
}

/// The mount target of a layer.
pub(super) fn target_in(home: &Path, id: &str) -> PathBuf {
    home.join("graph").join(id)
}
