//! ID-mapped lower layers: mounts that show the same files with other owners, needed while an overlay mount is made.
//!
//! One ID-mapped mount is made of each overlay directory that lowers are in, and attached at `mapped/<n>`; a lower is
//! then the same path below it, links included. A lower in an additional layer store has a mount of its own. The upper
//! directory is not mapped: new files are written with the host's IDs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::driver::overlay::lower_mounts::sweep;
use crate::driver::overlay::stores::Lower;
use crate::error::{IoContext as _, Result};
use crate::idmap::IdMappings;
use crate::sys::make_private_subdir;
use crate::sys::mount::{attach, clone_id_mapped};
use crate::sys::userns;

/// How many user namespaces are kept open for the next mount with the same mappings.
const MAX_KEPT: usize = 16;

/// User namespaces that are kept open, by their mappings.
#[derive(Debug, Default)]
pub(super) struct UserNamespaces(Mutex<Vec<(IdMappings, Arc<OwnedFd>)>>);

impl UserNamespaces {
    /// A user namespace with these mappings.
    pub(super) fn get(&self, mappings: &IdMappings) -> Result<Arc<OwnedFd>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, namespace)) = kept.iter().find(|(known, _)| known == mappings) {
            return Ok(Arc::clone(namespace));
        }
        let namespace =
            Arc::new(userns::create(mappings).during("making a user namespace with ID mappings")?);
        if kept.len() >= MAX_KEPT {
            kept.remove(0);
        }
        kept.push((mappings.clone(), Arc::clone(&namespace)));
        Ok(namespace)
    }
}

/// ID-mapped mounts of lowers; unmounted when dropped.
#[derive(Debug)]
pub(super) struct MappedLowers {
    dir: PathBuf,
    /// The lowers, below the ID-mapped mounts.
    pub(super) paths: Vec<PathBuf>,
}

impl MappedLowers {
    /// Mounts what `lowers` needs at numbered directories in `dir`. Images have mounts of their own.
    pub(super) fn make(dir: &Path, lowers: &[Lower], namespace: &OwnedFd) -> Result<Self> {
        // Of a killed process.
        sweep(dir);
        let mut made = Self {
            dir: dir.to_owned(),
            paths: Vec::with_capacity(lowers.len()),
        };
        let mut roots: Vec<&Path> = Vec::new();
        for lower in lowers {
            if lower.image().is_some() {
                made.paths.push(lower.full());
                continue;
            }
            let root = lower.root();
            let known = roots.iter().position(|known| *known == root);
            let number = known.unwrap_or(roots.len());
            let target = dir.join(number.to_string());
            if known.is_none() {
                make_private_subdir(dir)?;
                make_private_subdir(&target)?;
                let tree = clone_id_mapped(root, namespace.as_fd()).at("mapping owners below", root)?;
                attach(tree.as_fd(), &target).at("attaching a mount with mapped owners at", &target)?;
                roots.push(root);
            }
            made.paths.push(lower.seen_at(&target));
        }
        Ok(made)
    }
}

impl Drop for MappedLowers {
    fn drop(&mut self) {
        sweep(&self.dir);
    }
}
