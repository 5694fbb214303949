//! Pushes to registries that take uploads in every way that is found.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use graphroot::oci::{PullOptions, Puller, PushOptions, Pushed, RegistryOptions, push};
use graphroot::{Compression, Digest, ErrorKind, Store};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::signing_in::ending;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

fn image() -> Parts {
    Parts::new(
        OCI_MANIFEST,
        good_config(),
        &[layer("a", 1), layer("bb", 1), layer("ccc", 1)],
    )
}

/// A store with an image, and its ID.
async fn pulled(root: &TestRoot, parts: &Parts) -> (Store, String) {
    let registry = OddRegistry::start(|_| None);
    registry.add("from/here", parts);
    pulled_of(root, &registry, "from/here").await
}

/// A store with an image of a registry, and its ID.
async fn pulled_of(root: &TestRoot, registry: &OddRegistry, name: &str) -> (Store, String) {
    let store = root.open().await;
    let puller = Puller::new(&store, PullOptions::default());
    let pulled = puller.pull(&registry.image(name).parse().unwrap()).await;
    (store, pulled.unwrap().image.id().to_owned())
}

async fn push_to(store: &Store, id: &str, registry: &OddRegistry) -> graphroot::Result<Pushed> {
    let options = RegistryOptions::default().backoff(Duration::from_millis(1));
    let options = PushOptions::default()
        .compression(Compression::None)
        .registry(options);
    push(store, id, &registry.image("team/app").parse()?, options).await
}

/// The registry has the whole image.
async fn check(registry: &OddRegistry, id: &str, what: &str) {
    let root = TestRoot::in_memory();
    let puller = Puller::new(&root.open().await, PullOptions::default());
    let pulled = puller.pull(&registry.image("team/app").parse().unwrap()).await;
    assert_eq!(pulled.unwrap().image.id(), id, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_go_where_the_registry_says() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = pulled(&root, &image()).await;
    // Answers to a POST: `Location`, and the ID of the session.
    for (what, location, upload_id, works) in [
        ("a path", Some("/v2/team/app/blobs/uploads/N"), None, true),
        (
            "a path with a query",
            Some("/v2/team/app/blobs/uploads/N?a=b%2Fc&state=x"),
            None,
            true,
        ),
        ("a name", Some("N"), None, true),
        ("a name below", Some("./N"), None, true),
        (
            "a URL",
            Some("http://HOST/v2/team/app/blobs/uploads/N"),
            None,
            true,
        ),
        ("an ID", None, Some("N"), true),
        ("nothing", None, None, false),
        ("an empty text", Some(""), None, false),
    ] {
        let number = AtomicUsize::new(0);
        let registry = OddRegistry::start(move |asked| {
            let name = format!("session{}", number.fetch_add(1, Ordering::Relaxed));
            asked.is("POST", "/uploads/").then(|| {
                let mut reply = Reply::new(202, "");
                if let Some(location) = location {
                    let location = location.replace('N', &name).replace("HOST", &asked.address);
                    reply = reply.header("Location", location);
                }
                match upload_id {
                    Some(_) => reply.header("Docker-Upload-UUID", name),
                    None => reply,
                }
            })
        });
        let pushed = push_to(&store, &id, &registry).await;
        assert_eq!(pushed.is_ok(), works, "{what}: {pushed:?}");
        match pushed {
            Ok(_) => check(&registry, &id, what).await,
            Err(error) => assert!(error.chain().contains("where to"), "{}", error.chain()),
        }
    }
}

/// Blobs go to a server of their own, and no credentials do.
#[tokio::test(flavor = "multi_thread")]
async fn another_host_gets_the_blobs_but_no_credentials() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = pulled(&root, &image()).await;
    let storage = OddRegistry::start(|_| None);
    let (elsewhere, password) = (storage.address().to_owned(), "Basic dXNlcjpzZWNyZXQ=");
    let registry = OddRegistry::start(move |asked| {
        if asked.header("authorization") != password {
            return Some(Reply::new(401, "").challenge("Basic"));
        }
        let location = format!(
            "http://{elsewhere}/v2/team/app/blobs/uploads/x{}",
            asked.body.len()
        );
        asked
            .is("POST", "/uploads/")
            .then(|| Reply::new(202, "").header("Location", location))
    });
    let credentials = graphroot::oci::Credentials::password("user", "secret");
    let options = RegistryOptions::default().credentials_for(registry.address(), credentials);
    let options = PushOptions::default()
        .compression(Compression::None)
        .registry(options)
        .uploads(1);
    push(&store, &id, &registry.image("team/app").parse().unwrap(), options)
        .await
        .unwrap();
    let asked = storage.asked();
    assert_eq!(asked.len(), 4, "three layers and a config");
    assert!(asked.iter().all(|asked| asked.header("authorization").is_empty()));
    assert!(registry.manifest("team/app", "v1").is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_success_counts_for_manifests_and_blobs() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = pulled(&root, &image()).await;
    for status in [200, 201, 202, 204] {
        let registry =
            OddRegistry::start(move |asked| asked.is("PUT", "/manifests/").then(|| Reply::new(status, "")));
        push_to(&store, &id, &registry).await.unwrap();
        let registry =
            OddRegistry::start(move |asked| asked.is("PUT", "/uploads/").then(|| Reply::new(status, "")));
        push_to(&store, &id, &registry).await.unwrap();
    }
    // A registry that has the blob, although it did not say so when it was asked.
    let registry = OddRegistry::start(|asked| asked.is("POST", "/uploads/").then(|| Reply::new(201, "")));
    push_to(&store, &id, &registry).await.unwrap();
    assert!(
        !registry
            .take_log()
            .iter()
            .any(|line| line.starts_with("PUT /v2/team/app/blobs"))
    );
}

/// Refuses requests of one kind.
fn refusing(method: &'static str, part: &'static str, status: u16) -> OddRegistry {
    OddRegistry::start(move |asked| {
        let body = r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#;
        asked.is(method, part).then(|| Reply::new(status, body))
    })
}

const REFUSALS: [(&str, &str); 4] = [
    ("HEAD", "/blobs/"),
    ("POST", "/uploads/"),
    ("PUT", "/uploads/"),
    ("PUT", "/manifests/"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final_at_once() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = pulled(&root, &image()).await;
    for (method, part) in REFUSALS {
        for status in [401, 403, 405] {
            let registry = refusing(method, part, status);
            let error = push_to(&store, &id, &registry).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Registry);
            let what = format!("{method} {part} {status}: {}", error.chain());
            let log = registry.take_log();
            let is_refused = |line: &&String| line.starts_with(&format!("{method} ")) && line.contains(part);
            // One for each layer that is on its way, and none again; in pieces, where a whole blob is not allowed.
            let ways = if (method, part, status) == ("PUT", "/uploads/", 405) {
                2
            } else {
                1
            };
            let refused = log.iter().filter(is_refused).count();
            assert!(refused <= 3 * ways, "{what}: {log:#?}");
            let asks = log.iter().filter(|line| *line == "GET /v2/").count();
            assert!(asks <= 1, "{what}: {log:#?}");
            // Three layers and a config: a question, the beginning and the end of an upload; and the manifest.
            assert!(log.len() <= 15 * ways, "{what}: {log:#?}");
        }
    }
}

/// How many requests a refused push makes, ours and Skopeo's.
async fn refusals_beside_skopeo(set: PeerSet) {
    let root = TestRoot::in_memory().of(set);
    let (store, id) = pulled(&root, &image()).await;
    let mut table = String::new();
    for (method, part) in REFUSALS {
        for status in [401, 403, 405] {
            let registry = refusing(method, part, status);
            push_to(&store, &id, &registry).await.unwrap_err();
            let ours = registry.take_log().len();
            // One that has none of the blobs yet.
            let registry = refusing(method, part, status);
            let copy = root
                .skopeo()
                .words("copy --quiet --dest-tls-verify=false --dest-compress=false");
            let mut copy = copy.with([
                root.image_reference(&format!("@{id}")),
                registry.image("team/app"),
            ]);
            assert!(!copy.output().unwrap().status.success());
            let theirs = registry.take_log().len();
            table += &format!("{method} {part} {status}: ours {ours}, Skopeo {theirs}\n");
            // How many layers are on their way is a matter of time; a blob that is refused as a whole goes in pieces.
            let more = if (method, part, status) == ("PUT", "/uploads/", 405) {
                12
            } else {
                6
            };
            assert!(ours <= theirs + more, "{table}");
        }
    }
    eprintln!("{table}");
}
each_set!(newer async refusals_beside_skopeo: "skopeo");

#[tokio::test(flavor = "multi_thread")]
async fn blobs_go_in_pieces_where_they_must() {
    needs!();
    let root = TestRoot::in_memory();
    let large = Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 33), layer("bb", 1)]);
    let (store, id) = pulled(&root, &large).await;
    for status in [405, 413, 501] {
        for least in ["", "20971520"] {
            let registry = OddRegistry::start(move |asked| {
                if asked.is("POST", "/uploads/") && !least.is_empty() {
                    let location = format!("{}l{}", asked.path, asked.address.len());
                    return Some(
                        Reply::new(202, "")
                            .header("OCI-Chunk-Min-Length", least)
                            .header("Location", location),
                    );
                }
                (asked.is("PUT", "/uploads/") && !asked.body.is_empty()).then(|| Reply::new(status, ""))
            });
            let options = PushOptions::default().compression(Compression::None).uploads(1);
            let to = registry.image("team/app").parse().unwrap();
            push(&store, &id, &to, options).await.unwrap();
            check(&registry, &id, "pieces").await;
            let asked = registry.asked();
            let pieces: Vec<_> = asked.iter().filter(|asked| asked.method == "PATCH").collect();
            let ranges: Vec<&str> = pieces.iter().map(|asked| asked.header("content-range")).collect();
            let first = if least.is_empty() {
                "0-16777215"
            } else {
                "0-20971519"
            };
            assert_eq!(ranges[0], first);
            assert!(
                ranges.windows(2).all(|pair| pair[1].starts_with("0-")
                    || pair[1].split('-').next() != pair[0].split('-').next())
            );
            let whole = asked
                .iter()
                .filter(|asked| asked.is("PUT", "/uploads/") && !asked.body.is_empty());
            assert_eq!(whole.count(), 1, "it is tried once");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_taken_over_from_another_repository() {
    needs!();
    let parts = image();
    let blob = Digest::sha256(&parts.layers[0]);
    for mounts in [true, false] {
        let registry = OddRegistry::start(move |asked| {
            let mounted = asked.is("POST", "/uploads/") && asked.query.contains("mount=");
            (mounted && mounts).then(|| Reply::new(201, ""))
        });
        registry.add("team/base", &parts);
        let root = TestRoot::in_memory();
        let (store, id) = pulled_of(&root, &registry, "team/base").await;
        registry.take_log();
        let pushed = push_to(&store, &id, &registry).await.unwrap();
        let asked = registry.asked();
        let mounted: Vec<_> = asked
            .iter()
            .filter(|asked| asked.query.contains("mount="))
            .collect();
        assert!(
            mounted
                .iter()
                .all(|asked| asked.query.contains("from=team%2Fbase"))
        );
        if mounts {
            let asked_for = |blob: &str| {
                mounted
                    .iter()
                    .any(|asked| asked.query.replace("%3A", ":").contains(blob))
            };
            assert!(asked_for(blob.as_str()));
            assert_eq!((pushed.sent, pushed.reused, mounted.len()), (0, 3, 3));
        } else {
            // Each layer may have begun before the first has found out; which one that is, is not said.
            assert_eq!(pushed.sent, 3);
            assert!((1..=3).contains(&mounted.len()));
            let cancelled = asked.iter().filter(|asked| asked.method == "DELETE").count();
            assert_eq!(cancelled, mounted.len());
            check(&registry, &id, "sent").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_during_an_upload() {
    needs!();
    let root = TestRoot::in_memory();
    let (store, id) = pulled(&root, &image()).await;
    // The first is good for beginnings only.
    let (registry, given) = ending(|asked, number| number == 1 && asked.is("PUT", "/uploads/"));
    push_to(&store, &id, &registry).await.unwrap();
    assert_eq!(given.load(Ordering::Relaxed), 2);
}
