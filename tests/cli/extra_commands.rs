//! The commands that `containers-storage` does not have.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::program::{good, ours};
use crate::support::locks::Holder;
use crate::support::needs;
use crate::support::root::TestRoot;

fn filled() -> TestRoot {
    let root = TestRoot::vfs();
    let tar = |blocks: usize| {
        let file = root.path().join("layer.tar");
        fs::write(&file, vec![0; blocks * 512]).unwrap();
        file.display().to_string()
    };
    good(&root, &format!("import-layer -i base -f {}", tar(4)));
    good(&root, &format!("import-layer -i one -f {} base", tar(6)));
    good(&root, &format!("import-layer -i two -f {} base", tar(8)));
    good(&root, "create-image -i I1 -n first one");
    good(&root, "create-image -i I2 -n second two");
    let data = root.path().join("data");
    fs::write(&data, "12345").unwrap();
    good(&root, &format!("set-image-data -f {} I1 key", data.display()));
    good(&root, "create-container -i C1 -n web first");
    good(&root, "create-container -i C2 ''");
    root
}

#[test]
fn du_counts_shared_layers_once() {
    let root = filled();
    let report: Value = serde_json::from_str(&good(&root, "du --json")).unwrap();
    let expected = json!({
        "images": [
            {"id": "I1", "names": ["first"], "unique": 3072 + 5, "shared": 2048, "total": 5120 + 5},
            {"id": "I2", "names": ["second"], "unique": 4096, "shared": 2048, "total": 6144},
        ],
        "total": 2048 + 3072 + 4096 + 5,
    });
    assert_eq!(report, expected);
    let text = good(&root, "du");
    assert!(
        text.contains("second (I2)\n") && text.contains("4.0 KiB"),
        "{text}"
    );
}

#[test]
fn tree_shows_the_layers_and_containers_of_each_image() {
    let root = filled();
    let expected = "first (I1)\n├─layer one 3.0 KiB\n├─layer base 2.0 KiB, shared\n└─container web (C1)\n\
                    second (I2)\n├─layer two 4.0 KiB\n└─layer base 2.0 KiB, shared\n\
                    (no image)\n└─container C2\n";
    assert_eq!(good(&root, "tree"), expected);
    let trees: Value = serde_json::from_str(&good(&root, "tree -j")).unwrap();
    assert_eq!(trees["images"][0]["containers"][0]["names"], json!(["web"]));
    assert_eq!(
        trees["images"][1]["layers"][1],
        json!({"id": "base", "names": [], "size": 2048, "shared": true})
    );
    assert_eq!(trees["containers_without_image"][0]["id"], "C2");
    assert_eq!(trees["layers_without_image"], json!([]));
    good(&root, "create-layer -i three -n work base");
    assert!(good(&root, "tree").ends_with("(no image)\n├─layer work (three) size unknown\n└─container C2\n"));
    let trees: Value = serde_json::from_str(&good(&root, "tree -j")).unwrap();
    assert_eq!(trees["layers_without_image"][0]["names"], json!(["work"]));
}

#[test]
fn locks_shows_the_process_that_holds_a_lock() {
    needs!("python3");
    let root = filled();
    assert_eq!(good(&root, "locks -j"), "[]\n");
    let file = root.graph().join("storage.lock");
    let holder = Holder::posix(&file, true);
    let line = good(&root, "locks");
    assert!(
        line.starts_with(&format!("{} exclusive ", file.display())) && line.contains(" python3"),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1);
    let locks: Value = serde_json::from_str(&good(&root, "locks --json")).unwrap();
    assert_eq!(locks[0]["exclusive"], true);
    assert!(holder.release());
}

#[test]
fn help_prints_everything_to_standard_output() {
    let root = TestRoot::vfs();
    let program = good(&root, "help");
    assert!(program.contains("\nExtra commands:\n") && program.contains("\n  --debug, -D "));
    let command = good(&root, "help import-layer");
    assert!(command.starts_with("Usage: graphroot import-layer "), "{command}");
    assert!(command.contains("\n  zstd -dc layer.tar.zst | graphroot import-layer base\n"));
    assert!(command.contains("\n  --name, -n=[] "), "{command}");
    let wrong = ours(&root, "help nosuch");
    assert_eq!(
        (wrong.code, wrong.err.as_str()),
        (1, "nosuch: unrecognized command\n")
    );
    assert!(!root.graph().exists(), "help opens no store");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let root = TestRoot::vfs();
    let bash = good(&root, "completions bash");
    let zsh = good(&root, "completions zsh");
    let page = good(&root, "man");
    for name in ["import-layer", "get-image-data-digest", "tree"] {
        assert!(bash.contains(name) && zsh.contains(name), "{name}");
    }
    assert!(page.contains("import\\-layer"), "{page}");
    let page = good(&root, "man mount");
    assert!(
        page.contains("\\-\\-read\\-only") && page.contains("mount web"),
        "{page}"
    );
    assert!(page.contains("\n\\&cd $(graphroot mount web)\n"), "{page}");
    assert!(
        page.contains(".TH graphroot-mount 1") && page.contains(".SH SEE ALSO"),
        "{page}"
    );
    let page = good(&root, "man layers");
    assert!(page.contains("\n\\&graphroot layers \\-\\-tree\n"), "{page}");
    let wrong = ours(&root, "completions tcsh");
    assert_eq!((wrong.code, wrong.err.lines().count()), (1, 1), "{wrong:?}");
    assert_eq!(ours(&root, "man nosuch").code, 1);
    assert!(!root.graph().exists(), "neither opens the store");
    let script = root.path().join("completions.bash");
    fs::write(&script, bash).unwrap();
    let checked = Command::new("bash").arg("-n").arg(&script).status().unwrap();
    assert!(checked.success());
}
