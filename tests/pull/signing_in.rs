//! Registries that ask for credentials in every way that is found, beside Skopeo.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use graphroot::ErrorKind;
use graphroot::oci::{Credentials, PullOptions, Pulled, Puller, RegistryOptions};

use crate::fake_registry::layer;
use crate::odd_registry::{Asked, OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

/// `user:secret`
const BASIC: &str = "Basic dXNlcjpzZWNyZXQ=";

type Script = Box<dyn Fn(&Asked) -> Option<Reply> + Send + Sync>;

/// A way to ask for credentials.
struct Way {
    name: &'static str,
    script: Script,
    /// Whether we get the image, with and without credentials.
    ours: [bool; 2],
    /// Whether Skopeo does, with credentials.
    skopeo: bool,
}

fn bearer(asked: &Asked) -> String {
    format!("Bearer realm=\"http://{}/token\",service=\"here\"", asked.address)
}

fn refuse(status: u16) -> Reply {
    Reply::new(status, r#"{"errors":[{"code":"DENIED","message":"not you"}]}"#)
}

/// Gives this answer to a request for a token with the right password; `{}` to others.
fn token(asked: &Asked, answer: &str) -> Option<Reply> {
    let is_known = asked.header("authorization") == BASIC;
    asked
        .path
        .starts_with("/token")
        .then(|| Reply::new(200, if is_known { answer } else { "{}" }))
}

fn has_token(asked: &Asked) -> bool {
    asked.header("authorization") == "Bearer sesame"
}

const TOKEN: &str = r#"{"token":"sesame"}"#;

/// Gives a token for the right password, and refuses in this way who has none.
fn by_token(answer: &'static str, refusal: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Script {
    Box::new(move |asked| token(asked, answer).or_else(|| (!has_token(asked)).then(|| refusal(asked))))
}

fn ways() -> Vec<Way> {
    let mut ways = Vec::new();
    let mut add = |name, ours, skopeo, script: Script| {
        ways.push(Way {
            name,
            script,
            ours,
            skopeo,
        });
    };
    let (both, known) = ([true, true], [true, false]);
    for status in [400, 403, 404] {
        add(
            "hidden from strangers",
            known,
            true,
            by_token(TOKEN, move |asked| match asked.path.as_str() {
                "/v2/" => refuse(401).challenge(bearer(asked)),
                _ => refuse(status),
            }),
        );
    }
    add(
        "hidden, with passwords",
        known,
        true,
        Box::new(|asked| {
            let is_base = asked.path == "/v2/";
            (asked.header("authorization") != BASIC).then(|| match is_base {
                true => refuse(401).challenge("Basic realm=\"x\""),
                false => refuse(404),
            })
        }),
    );
    add(
        "a token for strangers",
        both,
        true,
        Box::new(|asked| {
            if asked.path.starts_with("/token") {
                return Some(Reply::new(200, TOKEN));
            }
            (!has_token(asked)).then(|| refuse(401).challenge(bearer(asked)))
        }),
    );
    add(
        "challenges at the manifest only",
        known,
        false,
        Box::new(|asked| {
            if let Some(reply) = token(asked, TOKEN) {
                return Some(reply);
            }
            let is_open = asked.path == "/v2/" || has_token(asked);
            (!is_open).then(|| refuse(401).challenge(bearer(asked)))
        }),
    );
    add(
        "passwords at the manifest only",
        known,
        false,
        Box::new(|asked| {
            let is_open = asked.path == "/v2/" || asked.header("authorization") == BASIC;
            (!is_open).then(|| refuse(401).challenge("Basic"))
        }),
    );
    add(
        "challenges at the base only",
        known,
        true,
        by_token(TOKEN, |asked| match asked.path.as_str() {
            "/v2/" => refuse(401).challenge(bearer(asked)),
            _ => refuse(401),
        }),
    );
    add(
        "several headers",
        known,
        true,
        by_token(TOKEN, |asked| {
            refuse(401)
                .challenge("Negotiate YIIabc==")
                .challenge("NTLM")
                .challenge(bearer(asked))
        }),
    );
    add(
        "several in one header",
        known,
        false,
        by_token(TOKEN, |asked| {
            let all = format!("Negotiate, Digest realm=\"a, b\", {}", bearer(asked));
            refuse(401).challenge(all)
        }),
    );
    add(
        "a token service that fails, and passwords",
        known,
        false,
        Box::new(|asked| {
            if asked.path.starts_with("/token") {
                return Some(refuse(403));
            }
            let reply = refuse(401)
                .challenge(bearer(asked))
                .challenge("Basic realm=\"x\"");
            (asked.header("authorization") != BASIC).then_some(reply)
        }),
    );
    add(
        "unknown schemes",
        [false; 2],
        false,
        Box::new(|_| Some(refuse(401).challenge("Negotiate"))),
    );
    for (answer, is_token) in [
        (r#"{"access_token":"sesame"}"#, true),
        (r#"{"token":"","access_token":"sesame"}"#, true),
        (r#"{"token":null,"access_token":"sesame"}"#, true),
        (r#"{"token":"sesame","access_token":null,"expires_in":60}"#, true),
        (r#"{"token":"","access_token":null}"#, false),
        ("sesame", false),
    ] {
        add(
            answer,
            [is_token, false],
            is_token,
            by_token(answer, |asked| refuse(401).challenge(bearer(asked))),
        );
    }
    let other_name = by_token(TOKEN, |asked| {
        let scope = "scope=\"repository:team/app:pull repository:own/name:pull\"";
        refuse(401).challenge(format!("{},{scope}", bearer(asked)))
    });
    add(
        "a repository under another name",
        known,
        false,
        Box::new(move |asked| {
            let scopes = asked.query.replace("%3A", ":").replace("%2F", "/");
            if asked.path.starts_with("/token") && !scopes.contains("scope=repository:own/name:pull") {
                return Some(Reply::new(200, r#"{"token":"for another"}"#));
            }
            other_name(asked)
        }),
    );
    ways
}

fn image() -> Parts {
    Parts::new(OCI_MANIFEST, good_config(), &[layer("file", 1)])
}

fn options() -> RegistryOptions {
    RegistryOptions::default().backoff(std::time::Duration::from_millis(1))
}

async fn pull(registry: &OddRegistry, credentials: Credentials) -> graphroot::Result<Pulled> {
    let root = TestRoot::in_memory();
    let options = options().credentials_for(registry.address(), credentials);
    let puller = Puller::new(&root.open().await, PullOptions::default().registry(options));
    puller.pull(&registry.image("team/app").parse()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn registries_ask_in_many_ways() {
    needs!();
    for way in ways() {
        let registry = OddRegistry::start(way.script);
        registry.add("team/app", &image());
        let known = Credentials::password("user", "secret");
        for (credentials, works) in [(known, way.ours[0]), (Credentials::Anonymous, way.ours[1])] {
            let pulled = pull(&registry, credentials.clone()).await;
            let what = format!("{} {credentials:?}: {:#?}", way.name, registry.take_log());
            match pulled {
                Ok(_) => assert!(works, "{what}"),
                Err(error) => {
                    assert!(!works, "{what}: {}", error.chain());
                    assert!(
                        matches!(error.kind(), ErrorKind::Registry | ErrorKind::NotFound),
                        "{what}"
                    );
                    assert!(!error.chain().contains("secret"), "{what}: {}", error.chain());
                    if way.name == "unknown schemes" {
                        assert!(error.chain().contains("negotiate"), "{}", error.chain());
                    }
                }
            }
        }
    }
}

async fn skopeo_signs_in_where_we_do(set: PeerSet) {
    let mut wrong = Vec::new();
    for way in ways() {
        let registry = OddRegistry::start(way.script);
        registry.add("team/app", &image());
        let root = TestRoot::in_memory().of(set);
        let copy = root
            .skopeo()
            .words("copy --quiet --src-tls-verify=false --src-creds user:secret");
        let to = format!("dir:{}", root.path().join("copy").display());
        let output = copy.with([registry.image("team/app"), to]).output().unwrap();
        if output.status.success() != way.skopeo {
            let says = String::from_utf8_lossy(&output.stderr).into_owned();
            wrong.push((way.name, says, registry.take_log()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
each_set!(newer async skopeo_signs_in_where_we_do: "skopeo");

#[tokio::test(flavor = "multi_thread")]
async fn identity_and_registry_tokens_are_used() {
    needs!();
    let registry = OddRegistry::start(|asked| {
        if asked.path.starts_with("/token") {
            let form = String::from_utf8_lossy(&asked.body).into_owned();
            let known = asked.method == "POST"
                && form.contains("grant_type=refresh_token")
                && form.contains("refresh_token=refresh&")
                && form.contains("scope=repository%3Ateam%2Fapp%3Apull");
            return Some(Reply::new(200, if known { TOKEN } else { "{}" }));
        }
        (!has_token(asked)).then(|| refuse(401).challenge(bearer(asked)))
    });
    registry.add("team/app", &image());
    for (entry, works) in [
        (r#"{"identitytoken":"refresh\n"}"#, true),
        (r#"{"identitytoken":"refresh","auth":"dXNlcjpzZWNyZXQ="}"#, true),
        (r#"{"registrytoken":"sesame\r\n"}"#, true),
        (r#"{"registrytoken":"wrong"}"#, false),
        (r#"{"identitytoken":"wrong"}"#, false),
        (r#"{"auth":"dXNlcjpzZWNyZXQ="}"#, false),
    ] {
        let root = TestRoot::in_memory();
        let file = root.path().join("auth.json");
        let text = format!(r#"{{"auths":{{"other.io":5,"{}":{entry}}}}}"#, registry.address());
        std::fs::write(&file, text).unwrap();
        let options = PullOptions::default().registry(options().auth_file(&file));
        let puller = Puller::new(&root.open().await, options);
        let pulled = puller.pull(&registry.image("team/app").parse().unwrap()).await;
        assert_eq!(pulled.is_ok(), works, "{entry}: {pulled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_token_goes_nowhere_else() {
    needs!();
    let elsewhere = OddRegistry::start(|_| Some(Reply::new(200, TOKEN)));
    let to = format!("http://{}/token", elsewhere.address());
    for status in [307, 308] {
        let to = to.clone();
        let registry = OddRegistry::start(move |asked| {
            if asked.path.starts_with("/token") {
                return Some(Reply::new(status, "").header("Location", &*to));
            }
            (!has_token(asked)).then(|| refuse(401).challenge(bearer(asked)))
        });
        registry.add("team/app", &image());
        let token = Credentials::IdentityToken("refresh".to_owned());
        let refused = pull(&registry, token).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Registry, "{refused:?}");
        let asked = registry.asked();
        assert!(asked.iter().any(|asked| asked.is("POST", "/token")), "{status}");
        let seen = elsewhere.take_log();
        assert!(seen.is_empty(), "{status}: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credential_helpers_are_run() {
    use std::os::unix::fs::PermissionsExt as _;
    needs!();
    let registry = OddRegistry::start(|asked| {
        (asked.header("authorization") != BASIC).then(|| refuse(401).challenge("Basic realm=\"x\""))
    });
    registry.add("team/app", &image());
    let root = TestRoot::in_memory();
    // The search path of this process cannot be changed in a test, so the program that is run is the library's own command
    // in an environment of its own.
    let Some(command) = option_env!("CARGO_BIN_EXE_graphroot") else {
        return;
    };
    let helper = root.path().join("docker-credential-odd");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = \"get {}\" ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"ServerURL\":null,\"Username\":\"user\",\"Secret\":\"secret\"}}'\n",
        registry.address()
    );
    std::fs::write(&helper, script).unwrap();
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = root.path().join("auth.json");
    for (config, works) in [
        (
            format!(r#"{{"credHelpers":{{"{}":"odd"}}}}"#, registry.address()),
            true,
        ),
        (r#"{"credsStore":"odd"}"#.to_owned(), true),
        (r#"{"credHelpers":{"other.io":"odd"}}"#.to_owned(), false),
        (r#"{"credsStore":"there-is-none"}"#.to_owned(), false),
    ] {
        std::fs::write(&file, &config).unwrap();
        let path = format!("{}:/usr/bin:/bin", root.path().display());
        let pull = root.with_store(command, &["--graph", "--run", "--storage-driver"]);
        let mut pull = pull.words("pull").with([registry.image("team/app")]);
        pull.env("PATH", path).env("REGISTRY_AUTH_FILE", &file);
        let output = pull.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.success(), works, "{config}: {text}");
        if config.contains("there-is-none") {
            assert!(text.contains("docker-credential-there-is-none"), "{text}");
        }
    }
}

/// Tokens that end: those that were given first are refused from then on.
pub(crate) fn ending(
    ends: impl Fn(&Asked, usize) -> bool + Send + Sync + 'static,
) -> (OddRegistry, Arc<AtomicUsize>) {
    let given = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&given);
    let registry = OddRegistry::start(move |asked| {
        if asked.path.starts_with("/token") {
            let number = counter.fetch_add(1, Ordering::Relaxed) + 1;
            return Some(Reply::new(200, format!(r#"{{"token":"t{number}"}}"#)));
        }
        let number = asked.header("authorization").strip_prefix("Bearer t");
        let number: Option<usize> = number.map(|number| number.parse().unwrap());
        match number {
            Some(number) if !ends(asked, number) => None,
            _ => Some(refuse(401).challenge(bearer(asked))),
        }
    });
    (registry, given)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_refused_is_asked_for_anew_once() {
    needs!();
    // The first token has ended when the layer is asked for, or counts for nothing from the start.
    let blob = |asked: &Asked, number| asked.path.contains("/blobs/") && number == 1;
    let (registry, given) = ending(blob);
    registry.add("team/app", &image());
    pull(&registry, Credentials::Anonymous).await.unwrap();
    assert_eq!(given.load(Ordering::Relaxed), 2);

    let (registry, given) = ending(|_, number| number == 1);
    registry.add("team/app", &image());
    pull(&registry, Credentials::Anonymous).await.unwrap();
    assert_eq!(given.load(Ordering::Relaxed), 2);

    let (registry, given) = ending(|_, _| true);
    registry.add("team/app", &image());
    let error = pull(&registry, Credentials::Anonymous).await.unwrap_err();
    assert!(error.chain().contains("401"), "{}", error.chain());
    assert_eq!(given.load(Ordering::Relaxed), 2);
    assert_eq!(registry.take_log().len(), 5, "three requests and two tokens");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_ends_in_the_middle_of_a_layer() {
    needs!();
    let parts = image();
    let (wanted, requests) = (parts.layers[0].clone(), AtomicUsize::new(0));
    let path = format!("/v2/team/app/blobs/{}", graphroot::Digest::sha256(&wanted));
    let registry = OddRegistry::start(move |asked| {
        if asked.path.starts_with("/token") {
            let number = requests.load(Ordering::Relaxed);
            return Some(Reply::new(200, format!(r#"{{"token":"after {number}"}}"#)));
        }
        let token = asked.header("authorization");
        if token.is_empty()
            || asked.path == path && requests.load(Ordering::Relaxed) > 0 && token != "Bearer after 1"
        {
            return Some(refuse(401).challenge(bearer(asked)));
        }
        // The first answer breaks off, and with it the token ends.
        (asked.path == path && requests.fetch_max(1, Ordering::Relaxed) == 0)
            .then(|| Reply::new(200, wanted.clone()).cut(wanted.len() / 2))
    });
    registry.add("team/app", &parts);
    pull(&registry, Credentials::Anonymous).await.unwrap();
    let asked = registry.asked();
    let resumed = asked.iter().filter(|asked| !asked.header("range").is_empty());
    assert_eq!(
        resumed.count(),
        2,
        "once with the old token, once with the new one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_asked_for_once() {
    needs!();
    let registry = OddRegistry::start(|_| None);
    let error = pull(&registry, Credentials::password("user", "secret"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(registry.take_log(), ["GET /v2/team/app/manifests/v1", "GET /v2/"]);

    let registry = OddRegistry::start(|_| Some(refuse(401).challenge("Basic")));
    let error = pull(&registry, Credentials::password("user", "wrong"))
        .await
        .unwrap_err();
    assert!(error.chain().contains("401"), "{}", error.chain());
    assert_eq!(registry.take_log().len(), 2, "a password is not tried again");
}
