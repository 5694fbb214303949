//! The architecture as a test: no import circle between files, no arrow upward, unsafe code in `src/sys` only.
//!
//! `cargo test --test architecture -- --nocapture` also prints the rooms with their files and edges. How a path
//! becomes an edge, and what is not seen: `tree.rs`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::print_stderr,
    reason = "the rooms and their edges belong to the output"
)]

mod circles;
mod docs;
mod items;
mod tokens;
mod tree;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use tree::{Edges, Place, Tree};

/// Rooms of one rank, below `src/`: a room is a file or a directory, or both. A file belongs to the longest name that
/// fits. It may use its own room and every lower rank; `among` says whether also the other rooms of its row.
struct Row {
    rank: u8,
    rooms: &'static [&'static str],
    among: bool,
}

const ROWS: &[Row] = &[
    // Errors and small pure types and formats; free to use each other as long as no circle comes of it.
    Row {
        rank: 0,
        rooms: &[
            "error",
            "digest",
            "digest_reader",
            "whiteout",
            "compression",
            "json",
            "time",
        ],
        among: true,
    },
    // Maps of user and group IDs; labels of SELinux; the trait of drivers that are no part of the library. Pure.
    Row {
        rank: 1,
        rooms: &["idmap", "selinux", "tree_driver"],
        among: false,
    },
    // System calls and all unsafe code.
    Row {
        rank: 2,
        rooms: &["sys"],
        among: false,
    },
    // The door between async and blocking; the options of the public calls.
    Row {
        rank: 3,
        rooms: &["bridge", "options"],
        among: false,
    },
    // Lock files; storage.conf.
    Row {
        rank: 4,
        rooms: &["lock", "config"],
        among: false,
    },
    // The three parts that a store is made of. They do not know each other.
    Row {
        rank: 5,
        rooms: &["record", "driver", "archive"],
        among: false,
    },
    // On top of the archive code: copies between trees and containers' directories; layer blobs with a table of
    // contents, which are tar streams beside it.
    Row {
        rank: 6,
        rooms: &["copy_content", "chunked"],
        among: false,
    },
    // What puts all of these together for one layer. Of `store` itself they see the base files only; staging commits through
    // the layer store, so they are free to use each other as long as no circle comes of it.
    Row {
        rank: 6,
        rooms: &["store/stage", "store/layer_store"],
        among: true,
    },
    // The public face.
    Row {
        rank: 7,
        rooms: &["store"],
        among: false,
    },
    // Users of a store, and what benchmarks and tests reach in by.
    Row {
        rank: 8,
        rooms: &["oci", "bench", "fuzz", "test_util", "compat"],
        among: false,
    },
    // The command, a crate of its own.
    Row {
        rank: 9,
        rooms: &["bin/graphroot"],
        among: false,
    },
];

/// Files of `store` that `store/stage` and `store/layer_store` may use although they rank higher. A base file in turn
/// uses neither of the two, or the circles show it.
const STORE_BASE: &[&str] = &[
    "store/access.rs",
    "store/dirs.rs",
    "store/evidence.rs",
    "store/ids.rs",
    "store/inner.rs",
    "store/mod.rs",
];

/// The root of the library belongs to no room: it declares and re-exports. Nothing defined in it is used.
const LIBRARY: &str = "lib.rs";
const COMMAND: &str = "bin/graphroot/main.rs";

/// Where unsafe code may be.
const UNSAFE: &str = "sys";

fn source(file: &str) -> Option<String> {
    std::fs::read_to_string(Path::new(SRC).join(file)).ok()
}

const SRC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

fn fits(file: &str, room: &str) -> bool {
    file.strip_prefix(room)
        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
}

fn room_of(file: &str) -> Option<(&'static str, &'static Row)> {
    let all = ROWS
        .iter()
        .flat_map(|row| row.rooms.iter().map(move |room| (*room, row)));
    all.filter(|(room, _)| fits(file, room))
        .max_by_key(|(room, _)| room.len())
}

/// Why a file may not use another, or none.
fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == LIBRARY {
        return None;
    }
    if to == LIBRARY {
        return Some("the crate root declares and re-exports, and defines nothing".to_owned());
    }
    let (from_room, from_row) = room_of(from)?;
    let (to_room, to_row) = room_of(to)?;
    if from_room == to_room || to_row.rank < from_row.rank || STORE_BASE.contains(&to) && from_row.rank == 6 {
        return None;
    }
    if to_row.rank > from_row.rank {
        return Some(format!(
            "{from_room} (rank {}) may not use {to_room} ({})",
            from_row.rank, to_row.rank
        ));
    }
    (!from_row.among).then(|| {
        format!(
            "{from_room} and {to_room} (rank {}) may not know each other",
            to_row.rank
        )
    })
}

fn places(places: &[Place]) -> String {
    let mut text = String::new();
    for (
        index,
        Place {
            line,
            path,
            defined_in,
        },
    ) in places.iter().enumerate()
    {
        let comma = if index == 0 { "" } else { ", " };
        write!(text, "{comma}{line} {path}").unwrap();
        if let Some(file) = defined_in {
            write!(text, " [imported there from {file}]").unwrap();
        }
    }
    text
}

/// The circles of a tree, as text; empty if there is none.
fn circle_report(tree: &Tree) -> String {
    let edges = tree.edges.keys().filter(|(from, _)| *from != LIBRARY);
    let found = circles::circles(edges.map(|(from, to)| (from.as_str(), to.as_str())));
    let mut text = String::new();
    for group in circles::groups(&found) {
        writeln!(text, "{} files use each other in circles:", group.len()).unwrap();
        for circle in found.iter().filter(|circle| group.contains(circle[0])) {
            let way: Vec<&str> = circle.iter().copied().chain([circle[0]]).collect();
            writeln!(text, "  {}", way.join(" → ")).unwrap();
            for pair in way.windows(2) {
                let key = (pair[0].to_owned(), pair[1].to_owned());
                writeln!(text, "      {}: {}", pair[0], places(&tree.edges[&key])).unwrap();
            }
        }
    }
    text
}

/// The arrows that point upward or sideways, as text; empty if there is none.
fn arrow_report(edges: &Edges) -> String {
    let mut text = String::new();
    for ((from, to), used) in edges {
        if let Some(reason) = forbidden(from, to) {
            writeln!(text, "  {from} → {to}: {reason}\n      {from}: {}", places(used)).unwrap();
        }
    }
    text
}

fn print_rooms(tree: &Tree) {
    let mut counts: BTreeMap<(u8, &str), [usize; 3]> = BTreeMap::new();
    for row in ROWS {
        counts.extend(row.rooms.iter().map(|room| ((row.rank, *room), [0; 3])));
    }
    let key = |file: &str| room_of(file).map(|(room, row)| (row.rank, room));
    for key in tree.files.iter().filter_map(|file| key(file)) {
        counts.entry(key).or_default()[0] += 1;
    }
    for (from, to) in tree.edges.keys() {
        if let (Some(from), Some(to)) = (key(from), key(to))
            && from != to
        {
            counts.entry(from).or_default()[1] += 1;
            counts.entry(to).or_default()[2] += 1;
        }
    }
    eprintln!(
        "{}: {} files, {} edges between files",
        tree.root,
        tree.files.len(),
        tree.edges.len()
    );
    for ((rank, room), [files, out, into]) in counts {
        if files > 0 {
            eprintln!(
                "  rank {rank} {room:20} {files:4} files  {out:4} edges to other rooms  {into:4} from them"
            );
        } else if tree.root == LIBRARY && !fits(COMMAND, room) {
            eprintln!("  rank {rank} {room:20} not there");
        }
    }
}

#[test]
fn no_import_circles_in_the_library() {
    let tree = tree::read(LIBRARY, &source);
    print_rooms(&tree);
    let report = circle_report(&tree);
    assert!(
        report.is_empty(),
        "import circles between files of the library:\n{report}"
    );
}

#[test]
fn no_import_circles_in_the_command() {
    let tree = tree::read(COMMAND, &source);
    print_rooms(&tree);
    let report = circle_report(&tree);
    assert!(
        report.is_empty(),
        "import circles between files of the command:\n{report}"
    );
}

#[test]
fn arrows_point_down() {
    let report = arrow_report(&tree::read(LIBRARY, &source).edges);
    assert!(
        report.is_empty(),
        "files that use what is above or beside them:\n{report}"
    );
}

/// A file outside the tree would be checked by nothing above.
#[test]
fn every_file_is_a_module_and_has_a_room() {
    let trees = [tree::read(LIBRARY, &source), tree::read(COMMAND, &source)];
    let mut lost = Vec::new();
    for file in tree::rust_files(Path::new(SRC)) {
        if !trees
            .iter()
            .any(|tree| tree.files.contains(&file) || tree.test_files.contains(&file))
        {
            lost.push(format!("{file}: no file declares this module"));
        }
        if file != LIBRARY && trees[0].files.contains(&file) && room_of(&file).is_none() {
            lost.push(format!("{file}: in no room of tests/architecture/main.rs"));
        }
    }
    assert!(lost.is_empty(), "{}", lost.join("\n"));
}

#[test]
fn unsafe_code_only_in_sys() {
    let mut found = Vec::new();
    for file in tree::rust_files(Path::new(SRC)) {
        if !fits(&file, UNSAFE) {
            let tokens = tokens::tokens(&source(&file).unwrap());
            let words = tokens.iter().filter(|token| token.is_word("unsafe"));
            found.extend(words.map(|token| format!("{file}:{}", token.line)));
        }
    }
    assert!(
        found.is_empty(),
        "unsafe code outside src/{UNSAFE}: {}",
        found.join(", ")
    );
}

#[test]
fn the_table_is_read_as_meant() {
    assert_eq!(room_of("store/stage/plan.rs").unwrap().0, "store/stage");
    assert_eq!(room_of("store/stage_diff.rs").unwrap().0, "store");
    assert_eq!(room_of("store/mod.rs").unwrap().0, "store");
    assert!(room_of("stores.rs").is_none());
    let allowed = |from, to| forbidden(from, to).is_none();
    assert!(allowed("error.rs", "digest.rs") && allowed("archive/mod.rs", "sys/at.rs"));
    assert!(allowed("archive/mod.rs", "archive/apply.rs") && allowed("store/mod.rs", "store/stage/mod.rs"));
    assert!(!allowed("archive/mod.rs", "record/row.rs") && !allowed("sys/at.rs", "lock/mod.rs"));
    assert!(!allowed("lock/mod.rs", "config/mod.rs") && !allowed("store/stage/mod.rs", "store/images.rs"));
    assert!(!allowed("digest.rs", LIBRARY) && allowed(LIBRARY, "store/mod.rs"));
    assert!(
        STORE_BASE
            .iter()
            .all(|base| allowed("store/layer_store.rs", base) && !allowed("record/row.rs", base))
    );
}
