//! The private files of AUFS that the first image builders left in layers, for complete trees only.
//!
//! In the root directory, names beginning with `.wh..wh.` belong to AUFS and are left out. Files in `.wh..wh.plnk`
//! are what it made of hard links ("pseudo-links"): a link to one of them stands for the file. They are kept as
//! unnamed files until the archive ends, and linked into the tree on demand.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use crate::archive::apply::metadata::Rules;
use crate::archive::apply::payload::write_payload;
use crate::archive::path::show;
use crate::archive::tar::reader::{ChunkSource, Entry, TarReader};
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::sys::unnamed;
use crate::whiteout::OPAQUE;

const PREFIX: &[u8] = b".wh..wh.";
const LINKS: &[u8] = b".wh..wh.plnk/";

/// How many pseudo-links an archive may have; each takes a file descriptor.
const MAX: usize = 256;

/// A file without a name.
#[derive(Clone)]
pub(crate) struct Unnamed(Rc<File>);

impl Unnamed {
    /// Gives it a name.
    pub(crate) fn link(&self, dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
        unnamed::link(&self.0, dir, name)
    }
}

/// The pseudo-links of one archive.
#[derive(Default)]
pub(crate) struct Aufs {
    files: HashMap<Vec<u8>, Unnamed>,
}

impl Aufs {
    /// Whether the entry at a clean path is private to AUFS.
    pub(crate) fn is_private(path: &[u8]) -> bool {
        path.starts_with(PREFIX) && path != OPAQUE
    }

    /// Keeps a pseudo-link's file; anything else is left out.
    pub(crate) fn place<S: ChunkSource>(
        &mut self,
        entry: &Entry,
        path: &[u8],
        rules: &Rules,
        root: BorrowedFd<'_>,
        reader: &mut TarReader<S>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let Some(name) = path.strip_prefix(LINKS) else {
            return Ok(());
        };
        if !matches!(entry.kind, b'0' | b'7') {
            return Ok(());
        }
        if self.files.len() >= MAX {
            return Err(ErrorKind::InvalidArchive.err("too many AUFS pseudo-links"));
        }
        let owner = rules.owner(entry)?;
        let file = unnamed::create(root).during("making a temporary file")?;
        write_payload(entry, Some(&file), reader, |piece| recorder.raw(piece))?;
        rules.open_file(file.as_fd(), entry, owner, true)?;
        self.files.insert(name.to_vec(), Unnamed(Rc::new(file)));
        Ok(())
    }

    /// The file that a hard link to a clean path stands for, `None` if that is no pseudo-link.
    pub(crate) fn target(&self, path: &[u8]) -> Result<Option<Unnamed>> {
        let Some(name) = path.strip_prefix(LINKS) else {
            return Ok(None);
        };
        let missing =
            || ErrorKind::InvalidArchive.err(format!("hard link to AUFS pseudo-link {}", show(path)));
        self.files.get(name).cloned().map(Some).ok_or_else(missing)
    }
}
