//! Hard links to a file that cannot have more names (`EMLINK`, on ext4 after 65,000) or must not have one. A copy of the
//! file takes their place, and is linked to in its turn.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Stat};
use rustix::io::Errno;

use crate::archive::apply::new_file::copy_file;
use crate::archive::apply::parents::Parent;
use crate::archive::apply::tree::{During as _, MakeError, Tree};
use crate::archive::apply::visited::copy_attributes;
use crate::archive::tar_split::recorder::TarSplitRecorder;
use crate::error::{IoContext as _, Result};
use crate::sys::{at, tree};

/// The latest copy of each file that has as many names as it can have. There are few: where files can be linked at all,
/// each stands for thousands of entries.
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
        source: (BorrowedFd<'_>, &[u8], &Stat),
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
    source: (BorrowedFd<'_>, &[u8], &Stat),
    parent: &Rc<Parent>,
    base: &[u8],
    recorder: &mut TarSplitRecorder,
) -> Result<()> {
    tree.displace(parent, base, recorder)?;
    if let Some((from, to, count)) = copy_file(source, (parent.fd(), base))? {
        copy_attributes(from.as_fd(), to.as_fd())?;
        tree.state.size = tree.state.size.saturating_add(count);
        tree.sync_tracker.file(to.into());
    }
    Ok(())
}
