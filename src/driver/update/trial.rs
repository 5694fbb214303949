//! What the file system of a layer can have: it is tried out beside the layers.

use std::cell::RefCell;
use std::collections::HashSet;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::driver::copy_entry::times;
use crate::driver::update::attributes::{Attributes, give};
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

    /// Which of these extended attributes an entry of this kind cannot have.
    pub(super) fn refused_attributes(
        &self,
        kind: FileType,
        wanted: &Attributes,
        keeps_marks: bool,
    ) -> Result<HashSet<Vec<u8>>> {
        let path = self.place()?;
        match kind {
            FileType::Directory => rustix::fs::mkdirat(CWD, &path, Mode::RWXU).at("making", &path)?,
            FileType::Symlink => rustix::fs::symlinkat("target", CWD, &path).at("making", &path)?,
            _ => make_file(&path)?,
        }
        let mut refused = HashSet::new();
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(refused);
        };
        let dir = at::open_dir(above).at("opening", above)?;
        let given = give(
            wanted,
            dir.as_fd(),
            name.as_encoded_bytes(),
            keeps_marks,
            |name| {
                refused.insert(name.to_owned());
            },
        );
        given.at("setting attributes of", &path)?;
        Ok(refused)
    }

    /// In which second a file was changed that gets the times of another one.
    pub(super) fn kept_second(&self, stat: &Stat) -> Result<i64> {
        let path = self.place()?;
        make_file(&path)?;
        let set = rustix::fs::utimensat(CWD, &path, &times(stat), AtFlags::SYMLINK_NOFOLLOW);
        set.at("setting the times of", &path)?;
        Ok(rustix::fs::lstat(&path).at("looking at", &path)?.st_mtime)
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

fn make_file(path: &Path) -> Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map(drop)
        .at("making", path)
}
