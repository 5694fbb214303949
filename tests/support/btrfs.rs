//! File systems of the kind btrfs, in memory: one that all tests of a process share, and ones of their own.

use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;

use super::scripted_fs;

/// Names a directory on a btrfs that is there already, for processes that may not mount one.
pub(crate) const VARIABLE: &str = "GRAPHROOT_TEST_BTRFS";

/// A mounted file system. It goes when this is dropped, or the process ends.
#[derive(Debug)]
pub(crate) struct Btrfs {
    dir: PathBuf,
    program: Option<Child>,
}

impl Btrfs {
    /// Makes one; else says why that cannot be.
    pub(crate) fn new() -> Result<Self, &'static str> {
        if !rustix::process::geteuid().is_root() {
            return Err("a btrfs is mounted by root");
        }
        let made = scripted_fs::make_image("btrfs", "4G");
        let made = made.ok_or("a btrfs cannot be made and mounted here")?;
        Ok(Self {
            dir: made.dir,
            program: Some(made.program),
        })
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        if let Some(program) = &mut self.program {
            drop(program.stdin.take());
            program.wait().unwrap();
        }
    }
}

/// The directory of the one that all share; else why there is none.
pub(crate) fn shared() -> Result<&'static Path, &'static str> {
    // Never dropped: it goes with the process.
    static SHARED: OnceLock<Result<Btrfs, &'static str>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| match std::env::var_os(VARIABLE) {
        Some(dir) => Ok(Btrfs {
            dir: dir.into(),
            program: None,
        }),
        None => Btrfs::new(),
    });
    shared.as_ref().map(Btrfs::path).map_err(|why| *why)
}
