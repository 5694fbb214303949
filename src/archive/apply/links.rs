//! Hard links to a file that cannot have more names: `EMLINK`, on ext4 after 65,000. A copy of the file takes their
//! place, and is linked to in its turn.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::archive::apply::metadata::kind;
use crate::archive::apply::parents::Parent;
use crate::archive::apply::tree::{During as _, MakeError, NEW_FILE, Tree};
use crate::archive::apply::visited::copy_attributes;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{IoContext as _, Result};
use crate::sys::{at, tree};

/// The latest copy of each file that has as many names as it can have. There are few: each stands for thousands of
/// entries.
#[derive(Default)]
pub(crate) struct LinkCopies {
    copies: HashMap<(u64, u64), LinkCopy>,
}

struct LinkCopy {
    dir: Rc<Parent>,
    name: Vec<u8>,
    /// Something else may have its name by now.
    identity: (u64, u64),
}

impl LinkCopies {
    /// Makes `base` in `parent` a copy of `source`, a name in a directory with its status, or a link to the last copy.
    pub(crate) fn link(
        &mut self,
        tree: &mut Tree,
        source: (&Parent, &[u8], &Stat),
        parent: &Rc<Parent>,
        base: &[u8],
        recorder: &mut TarSplitRecorder,
    ) -> Result<()> {
        let original = tree::identity(source.2);
        if let Some(copy) = self.copies.get(&original) {
            let now = at::lstat_at(copy.dir.fd(), &copy.name).during("reading the status")?;
            if now.is_some_and(|stat| tree::identity(&stat) == copy.identity) {
                let (dir, name) = (copy.dir.fd(), copy.name.as_slice());
                let link = || rustix::fs::linkat(dir, name, parent.fd(), base, AtFlags::empty());
                match tree.make(parent, base, recorder, link) {
                    Err(MakeError::Make(Errno::MLINK)) => {}
                    result => return result.during("making a hard link"),
                }
            }
        }
        make_copy(tree, source, parent, base, recorder)?;
        let stat = at::lstat_at(parent.fd(), base).during("reading the status")?;
        if let Some(stat) = stat {
            let copy = LinkCopy {
                dir: Rc::clone(parent),
                name: base.to_vec(),
                identity: tree::identity(&stat),
            };
            self.copies.insert(original, copy);
        }
        Ok(())
    }
}

/// Owner, mode and times are set by the entry that the copy is made for.
fn make_copy(
    tree: &mut Tree,
    (dir, name, stat): (&Parent, &[u8], &Stat),
    parent: &Rc<Parent>,
    base: &[u8],
    recorder: &mut TarSplitRecorder,
) -> Result<()> {
    let doing = "copying a file that cannot have more names";
    match kind(stat) {
        FileType::RegularFile => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut from =
                File::from(rustix::fs::openat(dir.fd(), name, flags, Mode::empty()).during(doing)?);
            let make = || rustix::fs::openat(parent.fd(), base, NEW_FILE, Mode::RUSR | Mode::WUSR);
            let mut to = File::from(tree.make(parent, base, recorder, make).during(doing)?);
            let count = std::io::copy(&mut from, &mut to).during(doing)?;
            copy_attributes(from.as_fd(), to.as_fd())?;
            tree.state.size = tree.state.size.saturating_add(count);
            tree.sync_tracker.file(to.into());
            Ok(())
        }
        FileType::Symlink => {
            let target = at::read_link_at(dir.fd(), name).during(doing)?;
            let make = || rustix::fs::symlinkat(target.as_slice(), parent.fd(), base);
            tree.make(parent, base, recorder, make).during(doing)
        }
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
            let make = || rustix::fs::mknodat(parent.fd(), base, kind, mode, stat.st_rdev);
            tree.make(parent, base, recorder, make).during(doing)
        }
    }
}
