//! What is missing or half made.

use std::fs;

use crate::error::Result;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure, write};
use crate::test_util::tree_driver::fill::fill;

pub(super) fn missing_source(bed: &Bed) -> Result<(), Fault> {
    let (source, path) = (bed.new_path("missing"), bed.new_path("clone"));
    let cloned = bed.own.clone_tree(&source, &path);
    ensure(cloned.is_err(), || "a clone of nothing has been made".to_owned())?;
    bed.own.delete_tree(&path)?;
    Ok(())
}

pub(super) fn repeated_deletion(bed: &Bed) -> Result<(), Fault> {
    let said = |what: &'static str| move |error: std::io::Error| Fault(format!("{what}: {error}"));
    bed.own
        .delete_tree(&bed.new_path("missing"))
        .map_err(said("what is not there"))?;
    let plain = bed.new_path("plain");
    fs::create_dir(&plain)?;
    write(&plain, "file", "")?;
    bed.own.delete_tree(&plain).map_err(said("what is no tree"))?;
    let tree = bed.layer("half", None, fill)?;
    fs::remove_dir_all(tree.join("d"))?;
    bed.own.detach_tree(&tree)?;
    for _ in 0..2 {
        bed.own
            .delete_tree(&tree)
            .map_err(said("a tree of which a part is missing"))?;
    }
    bed.delete("half")?;
    ensure(!tree.exists(), || "it is still there".to_owned())
}

pub(super) fn killed_processes(bed: &Bed) -> Result<(), Fault> {
    let source = bed.layer("source", None, fill)?;
    // As a process leaves it that is killed after it has made a clone: the lock is free.
    let temp_dirs = bed.driver.home().join("tempdirs");
    let dir = temp_dirs.join("temp-dir-1");
    fs::create_dir_all(&dir)?;
    fs::write(temp_dirs.join("lock-1"), "")?;
    let (empty, half) = (dir.join("0-addition"), dir.join("1-addition"));
    bed.own.create_tree(&empty)?;
    bed.own.attach_tree(&empty)?;
    write(&empty, "file", "")?;
    if bed.own.clone_tree(&source, &half).is_ok() {
        bed.own.attach_tree(&half)?;
        fs::remove_file(half.join("d/long"))?;
    }
    bed.in_another_process()?.driver.prune()?;
    ensure(!dir.exists(), || "its trees are still there".to_owned())?;
    ensure(source.join("d/long").exists(), || {
        "the source has lost a file".to_owned()
    })?;
    let beside = bed.root.join(bed.driver.name());
    let entries = fs::read_dir(beside.join("tempdirs"))?.count();
    ensure(entries == 0, || format!("{entries} entries are in tempdirs"))
}
