//! Where rows are found by what they contain: IDs and their beginnings, names, layers, digests.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::record::table::Record;

/// What a digest in an index is the digest of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DigestKind {
    /// A layer's blob as fetched.
    Compressed,
    /// A layer's uncompressed tar.
    Uncompressed,
    /// A layer's table of contents.
    Toc,
    /// An image's manifest.
    Image,
}

const DIGEST_KINDS: usize = 4;

/// Position of a row: rows are in file order, new ones at the end.
pub(super) type Position = u64;

/// Where rows are found by what they contain.
#[derive(Clone, Debug, Default)]
pub(super) struct Index {
    pub(super) ids: HashMap<Arc<str>, Position>,
    /// The same in order, from the first time on that somebody has asked for a prefix.
    sorted: OnceLock<BTreeMap<Arc<str>, Position>>,
    pub(super) names: HashMap<String, Position>,
    pub(super) layers: HashMap<String, Vec<Position>>,
    digests: [HashMap<Digest, Vec<Position>>; DIGEST_KINDS],
    pub(super) incomplete: BTreeSet<Position>,
}

impl Index {
    /// Makes room for what is to come.
    pub(super) fn reserve(&mut self, rows: usize, names: usize) {
        self.ids.reserve(rows);
        self.names.reserve(names);
    }

    /// Enters a row.
    pub(super) fn add<R: Record>(&mut self, position: Position, row: &R) {
        let id: Arc<str> = row.id().into();
        if let Some(sorted) = self.sorted.get_mut() {
            sorted.insert(Arc::clone(&id), position);
        }
        self.ids.insert(id, position);
        for name in row.names() {
            self.names.insert(name.clone(), position);
        }
        if let Some(layer) = row.layer() {
            add_to(self.layers.entry(layer.to_owned()).or_default(), position);
        }
        row.each_digest(&mut |kind, digest| {
            add_to(
                self.digests[kind as usize].entry(digest.clone()).or_default(),
                position,
            );
        });
        if row.is_incomplete() {
            self.incomplete.insert(position);
        }
    }

    /// Takes a row out; entries that another row has taken over stay.
    pub(super) fn remove<R: Record>(&mut self, position: Position, row: &R) {
        if self.ids.get(row.id()) == Some(&position) {
            self.ids.remove(row.id());
            if let Some(sorted) = self.sorted.get_mut() {
                sorted.remove(row.id());
            }
        }
        for name in row.names() {
            if self.names.get(name) == Some(&position) {
                self.names.remove(name);
            }
        }
        if let Some(layer) = row.layer() {
            remove_from(&mut self.layers, layer, position);
        }
        row.each_digest(&mut |kind, digest| remove_from(&mut self.digests[kind as usize], digest, position));
        self.incomplete.remove(&position);
    }

    /// The rows with this digest, in order.
    pub(super) fn by_digest(&self, kind: DigestKind, digest: &Digest) -> &[Position] {
        self.digests[kind as usize].get(digest).map_or(&[], Vec::as_slice)
    }

    /// The row whose ID alone begins with `prefix`. IDs with a space do not take part.
    pub(super) fn by_prefix(&self, prefix: &str) -> Option<Position> {
        if prefix.is_empty() {
            return None;
        }
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let sorted = self.sorted.get_or_init(|| {
            let ids = self.ids.iter();
            ids.map(|(id, position)| (Arc::clone(id), *position)).collect()
        });
        let mut matches = sorted
            .range::<str, _>(from)
            .take_while(|(id, _)| id.starts_with(prefix))
            .filter(|(id, _)| !id.contains(' '));
        let (_, position) = matches.next()?;
        matches.next().is_none().then_some(*position)
    }
}

fn add_to(positions: &mut Vec<Position>, position: Position) {
    if let Err(at) = positions.binary_search(&position) {
        positions.insert(at, position);
    }
}

fn remove_from<K, Q>(map: &mut HashMap<K, Vec<Position>>, key: &Q, position: Position)
where
    K: Borrow<Q> + Eq + Hash,
    Q: Eq + Hash + ?Sized,
{
    if let Some(positions) = map.get_mut(key) {
        positions.retain(|other| *other != position);
        if positions.is_empty() {
            map.remove(key);
        }
    }
}
