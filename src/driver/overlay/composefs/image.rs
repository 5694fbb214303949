//! Opening and mounting the image of a layer.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen,
};

use super::erofs::{COMPOSEFS_MAGIC, HAS_ACL};
use crate::driver::overlay::mount::kernel_log;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::loop_device::LoopDevice;
use crate::sys::{at, verity};

/// The directory with a layer's image, in the layer's.
pub(super) const DATA: &str = "composefs-data";
/// The image.
pub(super) const IMAGE: &str = "composefs.blob";

const EROFS: &str = "erofs";

/// Set once the kernel has refused to mount from a file; Linux 6.12 can.
static NEEDS_DEVICE: AtomicBool = AtomicBool::new(false);

/// Whether the kernel has EROFS.
pub(in crate::driver::overlay) fn is_supported() -> bool {
    fsopen(OsStr::new(EROFS), FsOpenFlags::FSOPEN_CLOEXEC).is_ok()
}

/// The image of a layer.
#[derive(Debug)]
pub(in crate::driver::overlay) struct Image {
    file: OwnedFd,
    path: PathBuf,
    has_acl: bool,
}

impl Image {
    /// Whether the layer in `dir` has an image.
    pub(in crate::driver::overlay) fn exists(dir: &Path) -> Result<bool> {
        let path = dir.join(DATA);
        match rustix::fs::lstat(&path) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error).at("looking for", path),
        }
    }

    /// Opens the image of the layer in `dir`.
    ///
    /// # Errors
    /// [`ErrorKind::CorruptMetadata`] if there is something else, be it a link to an image; [`ErrorKind::Io`].
    pub(in crate::driver::overlay) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(DATA).join(IMAGE);
        let corrupt = |what: &'static str| ErrorKind::CorruptMetadata.err(what).at(&path);
        let open = || {
            let layer = at::open_dir(dir)?;
            let data = at::open_dir_at(layer.as_fd(), DATA.as_bytes())?;
            // A pipe in the file's place does not block.
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            rustix::fs::openat(&data, IMAGE, flags, Mode::empty())
        };
        let file = match open() {
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(corrupt("a link or a file where none may be:")),
            opened => opened.at("opening", &path)?,
        };
        let stat = rustix::fs::fstat(&file).at("looking at", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(corrupt("not a regular file:"));
        }
        let mut head = [0; 12];
        let read = rustix::io::pread(&file, &mut head, 0).at("reading", &path)?;
        let ([magic, _version, flags], []) = head.as_chunks::<4>() else {
            return Err(corrupt("no composefs image:"));
        };
        if read < head.len() || u32::from_le_bytes(*magic) != COMPOSEFS_MAGIC {
            return Err(corrupt("no composefs image:"));
        }
        Ok(Self {
            has_acl: u32::from_le_bytes(*flags) & HAS_ACL != 0,
            file,
            path,
        })
    }

    /// Whether the kernel verifies the image when it is read.
    pub(in crate::driver::overlay) fn is_verified(&self) -> bool {
        matches!(verity::measure(self.file.as_fd()), Ok(Some(_)))
    }

    /// Mounts the image, attached nowhere. Files with content are as large as they are, and empty.
    pub(in crate::driver::overlay) fn mount(&self) -> Result<OwnedFd> {
        if !NEEDS_DEVICE.load(Ordering::Relaxed) {
            match self.mount_file() {
                Err(error) if error.raw_os_error() == Some(Errno::NOTBLK.raw_os_error()) => {
                    tracing::debug!("the kernel mounts EROFS from devices only");
                    NEEDS_DEVICE.store(true, Ordering::Relaxed);
                }
                mounted => return mounted,
            }
        }
        self.mount_device()
    }

    fn mount_file(&self) -> Result<OwnedFd> {
        self.mount_from(&format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// As [`Image::mount`], through a loop device.
    pub(super) fn mount_device(&self) -> Result<OwnedFd> {
        let device = LoopDevice::attach(self.file.as_fd()).at("attaching a loop device to", &self.path)?;
        self.mount_from(&device.path.to_string_lossy())
    }

    fn mount_from(&self, source: &str) -> Result<OwnedFd> {
        let failed = |errno| Error::io_at("opening an erofs configuration for", &self.path, errno);
        let context = fsopen(OsStr::new(EROFS), FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
        let failed = |errno| {
            let what = match kernel_log(&context) {
                log if log.is_empty() => "mounting the image".to_owned(),
                log => format!("mounting the image (kernel: {log})"),
            };
            Error::io_at(what, &self.path, errno)
        };
        fsconfig_set_string(&context, OsStr::new("source"), source).map_err(failed)?;
        fsconfig_set_flag(&context, OsStr::new("ro")).map_err(failed)?;
        if !self.has_acl {
            fsconfig_set_flag(&context, OsStr::new("noacl")).map_err(failed)?;
        }
        fsconfig_create(&context).map_err(failed)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
    }
}

/// Opens the root of a mount that is attached nowhere, for listing.
pub(in crate::driver::overlay) fn open_root(mount: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(mount, c".", flags, Mode::empty())
}
