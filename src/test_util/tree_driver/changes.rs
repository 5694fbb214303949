//! What happens to trees that are there: they are moved, exchanged, attached and deleted.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;

use rustix::io::Errno;

use crate::driver::CreateOptions;
use crate::error::Result;
use crate::sys::at;
use crate::sys::mount::is_mount_point;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure, panic_message, write};
use crate::test_util::tree_driver::fill::fill;
use crate::test_util::tree_driver::tree::{ensure_same, look};

pub(super) fn moved_trees(bed: &Bed) -> Result<(), Fault> {
    let tree = bed.layer("first", None, fill)?;
    let before = look(&tree)?;
    let moved = bed.new_path("moved");
    bed.own.detach_tree(&tree)?;
    at::rename(&tree, &moved)?;
    ensure_same(&before, &look(&bed.tree("moved")?)?)?;
    ensure_same(&before, &look(&bed.clone_of("clone", "moved")?)?)?;
    write(&moved, "d/new", "new")?;
    bed.delete("moved")?;
    ensure(!moved.exists(), || {
        "it is still there after its deletion".to_owned()
    })
}

pub(super) fn exchanged_trees(bed: &Bed) -> Result<(), Fault> {
    let one = bed.layer("one", None, |tree| write(tree, "one", "1"))?;
    let other = bed.layer("other", None, |tree| write(tree, "other", "2"))?;
    if is_mount_point(&one)? {
        return Ok(());
    }
    for tree in [&one, &other] {
        bed.own.detach_tree(tree)?;
    }
    // A clone from before says nothing about one from afterwards.
    bed.clone_of("before", "one")?;
    match at::exchange(&one, &other) {
        // The file system cannot.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => return Ok(()),
        exchanged => exchanged?,
    }
    let (one, other) = (bed.tree("one")?, bed.tree("other")?);
    ensure(one.join("other").exists() && other.join("one").exists(), || {
        "both have what they had".to_owned()
    })?;
    write(&one, "new", "")?;
    ensure(!other.join("new").exists(), || "they are one tree".to_owned())?;
    let clone = bed.clone_of("after", "one")?;
    let has = |name: &str| clone.join(name).exists();
    ensure(has("other") && has("new") && !has("one"), || {
        "a clone of one is what the other was".to_owned()
    })?;
    bed.delete("one")?;
    ensure(!one.exists() && other.join("one").exists(), || {
        "deleting one has deleted the other".to_owned()
    })?;
    bed.delete("other")?;
    ensure(!other.exists() && has("other"), || {
        "deleting both has deleted a clone".to_owned()
    })
}

pub(super) fn independent_deletion(bed: &Bed) -> Result<(), Fault> {
    bed.layer("below", None, fill)?;
    bed.layer("middle", Some("below"), |tree| write(tree, "d/middle", ""))?;
    bed.layer("above", Some("middle"), |tree| write(tree, "d/above", ""))?;
    bed.layer("beside", None, |tree| write(tree, "file", ""))?;
    let look_at = |id: &str| look(&bed.tree(id)?);
    let (below, above, beside) = (look_at("below")?, look_at("above")?, look_at("beside")?);
    bed.delete("middle")?;
    for (id, before) in [("below", &below), ("above", &above), ("beside", &beside)] {
        ensure_same(before, &look_at(id)?)
            .map_err(|Fault(found)| Fault(format!("after the deletion of \"middle\", in {id:?}: {found}")))?;
    }
    bed.delete("below")?;
    ensure_same(&above, &look_at("above")?)?;
    ensure_same(&beside, &look_at("beside")?)
}

pub(super) fn open_files(bed: &Bed) -> Result<(), Fault> {
    let tree = bed.layer("layer", None, |tree| write(tree, "file", "content"))?;
    let mut file = fs::File::open(tree.join("file"))?;
    bed.delete("layer")?;
    ensure(!tree.exists(), || "the tree is still there".to_owned())?;
    let mut content = String::new();
    file.read_to_string(&mut content)?;
    ensure(content == "content", || {
        format!("a file that was open has {content:?} now")
    })
}

pub(super) fn repeated_attaching(bed: &Bed) -> Result<(), Fault> {
    let tree = bed.layer("layer", None, fill)?;
    let before = look(&tree)?;
    bed.own.attach_tree(&tree)?;
    bed.own.attach_tree(&tree)?;
    ensure_same(&before, &look(&tree)?)?;
    bed.own.detach_tree(&tree)?;
    bed.own.detach_tree(&tree)?;
    bed.own.attach_tree(&tree)?;
    ensure_same(&before, &look(&tree)?)
}

pub(super) fn parallel_calls(bed: &Bed) -> Result<(), Fault> {
    const THREADS: usize = 8;
    // A clone of the one is not what another thread clones meanwhile.
    let sources = [
        ("source", look(&bed.layer("source", None, fill)?)?),
        (
            "other",
            look(&bed.layer("other", None, |tree| write(tree, "other", ""))?)?,
        ),
    ];
    let work = |number: usize| -> Result<(), Fault> {
        let (source, expected) = &sources[number % sources.len()];
        for round in 0..2 {
            let (gone, stays) = (
                format!("gone-{number}-{round}"),
                format!("stays-{number}-{round}"),
            );
            bed.clone_of(&gone, source)?;
            let tree = bed.clone_of(&stays, source)?;
            bed.delete(&gone)?;
            ensure_same(expected, &look(&tree)?)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || work(number)))
            .collect();
        let ends = threads.into_iter().map(|thread| {
            let panicked = |panic| Err(Fault(panic_message(panic)));
            thread.join().unwrap_or_else(panicked)
        });
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

pub(super) fn syncing(bed: &Bed) -> Result<(), Fault> {
    let tree = bed.layer("layer", None, fill)?;
    bed.own.sync_tree(&tree)?;
    bed.own.sync_tree(&bed.clone_of("clone", "layer")?)?;
    Ok(())
}

pub(super) fn limits(bed: &Bed) -> Result<(), Fault> {
    if !bed.own.limits_size() {
        return Ok(());
    }
    let options = CreateOptions {
        read_write: true,
        storage_opt: [("size".to_owned(), "32m".to_owned())].into(),
        ..CreateOptions::default()
    };
    bed.layer("base", None, |tree| write(tree, "file", ""))?;
    bed.driver.create("limited", Some("base"), &options)?;
    let (limited, free) = (bed.tree("limited")?, bed.clone_of("free", "base")?);
    write_mebibytes(&limited, 4).map_err(|error| Fault(format!("4 MiB of 32: {error}")))?;
    let refused = write_mebibytes(&limited, 128);
    let is_refused = matches!(refused, Err(Errno::NOSPC | Errno::DQUOT));
    ensure(is_refused, || format!("128 MiB of 32: {refused:?}"))?;
    write_mebibytes(&free, 64).map_err(|error| Fault(format!("in a tree without a limit: {error}")))
}

/// Writes a file that takes its space.
fn write_mebibytes(tree: &Path, count: usize) -> std::result::Result<(), Errno> {
    let write = || {
        let mut file = fs::File::create(tree.join("written"))?;
        for _ in 0..count {
            // Not all zero, which a file system could leave out.
            file.write_all(&[7; 1 << 20])?;
            file.sync_data()?;
        }
        Ok(())
    };
    write().map_err(|error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
