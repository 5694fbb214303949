//! Hard links: to what the archive has brought, or, for a diff of a layer that is there, to files that the layer has.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;

use crate::archive::apply::aufs::Aufs;
use crate::archive::apply::links::LinkCopies;
use crate::archive::apply::metadata::kind;
use crate::archive::apply::parents::{Found, Parent};
use crate::archive::apply::present_tree::{LinkTarget, PresentTree};
use crate::archive::apply::shared_files::keep_state;
use crate::archive::apply::tree::{During as _, MakeError, Tree};
use crate::archive::path::{clean, show, split};
use crate::archive::tar::reader::Entry;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{Error, ErrorKind, IoContext as _, Result};
use crate::sys::{at, tree};

/// See the module's head.
pub(crate) struct HardLinks {
    copies: LinkCopies,
    /// The tree of a layer that is there.
    present: Option<PresentTree>,
}

/// Where the file that a link leads to is.
enum SourceDir {
    Unpacked(Rc<Parent>),
    Opened(OwnedFd),
}

impl SourceDir {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unpacked(dir) => dir.fd(),
            Self::Opened(dir) => dir.as_fd(),
        }
    }
}

/// A file that a link leads to.
struct Source {
    dir: SourceDir,
    name: Vec<u8>,
    stat: Stat,
    /// The path of a file that only the layer has.
    in_layer: Option<Vec<u8>>,
}

impl HardLinks {
    /// Links of an archive whose entries go to a layer that has the tree `present`, or to a new one.
    pub(crate) fn new(present: Option<PresentTree>) -> Self {
        Self {
            copies: LinkCopies::default(),
            present,
        }
    }

    /// Makes a link. The metadata of its header is applied to the file that it shares; to one of the layer when the layer
    /// gets its new tree.
    pub(crate) fn place(
        &mut self,
        tree: &mut Tree,
        aufs: Option<&Aufs>,
        entry: &Entry,
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let mut target = Vec::new();
        clean(&entry.link, &mut target);
        if let Some(aufs) = aufs
            && let Some(file) = aufs.target(&target)?
        {
            let make = || file.link(parent.fd(), base);
            return tree
                .make(parent, base, recorder, make)
                .during("linking an AUFS pseudo-link");
        }
        let missing = || {
            let text = format!(
                "hard link to {}: no such file or directory in this layer",
                show(&entry.link)
            );
            ErrorKind::InvalidArchive.err(text)
        };
        let owner = tree.rules.owner(entry)?;
        if target.contains(&0) || target.is_empty() {
            return Err(missing());
        }
        let source = self.find(tree, &target, entry)?.ok_or_else(missing)?;
        let identity = tree::identity(&source.stat);
        if let Some(path) = &source.in_layer {
            let mut own = Vec::new();
            parent.child(base, &mut own);
            if path
                .strip_prefix(own.as_slice())
                .is_some_and(|rest| rest.starts_with(b"/"))
            {
                // The link takes the place of the directory that holds the target.
                return Err(missing());
            }
            tree.state.shared.add(identity, path.clone())?;
        }
        let status = || at::lstat_at(parent.fd(), base).during("reading the status");
        if status()?.is_none_or(|now| tree::identity(&now) != identity) {
            let (dir, name) = (source.dir.fd(), source.name.as_slice());
            let link = || rustix::fs::linkat(dir, name, parent.fd(), base, AtFlags::empty());
            let in_layer = source.in_layer.is_some();
            match tree.make(parent, base, recorder, link) {
                // What was in the way held the target.
                Err(MakeError::Make(Errno::NOENT)) => return Err(missing()),
                Err(MakeError::Make(error))
                    if error == Errno::MLINK
                        // A file of another user, or in another project.
                        || in_layer && matches!(error, Errno::PERM | Errno::ACCESS | Errno::XDEV) =>
                {
                    let source = (dir, name, &source.stat);
                    self.copies.link(tree, source, parent, base, recorder)?;
                    let is_apart = self.present.as_ref().is_some_and(|present| present.is_apart);
                    if in_layer
                        && is_apart
                        && let Some(made) = status()?
                    {
                        // Headers are compared with it.
                        keep_state(source, (parent.fd(), base))?;
                        tree.state.shared.stand_in(tree::identity(&made), identity)?;
                    }
                }
                result => {
                    result.during("making a hard link")?;
                    let made = status()?.map(|made| tree::identity(&made));
                    if in_layer && made != Some(identity) {
                        // A process in a mount of the layer is at work.
                        let what =
                            format!("hard link to {}, which was replaced meanwhile", show(&entry.link));
                        return Err(Error::io(what, Errno::BUSY));
                    }
                }
            }
        }
        if let Some(now) = status()?
            && tree.state.shared.has(tree::identity(&now))
        {
            let file = (parent.fd(), base, &now);
            return tree.state.shared.describe(&tree.rules, file, entry, owner);
        }
        if let Some(now) = status()?
            && tree.state.linked.has(tree::identity(&now))
        {
            let identity = tree::identity(&now);
            parent.child(base, &mut tree.real);
            tree.state.linked.add(identity, tree.real.clone());
            if tree.rules.is_described(parent.fd(), base, &now, entry, owner) {
                return Ok(());
            }
            let root = Rc::clone(tree.parents.root());
            let part = tree
                .state
                .linked
                .part(root.fd(), identity, &mut tree.sync_tracker);
            part?;
        }
        tree.rules.node(parent.fd(), base, entry, owner)
    }

    fn find(&self, tree: &mut Tree, target: &[u8], entry: &Entry) -> Result<Option<Source>> {
        let (above, name) = split(target);
        let directory = || {
            let text = format!("hard link to directory {}", show(&entry.link));
            Err(ErrorKind::InvalidArchive.err(text))
        };
        if let Found::Directory(dir) = tree.parents.find(above)?
            && let Some(stat) = at::lstat_at(dir.fd(), name).during("reading the status")?
        {
            if kind(&stat) == FileType::Directory {
                return directory();
            }
            return Ok(Some(Source {
                dir: SourceDir::Unpacked(dir),
                name: name.to_vec(),
                stat,
                in_layer: None,
            }));
        }
        let Some(present) = &self.present else {
            return Ok(None);
        };
        match present.find(tree.parents.root().fd(), &tree.marks, target)? {
            LinkTarget::Missing => Ok(None),
            LinkTarget::Directory => directory(),
            LinkTarget::File {
                dir,
                path,
                stat,
                of_layer,
            } => Ok(Some(Source {
                dir: SourceDir::Opened(dir),
                name: split(&path).1.to_vec(),
                stat,
                in_layer: of_layer.then_some(path),
            })),
        }
    }
}
