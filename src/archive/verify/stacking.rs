//! The tree that a layer makes of that of the layers below. Pure.

use std::collections::BTreeMap;

use crate::archive::verify::expected_item::What;
use crate::archive::verify::expected_tree::{ExpectedTree, path_of};
use crate::error::Result;

impl ExpectedTree {
    /// Puts the tree of a layer on that of the layers below, which becomes the tree of all of them.
    ///
    /// # Errors
    /// As [`ExpectedTree::add`].
    pub(crate) fn put_on(self, lower: &mut Self) -> Result<()> {
        lower.last_parent = None;
        for item in &mut lower.items {
            item.own = false;
        }
        for path in self.deleted() {
            lower.displace(&path);
        }
        for path in self.opaque() {
            match path.is_empty() {
                true => lower.names.clear(),
                false => lower.remove_below(&path),
            }
        }
        // Some programs follow a link of the layers below where others replace it.
        for path in self.assumed.iter().map(|name| path_of(name)) {
            let link = matches!(
                lower.get(&path).map(|item| &item.what),
                Some(What::SymbolicLink(_))
            );
            if link {
                lower.unsure(&path);
                if let Some(target) = lower.find_dir(&path) {
                    lower.unsure(&target);
                }
            }
        }
        let mut moved: BTreeMap<u32, u32> = BTreeMap::new();
        for (name, index) in &self.names {
            let Some(item) = self.item(*index) else { continue };
            let path = path_of(name);
            let here = lower.names.get(name).copied();
            let dir_here = here.filter(|index| {
                let item = lower.item(*index);
                item.is_some_and(|item| matches!(item.what, What::Directory { .. }))
            });
            if let What::Directory { implied } = item.what
                && let Some(index) = dir_here
            {
                let here = usize::try_from(index).ok();
                if let (false, Some(here)) = (implied, here.and_then(|here| lower.items.get_mut(here))) {
                    *here = item.clone();
                }
                continue;
            }
            lower.make_room(&path, matches!(item.what, What::Directory { .. }));
            if let Some(index) = moved.get(index) {
                lower.count(&path, 0)?;
                lower.names.insert(name.clone(), *index);
                continue;
            }
            lower.insert(&path, item.clone())?;
            let last = u32::try_from(lower.items.len() - 1).unwrap_or(u32::MAX);
            moved.insert(*index, last);
        }
        lower.unsure.extend(self.unsure);
        lower.possible.extend(self.possible);
        Ok(())
    }
}
