use graphroot::{ErrorKind, Store, StoreOptions};

use crate::support::kind;

#[tokio::test]
async fn a_store_needs_a_root_and_a_driver_that_exists() {
    assert_eq!(
        kind(Store::open(StoreOptions::default().driver("vfs")).await),
        ErrorKind::IncompleteOptions
    );
    let root = tempfile::tempdir().unwrap();
    let options = || StoreOptions::new(root.path().join("graph"), root.path().join("run"));
    assert_eq!(
        kind(Store::open(options().driver("nonsense")).await),
        ErrorKind::NotSupported
    );
    let odd = options().driver("vfs").driver_option("vfs.nonsense=1");
    assert_eq!(kind(Store::open(odd).await), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn the_same_roots_give_the_same_store_until_it_is_freed() {
    let root = tempfile::tempdir().unwrap();
    let options = || StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let first = Store::open(options()).await.unwrap();
    let second = Store::open(options()).await.unwrap();
    let layer = first.create_layer(None, Default::default()).await.unwrap();
    assert!(second.exists(layer.id()).await.unwrap());
    assert!(std::ptr::eq(first.graph_root(), second.graph_root()), "one store");
    first.free();
    let third = Store::open(options()).await.unwrap();
    assert!(
        !std::ptr::eq(first.graph_root(), third.graph_root()),
        "another store"
    );
    assert!(third.exists(layer.id()).await.unwrap());
}

#[tokio::test]
async fn corrupt_records_are_an_error_that_names_the_file_and_change_nothing() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    store.create_layer(None, Default::default()).await.unwrap();
    let path = root.path().join("graph/vfs-layers/layers.json");
    let before = std::fs::read(&path).unwrap();
    std::fs::write(&path, &before[..before.len() - 1]).unwrap();
    let error = store.layers().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CorruptMetadata);
    assert!(error.chain().contains("layers.json"), "{error:?}");
    assert_eq!(
        kind(store.create_layer(None, Default::default()).await),
        ErrorKind::CorruptMetadata
    );
    assert_eq!(std::fs::read(&path).unwrap().len(), before.len() - 1);
    std::fs::write(&path, &before).unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 1);
}

#[tokio::test]
async fn records_with_hostile_ids_lead_nowhere() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    let victim = root.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("manifest"), "secret").unwrap();
    let record = r#"[{"id":"../../victim","names":["evil"],"image":"","layer":"","big-data-names":["manifest"],"created":"2024-01-01T00:00:00Z"}]"#;
    for kind in ["layers", "images", "containers"] {
        std::fs::write(root.path().join(format!("graph/vfs-{kind}/{kind}.json")), record).unwrap();
    }
    assert_eq!(store.image("evil").await.unwrap().id(), "../../victim");
    assert_eq!(
        kind(store.image_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(
        kind(store.container_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(
        kind(store.layer_big_data("evil", "manifest").await),
        ErrorKind::UnsafePath
    );
    assert_eq!(kind(store.delete_image("evil").await), ErrorKind::UnsafePath);
    assert_eq!(kind(store.delete_layer("evil").await), ErrorKind::UnsafePath);
    assert_eq!(kind(store.delete_container("evil").await), ErrorKind::UnsafePath);
    assert_eq!(std::fs::read(victim.join("manifest")).unwrap(), b"secret");
    // The store works all the same.
    store.create_layer(None, Default::default()).await.unwrap();
    assert_eq!(store.layers().await.unwrap().len(), 2);
}

#[tokio::test]
async fn names_given_twice_in_a_store_that_is_only_read_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let additional = root.path().join("additional");
    let options = || {
        let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
        options.driver_option(format!("vfs.imagestore={}", additional.display()))
    };
    let rows = r#"[{"id":"a","names":["n"],"created":"2024-01-01T00:00:00Z"},{"id":"b","names":["n"],"created":"2024-01-01T00:00:00Z"}]"#;
    for kind in ["layers", "images"] {
        std::fs::create_dir_all(additional.join(format!("vfs-{kind}"))).unwrap();
    }
    let store = Store::open(options()).await.unwrap();
    std::fs::write(additional.join("vfs-layers/layers.json"), rows).unwrap();
    assert_eq!(kind(store.layers().await), ErrorKind::DuplicateLayerNames);
    std::fs::remove_file(additional.join("vfs-layers/layers.json")).unwrap();
    std::fs::write(additional.join("vfs-images/images.json"), rows).unwrap();
    store.free();
    let store = Store::open(options()).await.unwrap();
    assert_eq!(kind(store.images().await), ErrorKind::DuplicateImageNames);
    assert!(store.layers().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_wait_that_is_limited_ends_with_the_name_of_the_lock() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let options = options.lock_timeout(Some(std::time::Duration::from_millis(20)));
    let store = Store::open(options).await.unwrap();
    let lock = store
        .get_digest_lock(&graphroot::Digest::sha256("x"))
        .await
        .unwrap();
    let held = lock.lock().await.unwrap();
    let error = lock.lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LockTimeout);
    assert!(error.chain().contains("vfs-locks/sha256:"), "{error:?}");
    drop(held);
    drop(lock.lock().await.unwrap());
}

#[tokio::test]
async fn owners_above_a_mount_need_a_mount() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    let mut options = graphroot::LayerOptions::default();
    let identity = vec![graphroot::IdMap::new(0, rustix::process::geteuid().as_raw(), 1)];
    options.id_mappings = graphroot::IdMappingOptions::mapped(identity.clone(), identity);
    let layer = store.create_layer(None, options).await.unwrap();
    assert_eq!(
        kind(store.layer_parent_owners(layer.id()).await),
        ErrorKind::LayerNotMounted
    );
    store.mount(layer.id(), Default::default()).await.unwrap();
    store.layer_parent_owners(layer.id()).await.unwrap();
    let path = store
        .layer(layer.id())
        .await
        .unwrap()
        .mount_point()
        .unwrap()
        .to_owned();
    let gone = root.path().join("gone");
    std::fs::rename(&path, &gone).unwrap();
    assert_eq!(
        kind(store.layer_parent_owners(layer.id()).await),
        ErrorKind::LayerNotMounted
    );
    std::fs::rename(&gone, &path).unwrap();
    store.unmount(layer.id()).await.unwrap();
}

/// A task that outlives its store must not make an empty one in its place.
#[tokio::test]
async fn a_store_that_was_removed_while_it_is_open_is_not_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let graph = root.path().join("graph");
    let options = StoreOptions::new(&graph, root.path().join("run")).driver("vfs");
    let store = Store::open(options).await.unwrap();
    store.create_layer(None, Default::default()).await.unwrap();
    std::fs::remove_dir_all(&graph).unwrap();
    let tar = crate::support::tar(&[("file", "1")]);
    for error in [
        store.create_layer(None, Default::default()).await.unwrap_err(),
        store.create_image(None, Default::default()).await.unwrap_err(),
        store
            .create_container(None, Default::default())
            .await
            .unwrap_err(),
        store
            .put_layer(None, Default::default(), &tar[..])
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
        assert!(error.chain().contains("graph"), "{error:?}");
        assert!(!graph.exists(), "{error:?}");
    }
}

#[test]
fn a_call_outside_of_a_runtime_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let options = StoreOptions::new(root.path().join("graph"), root.path().join("run")).driver("vfs");
    let mut open = Box::pin(Store::open(options));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(error)) = open.as_mut().poll(&mut context) else {
        panic!("it cannot be opened");
    };
    assert_eq!(error.kind(), ErrorKind::NotSupported);
    assert!(error.chain().contains("outside of a tokio runtime"), "{error:?}");
}

#[test]
fn every_kind_has_a_text_of_its_own() {
    let texts: std::collections::HashSet<&str> = ErrorKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(texts.len(), ErrorKind::ALL.len());
    assert_eq!(ErrorKind::LayerUnknown.to_string(), "layer not known");
}

/// Kinds that no test of the public API provokes, and why.
const NOT_PROVOKED: [(&str, &str); 2] = [
    (
        "LoadError",
        "a cleaner of the records that is killed three times in a row",
    ),
    ("ParentUnknown", "the Go library never returns it either"),
];

#[test]
fn every_kind_is_provoked_by_a_test() {
    let mut tests = String::new();
    for dir in ["store", "it", "pull"] {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests")
            .join(dir);
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                tests.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    for kind in ErrorKind::ALL {
        let name = format!("{kind:?}");
        let excused = NOT_PROVOKED.iter().any(|(excused, _)| *excused == name);
        let provoked = tests.contains(&format!("ErrorKind::{name}"));
        assert!(
            provoked != excused,
            "{name}: provoked {provoked}, excused {excused}"
        );
    }
}
