//! Trees of additional read-only stores.

use std::fs;

use crate::error::Result;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure, write};
use crate::test_util::tree_driver::fill::fill;
use crate::test_util::tree_driver::tree::{ensure_same, ensure_separate, look};

pub(super) fn additional_stores(bed: &Bed) -> Result<(), Fault> {
    let before = look(&bed.layer("base", None, fill)?)?;
    let user = bed.of_which_this_is_additional()?;
    user.layer("other", None, |tree| write(tree, "file", "other"))?;
    let told = |what: &'static str| move |Fault(found): Fault| Fault(format!("{what}: {found}"));
    let clone = user
        .clone_of("clone", "base")
        .map_err(told("cloning a tree of an additional store"))?;
    let cloned = look(&clone)?;
    ensure_same(&before, &cloned).map_err(told("in a clone of a tree of an additional store"))?;
    ensure_separate(&before, &cloned)?;
    write(&clone, "new", "")?;
    user.clone_of("clone of the clone", "clone")?;
    user.delete("clone")?;
    user.driver.cleanup()?;
    ensure_same(&before, &look(&bed.tree("base")?)?)
        .map_err(told("in an additional store, after a clone and its deletion"))?;
    let trees = fs::read_dir(bed.driver.home().join("dir"))?.count();
    ensure(trees == 1, || {
        format!("{trees} trees are in an additional store that had one")
    })
}
