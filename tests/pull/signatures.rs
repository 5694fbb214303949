//! Signatures that the policy wants: what Skopeo says of the same signatures, and how both keep them.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use graphroot::oci::{
    ImageRef, Policy, PullOptions, Puller, PushOptions, RegistryOptions, SignatureStorage, push,
};
use graphroot::{ErrorKind, Store};
use serde_json::{Value, json};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, Reply, good_config};
use crate::signed::{Keys, Signed, base64, with_default};
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;
use crate::support::{each_set, needs};

async fn decisions_are_those_of_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    let public = |name: &str| signed.keys.home.join(format!("{name}.pub"));
    let fingerprint = |name: &str| signed.keys.fingerprint(name);
    // By Skopeo itself.
    let source = signed.docker("unsigned");
    signed.copy(
        &format!("--sign-by {}", fingerprint("alice")),
        &source,
        &signed.docker("app"),
    );
    signed.copy(
        &format!("--sign-by {}", fingerprint("bob")),
        &source,
        &signed.docker("bob"),
    );
    let passphrase = signed.root.path().join("passphrase");
    std::fs::write(&passphrase, "sesame\n").unwrap();
    for key in ["one", "two"] {
        let prefix = signed.root.path().join(key);
        signed
            .skopeo()
            .words("generate-sigstore-key --output-prefix")
            .with([&prefix])
            .with(["--passphrase-file"])
            .with([&passphrase])
            .run();
    }
    let cosign = |key: &str| signed.root.path().join(format!("{key}.pub"));
    let by_cosign = format!(
        "--sign-passphrase-file {} --sign-by-sigstore-private-key {}",
        passphrase.display(),
        signed.root.path().join("one.private").display()
    );
    signed.copy(&by_cosign, &source, &signed.docker("cosign"));
    signed.copy(&by_cosign, &signed.docker("app"), &signed.docker("both"));
    // By GnuPG.
    let (manifest, own) = (signed.manifest.as_str(), signed.name("many"));
    let other = format!("sha256:{}", "0".repeat(64));
    let by = |who: &str, manifest: &str, name: &str| {
        signed.keys.sign(&format!("-u {who}@example"), manifest, name)
    };
    signed.put("moved", 1, &by("alice", manifest, &signed.name("app")));
    signed.put("many", 1, &by("bob", manifest, &own));
    signed.put("many", 2, &by("alice", manifest, &signed.name("else")));
    signed.put("many", 3, &by("carol", manifest, &own));
    signed.put("other", 1, &by("alice", &other, &signed.name("other")));
    signed.put("odd", 1, b"\x90no signature");
    let armored = signed.keys.home.join("armored");
    let all = signed
        .keys
        .gpg("--export --armor alice@example bob@example")
        .run();
    std::fs::write(&armored, all).unwrap();

    let by_gpg = |key: Value, identity: Value| {
        let mut requirement = json!({"type": "signedBy", "keyType": "GPGKeys"});
        let fields = requirement.as_object_mut().unwrap();
        fields.extend(key.as_object().unwrap().clone());
        if !identity.is_null() {
            fields.insert("signedIdentity".into(), identity);
        }
        requirement
    };
    let alice = || json!({"keyPath": public("alice")});
    let by_sigstore = |key: Value| {
        let mut requirement = json!({"type": "sigstoreSigned"});
        requirement
            .as_object_mut()
            .unwrap()
            .extend(key.as_object().unwrap().clone());
        requirement
    };
    let host = signed.registry.address();
    let mut requirements = vec![
        json!([by_gpg(alice(), Value::Null)]),
        json!([by_gpg(json!({"keyPath": public("bob")}), Value::Null)]),
        json!([by_gpg(json!({"keyData": base64(&public("alice"))}), Value::Null)]),
        json!([by_gpg(
            json!({"keyPaths": [public("carol"), public("alice")]}),
            Value::Null
        )]),
        json!([by_gpg(json!({"keyPath": armored}), Value::Null)]),
        json!([by_gpg(json!({"keyPath": "/no/such/key"}), Value::Null)]),
        json!([by_gpg(json!({"keyPath": passphrase}), Value::Null)]),
        json!([
            by_gpg(alice(), Value::Null),
            by_gpg(json!({"keyPath": public("bob")}), Value::Null)
        ]),
        json!([by_gpg(alice(), Value::Null), {"type": "reject"}]),
        json!([{"type": "insecureAcceptAnything"}, by_gpg(alice(), Value::Null)]),
        json!([{"type": "signedBy", "keyType": "X509Certificates", "keyPath": public("alice")}]),
        json!([{"type": "signedBy", "keyType": "GPGKeys"}]),
        json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "x", "keyData": "eA=="}]),
        json!([{"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}]),
        json!([by_sigstore(json!({"keyPath": cosign("one")}))]),
        json!([by_sigstore(json!({"keyPath": cosign("two")}))]),
        json!([by_sigstore(json!({"keyData": base64(&cosign("one"))}))]),
        json!([by_sigstore(
            json!({"keyDatas": [base64(&cosign("two")), base64(&cosign("one"))]})
        )]),
        json!([by_sigstore(json!({"keyPaths": [cosign("two"), cosign("one")]}))]),
        json!([by_sigstore(json!({"keyPaths": []}))]),
        json!([by_sigstore(json!({"keyPaths": [cosign("one"), passphrase]}))]),
        json!([by_sigstore(
            json!({"keyPath": cosign("one"), "rekorPublicKeyPath": cosign("one")})
        )]),
        json!([by_sigstore(
            json!({"keyPath": cosign("one"), "signedIdentity": {"type": "matchRepository"}})
        )]),
        json!([by_sigstore(
            json!({"keyPath": cosign("one"), "signedIdentity": {"type": "exactRepository", "dockerRepository": format!("{host}/team/cosign")}})
        )]),
        json!([by_sigstore(
            json!({"keyPath": cosign("one"), "signedIdentity": {"type": "exactRepository", "dockerRepository": format!("{host}/team/both")}})
        )]),
        json!([by_sigstore(
            json!({"fulcio": {"caPath": "/x", "oidcIssuer": "x", "subjectEmail": "x"}})
        )]),
        json!([by_sigstore(json!({"keyPath": cosign("one"), "unknown": 1}))]),
        json!([
            by_sigstore(json!({"keyPath": cosign("one")})),
            by_gpg(alice(), Value::Null)
        ]),
    ];
    for identity in [
        json!({"type": "matchExact"}),
        json!({"type": "matchRepoDigestOrExact"}),
        json!({"type": "matchRepository"}),
        json!({"type": "exactReference", "dockerReference": signed.name("app")}),
        json!({"type": "exactReference", "dockerReference": format!("{host}/team/app")}),
        json!({"type": "exactRepository", "dockerRepository": format!("{host}/team/app")}),
        json!({"type": "remapIdentity", "prefix": format!("{host}/team/moved"), "signedPrefix": format!("{host}/team/app")}),
        json!({"type": "remapIdentity", "prefix": host, "signedPrefix": "elsewhere.example"}),
        json!({"type": "no such"}),
    ] {
        requirements.push(json!([by_gpg(alice(), identity)]));
    }
    let store = signed.root.open().await;
    let mut images: Vec<String> = [
        "app", "bob", "moved", "unsigned", "many", "cosign", "both", "other", "odd",
    ]
    .map(|image| signed.docker(image))
    .to_vec();
    for image in ["app", "moved", "cosign"] {
        images.push(format!("docker://{host}/team/{image}@{manifest}"));
    }
    let layout = format!("oci:{}:x", signed.root.path().join("layout").display());
    signed.copy("--remove-signatures", &source, &layout);
    images.push(layout);
    for image in ["app", "moved", "both"] {
        let directory = format!("dir:{}", signed.root.scratch(image).display());
        signed.copy("", &signed.docker(image), &directory);
        images.push(directory);
    }
    let (mut accepted, mut in_directories) = (0, 0);
    for requirement in &requirements {
        let policy = with_default(requirement);
        for image in &images {
            let (theirs, said) = signed.skopeo_copies(&policy, image);
            let ours = signed.pull(&store, &policy, image).await;
            assert_eq!(ours.is_ok(), theirs, "{image}: {policy}: {ours:?}: {said}");
            accepted += usize::from(theirs);
            in_directories += usize::from(theirs && image.starts_with("dir:"));
            if let Err(error) = ours {
                let is_known = matches!(error.kind(), ErrorKind::Rejected | ErrorKind::InvalidInput);
                assert!(is_known, "{error:?}: {said}");
                // We look at requirements that need no signatures first.
                let text = error.chain();
                let no_signature = "A signature was required, but no signature exists";
                let theirs_tells = said.contains(no_signature) && !said.contains("non-sigstore");
                let ours_tells = text.contains(no_signature) || text.contains("is rejected by policy");
                assert!(!theirs_tells || ours_tells, "{text}: {said}");
            }
        }
    }
    assert!(accepted > 20 && in_directories > 5, "{accepted} {in_directories}");
}
each_set!(newer async decisions_are_those_of_skopeo: "skopeo", "gpg", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_not_good_any_more_sign_nothing() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let store = signed.root.open().await;
    let keys = &signed.keys;
    let then = "--faked-system-time 20200101T000000";
    keys.add(
        "old",
        &format!("{then} --quick-gen-key old@example rsa2048 sign 1y"),
    );
    keys.add("revoked", "--quick-gen-key revoked@example ed25519 sign never");
    keys.add("parent", "--quick-gen-key parent@example rsa2048 cert never");
    let fingerprint = |name: &str| keys.fingerprint(name);
    keys.add(
        "parent",
        &format!("--quick-add-key {} ed25519 sign never", fingerprint("parent")),
    );
    let sign = |image: &str, options: &str| {
        let signature = keys.sign(options, &signed.manifest, &signed.name(image));
        signed.put(image, 1, &signature);
    };
    sign("app", "--faked-system-time 20200102T000000 -u old@example");
    sign("bob", "-u revoked@example");
    sign("both", "-u parent@example");
    sign(
        "many",
        "--digest-algo SHA1 --allow-weak-digest-algos -u alice@example",
    );
    sign(
        "moved",
        "-u alice@example --default-sig-expire 1d --faked-system-time 20200101T000000 --ignore-time-conflict --ignore-valid-from",
    );
    // GnuPG keeps a revocation for each key.
    let revocation = keys.revocation("revoked");
    keys.add("revoked", &format!("--import {}", revocation.display()));

    for (image, key, ours, theirs) in [
        ("app", "old", false, false),
        ("bob", "revoked", false, false),
        ("both", "parent", true, true),
        ("moved", "alice", false, false),
        // GnuPG does not call that weak.
        ("many", "alice", false, true),
    ] {
        let public = keys.home.join(format!("{key}.pub"));
        let policy = with_default(&json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": public}]));
        let (copies, said) = signed.skopeo_copies(&policy, &signed.docker(image));
        assert_eq!(copies, theirs, "{image}: {said}");
        let pulled = signed.pull(&store, &policy, &signed.docker(image)).await;
        assert_eq!(pulled.is_ok(), ours, "{image}: {pulled:?}");
    }
}

async fn signatures_are_kept_as_by_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    let by = |who: &str, name: &str| {
        let options = format!("-u {who}@example");
        signed.keys.sign(&options, &signed.manifest, &signed.name(name))
    };
    signed.put("both", 1, &by("alice", "both"));
    signed.put("both", 2, &by("bob", "both"));
    let passphrase = signed.root.path().join("passphrase");
    std::fs::write(&passphrase, "sesame\n").unwrap();
    let prefix = signed.root.path().join("key");
    signed
        .skopeo()
        .words("generate-sigstore-key --output-prefix")
        .with([&prefix])
        .with(["--passphrase-file"])
        .with([&passphrase])
        .run();
    let sign = format!(
        "--remove-signatures --sign-passphrase-file {} --sign-by-sigstore-private-key {}.private",
        passphrase.display(),
        prefix.display()
    );
    let copy = signed.docker("both");
    signed.copy(&sign, &signed.docker("unsigned"), &copy);

    let accept = with_default(&json!([{"type": "insecureAcceptAnything"}]));
    let kept = async |store: &Store| {
        let image = store.images().await.unwrap().remove(0);
        let mut items = Vec::new();
        for name in store.list_image_big_data(image.id()).await.unwrap() {
            let data = store.image_big_data(image.id(), &name).await.unwrap();
            items.push((name, data.to_vec()));
        }
        items.sort();
        (image.metadata().to_owned(), items)
    };
    let ours = TestRoot::in_memory().of(set);
    let store = ours.open().await;
    for image in ["unsigned", "both"] {
        let puller = Puller::new(&store, signed.options(&accept).await.unwrap());
        let pulled = puller.pull(&signed.docker(image).parse().unwrap()).await.unwrap();
        assert_eq!(
            pulled.image.metadata().len() > 2,
            image == "both",
            "{}",
            pulled.image.metadata()
        );
        let to: ImageRef = format!("dir:{}", ours.scratch(image).display()).parse().unwrap();
        let pushed = push(&store, pulled.image.id(), &to, PushOptions::default())
            .await
            .unwrap();
        assert_eq!(pushed.has_signatures, image == "both", "{pushed:?}");
    }
    let theirs = TestRoot::in_memory().of(set);
    let name = signed.name("both");
    signed.copy("", &copy, &theirs.image_reference(&name));
    let other = theirs.open().await;
    let (mine, yours) = (kept(&store).await, kept(&other).await);
    let signatures = mine
        .1
        .iter()
        .filter(|(name, _)| name.starts_with("signature"))
        .count();
    assert_eq!(signatures, 2);
    assert_eq!(mine.0, yours.0);
    assert_eq!(mine.1, yours.1);
}
each_set!(newer async signatures_are_kept_as_by_skopeo: "skopeo", "gpg", "docker-registry");

#[tokio::test(flavor = "multi_thread")]
async fn signatures_come_from_a_server_too() {
    needs!("gpg", "docker-registry");
    let Some(signed) = Signed::start_beside_newest() else {
        return;
    };
    let store = signed.root.open().await;
    signed.put(
        "app",
        1,
        &signed
            .keys
            .sign("-u alice@example", &signed.manifest, &signed.name("app")),
    );
    signed.put("bob", 1, &vec![0x90; 5 << 20]);
    let lookaside = signed.lookaside.clone();
    let server = OddRegistry::start(move |asked| {
        let path = lookaside.join(asked.path.strip_prefix("/sigs/")?);
        Some(match std::fs::read(path) {
            _ if asked.path.contains("team/other") => Reply::new(403, ""),
            Ok(bytes) => Reply::new(200, bytes),
            Err(_) => Reply::new(404, ""),
        })
    });
    let text = format!(
        "docker:\n  {}:\n    sigstore: http://{}/sigs\n",
        signed.registry.address(),
        server.address()
    );
    std::fs::write(signed.registries_d.join("default.yaml"), text).unwrap();
    let public = signed.keys.home.join("alice.pub");
    let policy = with_default(&json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": public}]));
    for (image, expected) in [
        ("app", true),
        ("unsigned", false),
        ("bob", false),
        ("other", false),
    ] {
        let (theirs, said) = signed.skopeo_copies(&policy, &signed.docker(image));
        assert_eq!(theirs, expected, "{image}: {said}");
        let ours = signed.pull(&store, &policy, &signed.docker(image)).await;
        assert_eq!(ours.is_ok(), expected, "{image}: {ours:?}");
    }
}

/// What a registry serves as the signatures of an image, and whether the policy is met.
fn served(good: &[u8], other: &[u8]) -> Vec<(&'static str, Reply, bool)> {
    let entry = |version: u32, kind: &str, content: &[u8]| {
        let content = base64::engine::general_purpose::STANDARD.encode(content);
        json!({"schemaVersion": version, "name": "sha256:x@y", "type": kind, "content": content})
    };
    let list = |entries: &[Value]| Reply::new(200, json!({"signatures": entries}).to_string());
    let good = || entry(2, "atomic", good);
    vec![
        ("good", list(&[good()]), true),
        (
            "behind others",
            list(&[entry(2, "atomic", other), entry(1, "x", b""), good()]),
            true,
        ),
        ("of another key", list(&[entry(2, "atomic", other)]), false),
        ("of another version", list(&[entry(1, "atomic", b"x")]), false),
        ("of another type", list(&[entry(2, "AtomicImageV1", b"x")]), false),
        ("garbage", list(&[entry(2, "atomic", b"garbage")]), false),
        ("none", list(&[]), false),
        ("null", Reply::new(200, r#"{"signatures": null}"#), false),
        ("no list", Reply::new(200, "[]"), false),
        ("nothing", Reply::new(404, ""), false),
        (
            "not in base64",
            Reply::new(
                200,
                r#"{"signatures": [{"content": "%", "type": "atomic", "schemaVersion": 2}]}"#,
            ),
            false,
        ),
        (
            "too long",
            Reply::new(200, format!("{{{}}}", " ".repeat(5 << 20))),
            false,
        ),
    ]
}

/// What the registry serves counts, and what is beside it does not.
async fn signatures_that_a_registry_serves_are_those_of_skopeo(set: PeerSet) {
    let root = TestRoot::in_memory().of(set);
    let keys = Keys::new(&root);
    let key = keys.add("alice", "--quick-gen-key alice@example ed25519 sign never");
    keys.add("bob", "--quick-gen-key bob@example ed25519 sign never");
    let reply = Arc::new(Mutex::new(Reply::new(404, "")));
    let serves = Arc::clone(&reply);
    let registry = OddRegistry::start(move |asked| match &*asked.path {
        "/v2/" => Some(Reply::new(200, "{}").header("X-Registry-Supports-Signatures", "1")),
        path if path.starts_with("/extensions/v2/team/app/signatures/sha256:") => {
            Some(serves.lock().unwrap().clone())
        }
        _ => None,
    });
    let manifest = registry.add(
        "team/app",
        &Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1)]),
    );
    let name = format!("{}/team/app:v1", registry.address());
    let by = |who: &str| keys.sign(&format!("-u {who}@example"), manifest.as_str(), &name);
    let (good, other) = (by("alice"), by("bob"));
    let beside = root.scratch("lookaside");
    let dir = beside.join(format!("team/app@sha256={}", manifest.encoded()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("signature-1"), &good).unwrap();
    let registries_d = root.scratch("registries.d");
    let text = format!("default-docker:\n  lookaside: file://{}\n", beside.display());
    std::fs::write(registries_d.join("default.yaml"), text).unwrap();
    let policy = root.path().join("policy.json");
    let requirement = json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": key}]);
    std::fs::write(&policy, with_default(&requirement)).unwrap();
    let store = root.open().await;
    let options = async |policy: Policy| {
        let storage = SignatureStorage::from_directory(&registries_d).await.unwrap();
        let registry = RegistryOptions::default().retries(0).signature_storage(storage);
        PullOptions::default().registry(registry).policy(policy)
    };
    let image: ImageRef = format!("docker://{name}").parse().unwrap();
    for (what, served, is_met) in served(&good, &other) {
        *reply.lock().unwrap() = served;
        let puller = Puller::new(&store, options(Policy::from_file(&policy).await.unwrap()).await);
        let pulled = puller.pull_as(&image, &[]).await;
        assert_eq!(pulled.is_ok(), is_met, "{what}: {pulled:?}");
        let skopeo = root
            .skopeo()
            .with(["--registries.d"])
            .with([&registries_d])
            .with(["--policy"])
            .with([&policy])
            .words("copy --quiet --src-tls-verify=false")
            .with([image.to_string(), format!("dir:{}", root.scratch("to").display())])
            .output()
            .unwrap();
        assert_eq!(skopeo.status.success(), is_met, "{what}: {skopeo:?}");
    }
    // Nobody is asked for signatures that the policy does not want.
    registry.take_log();
    let puller = Puller::new(&store, options(Policy::default()).await);
    puller.pull_as(&image, &[]).await.unwrap();
    assert!(
        !registry
            .take_log()
            .iter()
            .any(|line| line.contains("/extensions/"))
    );
}
each_set!(newer async signatures_that_a_registry_serves_are_those_of_skopeo: "skopeo", "gpg");
