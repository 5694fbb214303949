//! What is outside a tree.

use std::fs;
use std::os::unix::fs::{lchown, symlink};
use std::path::Path;

use crate::error::Result;
use crate::sys::privilege;
use crate::test_util::tree_driver::bed::{Bed, Fault, write};
use crate::test_util::tree_driver::tree::{ensure_same, look};

pub(super) fn stays_inside(bed: &Bed) -> Result<(), Fault> {
    let outside = bed.directory()?.join("outside");
    fs::create_dir_all(outside.join("d"))?;
    write(&outside, "file", "outside")?;
    write(&outside, "d/file", "outside")?;
    let before = look(&outside)?;
    let is_as_before = |step: &str| {
        ensure_same(&before, &look(&outside)?)
            .map_err(|Fault(found)| Fault(format!("outside of the tree, after {step}: {found}")))
    };
    bed.layer("source", None, |tree| lead_out(tree, &outside))?;
    bed.clone_of("clone", "source")?;
    is_as_before("a clone")?;
    bed.delete("clone")?;
    is_as_before("the deletion of a clone")?;
    bed.delete("source")?;
    is_as_before("the deletion of a tree")?;
    // As the store finds what a killed process has left.
    let plain = bed.new_path("plain");
    fs::create_dir(&plain)?;
    lead_out(&plain, &outside)?;
    bed.own.delete_tree(&plain)?;
    is_as_before("the deletion of what is no tree")
}

/// Makes links that lead out of a tree.
fn lead_out(tree: &Path, outside: &Path) -> Result<(), Fault> {
    fs::create_dir(tree.join("d"))?;
    let absolute = outside.to_owned();
    for (name, target) in [
        ("directory", absolute.clone()),
        ("file", absolute.join("file")),
        ("d/directory", absolute.clone()),
        ("d/file", absolute.join("d/file")),
        // From the place of a layer, and from a temporary directory.
        ("up", "../../../../outside".into()),
        ("further up", "../../../../../outside".into()),
    ] {
        symlink(target, tree.join(name))?;
        if privilege::is_root() {
            lchown(tree.join(name), Some(9), Some(9))?;
        }
    }
    Ok(())
}
