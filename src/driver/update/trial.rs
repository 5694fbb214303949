//! What the file system of a layer can have: it is tried out beside the layers.

use std::cell::RefCell;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::driver::update::attributes::is_refusal;
use crate::error::{IoContext as _, Result};
use crate::lock::temp_dir::TempDir;
use crate::sys::at;

/// A temporary directory on the file system of the layers, made when something is tried out.
pub(crate) struct Trial {
    /// Where it is made.
    root: PathBuf,
    temp: RefCell<Option<TempDir>>,
}

impl Trial {
    /// In a temporary directory in `root`; `None` if that is on another file system than `layers`.
    pub(crate) fn new(root: PathBuf, layers: &Path) -> Option<Self> {
        let device = |path: &Path| rustix::fs::stat(path).ok().map(|stat| stat.st_dev);
        let here = device(root.parent()?)?;
        (Some(here) == device(layers)).then(|| Self {
            root,
            temp: RefCell::new(None),
        })
    }

    /// A path for something new.
    fn place(&self) -> Result<PathBuf> {
        let mut temp = self.temp.borrow_mut();
        let temp = match &mut *temp {
            Some(temp) => temp,
            none => none.insert(TempDir::create(&self.root)?),
        };
        Ok(temp.addition())
    }

    /// Whether an entry of this kind can have an extended attribute.
    pub(super) fn takes_attribute(&self, kind: FileType, attribute: &[u8], value: &[u8]) -> Result<bool> {
        let path = self.place()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let made = match kind {
            FileType::Directory => rustix::fs::mkdirat(CWD, &path, Mode::RWXU),
            FileType::Symlink => rustix::fs::symlinkat("target", CWD, &path),
            _ => rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map(drop),
        };
        made.at("making", &path)?;
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(true);
        };
        let dir = at::open_dir(above).at("opening", above)?;
        match crate::sys::xattr::set_at(dir.as_fd(), name.as_encoded_bytes(), attribute, value) {
            Err(error) if is_refusal(error) => Ok(false),
            set => set.at("setting an attribute of", &path).map(|()| true),
        }
    }

    /// Whether there can be a symbolic link to a path.
    pub(super) fn takes_link(&self, target: &[u8]) -> Result<bool> {
        let path = self.place()?;
        match rustix::fs::symlinkat(target, CWD, &path) {
            Err(Errno::NAMETOOLONG) => Ok(false),
            made => made.at("making a link at", &path).map(|()| true),
        }
    }
}
