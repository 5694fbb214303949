//! Pulls as `registries.conf` says: from mirrors, which may fail at any point, of short names, from registries that are
//! blocked or insecure.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use graphroot::oci::{ImageRef, PullOptions, Pulled, Puller, RegistriesConf, RegistryOptions};
use graphroot::{Digest, ErrorKind, Store};

use crate::fake_registry::{FakeRegistry, Fault, layer};
use crate::odd_registry::{Asked, OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::ranges::{descriptor, read};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::store::exported;
use crate::support::{each_set, needs};

fn image() -> Parts {
    Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1), layer("bb", 1)])
}

/// A configuration in which a registry has mirrors.
fn with_mirrors(origin: &str, mirrors: &[&str]) -> String {
    let mut text = format!("[[registry]]\nlocation = '{origin}'\n");
    for mirror in mirrors {
        text += &format!("[[registry.mirror]]\nlocation = '{mirror}'\n");
    }
    text
}

fn puller(store: &Store, conf: &str) -> Puller {
    let registry = RegistryOptions::default()
        .backoff(Duration::from_millis(1))
        .stall(Duration::from_millis(500))
        .registries_conf(RegistriesConf::parse(conf).unwrap());
    Puller::new(store, PullOptions::default().registry(registry))
}

async fn pull(store: &Store, conf: &str, image: &str) -> graphroot::Result<Pulled> {
    puller(store, conf).pull(&image.parse::<ImageRef>()?).await
}

/// The requests for blobs and manifests.
fn content(registry: &OddRegistry) -> Vec<Asked> {
    let mut asked = registry.asked();
    asked.retain(|asked| asked.path != "/v2/");
    asked
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_has_everything_is_the_only_one_asked() {
    needs!();
    let (mirror, origin) = (OddRegistry::start(|_| None), OddRegistry::start(|_| None));
    mirror.add("cache/team/app", &image());
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(origin.address(), &[&format!("{}/cache", mirror.address())]);
    let pulled = pull(&store, &conf, &origin.image("team/app")).await.unwrap();
    // The name is the one that was asked for.
    assert_eq!(
        pulled.image.names(),
        [format!("{}/team/app:v1", origin.address())]
    );
    assert_eq!(content(&mirror).len(), 4);
    assert!(origin.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_mirror_lacks_comes_from_the_next_one() {
    needs!();
    let parts = image();
    let digest = Digest::sha256(&parts.layers[1]).to_string();
    let lacking = digest.clone();
    let (empty, origin) = (OddRegistry::start(|_| None), OddRegistry::start(|_| None));
    let partial =
        OddRegistry::start(move |asked| asked.path.ends_with(&lacking).then(|| Reply::new(404, "")));
    partial.add("team/app", &parts);
    origin.add("team/app", &parts);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(
        origin.address(),
        &["127.0.0.1:1", empty.address(), partial.address()],
    );
    pull(&store, &conf, &origin.image("team/app")).await.unwrap();
    let asked: Vec<_> = content(&empty).iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(asked, ["/v2/team/app/manifests/v1"]);
    let asked: Vec<_> = content(&origin).iter().map(|asked| asked.path.clone()).collect();
    assert_eq!(asked, [format!("/v2/team/app/blobs/{digest}")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_fails_at_a_mirror_goes_on_at_the_next_byte_elsewhere() {
    needs!();
    const CUT: usize = 300_000;
    let parts = image();
    let (bytes, digest) = (
        parts.layers[0].clone(),
        Digest::sha256(&parts.layers[0]).to_string(),
    );
    let cut = {
        let digest = digest.clone();
        move |asked: &Asked| match asked.header("range") {
            "" if asked.path.ends_with(&digest) => Some(Reply::new(200, bytes.clone()).cut(CUT)),
            _ if asked.path.ends_with(&digest) => Some(Reply::new(503, "")),
            _ => None,
        }
    };
    let (mirror, origin) = (OddRegistry::start(cut), OddRegistry::start(|_| None));
    mirror.add("team/app", &parts);
    origin.add("team/app", &parts);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(origin.address(), &[mirror.address()]);
    let pulled = pull(&store, &conf, &origin.image("team/app")).await.unwrap();
    let asked = content(&origin);
    let of_blob = asked.iter().filter(|asked| asked.path.ends_with(&digest));
    let ranges: Vec<_> = of_blob.map(|asked| asked.header("range")).collect();
    assert_eq!(ranges, [format!("bytes={CUT}-")]);
    assert_eq!(pulled.transferred, 2);
    for layer in store.layers().await.unwrap() {
        let (diff, _) = exported(&store, layer.id()).await;
        assert_eq!(Some(diff), layer.uncompressed_digest());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_failures_are_told() {
    needs!();
    let (mirror, origin) = (OddRegistry::start(|_| None), OddRegistry::start(|_| None));
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(origin.address(), &[mirror.address()]);
    let error = pull(&store, &conf, &origin.image("team/app")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let text = error.chain();
    let failed = format!("(Mirrors also failed: [{}/team/app:v1: ", mirror.address());
    assert!(text.contains(&failed) && text.contains("no such thing"), "{text}");
    assert!(store.layers().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_with_another_manifest_for_a_digest_is_passed_over() {
    needs!();
    let parts = image();
    let (mirror, origin) = (
        OddRegistry::start(|asked| {
            (asked.path.contains("/manifests/")).then(|| Reply::new(200, "{\"schemaVersion\": 2}"))
        }),
        OddRegistry::start(|_| None),
    );
    let digest = origin.add("team/app", &parts);
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(origin.address(), &[mirror.address()]);
    let name = format!("docker://{}/team/app@{digest}", origin.address());
    let pulled = pull(&store, &conf, &name).await.unwrap();
    assert_eq!(pulled.digest, digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_registry_is_asked_for_nothing() {
    needs!();
    let (mirror, origin) = (OddRegistry::start(|_| None), OddRegistry::start(|_| None));
    mirror.add("team/app", &image());
    origin.add("team/app", &image());
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let blocked = |mirrors: &[&str]| {
        with_mirrors(origin.address(), mirrors).replacen("location", "blocked = true\nlocation", 1)
    };
    let image = origin.image("team/app");
    let error = pull(&store, &blocked(&[]), &image).await.unwrap_err().chain();
    assert!(
        error.contains(&format!("registry {} is blocked in", origin.address())),
        "{error}"
    );
    // Whoever may only be reached by a mirror is configured so.
    pull(&store, &blocked(&[mirror.address()]), &image).await.unwrap();
    assert!(origin.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insecure_registry_is_asked_with_tls_first() {
    needs!();
    let origin = OddRegistry::start(|_| None);
    origin.add("team/app", &image());
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let image: ImageRef = origin.image("team/app").parse().unwrap();
    let refused = RegistryOptions::default().retries(0).tls_verify(Some(true));
    let refused = Puller::new(&store, PullOptions::default().registry(refused));
    assert_eq!(
        refused.pull(&image).await.unwrap_err().kind(),
        ErrorKind::Registry
    );
    let options = RegistryOptions::default().tls_verify(Some(false));
    let any = Puller::new(&store, PullOptions::default().registry(options));
    any.pull(&image).await.unwrap();
    // It is asked once.
    any.pull(&image).await.unwrap();
    let pings = origin.asked().iter().filter(|asked| asked.path == "/v2/").count();
    assert_eq!(pings, 1);
}

/// Closes so many connections, then leads all others to another place.
fn late(refused: usize, to: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().skip(refused) {
            let (Ok(client), Ok(server)) = (stream, TcpStream::connect(&to)) else {
                return;
            };
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    // Either side may end it.
                    let _end = std::io::copy(&mut from, &mut to);
                    let _end = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_late_is_asked_again_with_tls_and_without() {
    needs!();
    let origin = OddRegistry::start(|_| None);
    origin.add("team/app", &image());
    let image = origin.image("team/app");
    let root = TestRoot::in_memory();
    let store = root.open().await;
    // Neither kind of connection is answered at first.
    let address = late(4, origin.address().to_owned());
    let image = image.replace(origin.address(), &address).parse().unwrap();
    let options = RegistryOptions::default()
        .backoff(Duration::from_millis(1))
        .tls_verify(Some(false));
    let puller = Puller::new(&store, PullOptions::default().registry(options));
    puller.pull(&image).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_blobs_come_from_the_next_place_too() {
    needs!();
    let content = layer("file", 4);
    let (mirror, origin) = (FakeRegistry::start(), FakeRegistry::start());
    let (first, second) = (
        mirror.add("some/image", std::slice::from_ref(&content)),
        origin.add("some/image", std::slice::from_ref(&content)),
    );
    assert_eq!(first.layers, second.layers);
    let blob = &second.layers[0];
    mirror.fail(blob, &[Fault::Drop(100_000)]);
    mirror.fail_always(blob, Fault::Status(503, "0"));
    let root = TestRoot::in_memory();
    let store = root.open().await;
    let conf = with_mirrors(origin.address(), &[mirror.address()]);
    let image: ImageRef = second.reference.parse().unwrap();
    let descriptor = descriptor(blob, content.len());
    let source = puller(&store, &conf)
        .blob_source(&image, &descriptor)
        .await
        .unwrap();
    let got = read(&*source, &[1000..1_500_000, 1_500_000..2_000_000])
        .await
        .unwrap();
    assert!(got == content[1000..2_000_000]);
    let sent: usize = [&mirror, &origin]
        .iter()
        .flat_map(|registry| registry.requests(blob))
        .map(|request| request.sent)
        .sum();
    assert!(sent < got.len() + 64 * 1024, "{sent} bytes for {}", got.len());
}

/// The same names in the stores of both, and the same requests reach the registries.
fn short_names_and_mirrors_as_podman(set: PeerSet) {
    let Some(command) = option_env!("CARGO_BIN_EXE_graphroot") else {
        return;
    };
    let (mirror, origin) = (OddRegistry::start(|_| None), OddRegistry::start(|_| None));
    let parts = image();
    mirror.add("cache/only/here", &parts);
    origin.add("app", &parts);
    origin.add("team/tool", &parts);
    let conf = |root: &TestRoot| {
        let path = root.path().join("registries.conf");
        let (origin, mirror) = (origin.address(), mirror.address());
        let text = format!(
            "unqualified-search-registries = ['{mirror}', '{origin}']\n\
             short-name-mode = 'permissive'\n\
             [[registry]]\nlocation = '{origin}'\ninsecure = true\n\
             [[registry.mirror]]\nlocation = '{mirror}/cache'\ninsecure = true\n\
             [[registry]]\nlocation = '{mirror}'\ninsecure = true\n\
             [aliases]\ntool = '{origin}/team/tool'\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    };
    let (ours, theirs) = (TestRoot::in_memory().of(set), TestRoot::in_memory().of(set));
    let names = [
        "app:v1".into(),
        "tool:v1".into(),
        format!("{}/only/here:v1", origin.address()),
    ];
    for name in &names {
        theirs
            .podman()
            .words("pull --quiet")
            .with([name])
            .env("CONTAINERS_REGISTRIES_CONF", conf(&theirs))
            .run();
        ours.with_store(command, &["--graph", "--run", "--storage-driver"])
            .words("pull --quiet")
            .with([name])
            .env("CONTAINERS_REGISTRIES_CONF", conf(&ours))
            .run();
    }
    let listed = |root: &TestRoot| {
        let listed = root
            .podman()
            .words("images --format {{.ID}}{{.Repository}}:{{.Tag}}")
            .run();
        let mut lines: Vec<String> = listed.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(listed(&ours), listed(&theirs));
    assert_eq!(listed(&ours).len(), 3);
}
each_set!(newer fn short_names_and_mirrors_as_podman: "podman");
