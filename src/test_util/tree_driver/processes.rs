//! Several processes at one graph root: each has an object of the driver.

use crate::error::Result;
use crate::test_util::tree_driver::bed::{Bed, Fault, ensure, write};
use crate::test_util::tree_driver::fill::fill;
use crate::test_util::tree_driver::tree::{ensure_same, look};

pub(super) fn several_processes(bed: &Bed) -> Result<(), Fault> {
    let other = bed.in_another_process()?;
    let base = look(&bed.layer("base", None, fill)?)?;
    other.layer("other base", None, |tree| write(tree, "file", "other"))?;
    let told = |what: &'static str| move |Fault(found): Fault| Fault(format!("{what}: {found}"));
    let clone = other
        .clone_of("clone", "base")
        .map_err(told("cloning what another object of the driver has made"))?;
    write(&clone, "new", "")?;
    bed.clone_of("clone of a clone", "clone")
        .map_err(told("cloning the clone of another object"))?;
    bed.clone_of("other clone", "other base")
        .map_err(told("cloning what another object has made"))?;
    ensure_same(&base, &look(&bed.tree("base")?)?).map_err(told("after what another object has made"))?;
    let kept = look(&bed.tree("clone of a clone")?)?;
    other
        .delete("base")
        .map_err(told("deleting what another object has made"))?;
    bed.delete("clone")
        .map_err(told("deleting what another object has made"))?;
    for bed in [bed, &other] {
        ensure_same(&kept, &look(&bed.tree("clone of a clone")?)?)
            .map_err(told("after deletions by both"))?;
        for id in ["other base", "other clone"] {
            let content = std::fs::read_to_string(bed.tree(id)?.join("file"))?;
            ensure(content == "other", || {
                format!("after deletions by both, a file of {id:?} has {content:?}")
            })?;
        }
    }
    Ok(())
}
