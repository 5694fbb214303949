//! Puts a layer's tar stream together again, bit for bit: segments from its tar-split file, content from its tree.
//!
//! A file is looked for in the given trees in order, since the content of a layer that was copied from a template
//! lies in the template. Names come from the archive: they are cleaned as when they were unpacked and resolved inside
//! the tree; the file itself must be a regular one and no link. Nothing is written of a file whose size is not the
//! recorded one, and never more bytes than recorded. A wrong checksum shows only after the bytes are out: whoever
//! reads the stream has to take an error at any point as fatal.

use std::io::Read;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, IoContext as _, Result, ResultExt as _};
use crate::sys::at;

use crate::archive::lookup::Lookup;
use crate::archive::path;
use crate::archive::stream_writer::StreamWriter;
use crate::archive::tar_split::format::{Crc, Entry, TarSplitReader};

/// Writes the stream that `tar_split` (the compressed file) describes, and returns its length. `trees` are where the
/// files are found, the layer's own first.
///
/// Fails with [`ErrorKind::LayerContentModified`] naming the entry where a file is missing or has another size or
/// content than recorded.
pub(crate) fn replay(tar_split: impl Read, trees: &[OwnedFd], out: &mut dyn StreamWriter) -> Result<u64> {
    let mut entries = TarSplitReader::new(tar_split);
    let mut trees: Vec<Lookup<'_>> = trees.iter().map(|tree| Lookup::new(tree.as_fd())).collect();
    let mut crc = Crc::new();
    let mut clean = Vec::new();
    let mut written = 0u64;
    while let Some(entry) = entries.next()? {
        let count = match entry {
            Entry::Segment(bytes) => {
                out.write_all(&bytes).during("writing the layer stream")?;
                u64::try_from(bytes.len()).unwrap_or(u64::MAX)
            }
            Entry::File { size: 0, .. } => 0,
            Entry::File {
                name,
                size,
                crc: expected,
            } => {
                path::clean(&name, &mut clean);
                let file = open(&mut trees, &clean, size).context(|| of(&name))?;
                copy(file.as_fd(), size, &mut crc, out).context(|| of(&name))?;
                if crc.take() != expected {
                    return Err(modified("its checksum is not the recorded one").context(of(&name)));
                }
                size
            }
        };
        written = written.saturating_add(count);
    }
    out.flush().during("writing the layer stream")?;
    Ok(written)
}

fn of(name: &[u8]) -> String {
    format!("restoring entry {}", path::show(name))
}

fn modified(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    ErrorKind::LayerContentModified.err(what)
}

/// Opens the regular file at the clean path `clean` in the first tree that has something there.
///
/// It is looked at before it is opened: opening a device or a FIFO can have effects.
fn open(trees: &mut [Lookup<'_>], clean: &[u8], size: u64) -> Result<OwnedFd> {
    let (parent, name) = path::split(clean);
    if name.is_empty() {
        return Err(modified("content was recorded for the root directory"));
    }
    for tree in trees {
        let Some(dir) = tree.dir(parent).during("opening its directory")? else {
            continue;
        };
        let Some(stat) = at::lstat_at(dir, name).during("looking at it")? else {
            continue;
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(modified("it is not a regular file"));
        }
        if u64::try_from(stat.st_size) != Ok(size) {
            return Err(modified(format!(
                "it has {} bytes, {size} were recorded",
                stat.st_size
            )));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        return rustix::fs::openat(dir, name, flags, Mode::empty()).during("opening it");
    }
    Err(modified("it is missing").with_source(std::io::Error::from(Errno::NOENT)))
}

/// Copies exactly `size` bytes.
fn copy(file: BorrowedFd<'_>, size: u64, crc: &mut Crc, out: &mut dyn StreamWriter) -> Result<()> {
    let mut rest = size;
    while rest > 0 {
        let limit = usize::try_from(rest).unwrap_or(usize::MAX);
        let part = out.fill(file, limit).during("copying its content")?;
        if part.is_empty() {
            return Err(modified(format!("it ends {rest} bytes early")));
        }
        crc.update(part);
        rest = rest.saturating_sub(u64::try_from(part.len()).unwrap_or(u64::MAX));
    }
    Ok(())
}
