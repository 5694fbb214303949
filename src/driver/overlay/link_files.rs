//! Reading what a layer directory says of itself: its link ID, and the layers below.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::driver::overlay::layout::{self, ADDITIONAL_LAYER, LOWER, LOWER_LAYERS, MAX_LOWER_FILE};
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::at;

/// Whether something is at `path`, links followed.
pub(super) fn exists(path: &Path) -> Result<bool> {
    match rustix::fs::access(path, Access::EXISTS) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(error) => Err(error).at("looking for", path),
    }
}

/// The `lower` file of the layer in `dir`.
pub(super) fn read_lower(dir: &Path) -> Result<Option<String>> {
    read_small(&dir.join(LOWER))
}

/// The `lower-layers` file of the layer in `dir`. An empty one, which no program writes but a power cut leaves, counts as
/// missing.
pub(super) fn read_lower_layers(dir: &Path) -> Result<Option<String>> {
    let content = read_small(&dir.join(LOWER_LAYERS))?;
    Ok(content.filter(|content| !content.is_empty()))
}

/// The link ID of the layer in `dir`; `None` if it has none that can be read.
pub(super) fn read_link_name(dir: &Path) -> Result<Option<String>> {
    let content = read_small(&dir.join("link"))?;
    Ok(content.and_then(|content| layout::parse_link(content.as_bytes()).map(str::to_owned)))
}

/// The directory in an additional layer store that the layer in `dir` uses.
pub(super) fn read_additional_layer(dir: &Path) -> Result<Option<PathBuf>> {
    let content = read_small(&dir.join(ADDITIONAL_LAYER))?;
    Ok(content.map(PathBuf::from))
}

/// Most bytes of a file in which a program has noted what it has found out.
const MAX_MARK: u64 = 64 << 10;

/// A file in which a program has noted what it has found out, as text; `None` if that cannot be told.
pub(super) fn read_mark(path: &Path) -> Option<String> {
    String::from_utf8(at::read_regular(path, MAX_MARK).ok()?).ok()
}

/// As [`read_mark`], of one that decides how layers are read.
///
/// # Errors
/// Those of a file that may say something, but cannot be looked at now.
pub(super) fn read_flag(path: &Path) -> Result<Option<String>> {
    match at::read_regular(path, MAX_MARK).at("reading", path) {
        Ok(content) => Ok(String::from_utf8(content).ok()),
        Err(error) if error.may_pass() => Err(error),
        Err(_says_nothing) => Ok(None),
    }
}

/// A small text file, `None` if it does not exist.
fn read_small(path: &Path) -> Result<Option<String>> {
    let file = match rustix::fs::openat(
        CWD,
        path,
        // A pipe in the file's place does not block.
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error).at("opening", path),
    };
    let mut text = String::new();
    let mut limited = std::fs::File::from(file).take(MAX_LOWER_FILE + 1);
    if let Err(error) = limited.read_to_string(&mut text) {
        if error.kind() == std::io::ErrorKind::InvalidData {
            return Err(ErrorKind::CorruptMetadata.err("not text:").at(path));
        }
        return Err(error).at("reading", path);
    }
    if limited.limit() == 0 {
        return Err(ErrorKind::CorruptMetadata.err("far too long:").at(path));
    }
    Ok(Some(text))
}

/// Opens a directory of layer files.
pub(super) fn open_tree(path: &Path) -> Result<OwnedFd> {
    at::open_dir(path).at("opening layer content", path)
}
