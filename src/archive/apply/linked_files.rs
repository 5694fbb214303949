//! Files that other layers have, too, under the same inode: nothing of them may change.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::AtFlags;

use crate::archive::apply::new_file::copy_file;
use crate::archive::apply::settle::literal_dir;
use crate::archive::apply::shared_files::keep_state;
use crate::archive::path::split;
use crate::error::{Error, IoContext as _, Result};
use crate::sys::sync_tracker::SyncTracker;
use crate::sys::{at, random, tree};

const DOING: &str = "copying a file that another layer has, too";

/// Device and inode.
type Identity = (u64, u64);

/// See the module's head.
#[derive(Debug, Default)]
pub(crate) struct LinkedFiles {
    /// The names that they have had in this layer.
    names: HashMap<Identity, Vec<Vec<u8>>>,
}

impl LinkedFiles {
    /// Notes that the layer has a file under the name `path`, which leads through no link.
    pub(crate) fn add(&mut self, identity: Identity, path: Vec<u8>) {
        self.names.entry(identity).or_default().push(path);
    }

    /// Whether it is one of them.
    pub(crate) fn has(&self, identity: Identity) -> bool {
        !self.names.is_empty() && self.names.contains_key(&identity)
    }

    /// Puts a copy, which is the layer's own, in the place of a file under all of its names in the layer with the root `root`.
    pub(crate) fn part(
        &mut self,
        root: BorrowedFd<'_>,
        identity: Identity,
        sync_tracker: &mut SyncTracker,
    ) -> Result<()> {
        let mut copied: Option<Vec<u8>> = None;
        for path in self.names.remove(&identity).unwrap_or_default() {
            let (above, name) = split(&path);
            let Some(dir) = literal_dir(root, above)? else {
                continue;
            };
            let Some(stat) = at::lstat_at(dir.as_fd(), name).during(DOING)? else {
                continue;
            };
            // Something else may have taken its place.
            if tree::identity(&stat) != identity {
                continue;
            }
            let temporary = random::with_unused(|number| {
                let temporary = format!(".graphroot-{number}").into_bytes();
                match at::lstat_at(dir.as_fd(), &temporary)? {
                    None => Ok(temporary),
                    Some(_) => Err(rustix::io::Errno::EXIST),
                }
            })
            .during(DOING)?;
            let to = (dir.as_fd(), temporary.as_slice());
            match &copied {
                None => {
                    let from = (dir.as_fd(), name, &stat);
                    if let Some((_, copy, _)) = copy_file(from, to)? {
                        sync_tracker.file(copy.into());
                    }
                    keep_state(from, to)?;
                }
                Some(first) => {
                    let (above, name) = split(first);
                    let from = literal_dir(root, above)?
                        .ok_or_else(|| Error::io(DOING, rustix::io::Errno::NOENT))?;
                    rustix::fs::linkat(&from, name, &dir, temporary.as_slice(), AtFlags::empty())
                        .during(DOING)?;
                }
            }
            rustix::fs::renameat(&dir, temporary.as_slice(), &dir, name).during(DOING)?;
            copied.get_or_insert(path);
        }
        Ok(())
    }
}
