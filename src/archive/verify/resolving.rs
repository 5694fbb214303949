//! Following paths through the links of an expected tree. Pure.

use crate::archive::path::{MAX_PATH, push, split};
use crate::archive::verify::expected_item::{Item, What};
use crate::archive::verify::expected_tree::{ExpectedTree, key};
use crate::error::Result;

/// Symbolic links that are followed for one name.
const MAX_LINKS: usize = 40;

/// What following a path to a directory comes to.
enum Resolved {
    /// It is there, at this path without links.
    Directory(Vec<u8>),
    /// Nothing is at `real`, a path without links, with which `path`, all that is left to follow, begins.
    Missing { real: Vec<u8>, path: Vec<u8> },
    /// Something else is in the way, or too many links.
    Blocked,
}

impl ExpectedTree {
    /// The path without links of the directory that an entry goes into, made where it is missing; `None` if something else
    /// is in the way.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        if let Some((last, real)) = &self.last_parent
            && last == path
        {
            return Ok(Some(real.clone()));
        }
        let real = self.make_dir(path)?;
        if let Some(real) = &real {
            self.last_parent = Some((path.to_vec(), real.clone()));
        }
        Ok(real)
    }

    /// Follows a path to a directory, through the links of this tree, which are counted in `links`.
    fn resolve(&self, path: &[u8], links: &mut usize) -> Resolved {
        // Components still to come, the next one last.
        let mut rest: Vec<Vec<u8>> = components(path);
        let mut real = Vec::new();
        while let Some(name) = rest.pop() {
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    let above = split(&real).0.len();
                    real.truncate(above);
                    continue;
                }
                _ => {}
            }
            let parent = real.len();
            push(&mut real, &name);
            match self.get(&real).map(|item| &item.what) {
                Some(What::Directory { .. }) => {}
                Some(What::SymbolicLink(target)) if *links < MAX_LINKS && target.len() <= MAX_PATH => {
                    *links += 1;
                    real.truncate(if target.starts_with(b"/") { 0 } else { parent });
                    rest.extend(components(target));
                }
                Some(_) => return Resolved::Blocked,
                None => {
                    let mut path = real.clone();
                    for name in rest.iter().rev() {
                        push(&mut path, name);
                    }
                    return Resolved::Missing { real, path };
                }
            }
        }
        Resolved::Directory(real)
    }

    fn make_dir(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut path = path.to_vec();
        let mut links = 0;
        loop {
            let real;
            (real, path) = match self.resolve(&path, &mut links) {
                Resolved::Directory(real) => return Ok(Some(real)),
                Resolved::Blocked => return Ok(None),
                Resolved::Missing { real, path } => (real, path),
            };
            if real.len() > MAX_PATH {
                return Ok(None);
            }
            self.insert(&real, Item::implied_directory())?;
            self.assumed.insert(key(&real));
        }
    }

    /// The path without links of a directory in which something is deleted; `None` if something else is in the way. Programs
    /// disagree on whether that makes the directories that are missing.
    pub(super) fn place(&mut self, path: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut path = match self.resolve(path, &mut 0) {
            Resolved::Directory(real) => return Ok(Some(real)),
            Resolved::Blocked => return Ok(None),
            // Where nothing is, no link is followed.
            Resolved::Missing { path, .. } => path,
        };
        let found = path.clone();
        while !path.is_empty() && self.get(&path).is_none() && self.possible.insert(key(&path)) {
            self.count(&path, 0)?;
            self.assumed.insert(key(&path));
            path.truncate(split(&path).0.len());
        }
        Ok(Some(found))
    }

    /// The path without links of a directory that is there.
    pub(super) fn find_dir(&self, path: &[u8]) -> Option<Vec<u8>> {
        match self.resolve(path, &mut 0) {
            Resolved::Directory(real) => Some(real),
            Resolved::Missing { .. } | Resolved::Blocked => None,
        }
    }
}

/// The components of a path, the first one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let mut list: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect();
    list.reverse();
    list
}
