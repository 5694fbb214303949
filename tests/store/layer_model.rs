//! What layers make of each other, by the OCI image layer specification: the tree that a mount has to show.
//!
//! A layer's entries make a tree of its own, one after the other; the last entry of a name counts, but takes no
//! attributes from a directory. Whiteouts and opaque markers hide what the layers below have, wherever they stand,
//! through no link. A directory merges with a directory and replaces everything else. A directory without an entry is as
//! it was below.

use std::collections::{BTreeMap, BTreeSet};

use graphroot::test_util::{TarBuilder, TarEntry};

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Clean; empty for the root (of an opaque marker only).
    pub path: String,
    pub what: What,
    pub mode: u32,
    pub owner: u32,
    pub mtime: i64,
    /// Put before the path in the archive.
    pub prefix: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// With an attribute.
    Dir(Option<u8>),
    File(String),
    Symlink(String),
    HardLink(String),
    Fifo,
    Whiteout,
    Opaque,
}

/// An archive of these entries.
pub fn archive(items: &[Item]) -> Vec<u8> {
    let entries = items.iter().map(|item| {
        let path = format!("{}{}", item.prefix, item.path);
        let entry = match &item.what {
            What::Dir(attribute) => {
                let entry = TarEntry::dir(format!("{path}/"));
                attribute.map_or(entry.clone(), |value| entry.xattr("user.attribute", [value]))
            }
            What::File(content) => TarEntry::file(path, content),
            What::Symlink(target) => TarEntry::symlink(path, target),
            What::HardLink(target) => TarEntry::hard_link(path, target),
            What::Fifo => TarEntry::fifo(path),
            What::Whiteout => TarEntry::whiteout(path),
            What::Opaque if item.path.is_empty() => TarEntry::file(".wh..wh..opq", ""),
            What::Opaque => TarEntry::opaque(path),
        };
        let mode = if matches!(item.what, What::Symlink(_)) {
            0o777
        } else {
            item.mode
        };
        entry
            .mode(mode)
            .owner(item.owner.into(), item.owner.into())
            .mtime(item.mtime)
    });
    entries.collect::<TarBuilder>().build()
}

/// What a path of a tree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Dir,
    File(String),
    Symlink(String),
    Fifo,
}

/// Something in a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Of everything but symbolic links.
    pub mode: u32,
    pub owner: u32,
    /// `None` where no entry says it.
    pub mtime: Option<i64>,
    pub attribute: Option<u8>,
    /// Names with the same number are one file.
    pub inode: usize,
}

impl Node {
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }
}

/// A tree by its paths; without the root.
pub type Tree = BTreeMap<String, Node>;

/// The paths above `path`, the root excepted.
fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(slash, _)| &path[..slash])
}

/// Whether `path` lies in the directory `dir`.
fn within(path: &str, dir: &str) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

/// A layer without those below it.
#[derive(Default)]
struct Own {
    tree: Tree,
    /// Directories without an entry.
    implied: BTreeSet<String>,
    deleted: BTreeSet<String>,
    opaque: BTreeSet<String>,
}

/// A layer that nobody has to accept: an entry below a file of the same layer, a hard link to nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused(pub String);

impl Own {
    /// The directory at `path`, links of this layer followed inside the root; made where it is missing if `make`.
    fn directory(&mut self, path: &str, make: bool, inodes: &mut usize) -> Result<String, Refused> {
        let mut todo: Vec<String> = path
            .split('/')
            .rev()
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        let mut real = String::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == "." {
                continue;
            }
            if name == ".." {
                real = split(&real).0.to_owned();
                continue;
            }
            let next = join(&real, &name);
            match self.tree.get(&next).map(|node| &node.kind) {
                Some(Kind::Dir) => real = next,
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > 20 {
                        return Err(Refused(format!("{path}: too many links")));
                    }
                    if target.starts_with('/') {
                        real.clear();
                    }
                    todo.extend(
                        target
                            .split('/')
                            .rev()
                            .filter(|name| !name.is_empty())
                            .map(str::to_owned),
                    );
                }
                Some(_) => return Err(Refused(format!("{next} is no directory"))),
                None if !make => return Err(Refused(format!("{next} is missing"))),
                None => {
                    *inodes += 1;
                    let node = Node {
                        kind: Kind::Dir,
                        mode: 0o755,
                        owner: 0,
                        mtime: None,
                        attribute: None,
                        inode: *inodes,
                    };
                    self.tree.insert(next.clone(), node);
                    self.implied.insert(next.clone());
                    real = next;
                }
            }
        }
        Ok(real)
    }

    fn remove(&mut self, path: &str) {
        self.tree.retain(|other, _| other != path && !within(other, path));
        self.implied.retain(|other| other != path && !within(other, path));
    }

    fn add(&mut self, item: &Item, inodes: &mut usize) -> Result<(), Refused> {
        match item.what {
            What::Whiteout => {
                self.deleted.insert(item.path.clone());
                return Ok(());
            }
            What::Opaque => {
                self.opaque.insert(item.path.clone());
                return Ok(());
            }
            _ => {}
        }
        let (dir, name) = split(&item.path);
        let path = join(&self.directory(dir, true, inodes)?, name);
        let kind = match &item.what {
            What::Dir(_) => Kind::Dir,
            What::File(content) => Kind::File(content.clone()),
            What::Symlink(target) => Kind::Symlink(target.clone()),
            What::Fifo => Kind::Fifo,
            What::HardLink(target) => return self.link(&path, target, item, inodes),
            What::Whiteout | What::Opaque => return Ok(()),
        };
        let attribute = match item.what {
            // A second entry of a directory takes none away, as with GNU tar, bsdtar and Go.
            What::Dir(attribute) => attribute.or_else(|| self.tree.get(&path)?.attribute),
            _ => None,
        };
        if !(kind == Kind::Dir && self.tree.get(&path).is_some_and(Node::is_dir)) {
            self.remove(&path);
        }
        self.implied.remove(&path);
        *inodes += 1;
        let node = Node {
            kind,
            mode: item.mode,
            owner: item.owner,
            mtime: Some(item.mtime),
            attribute,
            inode: *inodes,
        };
        self.tree.insert(path, node);
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str, item: &Item, inodes: &mut usize) -> Result<(), Refused> {
        let (dir, name) = split(target);
        let target = join(&self.directory(dir, false, inodes)?, name);
        let missing = || Refused(format!("{path} is a link to {target}, which is none of a file"));
        let node = self
            .tree
            .get(&target)
            .filter(|node| !node.is_dir())
            .cloned()
            .ok_or_else(missing)?;
        if self.tree.get(path).map(|node| node.inode) != Some(node.inode) {
            self.remove(path);
            if !self.tree.contains_key(&target) {
                return Err(missing());
            }
            self.tree.insert(path.to_owned(), node.clone());
        }
        for other in self.tree.values_mut().filter(|other| other.inode == node.inode) {
            (other.mode, other.owner, other.mtime) = (item.mode, item.owner, Some(item.mtime));
        }
        Ok(())
    }

    /// Whether the layers below do not show `path`, because of a mark of this layer.
    fn hides(&self, path: &str) -> bool {
        self.deleted.contains(path)
            || self.opaque.contains("")
            || above(path).any(|dir| self.deleted.contains(dir) || self.opaque.contains(dir))
    }
}

/// The tree of a layer on the tree `below`. `inodes` counts files.
pub fn apply(below: &Tree, items: &[Item], inodes: &mut usize) -> Result<Tree, Refused> {
    let mut own = Own::default();
    for item in items {
        own.add(item, inodes)?;
    }
    let is_dir = |path: &str| own.tree.get(path).is_none_or(Node::is_dir);
    let mut merged: Tree = below
        .iter()
        .filter(|(path, _)| !own.hides(path) && above(path).all(is_dir))
        .map(|(path, node)| (path.clone(), node.clone()))
        .collect();
    for (path, node) in &own.tree {
        let stays = own.implied.contains(path) && merged.get(path).is_some_and(Node::is_dir);
        if !stays {
            merged.insert(path.clone(), node.clone());
        }
    }
    Ok(merged)
}

#[test]
fn the_model_knows_the_rules() {
    let item = |path: &str, what| Item {
        path: path.into(),
        what,
        mode: 0o700,
        owner: 5,
        mtime: 7,
        prefix: "",
    };
    let file = || What::File("x".into());
    let base = [
        item("a", What::Dir(None)),
        item("a/old", file()),
        item("f", file()),
    ];
    let mut inodes = 0;
    let base = apply(&Tree::new(), &base, &mut inodes).unwrap();
    let mut names = |items: &[Item]| {
        apply(&base, items, &mut inodes).map(|tree| tree.into_keys().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(names(&[item("a/new", file())]).unwrap(), "a a/new a/old f");
    assert_eq!(
        names(&[item("a/new", file()), item("a", What::Opaque)]).unwrap(),
        "a a/new f"
    );
    assert_eq!(
        names(&[item("a/b", file()), item("a", What::Whiteout)]).unwrap(),
        "a a/b f"
    );
    assert_eq!(
        names(&[item("a", What::Whiteout), item("a", What::Opaque)]).unwrap(),
        "f"
    );
    assert_eq!(
        names(&[item("a", file()), item("a/old", What::Whiteout)]).unwrap(),
        "a f"
    );
    assert_eq!(
        names(&[item("", What::Opaque), item("f/x", file())]).unwrap(),
        "f f/x"
    );
    assert_eq!(
        names(&[item("no", What::Opaque), item("f/x", What::Whiteout)]).unwrap(),
        "a a/old f"
    );
    assert!(names(&[item("a", file()), item("a/x", file())]).is_err());
    assert!(names(&[item("a/x", What::HardLink("f".into()))]).is_err());
    let implied = apply(&base, &[item("a/new", file())], &mut 100).unwrap();
    assert_eq!((implied["a"].mode, implied["a"].mtime), (0o700, Some(7)));
}
