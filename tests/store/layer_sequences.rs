//! Random layers on top of each other, over every driver: what a mount shows against the model of the specification.
//!
//! A failing case is made smaller and printed as a list. `GRAPHROOT_LAYER_SEED` and `GRAPHROOT_LAYER_CASES` choose other
//! cases.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use graphroot::{BoxReader, ChangeKind, CheckOptions, DiffOptions, LayerOptions, MountOptions, Store};
use tokio::io::AsyncReadExt as _;

use crate::layer_model::{Item, Kind, Node, Tree, What, apply, archive};
use crate::support::{Layout, TestStore, skip};

/// The generator of splitmix64: the same cases everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
}

const PATHS: [&str; 14] = [
    "a", "b", "c", "a", "b", "a/a", "a/b", "a/c", "b/a", "b/b", "c/a", "a/b/a", "a/b/c", "b/a/c",
];

fn item(random: &mut Random, base: bool, number: i64) -> Item {
    let path = random.of(&PATHS).to_owned();
    let roll = random.below(if base { 70 } else { 100 });
    let what = match roll {
        0..22 => What::Dir((random.below(4) == 0).then(|| b'0' + u8::try_from(random.below(3)).unwrap())),
        22..48 => What::File("x".repeat(random.below(3)) + &number.to_string()),
        48..57 => What::Symlink(
            random
                .of(&["a", "b", "c", "/a", "/b", "../a", "a/b", ".", "/c/nothing"])
                .into(),
        ),
        57..64 => What::HardLink(random.of(&PATHS).into()),
        64..70 => What::Fifo,
        70..87 => What::Whiteout,
        _ => What::Opaque,
    };
    let root = what == What::Opaque && random.below(8) == 0;
    Item {
        path: if root { String::new() } else { path },
        what,
        mode: random.of(&[0o755, 0o700, 0o711, 0o1777, 0o2750, 0o555, 0o644]),
        owner: random.of(&[0, 0, 7, 1000]),
        mtime: 1_000_000_000 + number,
        prefix: random.of(&["", "", "./", "/"]),
    }
}

fn layers(random: &mut Random) -> Vec<Vec<Item>> {
    let count = 2 + random.below(3);
    let mut number = 0;
    let mut layer = |random: &mut Random, base, entries| {
        let items = (0..entries).map(|_| {
            number += 1;
            item(random, base, number)
        });
        items.collect::<Vec<_>>()
    };
    (0..count)
        .map(|index| {
            let entries = if index == 0 {
                3 + random.below(7)
            } else {
                1 + random.below(6)
            };
            layer(random, index == 0, entries)
        })
        .collect()
}

/// What is mounted at `root`.
fn seen(root: &Path) -> Result<Tree, String> {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let entries =
            std::fs::read_dir(&dir).map_err(|error| format!("listing {}: {error}", dir.display()))?;
        for entry in entries {
            let full = entry.map_err(|error| error.to_string())?.path();
            let path = full.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let stat = full
                .symlink_metadata()
                .map_err(|error| format!("phantom {path}: {error}"))?;
            let kind = if stat.is_dir() {
                todo.push(full.clone());
                Kind::Dir
            } else if stat.is_file() {
                Kind::File(
                    std::fs::read_to_string(&full).map_err(|error| format!("reading {path}: {error}"))?,
                )
            } else if stat.is_symlink() {
                Kind::Symlink(std::fs::read_link(&full).unwrap().to_str().unwrap().to_owned())
            } else if stat.file_type().is_fifo() {
                Kind::Fifo
            } else {
                return Err(format!("{path} is of another type"));
            };
            let mut value = [0; 8];
            let attribute = match rustix::fs::lgetxattr(&full, "user.attribute", &mut value[..]) {
                Ok(1) => Some(value[0]),
                _ => None,
            };
            let next = inodes.len();
            let node = Node {
                kind,
                mode: stat.mode() & 0o7777,
                owner: stat.uid(),
                mtime: Some(stat.mtime()),
                attribute,
                inode: *inodes.entry(stat.ino()).or_insert(next),
            };
            tree.insert(path, node);
        }
    }
    Ok(tree)
}

/// Whether two nodes look alike; a time that nothing says is not compared.
fn alike(a: &Node, b: &Node) -> bool {
    let link = matches!(a.kind, Kind::Symlink(_));
    a.kind == b.kind
        && (link || a.mode == b.mode)
        && a.owner == b.owner
        && (a.mtime.is_none() || b.mtime.is_none() || a.mtime == b.mtime)
        && a.attribute == b.attribute
}

/// The differences between a tree and the model's; `links`: which names are one file is compared too.
fn differences(seen: &Tree, expected: &Tree, links: bool) -> String {
    let mut text = String::new();
    for path in seen.keys().chain(expected.keys()).collect::<BTreeSet<_>>() {
        match (seen.get(path), expected.get(path)) {
            (Some(seen), Some(expected)) if alike(seen, expected) => {}
            (seen, expected) => writeln!(text, "{path}: is {seen:?}\n  should be {expected:?}").unwrap(),
        }
    }
    if links && text.is_empty() {
        let same: BTreeSet<_> = expected
            .iter()
            .filter(|(_, node)| !node.is_dir())
            .map(|(path, node)| (node.inode, seen[path].inode))
            .collect();
        let distinct =
            |side: fn(&(usize, usize)) -> usize| same.iter().map(side).collect::<BTreeSet<_>>().len();
        if distinct(|pair| pair.0) != same.len() || distinct(|pair| pair.1) != same.len() {
            writeln!(text, "hard links: {seen:?}\n  should be {expected:?}").unwrap();
        }
    }
    text
}

/// What is wrong with the list of changes from one tree to the other.
fn wrong_changes(changes: &[graphroot::Change], old: &Tree, new: &Tree) -> String {
    let mut text = String::new();
    let mut listed = BTreeMap::new();
    for change in changes {
        let path = change.relative().to_str().unwrap().to_owned();
        let right = match change.kind {
            ChangeKind::Add => !old.contains_key(&path) && new.contains_key(&path),
            ChangeKind::Modify => old.contains_key(&path) && new.contains_key(&path),
            ChangeKind::Delete => old.contains_key(&path) && !new.contains_key(&path),
        };
        if !right || listed.insert(path, change.kind).is_some() {
            writeln!(text, "listed: {change}").unwrap();
        }
    }
    for path in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let above =
            |test: &dyn Fn(&str) -> bool| path.match_indices('/').any(|(slash, _)| test(&path[..slash]));
        let covered = match (old.get(path), new.get(path)) {
            (Some(_), None) => {
                listed.get(path) == Some(&ChangeKind::Delete)
                    || above(&|dir| listed.get(dir) == Some(&ChangeKind::Delete))
                    || above(&|dir| new.get(dir).is_some_and(|node| !node.is_dir()))
            }
            (None, _) => listed.get(path) == Some(&ChangeKind::Add),
            (Some(old), Some(new)) => alike(old, new) || listed.get(path) == Some(&ChangeKind::Modify),
        };
        if !covered {
            writeln!(text, "missing: {path}").unwrap();
        }
    }
    if !text.is_empty() {
        let all: Vec<_> = changes.iter().map(ToString::to_string).collect();
        writeln!(text, "all: {all:?}").unwrap();
    }
    text
}

/// The layers that are accepted, with the tree of each, and those that have to be refused.
pub fn expected(layers: &[Vec<Item>]) -> Vec<Result<Tree, String>> {
    let mut below = Tree::new();
    let mut inodes = 0;
    let mut all = Vec::new();
    for items in layers {
        let tree = apply(&below, items, &mut inodes);
        if let Ok(tree) = &tree {
            below = tree.clone();
        }
        all.push(tree.map_err(|refused| refused.0));
    }
    all
}

/// Makes the layers and compares; everything is deleted again. `at_once`: all are unpacked at the same time.
pub async fn check(store: &Store, layers: &[Vec<Item>], at_once: bool) -> Result<(), String> {
    let mut made: Vec<String> = Vec::new();
    let result = compare(store, layers, at_once, &mut made).await;
    for id in made.iter().rev() {
        store.delete_layer(id).await.unwrap();
    }
    result
}

async fn compare(
    store: &Store,
    layers: &[Vec<Item>],
    at_once: bool,
    made: &mut Vec<String>,
) -> Result<(), String> {
    let expected = expected(layers);
    let mut trees = vec![Tree::new()];
    let mut archives = Vec::new();
    for (items, tree) in layers.iter().zip(&expected) {
        let bytes = archive(items);
        match tree {
            Ok(tree) => {
                trees.push(tree.clone());
                archives.push(bytes);
                if at_once {
                    continue;
                }
                let reader = std::io::Cursor::new(archives[archives.len() - 1].clone());
                let put = store
                    .put_layer(made.last().map(String::as_str), LayerOptions::default(), reader)
                    .await;
                let put =
                    put.map_err(|error| format!("layer {} is refused: {}", made.len(), error.chain()))?;
                made.push(put.layer.id().to_owned());
            }
            Err(why) => {
                let reader = std::io::Cursor::new(bytes);
                let parent = made.last().map(String::as_str);
                if let Ok(put) = store.put_layer(parent, LayerOptions::default(), reader).await {
                    store.delete_layer(put.layer.id()).await.unwrap();
                    return Err(format!("a layer is accepted although {why}"));
                }
            }
        }
    }
    if at_once {
        let readers = archives.iter().map(|bytes| {
            let reader: BoxReader = Box::pin(std::io::Cursor::new(bytes.clone()));
            (LayerOptions::default(), reader)
        });
        let put = store.put_layers(None, readers.collect()).await;
        let put = put.map_err(|error| format!("the layers are refused: {}", error.chain()))?;
        made.extend(put.iter().map(|put| put.layer.id().to_owned()));
    }
    for (index, id) in made.iter().enumerate() {
        let root = store
            .mount(id, MountOptions::default().option("ro"))
            .await
            .unwrap();
        let found = seen(&root);
        store.unmount(id).await.unwrap();
        let found = match found {
            // fuse-overlayfs cannot list a directory in the place of a link that leads to itself.
            Err(why) if uses_program(store) && why == NO_MEMORY => continue,
            found => found?,
        };
        let wrong = differences(&found, &trees[index + 1], !uses_program(store));
        if !wrong.is_empty() {
            return Err(format!("layer {index} shows\n{wrong}"));
        }
        let changes = store
            .changes(None, id)
            .await
            .map_err(|error| error.chain().to_string())?;
        let wrong = wrong_changes(&changes, &trees[index], &trees[index + 1]);
        if !wrong.is_empty() {
            return Err(format!("the changes of layer {index} are wrong:\n{wrong}"));
        }
        let mut diff = store.diff(None, id, DiffOptions::uncompressed()).await.unwrap();
        let mut bytes = Vec::new();
        let read = diff.read_to_end(&mut bytes).await;
        read.map_err(|error| format!("the diff of layer {index}: {error}"))?;
        if bytes != archives[index] {
            return Err(format!("the diff of layer {index} is not what came in"));
        }
    }
    if !at_once {
        return Ok(());
    }
    let report = store.check(CheckOptions::everything()).await;
    let report = report.map_err(|error| format!("the check fails: {}", error.chain()))?;
    // See above.
    let is_program_fault =
        |finding: &graphroot::Finding| uses_program(store) && finding.to_string().contains(NO_MEMORY);
    match report.findings.iter().all(is_program_fault) && report.strays.is_empty() {
        true => Ok(()),
        false => Err(format!("the check finds {report:#?}")),
    }
}

/// What a failed listing says.
const NO_MEMORY: &str = "Cannot allocate memory (os error 12)";

/// A mount program makes up its own inode numbers.
fn uses_program(store: &Store) -> bool {
    store
        .graph_options()
        .iter()
        .any(|option| option.contains("mount_program"))
}

/// Removes entries and layers as long as the case fails.
async fn shrink(store: &Store, mut layers: Vec<Vec<Item>>, at_once: bool) -> Vec<Vec<Item>> {
    let mut again = true;
    while again {
        again = false;
        for layer in (0..layers.len()).rev() {
            for entry in (0..layers[layer].len()).rev() {
                let mut smaller = layers.clone();
                smaller[layer].remove(entry);
                smaller.retain(|items| !items.is_empty());
                if check(store, &smaller, at_once).await.is_err() {
                    layers = smaller;
                    again = true;
                    break;
                }
            }
            if again {
                break;
            }
        }
    }
    layers
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Runs so many cases; fails with all that are wrong.
async fn run(store: &Store, cases: u64) {
    let seed = number("GRAPHROOT_LAYER_SEED", 1);
    let cases = number("GRAPHROOT_LAYER_CASES", cases);
    let mut wrong = String::new();
    let mut failed = 0;
    for case in 0..cases {
        let layers = layers(&mut Random(seed.wrapping_mul(1_000_003).wrapping_add(case)));
        let at_once = case % 2 == 1;
        if check(store, &layers, at_once).await.is_err() {
            failed += 1;
            if failed > 12 {
                continue;
            }
            let layers = shrink(store, layers, at_once).await;
            let why = check(store, &layers, at_once).await.err().unwrap_or_default();
            writeln!(wrong, "seed {seed}, case {case} (at once: {at_once}):").unwrap();
            for (index, items) in layers.iter().enumerate() {
                for item in items {
                    writeln!(
                        wrong,
                        "  {index}: {}{:?} {:?} {:o}",
                        item.prefix, item.path, item.what, item.mode
                    )
                    .unwrap();
                }
            }
            writeln!(wrong, "{why}").unwrap();
        }
    }
    assert!(
        failed == 0,
        "{failed} of {cases} cases with seed {seed} are wrong:\n{wrong}"
    );
}

/// Runs a test that gives files owners, as only root can.
pub fn as_root(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    if rustix::process::geteuid().is_root() {
        runtime.block_on(test);
    } else {
        skip("owners are set by root");
    }
}

fn over(driver: &str, layout: Layout, cases: u64) {
    as_root(async {
        if let Some(store) = TestStore::open(driver, layout).await {
            run(&store, cases).await;
        }
    });
}

#[test]
fn layers_show_what_the_model_says_over_overlay() {
    over("overlay", Layout::Plain, 400);
}

#[test]
fn layers_show_what_the_model_says_over_vfs() {
    over("vfs", Layout::Plain, 250);
}

#[test]
fn layers_show_what_the_model_says_with_a_mount_program() {
    over("overlay", Layout::Program, 60);
}

#[test]
fn layers_show_what_the_model_says_over_zfs() {
    crate::zfs::surviving(|| over("zfs", Layout::Plain, 12));
}
