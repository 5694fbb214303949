//! Hard links of a diff to files that its layer has, beside the Go library.

use std::io::Cursor;
use std::path::Path;

use graphroot::LayerOptions;

use crate::support::each_set;
use crate::support::manifest::{assert_same, manifest};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::{Header, Tar};

fn file(name: String, content: &str) -> Header {
    Header::file(name, content).mode(0o640).owner(1, 2).mtime(1000)
}

fn link(name: String, target: String) -> Header {
    Header::hard_link(name, target)
        .mode(0o640)
        .owner(1, 2)
        .mtime(1000)
}

/// A link whose header says other things than the file has.
fn other(name: String, target: String) -> Header {
    link(name, target).mode(0o4711).owner(7, 8).mtime(5000)
}

fn dir(name: String) -> Header {
    Header::dir(name).mode(0o750).mtime(1000)
}

/// What the layer has before in the directory `top`.
fn base(top: &str) -> Vec<Header> {
    let at = |name: &str| format!("{top}/{name}");
    vec![
        dir(at("")),
        file(at("f"), "base"),
        file(at("t"), "twice"),
        link(at("t2"), at("t")),
        dir(at("d/")),
        file(at("d/f"), "inner"),
        Header::symlink(at("l"), "d").mtime(1000),
        Header::symlink(at("lf"), "f").mtime(1000),
        Header::fifo(at("p")).mode(0o600).mtime(1000),
        dir(at("dd/")),
        file(at("dd/x"), "x").xattr("user.x", "1"),
    ]
}

/// Entries that are about a directory like this.
type Case = fn(&str) -> Vec<Header>;

/// What every version takes with both drivers.
const TAKEN: &[Case] = &[
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![link(at("g"), at("f")), link(at("d/g"), at("g"))]
    },
    |top| vec![link(format!("{top}/h"), format!("/{top}/d/../d/f"))],
    // Replaced before and after.
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![file(at("f"), "new"), link(at("g"), at("f"))]
    },
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![link(at("g"), at("f")), file(at("f"), "new")]
    },
    // Through links, and to other types.
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        let new = Header::symlink(at("s"), "l").mtime(1000);
        vec![link(at("g"), at("l/f")), new, link(at("h"), at("s/f"))]
    },
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![link(at("g"), at("lf")), link(at("h"), at("p"))]
    },
    // Other metadata.
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![
            other(at("g"), at("t")),
            link(at("k"), at("f")),
            other(at("d/k"), at("k")),
            other(at("x"), at("dd/x")),
        ]
    },
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![link(at("g"), at("lf")).owner(7, 8), other(at("h"), at("p"))]
    },
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![
            link(at("g"), at("dd/x")).xattr("user.y", "2"),
            link(at("h"), at("t")).xattr("user.z", "3"),
        ]
    },
    // A directory that goes, also for the link itself.
    |top| {
        let at = |name: &str| format!("{top}/{name}");
        vec![link(at("g"), at("d/f")), file(at("d"), "file")]
    },
    |top| vec![link(format!("{top}/d"), format!("{top}/f"))],
];

/// What every version refuses with both drivers.
const REFUSED: &[Case] = &[
    |top| {
        vec![
            Header::whiteout(format!("{top}/f")),
            link("g".into(), format!("{top}/f")),
        ]
    },
    |top| {
        vec![
            Header::whiteout(format!("{top}/d")),
            link("g".into(), format!("{top}/d/f")),
        ]
    },
    |top| {
        vec![
            file(format!("{top}/d"), "file"),
            link("g".into(), format!("{top}/d/f")),
        ]
    },
    |top| vec![link(format!("{top}/dd"), format!("{top}/dd/x"))],
    |top| vec![link("g".into(), format!("{top}/d"))],
    |_| vec![link("g".into(), "none".into())],
];

async fn hard_links_lead_to_files_of_the_layer(set: PeerSet) {
    let top = |number: usize| format!("top-{number}");
    let base: Vec<Header> = (0..TAKEN.len().max(REFUSED.len()))
        .flat_map(|number| base(&top(number)))
        .collect();
    let base = Tar::from_iter(base).build();
    let together = TAKEN.iter().enumerate().flat_map(|(number, case)| {
        let mut entries = case(&top(number));
        // Their times are those of the last change if they have no entry.
        entries.push(dir(top(number)));
        if !matches!(number, 9 | 10) {
            entries.push(dir(format!("{}/d/", top(number))));
        }
        entries
    });
    let together = Tar::from_iter(together).build();
    for driver in ["overlay", "vfs"] {
        let [ours, theirs] = [(); 2].map(|()| TestRoot::in_dir(&std::env::temp_dir(), driver).of(set));
        let store = ours.open().await;
        let archive = theirs.path().join("archive");
        let go = |words: &str, layer: &str, bytes: &[u8]| {
            std::fs::write(&archive, bytes).unwrap();
            let mut command = theirs.go().words(words);
            command.arg(&archive).args(layer.split_whitespace());
            command.output().unwrap().status.success()
        };
        let low = Tar::new().file("low", "").build();
        put_bytes(&store, None, LayerOptions::default().id("low"), low.clone())
            .await
            .unwrap();
        assert!(go("import-layer --id low --file", "", &low));
        let taken = LayerOptions::default().id("taken");
        put_bytes(&store, Some("low"), taken, base.clone()).await.unwrap();
        assert!(go("import-layer --id taken --file", "low", &base));
        store
            .apply_diff("taken", Cursor::new(together.clone()))
            .await
            .unwrap();
        assert!(go("applydiff --file", "taken", &together), "{driver}");
        let [our_tree, their_tree] = [&ours, &theirs].map(|root| {
            let mut found = manifest(&match driver {
                "overlay" => root.graph().join("overlay/taken/diff"),
                _ => root.graph().join("vfs/dir/taken"),
            });
            // Its time is that of the last change.
            found.remove(Path::new(""));
            found
        });
        assert_same(&format!("ours ({driver})"), &our_tree, "theirs", &their_tree);

        let refused = LayerOptions::default().id("refused");
        put_bytes(&store, Some("low"), refused, base.clone())
            .await
            .unwrap();
        assert!(go("import-layer --id refused --file", "low", &base));
        for (number, case) in REFUSED.iter().enumerate() {
            let diff = Tar::from_iter(case(&top(number))).build();
            store
                .apply_diff("refused", Cursor::new(diff.clone()))
                .await
                .unwrap_err();
            assert!(!go("applydiff --file", "refused", &diff), "{driver}: {number}");
        }
    }
}
each_set!(async hard_links_lead_to_files_of_the_layer: "containers-storage");
