//! The tree that the headers of a layer describe. Pure.
//!
//! Paths are kept flat, with NUL in the place of slashes: then the order of the bytes is the order of a walk that lists a
//! directory before what is in it, and everything below a directory is one range. Names that hard links share stand for one
//! item.
//!
//! A layer's own tree is filled from its headers ([`ExpectedTree::add`]). Where a driver keeps complete trees, it is then
//! put on the tree of the layers below ([`ExpectedTree::put_on`]).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::archive::apply::metadata;
use crate::archive::path::{MAX_PATH, clean, push, split};
use crate::archive::tar::reader::Entry;
use crate::archive::verify::expected_item::{CAPABILITIES, Content, Item, UNSURE_TIME, What, added};
use crate::error::{ErrorKind, Result};
use crate::whiteout::{self, WhiteoutName};

/// How much memory the expectations of one layer may take.
const MAX_SIZE: usize = 256 << 20;

/// What a name takes besides its path.
const NAME_SIZE: usize = 160;

/// The directory in which AUFS has kept files that are linked from several places. Not all programs unpack it.
const AUFS_LINKS: &[u8] = b".wh..wh.plnk/";

/// See the module's head.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExpectedTree {
    pub(super) items: Vec<Item>,
    pub(super) names: BTreeMap<Box<[u8]>, u32>,
    /// Names that the layers below shall not have.
    deleted: BTreeSet<Box<[u8]>>,
    /// Directories in which the layers below shall have nothing.
    opaque: BTreeSet<Box<[u8]>>,
    /// Below these nothing is compared: programs disagree on what is there.
    pub(super) unsure: BTreeSet<Box<[u8]>>,
    /// Directories in which something is deleted: some programs make those that are missing.
    pub(super) possible: BTreeSet<Box<[u8]>>,
    /// Directories of which the layer has said nothing when something in them came.
    pub(super) assumed: BTreeSet<Box<[u8]>>,
    /// Memory that all of it takes.
    size: usize,
    /// The directory in which the last entry was.
    pub(super) last_parent: Option<(Vec<u8>, Vec<u8>)>,
}

/// A path as it is kept.
pub(crate) fn key(path: &[u8]) -> Box<[u8]> {
    let mut key = Vec::with_capacity(path.len());
    set_key(&mut key, path);
    key.into_boxed_slice()
}

/// Has `key` be that of a path.
pub(crate) fn set_key(key: &mut Vec<u8>, path: &[u8]) {
    key.clear();
    key.extend(path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }));
}

/// The path of a key.
pub(crate) fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter()
        .map(|byte| if *byte == 0 { b'/' } else { *byte })
        .collect()
}

/// What everything below a path begins with, and what comes after all of that.
fn below(path: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut start = key(path).into_vec();
    let mut end = start.clone();
    start.push(0);
    end.push(1);
    (start, end)
}

/// Whether a set has the path, or one above it.
fn covers(set: &BTreeSet<Box<[u8]>>, path: &[u8]) -> bool {
    if set.is_empty() {
        return false;
    }
    let key = key(path);
    let ends = key
        .iter()
        .enumerate()
        .filter(|(_, byte)| **byte == 0)
        .map(|(index, _)| index);
    ends.chain([key.len()])
        .any(|end| set.contains(key.get(..end).unwrap_or_default()))
        || set.contains(&b""[..])
}

impl ExpectedTree {
    /// What is expected at a path.
    pub(crate) fn get(&self, path: &[u8]) -> Option<&Item> {
        self.item(*self.names.get(&*key(path))?)
    }

    /// The names after `cursor` in the order of a walk, by their keys.
    pub(crate) fn after(&self, cursor: Option<&[u8]>) -> impl Iterator<Item = (&[u8], &Item)> {
        let from = cursor.map_or(Bound::Unbounded, Bound::Excluded);
        let names = self.names.range::<[u8], _>((from, Bound::Unbounded));
        names.filter_map(|(name, index)| Some((&**name, self.item(*index)?)))
    }

    pub(super) fn item(&self, index: u32) -> Option<&Item> {
        self.items.get(usize::try_from(index).ok()?)
    }

    /// Whether the layer says that the layers below do not have this name.
    pub(crate) fn deletes(&self, path: &[u8]) -> bool {
        self.deleted.contains(&*key(path))
    }

    /// Names that the layers below shall not have.
    pub(crate) fn deleted(&self) -> impl Iterator<Item = Vec<u8>> {
        self.deleted.iter().map(|key| path_of(key))
    }

    /// Directories in which the layers below shall have nothing.
    pub(crate) fn opaque(&self) -> impl Iterator<Item = Vec<u8>> {
        self.opaque.iter().map(|key| path_of(key))
    }

    /// Whether the layers below shall have nothing in the directory at a path.
    pub(crate) fn empties(&self, path: &[u8]) -> bool {
        self.opaque.contains(&*key(path))
    }

    /// Whether the directory at a path may be marked opaque.
    pub(crate) fn may_be_opaque(&self, path: &[u8]) -> bool {
        self.empties(path) || self.deletes(path) || self.empties(split(path).0)
    }

    /// Whether the file of an entry, by its name in the archive and its checksum, is there after the whole archive was unpacked.
    /// One that a later entry has replaced is not.
    pub(crate) fn keeps(&self, name: &[u8], sum: [u8; 8]) -> bool {
        let mut path = Vec::new();
        clean(name, &mut path);
        let (parent, base) = split(&path);
        let Some(mut path) = self.find_dir(parent) else {
            return false;
        };
        push(&mut path, base);
        let is_kept = |item: &Item| match item.what {
            What::File { content, .. } => {
                let (Content::Read(found) | Content::Recorded(found)) = content;
                found == sum
            }
            // The headers alone do not tell.
            What::Unknown => true,
            _ => false,
        };
        !self.is_unsure(&path) && self.get(&path).is_some_and(is_kept)
    }

    /// Whether the layer says both that the layers below do not have this name and that it is a directory: some programs show
    /// what the layers below have in it.
    pub(crate) fn replaces_directory(&self, path: &[u8]) -> bool {
        let is_dir = |item: &Item| matches!(item.what, What::Directory { .. });
        self.deletes(path) && self.get(path).is_some_and(is_dir)
    }

    /// Whether nothing is known of what is at a path.
    pub(crate) fn is_unsure(&self, path: &[u8]) -> bool {
        covers(&self.unsure, path)
    }

    /// Whether a directory may be there only because something in it is deleted.
    pub(crate) fn leads_to_mark(&self, path: &[u8]) -> bool {
        self.possible.contains(&*key(path))
    }

    pub(super) fn count(&mut self, path: &[u8], more: usize) -> Result<()> {
        self.size = self.size.saturating_add(path.len() + more + NAME_SIZE);
        if self.size > MAX_SIZE {
            return Err(ErrorKind::NotSupported.err("checking a layer with so many names"));
        }
        Ok(())
    }

    pub(super) fn insert(&mut self, path: &[u8], item: Item) -> Result<()> {
        let attributes = item.attributes.iter().flat_map(|list| list.iter());
        let more = attributes.map(|(name, value)| name.len() + value.len()).sum();
        self.count(path, more)?;
        let index = u32::try_from(self.items.len()).unwrap_or(u32::MAX);
        self.items.push(item);
        self.names.insert(key(path), index);
        Ok(())
    }

    pub(super) fn remove_below(&mut self, path: &[u8]) {
        let (start, end) = below(path);
        let range = (Bound::Included(&*start), Bound::Excluded(&*end));
        let names: Vec<Box<[u8]>> = self
            .names
            .range::<[u8], _>(range)
            .map(|(name, _)| name.clone())
            .collect();
        for name in names {
            self.names.remove(&name);
        }
        let no_more: Vec<Box<[u8]>> = self.possible.range::<[u8], _>(range).cloned().collect();
        for name in no_more {
            self.possible.remove(&name);
        }
    }

    /// Makes room for something that is no directory, or for a directory where there is none.
    pub(super) fn displace(&mut self, path: &[u8]) {
        let key = key(path);
        let what = self.names.get(&key).and_then(|index| self.item(*index));
        let is_dir = match what.map(|item| &item.what) {
            // What is new where nothing was changes no other path.
            None if !self.possible.contains(&key) => return,
            what => matches!(what, Some(What::Directory { .. })),
        };
        if self.possible.remove(&key) || is_dir {
            self.remove_below(path);
        }
        self.names.remove(&key);
        self.last_parent = None;
    }

    /// Makes room for something new.
    pub(super) fn make_room(&mut self, path: &[u8], is_dir: bool) {
        // A directory that may be there stays, with what may be in it.
        if !is_dir || !self.possible.remove(&*key(path)) {
            self.displace(path);
        }
    }

    pub(super) fn unsure(&mut self, path: &[u8]) {
        self.unsure.insert(key(path));
    }

    /// Takes up an entry. `content` is what its payload is; it counts for files only. Nothing is taken up of what is never
    /// unpacked.
    ///
    /// # Errors
    /// [`ErrorKind::NotSupported`] for more names than fit into memory.
    pub(crate) fn add(&mut self, entry: &Entry, content: Content) -> Result<()> {
        let mut path = Vec::new();
        clean(&entry.name, &mut path);
        if entry.kind == b'g' || path.is_empty() || path.contains(&0) || path.len() > MAX_PATH {
            return Ok(());
        }
        let (parent, base) = split(&path);
        match whiteout::parse(base) {
            WhiteoutName::None => {}
            WhiteoutName::Invalid => return Ok(()),
            WhiteoutName::Opaque => {
                let literal = parent;
                let Some(parent) = self.place(parent)? else {
                    return Ok(());
                };
                self.count(&parent, 0)?;
                if parent != literal {
                    // Programs disagree on whether a link is followed.
                    self.unsure(&parent);
                }
                // Some programs take away what the archive itself has brought, if no entry describes the directory.
                for path in self.implied_in(&parent) {
                    self.unsure(&path);
                }
                self.opaque.insert(key(&parent));
                return Ok(());
            }
            WhiteoutName::Deleted(name) => {
                let Some(mut path) = self.place(parent)? else {
                    return Ok(());
                };
                let by_link = path != parent;
                push(&mut path, name);
                self.count(&path, 0)?;
                if by_link || self.names.contains_key(&*key(&path)) {
                    // Programs disagree on whether a link is followed; some take away what the archive itself has brought.
                    self.unsure(&path);
                }
                self.deleted.insert(key(&path));
                return Ok(());
            }
        }
        if path.starts_with(AUFS_LINKS) {
            self.unsure(AUFS_LINKS.strip_suffix(b"/").unwrap_or(AUFS_LINKS));
        }
        let Some(parent) = self.parent(parent)? else {
            self.unsure(&path);
            return Ok(());
        };
        let mut path = parent;
        push(&mut path, base);
        if entry.kind == b'1' {
            return self.hard_link(&path, entry);
        }
        let what = match entry.kind {
            b'5' => What::Directory { implied: false },
            b'2' => What::SymbolicLink(entry.link.as_slice().into()),
            b'3' | b'4' => What::Device {
                kind: entry.kind,
                number: metadata::device_number(entry),
            },
            b'6' => What::Fifo,
            b'0' | b'7' | b'S' => What::File {
                size: entry.size,
                content,
            },
            _ => return Ok(()),
        };
        let is_dir = matches!(what, What::Directory { .. });
        let item = Item::of(entry, what);
        if let (true, Some(index)) = (is_dir, self.names.get(&*key(&path)).copied())
            && let Some(now) = usize::try_from(index)
                .ok()
                .and_then(|index| self.items.get_mut(index))
            && matches!(now.what, What::Directory { .. })
        {
            let before = now.attributes.take();
            *now = item;
            now.attributes = added(before, now.attributes.take());
            return Ok(());
        }
        self.make_room(&path, is_dir);
        self.insert(&path, item)
    }

    /// The directories in one that no entry describes.
    fn implied_in(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let (start, end) = below(path);
        let (range, above) = match path.is_empty() {
            true => ((Bound::Unbounded, Bound::Unbounded), 0),
            false => ((Bound::Included(&*start), Bound::Excluded(&*end)), start.len()),
        };
        let is_in = |name: &[u8]| !name.get(above..).unwrap_or_default().contains(&0);
        let found = self.names.range::<[u8], _>(range).filter(|(name, index)| {
            let item = self.item(**index);
            is_in(name) && item.is_some_and(|item| matches!(item.what, What::Directory { implied: true }))
        });
        found.map(|(name, _)| path_of(name)).collect()
    }

    fn hard_link(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let mut target = Vec::new();
        clean(&entry.link, &mut target);
        if target.starts_with(AUFS_LINKS) {
            // Some programs make a copy, with the metadata of the other entry.
            self.displace(path);
            return self.insert(path, Item::of(entry, What::Unknown));
        }
        let (above, name) = split(&target);
        let target = match self.find_dir(above) {
            Some(mut dir) => {
                push(&mut dir, name);
                dir
            }
            None => target,
        };
        let shared = self.names.get(&*key(&target)).copied();
        self.count(path, 0)?;
        if target != path {
            self.displace(path);
        }
        let shared = shared.filter(|_| self.names.contains_key(&*key(&target)));
        let Some((index, item)) = shared.and_then(|index| {
            let item = self.items.get_mut(usize::try_from(index).ok()?)?;
            Some((index, item))
        }) else {
            // Perhaps the layers below have it.
            return self.insert(path, Item::of(entry, What::Unknown));
        };
        if let What::Directory { .. } = item.what {
            self.unsure(path);
            return Ok(());
        }
        // The header of a link describes the file that it shares.
        let described = Item::of(entry, item.what.clone());
        // A change of the owner takes capabilities away.
        let owner_changes = (described.uid, described.gid) != (item.uid, item.gid);
        let before = item.attributes.take().map(|list| {
            let kept = list
                .into_iter()
                .filter(|(name, _)| !owner_changes || **name != *CAPABILITIES);
            kept.collect()
        });
        *item = described;
        item.attributes = added(before, item.attributes.take());
        if let What::SymbolicLink(_) = item.what {
            // Not all programs give a link the time of another name of it.
            item.mtime = UNSURE_TIME;
        }
        self.names.insert(key(path), index);
        Ok(())
    }
}
