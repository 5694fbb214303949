//! File systems of other kinds than that of the directory in which a benchmark runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Res, run};

/// A file system in a file, mounted for as long as this lives.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// Makes one of `kind` in `dir`.
    pub(crate) fn new(kind: &str, dir: &Path) -> Res<Self> {
        let (image, target) = (dir.join("image"), dir.join("disk"));
        std::fs::File::create(&image)?.set_len(8 << 30)?;
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        std::fs::create_dir(&target)?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .arg(&image)
            .arg(&target))?;
        Ok(Self(target))
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg("--recursive").arg(&self.0)) {
            println!("{} stays mounted: {error}", self.0.display());
        }
    }
}
