//! The module tree of one crate and the edges between its files.
//!
//! A path belongs to the deepest module file that it reaches: `crate::a::b::Name` is an edge to `a/b.rs` if there is
//! one, else to `a.rs` or `a/mod.rs`, whether the name is defined there or only imported. The crate root's own
//! imports are followed instead, so `crate::Error` is an edge to `error.rs`. That a file declares a module is no edge.
//! What no path says (a method of a type whose `impl` is in another file, a macro by its bare name) gives none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::items::{Items, Named, items};

type Modules = BTreeMap<Vec<String>, Module>;

struct Module {
    file: String,
    /// What its `use` items name: the alias, and the path as written.
    imports: Vec<(String, Vec<String>)>,
}

/// One place where a file names another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    /// The path as written.
    pub(crate) path: String,
    /// The file that the name really comes from, where the named one imports it.
    pub(crate) defined_in: Option<String>,
}

/// For each file and file it uses: where.
pub(crate) type Edges = BTreeMap<(String, String), Vec<Place>>;

#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) root: String,
    /// Files of every build, below the source directory.
    pub(crate) files: BTreeSet<String>,
    /// Files that only a test build has.
    pub(crate) test_files: BTreeSet<String>,
    pub(crate) edges: Edges,
}

/// Where a path leads.
struct Target {
    file: String,
    defined_in: Option<String>,
}

/// Reads the crate whose root is `root`. `read_file` gives the text of a file, if there is one.
pub(crate) fn read(root: &str, read_file: &dyn Fn(&str) -> Option<String>) -> Tree {
    let mut loader = Loader {
        read_file,
        modules: Modules::new(),
        named: Vec::new(),
        test_files: BTreeSet::new(),
    };
    loader.file(root, Vec::new(), false);
    let Loader {
        modules,
        named,
        test_files,
        ..
    } = loader;
    let files: BTreeSet<_> = modules.values().map(|module| module.file.clone()).collect();
    let tree = Resolver { modules: &modules };
    let mut edges = Edges::new();
    for (module, named) in &named {
        let from = &modules[module].file;
        for target in tree.resolve(module, &named.path, 0) {
            if target.file != *from {
                let path = named.path.join("::");
                let glob = if named.alias.as_deref() == Some("*") {
                    "::*"
                } else {
                    ""
                };
                let place = Place {
                    line: named.line,
                    path: format!("{path}{glob}"),
                    defined_in: target.defined_in,
                };
                edges.entry((from.clone(), target.file)).or_default().push(place);
            }
        }
    }
    for places in edges.values_mut() {
        places.sort();
        places.dedup();
    }
    Tree {
        root: root.to_owned(),
        files,
        test_files,
        edges,
    }
}

/// Every `.rs` file below `directory`, as paths below it.
pub(crate) fn rust_files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.insert(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

struct Loader<'a> {
    read_file: &'a dyn Fn(&str) -> Option<String>,
    modules: Modules,
    named: Vec<(Vec<String>, Named)>,
    test_files: BTreeSet<String>,
}

impl Loader<'_> {
    fn file(&mut self, file: &str, module: Vec<String>, test: bool) {
        let source = (self.read_file)(file).unwrap_or_default();
        let Items { named, modules, .. } = items(&source);
        if test {
            self.test_files.insert(file.to_owned());
        } else {
            self.add(&module, file);
        }
        let mut directory = PathBuf::from(file);
        let stem = directory.file_stem().unwrap().to_str().unwrap().to_owned();
        directory.pop();
        if !module.is_empty() && stem != "mod" {
            directory.push(stem);
        }
        for child in modules {
            let below: PathBuf = child
                .scope
                .iter()
                .fold(directory.clone(), |path, name| path.join(name));
            let path: Vec<String> = module
                .iter()
                .chain(&child.scope)
                .chain([&child.name])
                .cloned()
                .collect();
            if child.inline {
                if !test && !child.test {
                    self.add(&path, file);
                }
                continue;
            }
            let candidates = [
                below.join(format!("{}.rs", child.name)),
                below.join(&child.name).join("mod.rs"),
            ];
            // A module at another path (`#[path]`) is outside the tree; only tests have such.
            let exists = |candidate: &&PathBuf| (self.read_file)(candidate.to_str().unwrap()).is_some();
            if let Some(found) = candidates.iter().find(exists) {
                self.file(found.to_str().unwrap(), path, test || child.test);
            }
        }
        if test {
            return;
        }
        for named in named {
            let scope: Vec<String> = module.iter().chain(&named.scope).cloned().collect();
            let at = self.modules.get_mut(&scope).unwrap();
            if let Some(alias) = &named.alias {
                at.imports.push((alias.clone(), named.path.clone()));
            }
            self.named.push((scope, named));
        }
    }

    fn add(&mut self, path: &[String], file: &str) {
        self.modules.insert(
            path.to_vec(),
            Module {
                file: file.to_owned(),
                imports: Vec::new(),
            },
        );
    }
}

struct Resolver<'a> {
    modules: &'a Modules,
}

impl Resolver<'_> {
    fn child(&self, module: &[String], name: &str) -> Option<Vec<String>> {
        let path = [module, &[name.to_owned()]].concat();
        self.modules.contains_key(&path).then_some(path)
    }

    /// The files that a path names which is written in `module`; none for a path into another crate.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Vec<Target> {
        if depth > 16 {
            return Vec::new(); // imports in a circle
        }
        let mut here = module.to_vec();
        let mut rest = path;
        let mut ours = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "crate" => here.clear(),
                "super" => {
                    here.pop();
                }
                "self" => {}
                _ => break,
            }
            (ours, rest) = (true, after);
        }
        if !ours {
            let Some(first) = rest.first() else {
                return Vec::new();
            };
            if self.child(&here, first).is_none() {
                // A module by the name that an import of this file gives it; the import itself is an edge of its own.
                let Some(inner) = self.imported_module(&here, first, depth) else {
                    return Vec::new();
                };
                (here, rest) = (inner, &rest[1..]);
                if rest.is_empty() {
                    return Vec::new();
                }
            }
        }
        self.walk(here, rest, depth)
    }

    fn walk(&self, mut here: Vec<String>, mut rest: &[String], depth: usize) -> Vec<Target> {
        while let Some((first, after)) = rest.split_first() {
            let Some(next) = self.child(&here, first) else {
                break;
            };
            (here, rest) = (next, after);
        }
        let file = self.modules[&here].file.clone();
        let Some(name) = rest.first() else {
            return vec![Target {
                file,
                defined_in: None,
            }];
        };
        // Not a module: an item of this file, or something that it imports.
        let import = self.modules[&here]
            .imports
            .iter()
            .find(|(alias, _)| alias == name);
        let beyond = import
            .map(|(_, path)| self.resolve(&here, path, depth + 1))
            .unwrap_or_default();
        if here.is_empty() && !beyond.is_empty() {
            return beyond;
        }
        let last = beyond.into_iter().next_back();
        let defined_in = last.map(|target| target.defined_in.unwrap_or(target.file));
        let mut targets = vec![Target { file, defined_in }];
        if rest.len() > 1
            && let Some(inner) = self.imported_module(&here, name, depth)
        {
            targets.extend(self.walk(inner, &rest[1..], depth + 1));
        }
        targets
    }

    /// The module that `module` imports as `name`.
    fn imported_module(&self, module: &[String], name: &str, depth: usize) -> Option<Vec<String>> {
        if depth > 16 {
            return None;
        }
        let (_, path) = self.modules[module]
            .imports
            .iter()
            .find(|(alias, _)| alias == name)?;
        let mut here = module.to_vec();
        for (index, segment) in path.iter().enumerate() {
            here = match segment.as_str() {
                "crate" => Vec::new(),
                "self" => here,
                "super" => here[..here.len().checked_sub(1)?].to_vec(),
                _ => match self.child(&here, segment) {
                    Some(child) => child,
                    // `use tokio::fs;`, or the import itself.
                    None if index == 0 => return None,
                    None => self.imported_module(&here, segment, depth + 1)?,
                },
            };
        }
        Some(here)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(files: &[(&str, &str)]) -> Vec<String> {
        let find = |name: &str| {
            files
                .iter()
                .find(|file| file.0 == name)
                .map(|file| file.1.to_owned())
        };
        let text = |((from, to), places): (&(String, String), &Vec<Place>)| {
            let lines: Vec<String> = places.iter().map(|place| place.line.to_string()).collect();
            let beyond: Vec<&str> = places
                .iter()
                .filter_map(|place| place.defined_in.as_deref())
                .collect();
            format!("{from}:{}>{to} {}", lines.join(","), beyond.join(","))
                .trim()
                .to_owned()
        };
        read("lib.rs", &find).edges.iter().map(text).collect()
    }

    #[test]
    fn the_deepest_file_of_a_path() {
        let found = edges(&[
            ("lib.rs", "mod a; mod e; pub use a::b::Name; pub use e::E as F;"),
            (
                "a/mod.rs",
                "mod b;\nmod inner { pub struct I; pub mod deep; }\npub struct A;",
            ),
            (
                "a/b.rs",
                "use super::A;\nuse crate::F;\nfn f() { crate::a::inner::I; super::inner::deep::g() }",
            ),
            ("a/inner/deep.rs", "fn g() { super::super::b::x() }"),
            (
                "e.rs",
                "use crate::a::b;\nfn f() { b::f() }\nfn g() { crate::Name::new() }",
            ),
        ]);
        assert_eq!(
            found,
            [
                "a/b.rs:3>a/inner/deep.rs",
                "a/b.rs:1,3>a/mod.rs",
                "a/b.rs:2>e.rs",
                "a/inner/deep.rs:1>a/b.rs",
                "e.rs:1,2,3>a/b.rs",
                "lib.rs:1>a/b.rs",
                "lib.rs:1>e.rs",
            ]
        );
    }

    #[test]
    fn a_parent_that_uses_its_child() {
        let parent = |line: &str| ["mod child; pub struct P;", line].concat();
        let run = |parent: &str, child: &str| {
            edges(&[("lib.rs", "mod p;"), ("p.rs", parent), ("p/child.rs", child)])
        };
        assert_eq!(run(&parent(""), "use super::P;"), ["p/child.rs:1>p.rs"]);
        assert_eq!(run(&parent("pub use child::C;"), ""), ["p.rs:1>p/child.rs"]);
        assert_eq!(run(&parent("fn f() { child::g() }"), ""), ["p.rs:1>p/child.rs"]);
        assert_eq!(
            run(&parent(""), "fn f() { std::child::g(); child::h() }"),
            [""; 0]
        );
        assert_eq!(
            run(
                &parent("#[cfg(test)] use child::C;"),
                "#[cfg(test)] mod tests { use super::super::P; }"
            ),
            [""; 0]
        );
    }

    #[test]
    fn a_name_that_the_file_only_imports() {
        let found = edges(&[
            ("lib.rs", "mod p; mod u;"),
            ("p/mod.rs", "mod a; mod b; pub use a::A;"),
            ("p/a.rs", "pub struct A;"),
            ("p/b.rs", "use super::A;"),
            ("u.rs", "use crate::p::{A, b as c}; fn f() { c::x() }"),
        ]);
        assert_eq!(
            found,
            [
                "p/b.rs:1>p/mod.rs p/a.rs",
                "p/mod.rs:1>p/a.rs",
                "u.rs:1,1>p/b.rs",
                "u.rs:1>p/mod.rs p/a.rs",
            ]
        );
    }

    #[test]
    fn modules_through_imports() {
        let found = edges(&[
            ("lib.rs", "mod p; mod q; mod u; use std::fs;"),
            ("p.rs", "pub mod deep;"),
            ("p/deep.rs", ""),
            ("q.rs", "pub use crate::p;"),
            (
                "u.rs",
                "use crate::q;\nuse tokio::fs;\nfn f() { q::p::deep::g(); fs::read() }",
            ),
        ]);
        assert_eq!(found, ["q.rs:1>p.rs", "u.rs:3>p/deep.rs", "u.rs:1,3>q.rs p.rs"]);
    }

    #[test]
    fn imports_in_a_circle_end() {
        let found = edges(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::X; fn f() { X::y() }"),
            ("b.rs", "use crate::a::X;"),
        ]);
        assert_eq!(found.len(), 2);
    }
}
