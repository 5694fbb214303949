//! `heal`: from another store, from a layout, and what it says.

use std::fs;

use serde_json::Value;

use crate::program::{good, ours};
use crate::support::oci::OciImage;
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;

const NAME: &str = "localhost/app:1";

/// A store with an image of one layer that has an ID.
async fn filled(root: &TestRoot) {
    let store = root.open().await;
    let tar = Tar::new().file("hello", "hello\n").build();
    let options = graphroot::LayerOptions::default().id("L1");
    let layer = put_bytes(&store, None, options, tar).await.unwrap();
    OciImage::create(&store, &layer, NAME).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_comes_from_elsewhere() {
    let (root, other) = (TestRoot::vfs(), TestRoot::vfs());
    filled(&root).await;
    filled(&other).await;
    let file = root.graph().join("vfs/dir/L1/hello");
    let layout = format!("oci:{}:app", root.path().join("layout").display());
    good(&root, &format!("push --quiet {NAME} {layout}"));
    let whole = ours(&root, "heal");
    assert_eq!((whole.code, &*whole.out, &*whole.err), (0, "", ""));
    assert_eq!(
        good(&root, "heal -j"),
        "{\"Healed\":[],\"Failures\":[],\"Left\":[]}\n"
    );

    fs::write(&file, "olleh\n").unwrap();
    let nowhere = root.path().join("nowhere");
    let none = ours(&root, &format!("heal --from-store {}", nowhere.display()));
    assert!(none.code == 1 && none.err.contains("no storage tree"), "{none:?}");
    let none = ours(&root, &format!("heal --from oci:{}:app", nowhere.display()));
    assert!(
        none.code == 1 && none.err.contains("layer L1: no source has it; oci:"),
        "{none:?}"
    );
    assert!(
        none.err.contains("layer L1: file integrity checksum failed"),
        "{none:?}"
    );
    let mut lines: Vec<&str> = none.err.lines().collect();
    let all = lines.len();
    lines.sort_unstable();
    lines.dedup();
    assert_eq!(lines.len(), all, "{none:?}");
    let none = ours(&root, "heal nosuch");
    assert!(none.code == 1 && none.err.contains("nosuch"), "{none:?}");
    for source in [
        format!("--from-store {}", other.graph().display()),
        format!("--from {layout}"),
    ] {
        for item in ["", "L1", NAME] {
            fs::write(&file, "olleh\n").unwrap();
            let healed = ours(&root, &format!("heal {source} {item}"));
            assert!(
                healed.code == 0 && healed.out.starts_with("layer L1: made anew of "),
                "{healed:?}"
            );
            if let Some(root) = source.strip_prefix("--from-store ") {
                assert!(healed.out.ends_with(&format!(" from {root}\n")), "{healed:?}");
            }
            assert_eq!(fs::read_to_string(&file).unwrap(), "hello\n");
            assert_eq!(good(&root, "check"), "");
        }
    }
    fs::remove_file(&file).unwrap();
    let healed = good(&root, &format!("heal -j --from {layout}"));
    let healed: Value = serde_json::from_str(&healed).unwrap();
    assert_eq!(
        (&healed["Healed"][0]["id"], &healed["Healed"][0]["how"]),
        (&"L1".into(), &"layer".into())
    );
    let run = fs::read_dir(root.run())
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    assert!(
        !run.into_iter()
            .any(|name| name.to_string_lossy().starts_with("heal-"))
    );
}
