//! Stores that are spread over several directories are the same store for the Go library's command, both ways.
//!
//! The command of Debian 12 knows additional stores. Split and transient stores and volatile containers need a newer one.

use std::path::PathBuf;
use std::process::Command;

use graphroot::{ContainerOptions, ImageOptions, LayerOptions, Store, StoreOptions};

use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::{TestRoot, unmount_below};
use crate::support::store::{exported, names_in, put_bytes};
use crate::support::tar::Tar;
use crate::support::{each_set, json};

/// A store and how the command is told where it is.
struct Shared {
    root: TestRoot,
    options: StoreOptions,
    arguments: Vec<String>,
}

impl Shared {
    fn new(driver: &'static str, set: PeerSet) -> Self {
        let root = TestRoot::in_dir(&std::env::temp_dir(), driver).of(set);
        Self {
            options: root.options(),
            root,
            arguments: Vec::new(),
        }
    }

    fn images_dir(&self) -> PathBuf {
        self.root.path().join("images")
    }

    fn split(mut self) -> Self {
        let dir = self.images_dir();
        self.arguments
            .extend(["--image-store".into(), dir.display().to_string()]);
        self.options.image_store = Some(dir);
        self
    }

    fn transient(mut self) -> Self {
        self.arguments.push("--transient-store".into());
        self.options.transient = true;
        self
    }

    fn go(&self, line: &str) -> Command {
        let mut command = self.root.go();
        command.args(&self.arguments);
        command.words(line)
    }

    async fn open(&self) -> Store {
        Store::open(self.options.clone())
            .await
            .unwrap_or_else(|error| panic!("opening: {error:?}"))
    }

    fn driver(&self) -> &'static str {
        self.root.driver()
    }
}

fn archive(name: &str) -> Vec<u8> {
    Tar::new().dir("dir/").file(format!("dir/{name}"), name).build()
}

/// Layer, image and container by the command, with `container` as further flags of the container. The layer is one of
/// an image: into a split store the command cannot import others.
fn made_by_go(shared: &Shared, container: &str) {
    let tar = shared.root.path().join("go.tar");
    std::fs::write(&tar, archive("go")).unwrap();
    shared
        .go("import-layer --readonly --id go-layer --file")
        .with([&tar])
        .run();
    shared
        .go("create-image --id go-image --name go/image go-layer")
        .run();
    let line = format!("create-container --id go-container --name go-name {container} go-image");
    shared.go(&line).run();
    let data = shared.root.path().join("data");
    std::fs::write(&data, "some data").unwrap();
    for kind in ["image", "container"] {
        shared
            .go(&format!("set-{kind}-data --file"))
            .with([data.as_os_str(), format!("go-{kind}").as_ref(), "item".as_ref()])
            .run();
    }
}

/// Everything that the command made is found and used here.
async fn read_here(shared: &Shared) {
    let store = shared.open().await;
    let layer = store.layer("go-layer").await.unwrap();
    let (digest, _) = exported(&store, "go-layer").await;
    assert_eq!(Some(digest), layer.uncompressed_digest());
    assert_eq!(store.image("go/image").await.unwrap().id(), "go-image");
    assert_eq!(
        store.image_big_data("go-image", "item").await.unwrap(),
        b"some data"[..]
    );
    let container = store.container("go-name").await.unwrap();
    assert_eq!(container.image_id(), Some("go-image"));
    assert_eq!(
        store.container_big_data("go-container", "item").await.unwrap(),
        b"some data"[..]
    );
    let path = store.mount("go-container", Default::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("dir/go")).unwrap(), "go");
    std::fs::write(path.join("dir/ours"), "ours").unwrap();
    store.unmount_all("go-container").await.unwrap();
    let changes = shared.go("changes").with([container.layer_id()]).run();
    assert!(changes.contains("/dir/ours"), "{changes}");
    store.delete_container("go-container").await.unwrap();
    store.delete_image("go-image").await.unwrap();
    for list in ["layers", "images", "containers"] {
        let listed = shared.go(list).run();
        assert!(!listed.contains("go-"), "{list}: {listed}");
    }
}

/// Everything made here is found and used by the command.
async fn read_by_go(shared: &Shared, options: ContainerOptions) {
    let store = shared.open().await;
    let layer = LayerOptions::default().id("our-layer");
    put_bytes(&store, None, layer, archive("ours")).await.unwrap();
    let image = ImageOptions::default()
        .id("our-image")
        .name("our/image")
        .big_data("item", "some data");
    store.create_image(Some("our-layer"), image).await.unwrap();
    let container = store
        .create_container(Some("our-image"), options.id("our-container").name("our-name"))
        .await
        .unwrap();
    store
        .set_container_big_data("our-container", "item", "some data")
        .await
        .unwrap();
    assert_eq!(shared.go("get-image-data our/image item").run(), "some data");
    assert_eq!(shared.go("get-container-data our-name item").run(), "some data");
    let mounted = PathBuf::from(shared.go("mount our-container").run());
    assert_eq!(std::fs::read_to_string(mounted.join("dir/ours")).unwrap(), "ours");
    std::fs::write(mounted.join("dir/go"), "go").unwrap();
    shared.go("unmount our-container").run();
    let changes = store.changes(None, container.layer_id()).await.unwrap();
    assert!(
        changes.iter().any(|change| change.to_string() == "A /dir/go"),
        "{changes:?}"
    );
    if !without_layers_of_images(shared) {
        let tar = shared.root.path().join("out.tar");
        shared
            .go("diff --uncompressed --file")
            .with([&tar])
            .words("our-layer")
            .run();
        assert_eq!(std::fs::read(&tar).unwrap(), archive("ours"));
    }
    shared.go("delete-container our-container").run();
    if without_layers_of_images(shared) {
        store.delete_image("our-image").await.unwrap();
    } else {
        shared.go("delete-image our-image").run();
    }
    assert!(store.containers().await.unwrap().is_empty());
    assert!(store.images().await.unwrap().is_empty());
    assert!(store.layers().await.unwrap().is_empty());
}

/// Whether the peer does not find layers of a separate image store when it compares and deletes them.
fn without_layers_of_images(shared: &Shared) -> bool {
    shared.root.peers() == PeerSet::Trixie && shared.options.image_store.is_some()
}

/// What is left of a store once everything in it has been deleted: nothing that belongs to an item.
fn assert_clean(shared: &Shared) {
    assert!(shared.root.layer_directories().is_empty());
    assert!(shared.root.temporary_files().is_empty());
    for root in [shared.root.graph(), shared.images_dir()] {
        for what in ["layers", "images", "containers"] {
            let dir = root.join(format!("{}-{what}", shared.driver()));
            for name in names_in(&dir) {
                assert!(
                    name.ends_with(".lock")
                        || name.ends_with(".json")
                        || name.starts_with(".reserve-")
                        || name == "tmp",
                    "{} is left in {}",
                    name,
                    dir.display()
                );
            }
        }
    }
}

async fn both_ways(shared: &Shared, flags: &str, options: ContainerOptions) {
    made_by_go(shared, flags);
    read_here(shared).await;
    read_by_go(shared, options).await;
    assert_clean(shared);
}

/// One side makes a store, the other one uses it read-only.
async fn additional(driver: &'static str, set: PeerSet) {
    let (base, mut shared) = (Shared::new(driver, set), Shared::new(driver, set));
    let option = format!("{driver}.imagestore={}", base.root.graph().display());
    shared.options = shared.options.clone().driver_option(&option);
    shared.arguments = vec!["--storage-opt".into(), option];
    // One item of each side in the store that is only read.
    made_by_go(&base, "");
    base.go("delete-container go-container").run();
    let store = base.open().await;
    let layer = LayerOptions::default().id("our-layer");
    put_bytes(&store, Some("go-layer"), layer, archive("ours"))
        .await
        .unwrap();
    let image = ImageOptions::default().id("our-image").name("our/image");
    store.create_image(Some("our-layer"), image).await.unwrap();
    store.shutdown_force().await.unwrap();
    let records = std::fs::read(base.root.metadata_dir("layers").join("layers.json")).unwrap();

    // A container of either side on it, in a store that both use.
    let store = shared.open().await;
    let container = store
        .create_container(Some("our/image"), ContainerOptions::default().id("our-container"))
        .await
        .unwrap();
    shared.go("create-container --id go-container our/image").run();
    assert!(store.image("our/image").await.unwrap().read_only());
    let path = store.mount("go-container", Default::default()).await.unwrap();
    assert_eq!(std::fs::read_to_string(path.join("dir/ours")).unwrap(), "ours");
    std::fs::write(path.join("new"), "").unwrap();
    store.unmount_all("go-container").await.unwrap();
    let mounted = PathBuf::from(shared.go("mount our-container").run());
    assert_eq!(std::fs::read_to_string(mounted.join("dir/go")).unwrap(), "go");
    shared.go("unmount our-container").run();
    let changes = shared.go("changes").with([container.layer_id()]).run();
    assert_eq!(changes, "");
    // Names are given to a copy of the record, on either side.
    store.add_names("our-image", ["mine"]).await.unwrap();
    assert!(shared.go("images").run().contains("mine"));
    shared.go("add-names --name yours go-image").run();
    assert_eq!(store.image("yours").await.unwrap().id(), "go-image");
    shared.go("delete-container our-container").run();
    store.delete_container("go-container").await.unwrap();
    assert_eq!(
        std::fs::read(base.root.metadata_dir("layers").join("layers.json")).unwrap(),
        records
    );
}

async fn an_additional_store_over_overlay(set: PeerSet) {
    additional("overlay", set).await;
}
each_set!(async an_additional_store_over_overlay: "containers-storage");

async fn an_additional_store_over_vfs(set: PeerSet) {
    additional("vfs", set).await;
}
each_set!(async an_additional_store_over_vfs: "containers-storage");

async fn a_split_store(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        let shared = Shared::new(driver, set).split();
        both_ways(&shared, "", ContainerOptions::default()).await;
        let records = shared.images_dir().join(format!("{driver}-layers/layers.json"));
        assert!(json::rows(&records).is_empty());
    }
}
each_set!(newer async a_split_store: "containers-storage");

async fn a_transient_store(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        let shared = Shared::new(driver, set).transient();
        both_ways(&shared, "", ContainerOptions::default()).await;
        assert!(
            !shared
                .root
                .metadata_dir("containers")
                .join("containers.lock")
                .exists()
        );
    }
}
each_set!(newer async a_transient_store: "containers-storage");

async fn volatile_containers(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        let shared = Shared::new(driver, set);
        let mut options = ContainerOptions::default();
        options.volatile = true;
        both_ways(&shared, "--volatile", options).await;
        let records = shared.root.metadata_dir("containers");
        for name in ["volatile-containers.json", "containers.json"] {
            assert!(json::rows(&records.join(name)).is_empty());
        }
    }
}
each_set!(newer async volatile_containers: "containers-storage");

/// A store that was plain and is split from then on: images of before stay where they are.
async fn a_store_that_becomes_split(set: PeerSet) {
    for driver in ["overlay", "vfs"] {
        let shared = Shared::new(driver, set);
        made_by_go(&shared, "");
        let shared = shared.split();
        assert!(shared.go("images").run().contains("go-image"));
        read_here(&shared).await;
        assert_clean(&shared);
    }
}
each_set!(newer async a_store_that_becomes_split: "containers-storage");

/// A store whose containers were all made in transient mode, which leaves no file of lasting containers, is opened in the
/// other mode: while they live, and after a reboot.
async fn a_transient_store_that_is_opened_as_another(set: PeerSet) {
    let drivers = [("overlay", false), ("overlay", true), ("vfs", false)];
    for ((driver, split), rebooted) in drivers.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let plain = |shared: Shared| if split { shared.split() } else { shared };
        let mut shared = plain(Shared::new(driver, set)).transient();
        let id = "c".repeat(64);
        let tar = shared.root.path().join("go.tar");
        std::fs::write(&tar, archive("go")).unwrap();
        shared
            .go("import-layer --readonly --id go-layer --file")
            .with([&tar])
            .run();
        shared
            .go("create-image --id go-image --name go/image go-layer")
            .run();
        shared
            .go("create-container --name go-name --id")
            .with([&id, "go-image"])
            .run();
        let data = shared.root.path().join("data");
        std::fs::write(&data, "some data").unwrap();
        shared
            .go("set-container-data --file")
            .with([data.as_os_str(), "go-name".as_ref(), "item".as_ref()])
            .run();
        let containers = shared.root.metadata_dir("containers");
        assert!(!containers.join("containers.json").exists());
        if rebooted {
            unmount_below(shared.root.path());
            std::fs::remove_dir_all(shared.root.run()).unwrap();
        }
        shared.options.transient = false;
        let store = shared.open().await;
        store
            .create_container(Some("go/image"), ContainerOptions::default().name("ours"))
            .await
            .unwrap();
        store.garbage_collect().await.unwrap();
        let path = store.mount("ours", Default::default()).await.unwrap();
        assert_eq!(std::fs::read_to_string(path.join("dir/go")).unwrap(), "go");
        store.unmount("ours").await.unwrap();
        assert_eq!(
            containers.join(&id).exists(),
            !rebooted,
            "{driver}, split: {split}, rebooted: {rebooted}"
        );
        store.shutdown_force().await.unwrap();
        let listed = shared.go("containers").run();
        assert!(listed.contains("ours"), "{listed}");
        if !rebooted {
            assert_eq!(shared.go("get-container-data go-name item").run(), "some data");
            let mounted = PathBuf::from(shared.go("mount go-name").run());
            assert_eq!(std::fs::read_to_string(mounted.join("dir/go")).unwrap(), "go");
            shared.go("unmount go-name").run();
        }
    }
}
each_set!(newer async a_transient_store_that_is_opened_as_another: "containers-storage");
