//! What a driver has open.

use std::fs;

use crate::error::Result;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure};
use crate::test_util::tree_driver::fill::fill;

pub(super) fn nothing_open(bed: &Bed) -> Result<(), Fault> {
    bed.layer("source", None, fill)?;
    let clone = bed.clone_of("clone", "source")?;
    bed.own.sync_tree(&clone)?;
    none_is_open(bed, "a clone")?;
    bed.delete("clone")?;
    bed.delete("source")?;
    none_is_open(bed, "deletions")
}

/// Fails if this process has a file of a tree open, also one that was deleted.
fn none_is_open(bed: &Bed, step: &str) -> Result<(), Fault> {
    // Without `/proc` it cannot be seen.
    let Ok(files) = fs::read_dir("/proc/self/fd") else {
        return Ok(());
    };
    let home = bed.driver.home().canonicalize()?;
    for file in files {
        // It was closed meanwhile, by another thread.
        let Ok(path) = fs::read_link(file?.path()) else {
            continue;
        };
        let is_of_a_tree = ["dir", "tempdirs"]
            .iter()
            .any(|name| path.starts_with(home.join(name)));
        ensure(!is_of_a_tree, || format!("after {step}, {path:?} is open"))?;
    }
    Ok(())
}
