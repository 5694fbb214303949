//! Blobs that are odd to get: from registries that look at `Accept`, and from URLs beside the registry.

use graphroot::oci::{Credentials, PullOptions, Puller, RegistryOptions};
use graphroot::{Digest, ErrorKind};
use serde_json::json;

use crate::fake_registry::layer;
use crate::odd_registry::{DOCKER_MANIFEST, OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::records::{assert_same_stores, podman_pull, pull};
use crate::support::peers::PeerSet;
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_blobs_accept_no_manifests() {
    needs!();
    let registry = OddRegistry::start(|asked| {
        let accepts = asked.header("accept").contains("manifest");
        (asked.path.contains("/blobs/") && accepts).then(|| Reply::new(406, ""))
    });
    let parts = Parts::new(OCI_MANIFEST, good_config(), &[layer("file", 1)]);
    registry.add("team/app", &parts);
    let root = TestRoot::in_memory();
    pull(&root, &registry.image("team/app")).await.unwrap();
}

/// A server of layers, and a registry of an image whose layer is there alone.
fn foreign(media_type: &str, urls: &[&str]) -> (OddRegistry, OddRegistry, Digest) {
    let parts = Parts::new(DOCKER_MANIFEST, good_config(), &[layer("file", 1)]);
    let storage = OddRegistry::start(|_| None);
    storage.add_blob("store", &parts.layers[0]);
    let digest = Digest::sha256(&parts.layers[0]);
    let registry = OddRegistry::start(|_| None);
    registry.add_blob("team/app", &parts.config);
    let mut manifest = parts.manifest;
    let there = format!("http://{}/v2/store/blobs/{digest}", storage.address());
    let gone = format!("http://{}/v2/gone/blobs/{digest}", storage.address());
    let urls: Vec<String> = urls
        .iter()
        .map(|url| url.replace("THERE", &there).replace("GONE", &gone))
        .collect();
    manifest["layers"][0]["mediaType"] = media_type.into();
    manifest["layers"][0]["urls"] = json!(urls);
    registry.add_manifest("team/app", &manifest, DOCKER_MANIFEST);
    (registry, storage, digest)
}

const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const USUAL: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

async fn foreign_layers_are_fetched_as_podman_does(set: PeerSet) {
    for (media_type, urls) in [
        (FOREIGN, ["THERE", "GONE"]),
        (FOREIGN, ["GONE", "THERE"]),
        (USUAL, ["THERE", "x:y"]),
    ] {
        let (registry, _storage, _) = foreign(media_type, &urls);
        let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
        let image = registry.image("team/app");
        podman_pull(&theirs, std::slice::from_ref(&image));
        pull(&ours, &image).await.unwrap();
        assert_same_stores(&ours, &theirs);
    }
}
each_set!(newer async foreign_layers_are_fetched_as_podman_does: "podman");

#[tokio::test(flavor = "multi_thread")]
async fn no_credentials_go_to_the_urls_of_layers() {
    needs!();
    let (registry, storage, digest) = foreign(FOREIGN, &["GONE", "ftp://nowhere/x", "THERE"]);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let options = RegistryOptions::default()
        .credentials_for(registry.address(), Credentials::BearerToken("sesame".into()))
        .credentials_for(storage.address(), Credentials::BearerToken("sesame".into()));
    let puller = Puller::new(&store, PullOptions::default().registry(options));
    puller
        .pull(&registry.image("team/app").parse().unwrap())
        .await
        .unwrap();
    let asked = storage.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|asked| asked.header("authorization").is_empty()));
    let of_blob = |line: &String| line.ends_with(digest.as_str());
    assert!(
        !registry.take_log().iter().any(of_blob),
        "the registry is not asked"
    );

    // Of another type, the registry is asked first.
    let (registry, _storage, _) = foreign(USUAL, &["THERE"]);
    let root = TestRoot::in_memory();
    pull(&root, &registry.image("team/app")).await.unwrap();
    assert!(
        registry
            .take_log()
            .iter()
            .any(|line| line.ends_with(digest.as_str()))
    );

    // A registry may have it all the same; and nobody may.
    let (registry, _storage, _) = foreign(FOREIGN, &["GONE"]);
    let root = TestRoot::in_memory();
    let error = pull(&root, &registry.image("team/app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
    assert!(error.chain().contains("/v2/gone/blobs/"), "{}", error.chain());
    registry.add_blob("team/app", &layer("file", 1));
    pull(&root, &registry.image("team/app")).await.unwrap();
}
