//! Makes the tree of a layer that does not exist yet show what another tree shows, perhaps that of another driver.
//!
//! Both are walked through beside each other; only what differs is written. Nothing goes through an archive: names, owners
//! (also those outside of all ID mappings), times, links between files and extended attributes stay what they are. Where the
//! source keeps changes apart, only these are looked at, else everything is, contents included.
//!
//! The same walk tells whether two trees are the same ([`difference`]).

mod attributes;
mod directories;
mod entries;
mod frame;
mod links;
mod trees;
mod trial;
mod walk;

use std::path::PathBuf;

use crate::driver::update::frame::Aim;
pub(crate) use crate::driver::update::trees::{Loss, NewTree, OwnFiles, Remaps, ShownTree, remap};
pub(crate) use crate::driver::update::trial::Trial;
use crate::error::Result;
use crate::whiteout::WhiteoutFormat;

/// Makes the tree show what `from` shows, and returns what it cannot have.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io). The tree is then partly written.
pub(crate) fn update(from: &ShownTree, to: &NewTree<'_>, remaps: &Remaps) -> Result<Vec<Loss>> {
    let is_whole = to.tree.whiteouts == WhiteoutFormat::Apply;
    // The copy of the layer below has new owners, but access control lists with the old ones.
    let may_skip = if is_whole {
        remaps.below.is_none()
    } else {
        remaps.agree()
    };
    walk::run(from, &Aim::Update(to), remaps, may_skip).map(|end| end.losses)
}

/// The first path at which two trees differ that is found, if there is one, and what `to` lacks because it cannot have it,
/// which is no difference. Without `trial` that is only what no tree of its kind can have.
///
/// # Errors
/// [`ErrorKind::Io`](crate::ErrorKind::Io).
pub(crate) fn difference(
    from: &ShownTree,
    to: &ShownTree,
    remaps: &Remaps,
    trial: Option<&Trial>,
) -> Result<(Option<PathBuf>, Vec<Loss>)> {
    let may_skip = to.own.as_ref().is_some_and(|own| own.complete);
    let end = walk::run(from, &Aim::Compare(to, trial), remaps, may_skip)?;
    Ok((end.difference, end.losses))
}

#[cfg(test)]
mod tests;
