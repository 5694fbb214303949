//! The indexes of a table: by ID and prefix of an ID, name, layer and digest.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use crate::digest::Digest;
use crate::record::record_trait::{DigestKind, Record};

const DIGEST_KINDS: usize = 4;

/// Position of a row: rows are in file order, new ones at the end.
pub(super) type Position = u64;

/// A row that stands for its ID, so that the index needs no copy of the text.
#[derive(Clone, Debug)]
pub(super) struct ById<R>(Arc<R>);

impl<R: Record> Borrow<str> for ById<R> {
    fn borrow(&self) -> &str {
        self.0.id()
    }
}

/// A row that stands for one of its names.
#[derive(Clone, Debug)]
pub(super) struct ByName<R> {
    row: Arc<R>,
    at: usize,
}

impl<R: Record> Borrow<str> for ByName<R> {
    fn borrow(&self) -> &str {
        self.row.names().get(self.at).map_or("", String::as_str)
    }
}

/// Makes a key compare and hash as the text that it stands for.
macro_rules! like_text {
    ($key:ident) => {
        impl<R: Record> Hash for $key<R> {
            fn hash<H: Hasher>(&self, state: &mut H) {
                let text: &str = self.borrow();
                text.hash(state);
            }
        }

        impl<R: Record> PartialEq for $key<R> {
            fn eq(&self, other: &Self) -> bool {
                let text: &str = self.borrow();
                text == Borrow::<str>::borrow(other)
            }
        }

        impl<R: Record> Eq for $key<R> {}
    };
}

like_text!(ById);
like_text!(ByName);

impl<R: Record> Ord for ById<R> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.id().cmp(other.0.id())
    }
}

impl<R: Record> PartialOrd for ById<R> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The rows with each digest, for each kind.
type Digests = [HashMap<Digest, Vec<Position>>; DIGEST_KINDS];

/// What a new row shares with an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clash {
    Id,
    Name,
}

/// The indexes of a table.
#[derive(Clone, Debug)]
pub(super) struct Index<R> {
    pub(super) ids: HashMap<ById<R>, Position>,
    /// The same, sorted; built at the first search for a prefix.
    sorted: OnceLock<BTreeMap<ById<R>, Position>>,
    pub(super) names: HashMap<ByName<R>, Position>,
    pub(super) layers: HashMap<String, Vec<Position>>,
    /// Built at the first search for a digest.
    digests: OnceLock<Digests>,
    /// The rows that stand on each ID; built at the second search for them: for one a look at all rows is cheaper.
    users: OnceLock<HashMap<String, Vec<Position>>>,
    users_sought: OnceLock<()>,
    pub(super) incomplete: BTreeSet<Position>,
}

impl<R> Default for Index<R> {
    fn default() -> Self {
        Self {
            ids: HashMap::new(),
            sorted: OnceLock::new(),
            names: HashMap::new(),
            layers: HashMap::new(),
            digests: OnceLock::new(),
            users: OnceLock::new(),
            users_sought: OnceLock::new(),
            incomplete: BTreeSet::new(),
        }
    }
}

impl<R: Record> Index<R> {
    /// Reserves memory for this many rows and names.
    pub(super) fn reserve(&mut self, rows: usize, names: usize) {
        self.ids.reserve(rows);
        self.names.reserve(names);
    }

    /// Adds a row if no other has its ID or one of its names; else nothing changes. Each key is looked up once.
    pub(super) fn try_add(&mut self, position: Position, row: &Arc<R>) -> Result<(), Clash> {
        match self.ids.entry(ById(Arc::clone(row))) {
            Entry::Vacant(entry) => drop(entry.insert(position)),
            Entry::Occupied(_) => return Err(Clash::Id),
        }
        for at in 0..row.names().len() {
            let name = ByName {
                row: Arc::clone(row),
                at,
            };
            match self.names.entry(name) {
                Entry::Vacant(entry) => drop(entry.insert(position)),
                Entry::Occupied(_) => {
                    self.ids.remove(row.id());
                    for name in row.names().iter().take(at) {
                        self.names.remove(name.as_str());
                    }
                    return Err(Clash::Name);
                }
            }
        }
        self.add_rest(position, row);
        Ok(())
    }

    /// Adds a row.
    pub(super) fn add(&mut self, position: Position, row: &Arc<R>) {
        self.ids.insert(ById(Arc::clone(row)), position);
        for at in 0..row.names().len() {
            let row = Arc::clone(row);
            self.names.insert(ByName { row, at }, position);
        }
        self.add_rest(position, row);
    }

    /// Adds the keys of a row that several rows may share, and those of indexes that are built on demand.
    fn add_rest(&mut self, position: Position, row: &Arc<R>) {
        if let Some(sorted) = self.sorted.get_mut() {
            sorted.insert(ById(Arc::clone(row)), position);
        }
        if let Some(layer) = row.layer() {
            add_to(self.layers.entry(layer.to_owned()).or_default(), position);
        }
        if let Some(digests) = self.digests.get_mut() {
            add_digests(digests, position, &**row);
        }
        if let Some(users) = self.users.get_mut() {
            row.each_base(&mut |base| add_user(users, position, base));
        }
        if row.is_incomplete() {
            self.incomplete.insert(position);
        }
    }

    /// Removes a row; keys that another row has taken over stay.
    pub(super) fn remove(&mut self, position: Position, row: &R) {
        if self.ids.get(row.id()) == Some(&position) {
            self.ids.remove(row.id());
            if let Some(sorted) = self.sorted.get_mut() {
                sorted.remove(row.id());
            }
        }
        for name in row.names() {
            if self.names.get(name.as_str()) == Some(&position) {
                self.names.remove(name.as_str());
            }
        }
        if let Some(layer) = row.layer() {
            remove_from(&mut self.layers, layer, position);
        }
        if let Some(digests) = self.digests.get_mut() {
            row.each_digest(&mut |kind, digest| remove_from(&mut digests[kind as usize], digest, position));
        }
        if let Some(users) = self.users.get_mut() {
            row.each_base(&mut |base| remove_from(users, base, position));
        }
        self.incomplete.remove(&position);
    }

    /// The rows with this digest, in order; `all` are the rows that were added.
    pub(super) fn by_digest<'r>(
        &self,
        kind: DigestKind,
        digest: &Digest,
        all: impl Iterator<Item = (Position, &'r R)>,
    ) -> &[Position] {
        let digests = self.digests.get_or_init(|| {
            let mut digests = Digests::default();
            for (position, row) in all {
                add_digests(&mut digests, position, row);
            }
            digests
        });
        digests[kind as usize].get(digest).map_or(&[], Vec::as_slice)
    }

    /// The rows that stand on what has this ID, in order; `all` are the rows that were added.
    pub(super) fn users_of<'r>(
        &self,
        id: &str,
        all: impl Iterator<Item = (Position, &'r R)>,
    ) -> Vec<Position> {
        if self.users.get().is_none() && self.users_sought.set(()).is_ok() {
            let mut users = HashMap::new();
            for (position, row) in all {
                row.each_base(&mut |base| {
                    if base == id {
                        add_user(&mut users, position, base);
                    }
                });
            }
            return users.remove(id).unwrap_or_default();
        }
        let users = self.users.get_or_init(|| {
            let mut users = HashMap::new();
            for (position, row) in all {
                row.each_base(&mut |base| add_user(&mut users, position, base));
            }
            users
        });
        users.get(id).cloned().unwrap_or_default()
    }

    /// The row whose ID alone begins with `prefix`. IDs with a space do not take part.
    pub(super) fn by_prefix(&self, prefix: &str) -> Option<Position> {
        if prefix.is_empty() {
            return None;
        }
        let from = (Bound::Included(prefix), Bound::Unbounded);
        let sorted = self.sorted.get_or_init(|| {
            let ids = self.ids.iter();
            ids.map(|(id, position)| (id.clone(), *position)).collect()
        });
        let mut matches = sorted
            .range::<str, _>(from)
            .take_while(|(id, _)| id.0.id().starts_with(prefix))
            .filter(|(id, _)| !id.0.id().contains(' '));
        let (_, position) = matches.next()?;
        matches.next().is_none().then_some(*position)
    }
}

fn add_digests<R: Record>(digests: &mut Digests, position: Position, row: &R) {
    row.each_digest(&mut |kind, digest| {
        add_to(
            digests[kind as usize].entry(digest.clone()).or_default(),
            position,
        );
    });
}

fn add_user(users: &mut HashMap<String, Vec<Position>>, position: Position, base: &str) {
    match users.get_mut(base) {
        _ if base.is_empty() => {}
        Some(positions) => add_to(positions, position),
        None => drop(users.insert(base.to_owned(), vec![position])),
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
        if let Ok(at) = positions.binary_search(&position) {
            positions.remove(at);
        }
        if positions.is_empty() {
            map.remove(key);
        }
    }
}
