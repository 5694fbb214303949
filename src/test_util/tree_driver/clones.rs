//! New trees: empty ones and clones.

use std::fs::{self, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::error::Result;
use crate::sys::privilege;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure, write};
use crate::test_util::tree_driver::fill::{fill, fill_deep, fill_many, read_deep};
use crate::test_util::tree_driver::tree::{compare, ensure_same, ensure_separate, look};

/// Layers of a long chain.
const DEPTH: usize = 100;
/// One in so many has a file of its own.
const EACH: usize = 10;

pub(super) fn empty_tree(bed: &Bed) -> Result<(), Fault> {
    let path = bed.new_path("new");
    bed.own.create_tree(&path)?;
    bed.own.attach_tree(&path)?;
    ensure(path.symlink_metadata()?.is_dir(), || {
        "it is no directory".to_owned()
    })?;
    let entries = fs::read_dir(&path)?.count();
    ensure(entries == 0, || format!("{entries} entries are in it"))?;
    write(&path, "file", "content")
}

/// A tree with everything in it, and a clone of it.
fn clone_of_all<T: PartialEq + std::fmt::Debug>(
    bed: &Bed,
    part: impl Fn(&super::tree::Seen) -> T,
) -> Result<(), Fault> {
    let source = look(&bed.layer("source", None, fill)?)?;
    compare(&source, &look(&bed.clone_of("clone", "source")?)?, part)
}

pub(super) fn same_content(bed: &Bed) -> Result<(), Fault> {
    let source = bed.layer("source", None, fill)?;
    let is_clone = |id: &str| {
        let clone = look(&bed.clone_of(id, "source")?)?;
        compare(&look(&bed.tree("source")?)?, &clone, |seen| seen.content.clone())
    };
    is_clone("clone")?;
    // What the source has now, whatever it had when it was cloned before.
    write(&source, "d/e/new", "new")?;
    fs::remove_file(source.join("d/short"))?;
    is_clone("clone of the changed one")?;
    bed.delete("source")?;
    bed.layer("source", None, |tree| write(tree, "file", "of another layer"))?;
    is_clone("clone of another one")?;

    let many = look(&bed.layer("many", None, fill_many)?)?;
    compare(&many, &look(&bed.clone_of("many clone", "many")?)?, |seen| {
        seen.content.clone()
    })?;
    bed.layer("deep", None, fill_deep)?;
    let deep = read_deep(&bed.clone_of("deep clone", "deep")?)?;
    ensure(deep == "deep", || format!("a file at a long path has {deep:?}"))?;
    bed.delete("deep clone")
}

pub(super) fn same_attributes(bed: &Bed) -> Result<(), Fault> {
    clone_of_all(bed, |seen| seen.attributes.clone())
}

pub(super) fn same_hard_links(bed: &Bed) -> Result<(), Fault> {
    clone_of_all(bed, |seen| seen.same_as.clone())
}

/// Changes everything in a tree that was filled.
fn change(tree: &Path) -> Result<(), Fault> {
    if !privilege::overrides_modes() {
        fs::set_permissions(tree.join("linked"), Permissions::from_mode(0o600))?;
        fs::set_permissions(tree, Permissions::from_mode(0o755))?;
    }
    let mut appended = fs::File::options().append(true).open(tree.join("linked"))?;
    appended.write_all(b" and more")?;
    fs::File::options()
        .write(true)
        .open(tree.join("d/long"))?
        .write_all(b"overwritten")?;
    fs::set_permissions(tree.join("empty"), Permissions::from_mode(0o640))?;
    fs::remove_file(tree.join("d/e/dangling"))?;
    fs::rename(tree.join("fifo"), tree.join("d/fifo"))?;
    write(tree, "d/new", "new")
}

pub(super) fn separate_files(bed: &Bed) -> Result<(), Fault> {
    let source_tree = bed.layer("source", None, fill)?;
    let source = look(&source_tree)?;
    let (changed, kept) = (
        bed.clone_of("changed", "source")?,
        bed.clone_of("kept", "source")?,
    );
    for clone in [&changed, &kept] {
        ensure_separate(&source, &look(clone)?)?;
    }
    ensure_separate(&look(&changed)?, &look(&kept)?)?;
    change(&changed)?;
    let told = |what: &'static str| move |Fault(found): Fault| Fault(format!("{what}: {found}"));
    ensure_same(&source, &look(&source_tree)?).map_err(told("after changes in a clone, in the source"))?;
    let before = look(&kept)?;
    change(&source_tree)?;
    ensure_same(&before, &look(&kept)?).map_err(told("after changes in the source, in a clone"))
}

pub(super) fn source_unchanged(bed: &Bed) -> Result<(), Fault> {
    let source_tree = bed.layer("source", None, fill)?;
    let source = look(&source_tree)?;
    bed.clone_of("clone", "source")?;
    ensure_same(&source, &look(&source_tree)?)
}

pub(super) fn long_chains(bed: &Bed) -> Result<(), Fault> {
    let mut parent: Option<String> = None;
    for number in 0..DEPTH {
        let id = format!("layer{number}");
        bed.layer(&id, parent.as_deref(), |tree| {
            write(tree, "top", &number.to_string())?;
            match number % EACH {
                0 => write(tree, &format!("file{number}"), ""),
                _ => Ok(()),
            }
        })?;
        parent = Some(id);
    }
    let top = bed.tree(&parent.unwrap_or_default())?;
    let entries = fs::read_dir(&top)?.count();
    ensure(entries == DEPTH / EACH + 1, || {
        format!("after {DEPTH} clones there are {entries} entries")
    })?;
    let content = fs::read_to_string(bed.tree("layer7")?.join("top"))?;
    ensure(content == "7", || {
        format!("a layer in the middle has {content:?}")
    })
}
