//! The directory of a layer in an additional layer store, and what is told to the program that serves the store.
//!
//! ```text
//! <store>/<digest of the table of contents>/                               or, for stores with references,
//! <store>/<base64 of the image's reference>/<digest of the table of contents>/
//!   diff/    the root directory of the layer's own files, in overlay's form
//!   info     JSON in the form of a layer's record
//!   blob     the layer's blob
//!   use      never there: to create it is the notice that the layer is in use
//! ```
//!
//! To remove the directory is the notice that one use has ended. A program that counts uses answers both notices with
//! "no such file". In an ordinary directory the first makes a file, which is removed again, and the second fails since the
//! directory is not empty; such a store keeps its layers for ever, which a warning says.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::digest::Digest;
use crate::error::{ErrorKind, IoContext as _, Result};

/// Most bytes of an `info` file that are read.
const MAX_INFO: u64 = 1024 * 1024;

/// A layer of an additional layer store that is in use: its store knows of it, and of the end when this is dropped, which
/// may block.
#[derive(Debug)]
#[must_use = "the use ends when this is dropped"]
pub(crate) struct LayerUse {
    dir: PathBuf,
    /// Whether its end is to be told.
    is_owed: bool,
}

impl LayerUse {
    /// Tells the store that the layer in `dir` is in use.
    pub(crate) fn begin(dir: &Path) -> Self {
        tell_use(dir);
        Self {
            dir: dir.to_owned(),
            is_owed: true,
        }
    }

    /// The layer's directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Leaves it to others to tell the end ([`tell_end`]).
    pub(crate) fn keep(mut self) {
        self.is_owed = false;
    }

    /// What the store says of the layer.
    pub(crate) fn info(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("info");
        let mut info = Vec::new();
        let file = open_file(&path)?;
        file.take(MAX_INFO + 1)
            .read_to_end(&mut info)
            .at("reading", &path)?;
        if info.len() as u64 > MAX_INFO {
            return Err(ErrorKind::CorruptMetadata
                .err(format!("more than {MAX_INFO} bytes:"))
                .at(path));
        }
        Ok(info)
    }

    /// The layer's blob.
    pub(crate) fn blob(&self) -> Result<File> {
        open_file(&self.dir.join("blob"))
    }
}

impl Drop for LayerUse {
    fn drop(&mut self) {
        if self.is_owed {
            tell_end(&self.dir);
        }
    }
}

/// Whether `dir` is the directory of a layer; else what is wrong.
pub(crate) fn check_layer_dir(dir: &Path) -> Result<()> {
    for (name, expected) in [
        ("diff", FileType::Directory),
        ("info", FileType::RegularFile),
        ("blob", FileType::RegularFile),
    ] {
        check_type(&dir.join(name), expected)?;
    }
    Ok(())
}

/// Refuses what is not there or of another type. Symbolic links are not followed: one in a store would lead to files that
/// the store does not have.
pub(crate) fn check_type(path: &Path, expected: FileType) -> Result<()> {
    let stat = rustix::fs::lstat(path).at("failed to access to the linked additional layer", path)?;
    if FileType::from_raw_mode(stat.st_mode) == expected {
        return Ok(());
    }
    let what = match expected {
        FileType::Directory => "in an additional layer store, not a directory:",
        _ => "in an additional layer store, not a regular file:",
    };
    Err(ErrorKind::CorruptMetadata.err(what).at(path))
}

fn open_file(path: &Path) -> Result<File> {
    // A pipe in the file's place does not block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(Errno::LOOP) => {
            let what = "in an additional layer store, a symbolic link:";
            return Err(ErrorKind::CorruptMetadata.err(what).at(path));
        }
        file => file.at("opening", path)?,
    };
    let stat = rustix::fs::fstat(&file).at("looking at", path)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        let what = "in an additional layer store, not a regular file:";
        return Err(ErrorKind::CorruptMetadata.err(what).at(path));
    }
    Ok(File::from(file))
}

/// Whether a path can be that of a layer: those are the only directories that are ever removed.
fn is_layer_path(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str());
    dir.is_absolute() && name.is_some_and(|name| name.parse::<Digest>().is_ok())
}

/// Tells the store that the layer in `dir` is in use. A failure is logged.
fn tell_use(dir: &Path) {
    if !is_layer_path(dir) {
        tracing::warn!(dir = %dir.display(), "not the directory of a layer in an additional layer store");
        return;
    }
    let path = dir.join("use");
    // What is there already may be a link of anybody's.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let reason = match rustix::fs::openat(CWD, &path, flags, Mode::RUSR | Mode::WUSR) {
        Err(Errno::NOENT) => return,
        Err(error) => error.to_string(),
        Ok(_file) => {
            if let Err(error) = rustix::fs::unlink(&path) {
                tracing::warn!(path = %path.display(), %error, "cannot remove the file that says a layer is in use");
            }
            "the file was created".to_owned()
        }
    };
    tracing::warn!(
        dir = %dir.display(), reason,
        "the additional layer store does not count uses: it cannot remove layers that are not used"
    );
}

/// Tells the store that one use of the layer in `dir` has ended. A failure is logged.
pub(crate) fn tell_end(dir: &Path) {
    if !is_layer_path(dir) {
        tracing::warn!(dir = %dir.display(), "not the directory of a layer in an additional layer store");
        return;
    }
    match rustix::fs::rmdir(dir) {
        Err(Errno::NOENT) => {}
        answer => {
            let reason = match answer {
                Ok(()) => "the directory was empty and is removed".to_owned(),
                Err(error) => error.to_string(),
            };
            tracing::warn!(
                dir = %dir.display(), reason,
                "the additional layer store does not count uses: it cannot remove layers that are not used"
            );
        }
    }
}
