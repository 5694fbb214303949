//! A record that one side wrote and the other rewrote has lost nothing.

use graphroot::{ContainerOptions, IdMap, IdMappingOptions, LayerOptions};
use serde_json::{Value, json};

use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::tar::Tar;
use crate::support::{each_set, json as records};

/// Text that every JSON writer escapes in its own way.
const ODD_TEXT: &str = "{\"a\": \"<b> & 'c'\"}\\ \t\u{8}\u{1f}\u{7f}\u{2028}\u{2029} ümläut 漢字 🦀";

const STORES: [&str; 3] = ["layers", "images", "containers"];

/// The records of all three stores, by file.
fn all_records(root: &TestRoot) -> Vec<(String, Value)> {
    STORES
        .iter()
        .map(|what| {
            let file = format!("{what}.json");
            let rows = records::rows(&root.metadata_dir(what).join(&file));
            (file, Value::Array(rows))
        })
        .collect()
}

/// Takes the rows that the two sides share: those that were there before.
fn assert_kept(before: &[(String, Value)], after: &[(String, Value)]) {
    for ((file, before), (_, after)) in before.iter().zip(after) {
        let after = after.as_array().unwrap();
        for row in before.as_array().unwrap() {
            let same = after.iter().find(|one| one["id"] == row["id"]);
            let same = same.unwrap_or_else(|| panic!("{file} lost row {}", row["id"]));
            records::assert_same(&format!("{file}, row {}", row["id"]), row, same);
        }
    }
}

fn tar() -> Vec<u8> {
    Tar::new()
        .dir("etc/")
        .file("etc/hosts", "127.0.0.1 localhost\n")
        .build()
}

/// Rows of every kind with every field that Go's command can set.
fn fill_with_go(root: &TestRoot) {
    let (archive, data) = (root.path().join("layer.tar"), root.path().join("data"));
    std::fs::write(&archive, tar()).unwrap();
    std::fs::write(&data, "{}").unwrap();
    let go = |line: &str| root.go().words(line);
    let maps = "--uidmap 0:100000:65536 --gidmap 0:200000:65536";

    let import = |line: &str| go("import-layer --file").with([&archive]).words(line).run();
    import("--id base --name base-name --name other-name");
    import(&format!("--id mapped {maps}"));
    go("create-layer --id empty base").run();
    go("set-metadata --metadata").with([ODD_TEXT, "base"]).run();

    go("create-image --id image --name localhost/i:1 --metadata")
        .with([ODD_TEXT, "base"])
        .run();
    go("add-names --name localhost/i:2 image").run();
    go("set-names --name localhost/i:3 image").run();

    go("create-container --id container --name c --metadata")
        .with([ODD_TEXT, "image"])
        .run();
    go("create-container --id volatile --volatile image").run();
    go(&format!("create-container --id mapped-container {maps} image")).run();

    for key in ["manifest", "sha256:1234", "odd/key"] {
        for (command, item) in [
            ("set-image-data", "image"),
            ("set-layer-data", "base"),
            ("set-container-data", "container"),
        ] {
            go(command).words("--file").with([&data]).with([item, key]).run();
        }
    }
}

async fn rows_of_go_survive_our_rewrite(set: PeerSet) {
    let root = TestRoot::new().of(set);
    fill_with_go(&root);
    // A field of a version that is yet to come, in every row.
    for what in STORES {
        let file = root.metadata_dir(what).join(format!("{what}.json"));
        let mut rows = records::rows(&file);
        for row in &mut rows {
            row["field-of-tomorrow"] = json!({"nested": [1, "two", null, {"three": 3.5}]});
        }
        std::fs::write(&file, serde_json::to_vec(&rows).unwrap()).unwrap();
    }
    let before = all_records(&root);

    let store = root.open().await;
    // What we read is what Go wrote.
    assert_eq!(store.metadata("base").await.unwrap(), ODD_TEXT);
    assert_eq!(
        store.container("mapped-container").await.unwrap().uid_map()[0].host_id,
        100_000
    );
    assert_eq!(store.image("image").await.unwrap().names_history().len(), 3);
    assert!(store.container("volatile").await.unwrap().volatile());
    // Rows of our own, so that all three files are written again.
    let layer = put_bytes(&store, Some("base"), LayerOptions::default().name("ours"), tar())
        .await
        .unwrap();
    let image = store
        .create_image(Some(layer.id()), Default::default())
        .await
        .unwrap();
    store
        .create_container(Some(image.id()), ContainerOptions::default())
        .await
        .unwrap();
    assert_kept(&before, &all_records(&root));

    // A change of a row touches only what it changes.
    store.set_metadata("container", "changed").await.unwrap();
    store.add_names("base", ["third name"]).await.unwrap();
    let mut expected = before.clone();
    // New names come first.
    let names = expected[0].1[0]["names"].as_array_mut().unwrap();
    names.insert(0, json!("third name"));
    let rows = expected[2].1.as_array_mut().unwrap();
    rows.iter_mut().find(|row| row["id"] == "container").unwrap()["metadata"] = json!("changed");
    let after = all_records(&root);
    assert_eq!(after[0].1[0]["id"], "base");
    assert_kept(&expected, &after);
}
each_set!(async rows_of_go_survive_our_rewrite: "containers-storage");

async fn our_rows_survive_gos_rewrite(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let store = root.open().await;
    let mut options = LayerOptions::default()
        .id("base")
        .name("one")
        .name("two \"quoted\" <name>");
    options.metadata = ODD_TEXT.into();
    options.flags.insert("text".into(), "value & more".into());
    options.flags.insert("truth".into(), true.into());
    put_bytes(&store, None, options, tar()).await.unwrap();
    let mut options = LayerOptions::default().id("mapped");
    let map = |host| vec![IdMap::new(0, host, 65536)];
    options.id_mappings = IdMappingOptions::mapped(map(100_000), map(200_000));
    put_bytes(&store, None, options, tar()).await.unwrap();
    store
        .create_layer(Some("base"), LayerOptions::default().id("empty").writeable(true))
        .await
        .unwrap();
    store
        .set_layer_big_data("base", "odd/key", std::io::Cursor::new("data"))
        .await
        .unwrap();

    let mut options = graphroot::ImageOptions::default()
        .id("image")
        .name("localhost/i:1");
    options.metadata = ODD_TEXT.into();
    options
        .flags
        .insert("list".into(), vec!["a".to_owned(), "<b>".to_owned()].into());
    store
        .create_image(Some("base"), options.big_data("manifest", "{}"))
        .await
        .unwrap();
    store
        .set_names("image", ["localhost/i:2", "localhost/i:3"])
        .await
        .unwrap();
    store
        .set_image_big_data("image", "sha256:1234", "config", None)
        .await
        .unwrap();
    let mut options = ContainerOptions::default().id("container").name("c");
    options.metadata = ODD_TEXT.into();
    options.mount_opts = vec!["nodev".into(), "noexec".into()];
    store.create_container(Some("image"), options).await.unwrap();
    store
        .set_container_big_data("container", "key", "value")
        .await
        .unwrap();
    let before = all_records(&root);

    // Go reads what we wrote …
    assert_eq!(root.go().with(["metadata", "--quiet", "base"]).run(), ODD_TEXT);
    assert_eq!(
        root.go().with(["get-layer-data", "base", "odd/key"]).run(),
        "data"
    );
    assert_eq!(
        root.go()
            .with(["get-image-data-size", "image", "sha256:1234"])
            .run(),
        "6"
    );
    // … and rewrites all three files for rows of its own.
    root.go().with(["create-layer", "--id", "theirs", "base"]).run();
    root.go()
        .with(["create-image", "--id", "their-image", "theirs"])
        .run();
    root.go()
        .with(["create-container", "--id", "their-container", "their-image"])
        .run();
    assert_kept(&before, &all_records(&root));
    assert_eq!(
        store.layer("theirs").await.unwrap().parent(),
        Some("base"),
        "our cache notices Go's change"
    );
    assert_eq!(
        store.container("their-container").await.unwrap().image_id(),
        Some("their-image")
    );
}
each_set!(async our_rows_survive_gos_rewrite: "containers-storage");
