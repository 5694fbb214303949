//! Pushed images are what other programs expect: compared by pulling them back with Podman and Skopeo.

use graphroot::oci::{ImageRef, PullOptions, Puller, PushOptions, Pushed, push};
use graphroot::test_util::TarBuilder;
use graphroot::{Compression, ErrorKind, LayerOptions, Store};

use crate::library::{Library, SMALL_LAYERS};
use crate::records::{assert_same_trees, podman_pull, skopeo_pull};
use crate::support::oci::{OciImage, layout_blob};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::put_bytes;
use crate::support::{each_set, needs};

async fn push_to(
    store: &Store,
    image: &str,
    to: &str,
    compression: Compression,
) -> graphroot::Result<Pushed> {
    let to: ImageRef = to.parse()?;
    push(store, image, &to, PushOptions::default().compression(compression)).await
}

/// A store with `app0`.
async fn pulled(library: &Library, root: &TestRoot) -> (Store, String) {
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let image = puller
        .pull(&library.docker("app0").parse().unwrap())
        .await
        .unwrap()
        .image;
    (store, image.id().to_owned())
}

async fn a_layout_that_we_write_is_read_by_others(set: PeerSet) {
    let library = Library::open();
    let root = TestRoot::in_memory().of(set);
    let (store, id) = pulled(&library, &root).await;
    let layout = root.path().join("out");
    for compression in [
        Compression::Gzip,
        Compression::Zstd,
        Compression::ZstdChunked,
        Compression::None,
    ] {
        let tag = compression.to_string().replace(':', "-");
        let to = format!("oci:{}:{tag}", layout.display());
        let first = push_to(&store, &id, &to, compression).await.unwrap();
        assert_eq!(
            (first.sent, first.reused, first.unchanged),
            (SMALL_LAYERS + 2, 0, false)
        );
        let again = push_to(&store, &id, &to, compression).await.unwrap();
        assert_eq!((again.sent, again.reused), (0, SMALL_LAYERS + 2));
        assert_eq!(again.manifest, first.manifest);
        let other = TestRoot::in_memory().of(set);
        skopeo_pull(&other, &to, "localhost/back");
        assert_same_trees(&root, &other);
        assert_eq!(
            other.podman().words("images --quiet --no-trunc").run(),
            format!("sha256:{id}")
        );
    }
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 4, "each name once");
}
each_set!(async a_layout_that_we_write_is_read_by_others: "podman", "buildah", "skopeo", "docker-registry");

async fn a_registry_gets_only_what_it_lacks(set: PeerSet) {
    let library = Library::open();
    let root = TestRoot::in_memory().of(set);
    let registry = library.own_registry(&root);
    let (store, id) = pulled(&library, &root).await;
    let uploads = |from: usize| {
        let requests = registry.requests();
        let requests = requests.iter().skip(from);
        requests
            .filter(|(request, _)| request.starts_with("PUT ") && request.contains("/blobs/"))
            .count()
    };
    // The registries of all sets have one directory.
    let own = format!("team/{set:?}").to_lowercase();
    let at = |name: &str| format!("docker://{}/{own}/{name}", registry.address());

    let before = registry.requests().len();
    let same = push_to(
        &store,
        &id,
        &format!("docker://{}/team/app0:again", registry.address()),
        Compression::Gzip,
    )
    .await
    .unwrap();
    assert_eq!(
        (same.sent, same.unchanged),
        (0, true),
        "it has the blobs that the image came from"
    );
    let fresh = push_to(&store, &id, &at("fresh:v1"), Compression::Zstd)
        .await
        .unwrap();
    assert_eq!((fresh.sent, fresh.unchanged), (SMALL_LAYERS + 2, false));
    let again = push_to(&store, &id, &at("fresh:v2"), Compression::Zstd)
        .await
        .unwrap();
    assert_eq!((again.sent, &again.manifest), (0, &fresh.manifest));
    registry.settle("pushed");
    assert_eq!(
        uploads(before),
        SMALL_LAYERS + 2 + 1,
        "each layer and the config once"
    );

    let other = TestRoot::in_memory().of(set);
    podman_pull(&other, &[format!("{}/{own}/fresh:v2", registry.address())]);
    assert_same_trees(&root, &other);

    // What Buildah has committed here has no compressed form yet.
    std::fs::write(
        root.path().join("Dockerfile"),
        format!("FROM {}\nCOPY new /new\n", library.name("app0")),
    )
    .unwrap();
    std::fs::write(root.path().join("new"), "new").unwrap();
    let build = root.buildah().words("bud --quiet --layers --tag built");
    build.with([root.path()]).run();
    let built = push_to(
        &store,
        "localhost/built:latest",
        &at("built:v1"),
        Compression::Gzip,
    )
    .await
    .unwrap();
    assert_eq!(built.sent, SMALL_LAYERS + 3);
    let other = TestRoot::in_memory().of(set);
    podman_pull(&other, &[format!("{}/{own}/built:v1", registry.address())]);
    assert_same_trees(&root, &other);
}
each_set!(async a_registry_gets_only_what_it_lacks: "podman", "buildah", "skopeo", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pushed_is_refused() {
    needs!();
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let kind = async |image: &str, to: &str| {
        push_to(&store, image, to, Compression::Gzip)
            .await
            .unwrap_err()
            .kind()
    };
    let layout = format!("oci:{}/out", root.path().display());
    assert_eq!(kind("no-such", &layout).await, ErrorKind::ImageUnknown);
    store
        .create_image(None, graphroot::ImageOptions::default().name("localhost/bare"))
        .await
        .unwrap();
    assert_eq!(kind("localhost/bare", &layout).await, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_manifest_is_under_its_digest_only_is_pushed() {
    needs!();
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let put = put_bytes(
        &store,
        None,
        LayerOptions::default().name("base"),
        TarBuilder::new().file("file", "1").build(),
    )
    .await;
    let image = OciImage::new(&[put.unwrap()]);
    let digest_key = format!("manifest-{}", image.manifest_digest());
    // With the digest in the record, and with the key alone.
    for (name, digest) in [("a", Some(image.manifest_digest())), ("b", None)] {
        let mut options = graphroot::ImageOptions::default()
            .id(name.repeat(64))
            .big_data(image.config_digest().to_string(), image.config.clone())
            .big_data("manifest-list", "no manifest")
            .big_data(&digest_key, image.manifest.clone());
        options.digest = digest;
        let created = store.create_image(Some("base"), options).await.unwrap();
        let layout = root.path().join(name);
        let to = format!("oci:{}:v1", layout.display());
        let pushed = push_to(&store, created.id(), &to, Compression::None)
            .await
            .unwrap();
        assert_eq!(
            (pushed.manifest, pushed.unchanged),
            (image.manifest_digest(), true),
            "{name}"
        );
        let manifest = layout_blob(&layout, image.manifest_digest().as_str());
        assert_eq!(manifest, image.manifest);
    }
}
