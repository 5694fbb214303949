//! Repairs link IDs: every layer has a `link` file, and a symbolic link of that name in `l/`.
//!
//! A crash of the machine, or a backup without symbolic links, can lose either. Each is made again from the other.
//! Entries that cannot be read do not stop the repair of the others; the caller looks again for the link ID that it
//! needs.

use std::collections::BTreeSet;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::driver::contract::EntryKind;
use crate::driver::overlay::layout::{self, LINKS};
use crate::driver::overlay::link_files::read_link_name;
use crate::error::{IoContext as _, Result};
use crate::sys::{at, atomic};

/// Repairs one overlay directory as far as possible. Fails only if it cannot be read or written at all.
pub(super) fn repair(home: &Path) -> Result<()> {
    let links = home.join(LINKS);
    let dir = match at::open_dir(&links) {
        Err(Errno::NOENT) => {
            std::fs::create_dir(&links).at("creating", &links)?;
            at::open_dir(&links)
        }
        opened => opened,
    };
    let dir = dir.at("opening", &links)?;
    let mut named = BTreeSet::new();
    for entry in std::fs::read_dir(home).at("listing", home)? {
        let entry = entry.at("listing", home)?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if layout::kind_of(&id, is_dir) != EntryKind::Layer {
            continue;
        }
        match read_link_name(&entry.path()) {
            Ok(Some(name)) => {
                match rustix::fs::symlinkat(layout::link_target(&id), &dir, &name) {
                    Ok(()) => tracing::warn!(layer = id, link = name, "put back a lost link"),
                    Err(Errno::EXIST) => {}
                    Err(error) => return Err(error).at("creating link in", &links),
                }
                named.insert(id);
            }
            // Its link ID may still be found in `l/` below; without one it is not treated as a layer.
            Ok(None) => {}
            Err(error) => tracing::warn!(layer = id, "{}", error.chain()),
        }
    }
    for entry in std::fs::read_dir(&links).at("listing", &links)? {
        let name = entry.at("listing", &links)?.file_name();
        let target = match at::read_link_at(dir.as_fd(), name.as_bytes()) {
            Ok(target) => target,
            Err(error) => {
                tracing::warn!(link = ?name, %error, "an entry of the directory of link IDs is no symbolic link");
                continue;
            }
        };
        let Some(id) = layout::parse_link_target(&target) else {
            tracing::warn!(link = ?name, "removing a link that leads to no layer");
            remove(&dir, name.as_bytes(), &links)?;
            continue;
        };
        let layer = home.join(id);
        // Layers that have a `link` file keep it: two links to one layer do no harm.
        if !named.contains(id) && layer.is_dir() && name.to_str().is_some() {
            tracing::warn!(layer = id, link = ?name, "put back a lost link file");
            atomic::write_file(&layer.join("link"), name.as_bytes(), 0o644, false)?;
            named.insert(id.to_owned());
        }
    }
    Ok(())
}

fn remove(dir: &OwnedFd, name: &[u8], links: &Path) -> Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).at("removing link in", links),
    }
}
