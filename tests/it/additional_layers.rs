//! Layers of an additional layer store that counts uses, and of one that does not, beside programs of the Go library, and after
//! a process was killed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use graphroot::{
    Compression, ContainerOptions, DiffOptions, Digest, ErrorKind, ImageBuilder, LayerOptions, Store,
    StoreOptions,
};
use tokio::io::AsyncReadExt as _;

use crate::counting_store::CountingStore;
use crate::crash::{CALLS, killed_at};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::{layer_ids, put_bytes};
use crate::support::tar::Tar;
use crate::support::worker::{Worker, tell};
use crate::support::{each_set, needs};

/// The layer that is offered, without references.
struct Offered {
    /// What is served, or the store itself.
    store: PathBuf,
    toc: Digest,
    tar: Vec<u8>,
    blob: Vec<u8>,
}

impl Offered {
    fn new(root: &TestRoot) -> Self {
        let store = root.scratch("offered");
        let tar = || {
            Tar::new()
                .dir("dir/")
                .file("dir/file", "offered")
                .symlink("link", "dir/file")
        };
        let offered = Self {
            store,
            toc: Digest::sha256("a table of contents"),
            tar: tar().build(),
            blob: tar().build_gzip(),
        };
        let dir = offered.store.join(offered.toc.as_str());
        fs::create_dir_all(dir.join("diff/dir")).unwrap();
        fs::write(dir.join("diff/dir/file"), "offered").unwrap();
        symlink("dir/file", dir.join("diff/link")).unwrap();
        fs::write(dir.join("blob"), &offered.blob).unwrap();
        let info = serde_json::json!({
            "compressed-diff-digest": Digest::sha256(&offered.blob),
            "compressed-size": offered.blob.len(),
            "diff-digest": Digest::sha256(&offered.tar),
            "diff-size": offered.tar.len(),
            "toc-digest": offered.toc,
            "compression": 2,
        });
        fs::write(dir.join("info"), info.to_string()).unwrap();
        offered
    }

    /// The layer in a store.
    fn layer(&self) -> &Path {
        Path::new(self.toc.as_str())
    }
}

fn options(root: &TestRoot, layers: &Path) -> StoreOptions {
    let option = format!("overlay.additionallayerstore={}", layers.display());
    root.options().driver_option(option)
}

async fn put(store: &Store, toc: &Digest, id: &str, parent: Option<&str>) {
    let found = store.lookup_additional_layer(toc, "").await.unwrap();
    found.put_as(id, parent, [format!("name of {id}")]).await.unwrap();
    found.release().await.unwrap();
}

async fn diff(store: &Store, id: &str, options: DiffOptions) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut stream = store.diff(None, id, options).await.unwrap();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn every_use_ends() {
    needs!();
    let root = TestRoot::new();
    let offered = Offered::new(&root);
    let served = root.path().join("served");
    let Some(counting) = CountingStore::serve(&offered.store, &served) else {
        return;
    };
    let layer = offered.layer();
    let store = Store::open(options(&root, &served)).await.unwrap();
    let found = store.lookup_additional_layer(&offered.toc, "").await.unwrap();
    assert_eq!(counting.uses(layer), 1);
    found.put_as("one", None, ["one"]).await.unwrap();
    assert_eq!(counting.uses(layer), 2);
    let error = found.put_as("one", None, ["one"]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DuplicateId);
    counting.expect_uses(layer, 2);
    let mut blob = found.blob().await.unwrap();
    assert_eq!(counting.uses(layer), 3);
    let mut bytes = Vec::new();
    blob.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes, offered.blob);
    counting.expect_uses(layer, 2);
    found.release().await.unwrap();
    assert_eq!(counting.uses(layer), 1);

    // Streams: to their end, dropped before it, never read.
    assert_eq!(diff(&store, "one", DiffOptions::default()).await, offered.blob);
    assert_eq!(
        diff(&store, "one", DiffOptions::uncompressed()).await,
        offered.tar
    );
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = || DiffOptions::compressed(compression);
        let mut begun = store.diff(None, "one", options()).await.unwrap();
        let unread = store.diff(None, "one", options()).await.unwrap();
        assert_eq!(begun.read(&mut [0; 10]).await.unwrap(), 10);
        drop((begun, unread));
        counting.expect_uses(layer, 1);
    }
    // A handle that is dropped, within a runtime and without one.
    drop(store.lookup_additional_layer(&offered.toc, "").await.unwrap());
    counting.expect_uses(layer, 1);
    let found = store.lookup_additional_layer(&offered.toc, "").await.unwrap();
    std::thread::spawn(move || drop(found)).join().unwrap();
    assert_eq!(counting.uses(layer), 1);

    let error = found_with_wrong_info(&store, &offered).await;
    assert_eq!(error, ErrorKind::CorruptMetadata);
    counting.expect_uses(layer, 1);

    // A layer of it is mounted, alone and below another; both are read through the file system.
    let path = store.mount("one", Default::default()).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("link")).unwrap(), "offered");
    store.unmount("one").await.unwrap();
    let above = Tar::new().whiteout("link").file("dir/more", "x").build();
    put_bytes(&store, Some("one"), LayerOptions::default().id("above"), above)
        .await
        .unwrap();
    let path = store.mount("above", Default::default()).await.unwrap();
    assert!(!path.join("link").is_symlink() && path.join("dir/file").exists());
    store.unmount("above").await.unwrap();
    let changes = store.changes(None, "one").await.unwrap();
    assert_eq!(changes.len(), 3);
    store.delete_layer("above").await.unwrap();
    put(&store, &offered.toc, "two", Some("one")).await;
    assert_eq!(counting.uses(layer), 2);
    store.delete_layer("two").await.unwrap();
    store.delete_layer("one").await.unwrap();
    assert_eq!(counting.uses(layer), 0);
    // What has no record ends its use, too.
    put(&store, &offered.toc, "three", None).await;
    fs::write(root.metadata_dir("layers").join("layers.json"), "[]").unwrap();
    store.garbage_collect().await.unwrap();
    assert_eq!(counting.uses(layer), 0);
    put(&store, &offered.toc, "four", None).await;
    store.wipe().await.unwrap();
    assert_eq!(counting.uses(layer), 0);
    // Where the program has ended, the error says so, and the layer can be deleted.
    put(&store, &offered.toc, "five", None).await;
    drop(counting);
    let error = store.mount("five", Default::default()).await.unwrap_err();
    let words = "failed to access to the linked additional layer";
    assert!(error.chain().contains(words), "{}", error.chain());
    store.delete_layer("five").await.unwrap();
}

async fn found_with_wrong_info(store: &Store, offered: &Offered) -> ErrorKind {
    let info = offered.store.join(offered.layer()).join("info");
    let right = fs::read(&info).unwrap();
    fs::write(&info, "wrong").unwrap();
    let error = store.lookup_additional_layer(&offered.toc, "").await.unwrap_err();
    fs::write(&info, right).unwrap();
    error.kind()
}

/// In a child process: makes the layer `id` of the one that is offered, or deletes it.
pub(crate) async fn work(work: &str, option: &str, id: &str) {
    let (graph, run, driver) = crate::support::worker::store_location();
    let options = StoreOptions::new(graph, run).driver(driver).driver_option(option);
    let store = Store::open(options).await.unwrap();
    match work {
        "put" => put(&store, &Digest::sha256("a table of contents"), id, None).await,
        _ => store.delete_layer(id).await.unwrap(),
    }
    tell("done");
}

/// Kills a child process at every call that changes something. The layer is there as a whole, or not at all, and its use is
/// known as long as it is there.
async fn killed(work: &str) {
    let root = TestRoot::in_memory();
    let offered = Offered::new(&root);
    let served = root.path().join("served");
    let Some(counting) = CountingStore::serve(&offered.store, &served) else {
        return;
    };
    root.program("strace").words("--output=/dev/null true").run();
    let layer = offered.layer();
    let option = format!("overlay.additionallayerstore={}", served.display());
    let mut total = 0;
    for call in CALLS {
        for count in 1.. {
            if work == "delete" {
                let store = Store::open(options(&root, &served)).await.unwrap();
                put(&store, &offered.toc, "victim", None).await;
                assert_eq!(counting.uses(layer), 1);
            }
            let arguments = [work, &option, "victim"];
            let was_killed = killed_at(&root, "additional-layer", &arguments, call, count);
            let moment = format!("{work} killed at call {count} of {call}");
            // In a process of its own, as the next opener would be.
            Worker::start("open", &root, &[]).finish();
            let store = Store::open(options(&root, &served)).await.unwrap();
            let there = layer_ids(&store).await.contains("victim");
            assert!(was_killed || there == (work == "put"), "{moment}");
            assert_eq!(root.layer_directories().len(), usize::from(there), "{moment}");
            assert_eq!(root.short_links().len(), usize::from(there), "{moment}");
            assert_eq!(root.temporary_files(), Vec::<String>::new(), "{moment}");
            let uses = counting.uses(layer);
            assert!(uses >= i64::from(there), "{moment}: {uses}");
            if !was_killed {
                assert_eq!(uses, i64::from(there), "{moment}");
            }
            if there {
                assert_eq!(diff(&store, "victim", DiffOptions::default()).await, offered.blob);
                let path = store.mount("victim", Default::default()).await.unwrap();
                assert_eq!(
                    fs::read_to_string(path.join("link")).unwrap(),
                    "offered",
                    "{moment}"
                );
                store.unmount("victim").await.unwrap();
                store.delete_layer("victim").await.unwrap();
            }
            counting.forget_uses();
            if !was_killed {
                break;
            }
            total += 1;
        }
    }
    eprintln!("{work} killed at {total} calls");
    assert!(total >= 10, "only {total} moments");
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_put_as() {
    needs!("strace");
    killed("put").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_system_calls_of_deleting() {
    needs!("strace");
    killed("delete").await;
}

/// The Go library's own command, with the additional layer store in its options.
fn go(root: &TestRoot, layers: &Path) -> Command {
    let mut command = root.go();
    let option = format!("overlay.additionallayerstore={}", layers.display());
    command.args(["--storage-opt", &option]);
    command
}

async fn programs_use_our_layers(set: PeerSet) {
    let root = TestRoot::new().of(set);
    let offered = Offered::new(&root);
    let layers = &offered.store;
    let store = Store::open(options(&root, layers)).await.unwrap();
    let base = Tar::new().file("base", "1").build();
    put_bytes(&store, None, LayerOptions::default().id("base"), base)
        .await
        .unwrap();
    put(&store, &offered.toc, "one", Some("base")).await;

    // They list it, give out the blob, mount it, and put layers on it.
    let listed = go(&root, layers).args(["layers", "--json"]).run();
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let theirs = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|layer| layer["id"] == "one")
        .unwrap();
    if set.storage_version() >= (1, 50) {
        assert_eq!(theirs["toc-digest"], offered.toc.as_str());
    }
    assert_eq!(theirs["names"], serde_json::json!(["name of one"]));
    let file = root.scratch("diffs").join("diff");
    go(&root, layers)
        .args(["diff", "--file"])
        .arg(&file)
        .arg("one")
        .run();
    assert_eq!(fs::read(&file).unwrap(), offered.blob);
    let archive = root.scratch("archives").join("top");
    fs::write(&archive, Tar::new().whiteout("link").build()).unwrap();
    go(&root, layers)
        .args(["create-layer", "--id", "top", "one"])
        .run();
    go(&root, layers)
        .args(["applydiff", "-f"])
        .arg(&archive)
        .arg("top")
        .run();
    let mounted = go(&root, layers).args(["mount", "top"]).run();
    let mounted = PathBuf::from(mounted.split_whitespace().last().unwrap());
    assert_eq!(fs::read_to_string(mounted.join("dir/file")).unwrap(), "offered");
    assert_eq!(fs::read_to_string(mounted.join("base")).unwrap(), "1");
    assert!(!mounted.join("link").is_symlink());
    go(&root, layers).args(["unmount", "top"]).run();
    let path = store.mount("top", Default::default()).await.unwrap();
    assert!(path.join("dir/file").exists() && !path.join("link").is_symlink());
    store.unmount("top").await.unwrap();
    // Theirs mounts the layer itself for writing, which the kernel refuses; ours reads only.
    let path = store.mount("one", Default::default()).await.unwrap();
    assert_eq!(fs::read_to_string(path.join("link")).unwrap(), "offered");
    store.unmount("one").await.unwrap();

    // An image of it is an image for Podman, and Skopeo copies it.
    let builder = ImageBuilder::new().top_layer("one").name("localhost/some:1");
    let image = builder.build(&store).await.unwrap();
    let container = store
        .create_container(Some(image.id()), ContainerOptions::default())
        .await
        .unwrap();
    let path = store.mount(container.id(), Default::default()).await.unwrap();
    fs::write(path.join("dir/file"), "changed").unwrap();
    store.unmount(container.id()).await.unwrap();
    store.delete_container(container.id()).await.unwrap();
    assert_eq!(
        fs::read_to_string(layers.join(offered.layer()).join("diff/dir/file")).unwrap(),
        "offered"
    );
    let podman = root.podman().args(["image", "mount", "localhost/some:1"]).run();
    let mounted = PathBuf::from(podman.trim());
    assert_eq!(fs::read_to_string(mounted.join("link")).unwrap(), "offered");
    root.podman().args(["image", "unmount", "localhost/some:1"]).run();
    let copied = root.scratch("copied");
    root.skopeo()
        .arg("copy")
        .arg(root.image_reference("localhost/some:1"))
        .arg(format!("oci:{}:1", copied.display()))
        .run();

    // They delete it, and we what they have left.
    go(&root, layers).args(["delete-image", image.id()]).run();
    go(&root, layers).args(["delete-layer", "top"]).run();
    let left = layer_ids(&store).await;
    if left.contains("one") {
        go(&root, layers).args(["delete-layer", "one"]).run();
    }
    assert!(!root.layer_directories().contains("one"));
    assert!(layers.join(offered.layer()).join("diff/dir/file").exists());
}
each_set!(async programs_use_our_layers: "containers-storage", "podman", "skopeo");
