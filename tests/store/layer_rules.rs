//! The rules by which layers are merged, one test each, over every driver: what each of them shows, which changes it
//! tells of, and that it gives its archive back ([`crate::layer_sequences`] has random cases of all of them).

use std::collections::BTreeMap;

use crate::layer_model::{Item, What, archive};
use crate::layer_sequences::{as_root, check, expected};
use crate::support::{Layout, TestStore, read_all};
use graphroot::test_util::{TarBuilder, TarEntry};
use graphroot::{DiffOptions, LayerOptions, Store};

fn item(path: &str, what: What) -> Item {
    Item {
        path: path.into(),
        what,
        mode: 0o755,
        owner: 0,
        mtime: 1_000_000_000,
        prefix: "",
    }
}

fn dir(path: &str) -> Item {
    item(path, What::Dir(None))
}

fn file(path: &str) -> Item {
    item(path, What::File(format!("of {path}")))
}

fn link(path: &str, target: &str) -> Item {
    item(path, What::Symlink(target.into()))
}

fn gone(path: &str) -> Item {
    item(path, What::Whiteout)
}

fn opaque(path: &str) -> Item {
    item(path, What::Opaque)
}

/// `a/` with owner, mode and an attribute of its own, `a/old`, `f`, `target/`, `target/keep`, `link` → `target`.
fn base() -> Vec<Item> {
    let mut a = item("a", What::Dir(Some(b'1')));
    (a.mode, a.owner) = (0o700, 7);
    vec![
        a,
        file("a/old"),
        file("f"),
        dir("target"),
        file("target/keep"),
        link("link", "target"),
    ]
}

/// What the base shows where a layer leaves it alone.
const REST: &str = "f link target target/keep";

/// Instead of the paths of a layer.
const REFUSED: &str = "refused";

/// The paths that the topmost of these layers has to show.
fn names(layers: &[Vec<Item>]) -> String {
    match expected(layers).pop().unwrap() {
        Ok(tree) => tree.into_keys().collect::<Vec<_>>().join(" "),
        Err(_) => REFUSED.to_owned(),
    }
}

/// Layers on [`base`], and the paths that the topmost has to show.
struct Case {
    layers: Vec<Vec<Item>>,
    names: String,
    /// Only the order of its entries as they stand.
    in_order: bool,
}

impl Case {
    fn new(items: &[Item], names: &str) -> Self {
        Self::of(vec![items.to_vec()], names)
    }

    fn of(layers: Vec<Vec<Item>>, names: &str) -> Self {
        Self {
            layers,
            names: names.to_owned(),
            in_order: false,
        }
    }

    fn in_order(items: &[Item], names: &str) -> Self {
        Self {
            in_order: true,
            ..Self::new(items, names)
        }
    }

    /// The cases with the entries of the last layer turned around.
    fn orders(&self) -> Vec<Vec<Vec<Item>>> {
        let (last, first) = self.layers.split_last().unwrap();
        let turns = if self.in_order { 1 } else { last.len() };
        let turned = (0..turns).map(|turn| {
            let mut last = last.clone();
            last.rotate_left(turn);
            [&[base()][..], first, &[last]].concat()
        });
        turned.collect()
    }
}

/// Checks these cases over every driver, the layers made one after the other and all at once.
fn over_every_driver(cases: &[Case]) {
    as_root(async {
        for (driver, layout) in [
            ("overlay", Layout::Plain),
            ("vfs", Layout::Plain),
            ("overlay", Layout::Program),
        ] {
            let Some(store) = TestStore::open(driver, layout).await else {
                continue;
            };
            for case in cases {
                let orders = case.orders();
                // A program takes its time to mount, and what is unpacked for it is much the same.
                let quick = layout != Layout::Program;
                for layers in orders.iter().take(if quick { orders.len() } else { 1 }) {
                    assert_eq!(names(layers), case.names, "the model: {layers:?}");
                    for at_once in [false, true].into_iter().take(if quick { 2 } else { 1 }) {
                        if let Err(why) = check(&store, layers, at_once).await {
                            panic!("{driver}, {layout:?}, at once: {at_once}: {layers:#?}\n{why}");
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn a_mark_below_what_its_layer_makes_no_directory_hides_nothing() {
    let ways = [
        file("a"),
        item("a", What::Fifo),
        link("a", "target"),
        link("a", "a"),
    ];
    let marks = [gone("a/old"), opaque("a"), gone("a/b/c"), opaque("a/b")];
    let cases = ways
        .iter()
        .flat_map(|own| marks.iter().map(|mark| [own.clone(), mark.clone()]));
    let cases: Vec<_> = cases
        .map(|items| Case::new(&items, &format!("a {REST}")))
        .collect();
    over_every_driver(&cases);
}

#[test]
fn a_whiteout_of_a_directory_says_all_of_what_is_in_it() {
    over_every_driver(&[
        Case::new(&[gone("a/old"), gone("a")], REST),
        Case::new(&[opaque("a"), gone("a")], REST),
        Case::new(
            &[gone("a"), file("a/new"), opaque("a/b")],
            &format!("a a/new {REST}"),
        ),
    ]);
}

#[test]
fn marks_and_entries_go_through_no_link_of_a_layer_below() {
    let rest = "a a/old f link";
    over_every_driver(&[
        Case::new(
            &[opaque("link"), file("link/new")],
            &format!("{rest} link/new target target/keep"),
        ),
        Case::new(
            &[gone("link/keep"), opaque("link")],
            &format!("{rest} target target/keep"),
        ),
        Case::new(
            &[file("link/new")],
            &format!("{rest} link/new target target/keep"),
        ),
    ]);
}

#[test]
fn a_whiteout_of_what_no_layer_has_shows_nothing() {
    over_every_driver(&[Case::new(
        &[
            gone("no"),
            gone("a/no"),
            gone("no/no"),
            opaque("no"),
            opaque("no/no"),
            gone("f/no"),
            opaque("f"),
        ],
        &format!("a a/old {REST}"),
    )]);
}

#[test]
fn an_opaque_root_hides_everything_below() {
    over_every_driver(&[
        Case::new(&[opaque(""), file("a/new")], "a a/new"),
        Case::new(&[opaque("")], ""),
        Case::of(
            vec![vec![opaque(""), file("f")], vec![file("a/new")]],
            "a a/new f",
        ),
    ]);
}

#[test]
fn a_directory_without_an_entry_is_as_it_is_below() {
    over_every_driver(&[
        Case::new(&[file("a/new")], &format!("a a/new a/old {REST}")),
        Case::new(&[gone("a/old")], &format!("a {REST}")),
        Case::new(&[opaque("a")], &format!("a {REST}")),
        // Of the middle layer, which says nothing of it either, and as a new one where it was deleted.
        Case::of(
            vec![vec![file("a/one")], vec![file("a/two")]],
            &format!("a a/old a/one a/two {REST}"),
        ),
        Case::of(
            vec![vec![gone("a")], vec![file("a/two")]],
            &format!("a a/two {REST}"),
        ),
    ]);
}

#[test]
fn links_that_lead_to_themselves_are_taken_as_they_are() {
    over_every_driver(&[
        Case::new(
            &[link("a/l", "../a/l"), link("x", "y"), link("y", "x")],
            &format!("a a/l a/old {REST} x y"),
        ),
        Case::new(
            &[dir("a"), link("a/l", "../a"), file("a/new")],
            &format!("a a/l a/new a/old {REST}"),
        ),
    ]);
}

#[test]
fn links_of_the_layer_itself_are_followed_inside_it() {
    over_every_driver(&[
        // What they lead to may be in the layers below alone, of which nothing is known yet.
        Case::in_order(
            &[link("new", "target"), file("new/x")],
            "a a/old f link new target target/keep target/x",
        ),
        Case::in_order(
            &[link("a/up", "../../no/where"), file("a/up/x")],
            "a a/old a/up f link no no/where no/where/x target target/keep",
        ),
        Case::in_order(&[link("x", "x"), file("x/y")], REFUSED),
        Case::in_order(&[file("x"), file("x/y")], REFUSED),
    ]);
}

#[test]
fn a_hard_link_to_what_only_a_layer_below_has_is_refused() {
    let link = |target: &str| item("hard", What::HardLink(target.into()));
    over_every_driver(&[
        Case::new(&[link("f")], REFUSED),
        Case::new(&[link("link/keep")], REFUSED),
        Case::new(&[link("nothing")], REFUSED),
    ]);
}

/// The lines that tell what the layer changes.
async fn changes(store: &Store, below: &[Item], items: &[Item]) -> Vec<String> {
    let put = async |parent: Option<&str>, items: &[Item]| {
        let put = store
            .put_layer(parent, LayerOptions::default(), archive(items).as_slice())
            .await;
        put.unwrap().layer.id().to_owned()
    };
    let base = put(None, below).await;
    let layer = put(Some(&base), items).await;
    let changes = store.changes(None, &layer).await.unwrap();
    for id in [layer, base] {
        store.delete_layer(&id).await.unwrap();
    }
    changes.iter().map(ToString::to_string).collect()
}

#[test]
fn changes_tell_what_is_there_and_what_is_gone() {
    let mut a = base()[0].clone();
    a.mode = 0o750;
    let cases: BTreeMap<&str, (Vec<Item>, Vec<&str>)> = [
        (
            "made opaque",
            (vec![opaque("a"), file("a/new")], vec!["A /a/new", "D /a/old"]),
        ),
        (
            "deleted and made again",
            (
                vec![gone("a"), a, file("a/new")],
                vec!["C /a", "A /a/new", "D /a/old"],
            ),
        ),
        ("deleted", (vec![gone("a")], vec!["D /a"])),
        (
            "unknown names",
            (vec![gone("no"), gone("a/no"), opaque("no")], vec![]),
        ),
        ("a file in its place", (vec![file("a")], vec!["C /a"])),
    ]
    .into();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        for driver in ["overlay", "vfs"] {
            let Some(store) = TestStore::open(driver, Layout::Plain).await else {
                continue;
            };
            for (what, (items, expected)) in &cases {
                let mut found = changes(&store, &base(), items).await;
                // Whether a directory counts as changed because of what changes in it is left to the driver.
                found.retain(|line| expected.contains(&line.as_str()) || !line.starts_with("C "));
                found.sort_by(|one, two| one[2..].cmp(&two[2..]));
                assert_eq!(found, *expected, "{driver}, {what}");
            }
        }
    });
}

/// On disk it is the mark by which overlayfs knows a deleted name.
#[test]
fn a_device_without_a_number_hides_its_name_over_overlay() {
    as_root(async {
        let Some(store) = TestStore::open("overlay", Layout::Plain).await else {
            return;
        };
        let put = async |parent: Option<&str>, archive: &[u8]| {
            let put = store.put_layer(parent, LayerOptions::default(), archive).await;
            put.unwrap().layer.id().to_owned()
        };
        let listed = async |layer: &str| {
            let root = store.mount_guard(layer, Default::default()).await.unwrap();
            let names: BTreeMap<String, bool> = ["", "d"]
                .iter()
                .flat_map(|dir| std::fs::read_dir(root.join(dir)).unwrap())
                .map(|entry| entry.unwrap())
                .map(|entry| {
                    let name = entry.file_name().into_string().unwrap();
                    (name, entry.path().symlink_metadata().is_ok())
                })
                .collect();
            root.unmount().await.unwrap();
            assert!(names.values().all(|there| *there), "{names:?}");
            names.into_keys().collect::<Vec<_>>().join(" ")
        };
        let device = |name: &str, major, minor| TarEntry::char_device(name, major, minor);
        let base: TarBuilder = [
            TarEntry::dir("d/"),
            TarEntry::file("d/f", "1"),
            device("d/none", 0, 0),
        ]
        .into_iter()
        .collect();
        let base = put(None, &base.build()).await;
        assert_eq!(listed(&base).await, "d f");
        let archive: TarBuilder = [
            device("d/f", 0, 0),
            device("d/null", 1, 3),
            device("d/no", 4096, 0),
        ]
        .into_iter()
        .collect();
        let archive = archive.build();
        let layer = put(Some(&base), &archive).await;
        assert_eq!(listed(&layer).await, "d null");
        let diff = store
            .diff(None, &layer, DiffOptions::uncompressed())
            .await
            .unwrap();
        assert_eq!(read_all(diff).await, archive);
    });
}
