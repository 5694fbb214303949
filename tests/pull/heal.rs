//! Damaged layers are made anew of what registries, layouts and archives have.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use graphroot::oci::{
    ImageLayers, ImageRef, Policy, PullOptions, Puller, PushOptions, RegistryOptions, push,
};
use graphroot::{CheckOptions, ErrorKind, HealOptions, HealReport, HealedHow, NotHealed, Store};

use crate::chunked::{image, push_chunked};
use crate::fake_registry::{FakeRegistry, Fault, Image};
use crate::in_parts::open;
use crate::ranges::descriptor;
use crate::support::manifest::{Manifest, assert_same, layer_manifest};
use crate::support::needs;
use crate::support::root::TestRoot;
use crate::support::store::assert_clean;
use crate::support::tar::Tar;
use crate::text::text;

fn tars() -> Vec<Tar> {
    ["lower", "middle", "upper"]
        .map(|name| {
            Tar::new()
                .dir("dir/")
                .file(format!("dir/{name}"), name.repeat(50_000))
                .file("changed", name)
        })
        .into()
}

/// An image of three compressed layers.
fn add(fake: &FakeRegistry) -> Image {
    let plain: Vec<Vec<u8>> = tars().into_iter().map(Tar::build).collect();
    let blobs: Vec<Vec<u8>> = tars().into_iter().map(Tar::build_gzip).collect();
    fake.add_blobs("some/image", &plain, &blobs, "tar+gzip")
}

struct Pulled {
    root: TestRoot,
    store: Store,
    puller: Puller,
    image: graphroot::Image,
    ids: Vec<String>,
    trees: Vec<Manifest>,
}

fn tree(root: &TestRoot, id: &str) -> PathBuf {
    root.graph().join("overlay").join(id).join("diff")
}

fn files(root: &TestRoot, id: &str) -> Manifest {
    layer_manifest(&tree(root, id))
}

impl Pulled {
    async fn new(image: &Image) -> Self {
        let root = TestRoot::in_memory();
        let store = root.open().await;
        let registry = RegistryOptions::default().backoff(Duration::from_millis(1));
        let puller = Puller::new(&store, PullOptions::default().registry(registry));
        let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
        let layers = store.image_layers(pulled.image.id()).await.unwrap();
        let ids: Vec<String> = layers.iter().map(|layer| layer.id().to_owned()).collect();
        let trees = ids.iter().map(|id| files(&root, id)).collect();
        Self {
            root,
            store,
            puller,
            image: pulled.image,
            ids,
            trees,
        }
    }

    /// Pushes the image, as it is now.
    async fn push(&self, place: &str) -> ImageRef {
        let to: ImageRef = place.parse().unwrap();
        let options = PushOptions::default();
        push(&self.store, self.image.id(), &to, options).await.unwrap();
        to
    }

    fn damage(&self, index: usize) {
        let tree = tree(&self.root, &self.ids[index]);
        std::fs::write(tree.join("changed"), "x").unwrap();
        std::fs::remove_dir_all(tree.join("dir")).unwrap();
    }

    async fn heal(&self, source: ImageLayers) -> HealReport {
        self.store
            .heal(HealOptions::default().source(source))
            .await
            .unwrap()
    }

    async fn assert_whole(&self, moment: &str) {
        for (id, tree) in self.ids.iter().zip(&self.trees) {
            assert_same("before", tree, moment, &files(&self.root, id));
        }
        assert_clean(&self.store, moment).await;
        let layers = self.store.image_layers(self.image.id()).await.unwrap();
        let ids: Vec<&str> = layers.iter().map(graphroot::Layer::id).collect();
        assert_eq!(ids, self.ids, "{moment}");
    }
}

/// A registry with the image, and a store that has pulled it.
async fn pulled() -> (FakeRegistry, Image, Pulled) {
    let fake = FakeRegistry::start();
    let image = add(&fake);
    let pulled = Pulled::new(&image).await;
    (fake, image, pulled)
}

/// The name of the image says where it came from; only what is damaged is transferred.
#[tokio::test(flavor = "multi_thread")]
async fn layers_come_from_the_registry_of_the_name() {
    needs!();
    let (fake, image, pulled) = pulled().await;
    let before: Vec<usize> = image
        .layers
        .iter()
        .map(|blob| fake.requests(blob).len())
        .collect();
    pulled.damage(1);
    let healed = pulled.heal(pulled.puller.layers_by_name()).await;
    assert!(healed.is_success() && healed.healed.len() == 1, "{healed:#?}");
    pulled.assert_whole("by name").await;
    for (index, (blob, before)) in image.layers.iter().zip(before).enumerate() {
        assert_eq!(
            fake.requests(blob).len(),
            before + usize::from(index == 1),
            "{index}"
        );
    }
    // The name may be that of another image by now.
    fake.add("some/image", &[Tar::new().file("other", "x").build()]);
    pulled.damage(1);
    let healed = pulled.heal(pulled.puller.layers_by_name()).await;
    assert!(healed.is_success(), "{healed:#?}");
    pulled.assert_whole("by another name").await;
}

/// A registry that sends anything else changes nothing, and one that breaks off is asked again.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lies_changes_nothing() {
    needs!();
    let (fake, image, pulled) = pulled().await;
    pulled.damage(1);
    let before = files(&pulled.root, &pulled.ids[1]);
    for fault in [
        Fault::Flip,
        Fault::Length(100),
        Fault::Status(404, ""),
        Fault::Drop(0),
    ] {
        fake.fail_always(&image.layers[1], fault.clone());
        let healed = pulled.heal(pulled.puller.layers_by_name()).await;
        let [failure] = healed.failures.as_slice() else {
            panic!("{fault:?}: {healed:#?}");
        };
        assert!(
            matches!(failure.reason, NotHealed::NoSource { .. }),
            "{fault:?}: {failure}"
        );
        assert_same("before", &before, "lied", &files(&pulled.root, &pulled.ids[1]));
        assert_eq!(pulled.root.temporary_files(), Vec::<String>::new(), "{fault:?}");
    }
    let fake = FakeRegistry::start();
    let image = add(&fake);
    fake.fail(
        &image.layers[1],
        &[Fault::Drop(100), Fault::Status(503, "0"), Fault::Drop(200)],
    );
    let reference: ImageRef = image.reference.parse().unwrap();
    let healed = pulled.heal(pulled.puller.layers_of(reference)).await;
    assert!(healed.is_success(), "{healed:#?}");
    pulled.assert_whole("after faults").await;
}

/// Layouts and archives have other blobs, or the same; documents too.
#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_from_layouts_and_archives() {
    needs!();
    let (_fake, _image, pulled) = pulled().await;
    let dir = pulled.root.path();
    let places = [
        format!("oci:{}:app", dir.join("layout").display()),
        format!("oci-archive:{}:app", dir.join("app.oci").display()),
        format!("docker-archive:{}:localhost/app:1", dir.join("app.tar").display()),
    ];
    for place in places {
        let reference = pulled.push(&place).await;
        let layer = pulled.store.layer(&pulled.ids[1]).await.unwrap();
        pulled.store.delete(&pulled.ids[1]).await.unwrap();
        pulled.damage(0);
        let healed = pulled.heal(pulled.puller.layers_of(reference)).await;
        assert!(
            healed.is_success() && healed.healed.len() == 3,
            "{place}: {healed:#?}"
        );
        pulled.assert_whole(&place).await;
        let again = pulled.store.layer(&pulled.ids[1]).await.unwrap();
        assert_eq!(
            (
                again.compressed_digest(),
                again.compressed_size(),
                again.compression()
            ),
            (
                layer.compressed_digest(),
                layer.compressed_size(),
                layer.compression()
            ),
            "{place}"
        );
        assert_eq!(
            (again.uids(), again.gids()),
            (layer.uids(), layer.gids()),
            "{place}"
        );
    }
}

/// An image of one layer with a table of contents, in a registry and in a store that takes parts of blobs.
struct Chunked {
    fake: FakeRegistry,
    image: Image,
    root: TestRoot,
    store: Store,
    puller: Puller,
    layer: String,
}

impl Chunked {
    async fn new() -> Self {
        let from = TestRoot::in_memory();
        let mut tar = Tar::new();
        for index in 0..40 {
            tar = tar.file(format!("file{index}"), text(20_000, index));
        }
        let (store, id) = image(&from, &tar.build()).await;
        let layout = from.path().join("layout");
        push_chunked(&store, &id, &format!("oci:{}:v1", layout.display())).await;
        let fake = FakeRegistry::start();
        let image = fake.add_layout("some/image", &layout);
        let root = TestRoot::in_memory();
        let store = open(&root).await;
        let puller = Puller::new(&store, PullOptions::default());
        let pulled = puller.pull(&image.reference.parse().unwrap()).await.unwrap();
        let layer = pulled.image.top_layer().unwrap().to_owned();
        Self {
            fake,
            image,
            root,
            store,
            puller,
            layer,
        }
    }

    async fn heal(&self) -> HealReport {
        let options = HealOptions::default().source(self.puller.layers_by_name());
        self.store.heal(options).await.unwrap()
    }
}

/// Of a layer with a table of contents only the parts are fetched that hold the damaged files.
#[tokio::test(flavor = "multi_thread")]
async fn parts_of_a_blob_are_enough() {
    needs!();
    let pulled = Chunked::new().await;
    let (root, layer) = (&pulled.root, &pulled.layer);
    let before = files(root, layer);
    let asked = pulled.fake.requests(&pulled.image.layers[0]).len();
    let tree = tree(root, layer);
    std::fs::write(tree.join("file3"), vec![b'x'; 20_000]).unwrap();
    std::fs::remove_file(tree.join("file7")).unwrap();
    let healed = pulled.heal().await;
    let (true, [one]) = (healed.is_success(), healed.healed.as_slice()) else {
        panic!("{healed:#?}");
    };
    let HealedHow::Parts { fetched, reused, .. } = one.how else {
        panic!("{healed:#?}");
    };
    assert!(fetched > 0 && reused > 10 * fetched, "{healed:#?}");
    let requests = pulled.fake.requests(&pulled.image.layers[0]);
    assert!(
        requests[asked..].iter().all(|request| !request.ranges.is_empty()),
        "{requests:?}"
    );
    assert_same("before", &before, "afterwards", &files(root, layer));
    assert_clean(&pulled.store, "afterwards").await;
}

/// The items by which other layers take files and chunks from one that was put together of parts.
#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_layer_are_healed() {
    needs!();
    let pulled = Chunked::new().await;
    let layer = pulled.store.layer(&pulled.layer).await.unwrap();
    let keys = layer.big_data_names().to_vec();
    let items = pulled.root.metadata_dir("layers").join(&pulled.layer);
    let files = || -> BTreeMap<_, _> {
        let files = std::fs::read_dir(&items).unwrap().map(Result::unwrap);
        files
            .map(|file| (file.file_name(), std::fs::read(file.path()).unwrap()))
            .collect()
    };
    let before = files();
    assert_eq!((keys.len(), before.len()), (2, 2), "{keys:?}");
    for (name, content) in &before {
        std::fs::remove_file(items.join(name)).unwrap();
        let found = pulled.store.check(CheckOptions::everything()).await.unwrap();
        assert!(!found.is_clean(), "{name:?}: {found:#?}");
        let healed = pulled.heal().await;
        assert!(
            healed.is_success() && healed.healed.len() == 1,
            "{name:?}: {healed:#?}"
        );
        assert!(files()[name] == *content, "{name:?}");
        assert_clean(&pulled.store, "afterwards").await;
    }
}

/// Without its manifest and config nobody knows an image's layers; they come first.
#[tokio::test(flavor = "multi_thread")]
async fn documents_come_first() {
    needs!();
    let (_fake, _image, pulled) = pulled().await;
    let place = format!("oci:{}:app", pulled.root.path().join("layout").display());
    let reference = pulled.push(&place).await;
    // As they were pulled: the same manifest.
    let layout = pulled.root.path().join("layout/blobs/sha256");
    let documents = pulled.root.metadata_dir("images").join(pulled.image.id());
    let mut lost = 0;
    for entry in std::fs::read_dir(&documents).unwrap() {
        let content = std::fs::read(entry.unwrap().path()).unwrap();
        let digest = graphroot::Digest::sha256(&content);
        // A push may have compressed the layers anew: the manifest is another one then.
        std::fs::write(layout.join(digest.encoded()), content).unwrap();
    }
    for entry in std::fs::read_dir(&documents).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
        lost += 1;
    }
    assert!(lost >= 2);
    pulled.store.delete(&pulled.ids[1]).await.unwrap();
    let healed = pulled.heal(pulled.puller.layers_of(reference)).await;
    assert!(healed.is_success(), "{healed:#?}");
    let is_data = |healed: &&graphroot::Healed| matches!(healed.how, HealedHow::Data { .. });
    assert!(
        healed.healed.iter().take_while(is_data).count() >= 2,
        "{healed:#?}"
    );
    pulled.assert_whole("documents").await;
}

/// An image that the policy rejects is not asked for; a signature that it wants adds nothing to the digests.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_rejects_counts_for_healing_too() {
    needs!();
    let (fake, image, pulled) = pulled().await;
    let blob = || fake.requests(&image.layers[1]).len();
    let signed = r#"{"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/no/such/key"}]}"#;
    pulled.damage(1);
    for (policy, heals) in [(r#"{"default": [{"type": "reject"}]}"#, false), (signed, true)] {
        let asked = blob();
        let options = PullOptions::default().policy(Policy::parse(policy).unwrap());
        let puller = Puller::new(&pulled.store, options);
        let reference: ImageRef = image.reference.parse().unwrap();
        for source in [puller.layers_by_name(), puller.layers_of(reference.clone())] {
            let healed = pulled.heal(source).await;
            assert_eq!(healed.is_success(), heals, "{policy}: {healed:#?}");
        }
        assert_eq!(blob() > asked, heals, "{policy}");
        if !heals {
            let blob = descriptor(&image.layers[1], 1);
            let error = puller.blob_source(&reference, &blob).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Rejected);
        }
    }
}
