//! Files that have the content of payloads: new files share their content where that works.
//!
//! A file is known before its payload comes ([`Origins::offer`]), or looked for when the sum of the payload is known
//! ([`FindContent`]). Where the file system can share content, the new file becomes a clone, which takes neither space nor
//! writing. If that was asked for, a file that is the same in everything becomes a hard link, which is never changed from
//! then on. The payload is in the stream all the same, and is what digests are computed of.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use crate::archive::apply::parents::Parent;
use crate::archive::apply::tree::{MakeError, Tree};
use crate::archive::tar::reader::Entry;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{IoContext as _, Result};
use crate::idmap::Owner;
use crate::sys::{dedupe, random, tree, unnamed};

/// Files that are kept open for payloads to come.
const MAX_WAITING: usize = 64;

/// Smaller files do not become clones: most of what they cost is the making of them.
const MIN_SIZE: u64 = 16 * 1024;

/// Finds files by their content.
pub(crate) trait FindContent: Send + Sync + fmt::Debug {
    /// A file with this sha256 sum and size, as far as is known, whose status `fits`. Blocks.
    fn find(&self, sum: &[u8; 32], size: u64, fits: &dyn Fn(&Stat) -> bool) -> Option<LocalFile>;
}

/// A file with some content.
#[derive(Debug)]
pub(crate) struct LocalFile {
    pub(crate) file: File,
    /// Whether other layers may get hard links to it.
    pub(crate) may_link: bool,
}

/// The files for the payloads of one stream. See the module's head.
#[derive(Debug)]
pub(crate) struct Origins {
    waiting: Mutex<VecDeque<Origin>>,
    /// Content can be shared, as far as is known.
    works: AtomicBool,
    /// Hard links are made.
    links: bool,
    finder: Option<Box<dyn FindContent>>,
}

/// A file that is offered for a payload.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where in the stream the payload begins.
    offset: u64,
    pub(super) file: File,
    may_link: bool,
}

/// A name in a directory.
#[derive(Clone, Copy)]
pub(super) struct Spot<'a> {
    pub(super) parent: &'a Rc<Parent>,
    pub(super) base: &'a [u8],
}

impl Origins {
    /// With hard links where `links`; files are looked for with `finder`, else they have to be offered.
    pub(crate) fn new(links: bool, finder: Option<Box<dyn FindContent>>) -> Self {
        Self {
            waiting: Mutex::default(),
            works: AtomicBool::new(true),
            links,
            finder,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Origin>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers a file, all of which is the payload of `size` bytes that begins at `offset`. Offsets ascend.
    pub(crate) fn offer(&self, offset: u64, size: u64, local: &LocalFile) -> Result<()> {
        let may_link = self.links && local.may_link;
        self.add(offset, size, local.file.as_fd(), may_link)
    }

    /// As [`Origins::offer`], for a file to which there may be no hard links.
    pub(crate) fn offer_content(&self, offset: u64, size: u64, file: BorrowedFd<'_>) -> Result<()> {
        self.add(offset, size, file, false)
    }

    fn add(&self, offset: u64, size: u64, file: BorrowedFd<'_>, may_link: bool) -> Result<()> {
        if !may_link && (size < MIN_SIZE || !self.works.load(Ordering::Relaxed)) {
            return Ok(());
        }
        let mut waiting = self.waiting();
        if waiting.len() < MAX_WAITING {
            let file = file.try_clone_to_owned().during("duplicating a file handle")?;
            waiting.push_back(Origin {
                offset,
                file: file.into(),
                may_link,
            });
        }
        Ok(())
    }

    /// What was offered for the payload at `offset`.
    pub(super) fn take(&self, offset: u64) -> Option<Origin> {
        let mut waiting = self.waiting();
        while waiting.front()?.offset < offset {
            waiting.pop_front();
        }
        let is_it = waiting.front()?.offset == offset;
        if is_it { waiting.pop_front() } else { None }
    }

    /// Makes the empty file `to` a clone of `from`, which has `size` bytes. `false` if it cannot be cloned; the file is empty
    /// then.
    pub(super) fn clone_to(&self, to: &File, from: &Origin, size: u64) -> Result<bool> {
        if size < MIN_SIZE || !self.works.load(Ordering::Relaxed) {
            return Ok(false);
        }
        if rustix::fs::ioctl_ficlone(to, &from.file).is_err() {
            self.works.store(false, Ordering::Relaxed);
            return Ok(false);
        }
        let found = to.metadata().during("looking at a clone")?.len();
        if found != size {
            // It was changed meanwhile.
            to.set_len(0).during("emptying a clone")?;
        }
        Ok(found == size)
    }

    /// Has the complete file `file` share its content, whose sha256 sum is `sum`, with one that is there already. Returns the
    /// file that is at its place then.
    pub(super) fn share(
        &self,
        tree: &mut Tree,
        file: File,
        sum: &[u8; 32],
        entry: &Entry,
        owner: Owner,
        spot: Spot<'_>,
    ) -> Result<File> {
        let Some(finder) = &self.finder else {
            return Ok(file);
        };
        if self.links
            && let Some(local) =
                finder.find(sum, entry.size, &|stat| tree.rules.is_status(stat, entry, owner))
            && local.may_link
            && tree.rules.is_same(local.file.as_fd(), entry, owner)
            && has_sum(&local.file, sum)
            && let Some(identity) = put_link(&local.file, spot)
        {
            note_link(tree, identity, spot);
            return Ok(local.file);
        }
        if entry.size >= MIN_SIZE
            && self.works.load(Ordering::Relaxed)
            && let Some(local) = finder.find(sum, entry.size, &|_| true)
        {
            match dedupe::share(&local.file, &file) {
                Ok(true) => {}
                Ok(false) => tracing::debug!("a file of a layer is not what its table of contents says"),
                Err(error) => {
                    tracing::debug!(%error, "files do not share their content");
                    self.works.store(false, Ordering::Relaxed);
                }
            }
        }
        Ok(file)
    }
}

impl Origin {
    /// Makes a hard link to it, if that may be and it is what `entry` says in everything.
    pub(super) fn link(
        &self,
        tree: &mut Tree,
        entry: &Entry,
        owner: Owner,
        spot: Spot<'_>,
        recorder: &mut TarSplitRecorder,
    ) -> Result<bool> {
        if !self.may_link || !tree.rules.is_same(self.file.as_fd(), entry, owner) {
            return Ok(false);
        }
        let link = || unnamed::link(&self.file, spot.parent.fd(), spot.base);
        match tree.make(spot.parent, spot.base, recorder, link) {
            Ok(()) => {}
            // Too many links, another file system, or the file is gone, for example.
            Err(MakeError::Make(error)) => {
                tracing::trace!(%error, "no hard link to a file of another layer");
                return Ok(false);
            }
            Err(MakeError::Displace(error)) => return Err(error),
        }
        let stat = rustix::fs::fstat(&self.file).during("reading the status")?;
        note_link(tree, tree::identity(&stat), spot);
        Ok(true)
    }
}

fn note_link(tree: &mut Tree, identity: (u64, u64), spot: Spot<'_>) {
    spot.parent.child(spot.base, &mut tree.real);
    tree.state.linked.add(identity, tree.real.clone());
}

/// Puts a hard link in the place of a file; the identity of what is there then, `None` if the file has stayed.
fn put_link(from: &File, spot: Spot<'_>) -> Option<(u64, u64)> {
    let dir = spot.parent.fd();
    let mut name = String::new();
    let linked = random::with_unused(|number| {
        name = format!(".graphroot-{number}");
        unnamed::link(from, dir, &name)
    });
    let stat = rustix::fs::fstat(from);
    match (linked, stat) {
        (Ok(()), Ok(stat)) => match rustix::fs::renameat(dir, &name, dir, spot.base) {
            Ok(()) => Some(tree::identity(&stat)),
            Err(error) => {
                tracing::debug!(%error, "no hard link to a file of another layer");
                let removed = rustix::fs::unlinkat(dir, &name, AtFlags::empty());
                if let Err(error) =
                    removed.or_else(|error| if error == Errno::NOENT { Ok(()) } else { Err(error) })
                {
                    tracing::warn!(%error, "leaving a hard link behind");
                }
                None
            }
        },
        (Err(error), _) => {
            tracing::trace!(%error, "no hard link to a file of another layer");
            None
        }
        (_, Err(_)) => None,
    }
}

/// Whether the content has this sum.
fn has_sum(file: &File, sum: &[u8; 32]) -> bool {
    let mut hasher = Sha256::new();
    let (mut buffer, mut offset) = (vec![0; 128 * 1024], 0);
    loop {
        match file.read_at(&mut buffer, offset) {
            Ok(0) => return *hasher.finalize() == sum[..],
            Ok(count) => {
                hasher.update(buffer.get(..count).unwrap_or_default());
                offset += count as u64;
            }
            Err(error) => {
                tracing::debug!(%error, "reading a file of another layer");
                return false;
            }
        }
    }
}
