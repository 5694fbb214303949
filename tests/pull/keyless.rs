//! Sigstore's signatures with certificates of Fulcio and entries of Rekor, and with those of another authority: what Skopeo says
//! of the same ones. Authority, log and signer are OpenSSL's keys.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use graphroot::oci::{ImageRef, Policy, PullOptions, Puller, RegistryOptions, SignatureStorage};
use graphroot::{Digest, ErrorKind};
use serde_json::{Map, Value, json};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, Reply, descriptor, good_config};
use crate::support::each_set;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

const ISSUER: &str = "https://issuer.example";
pub(crate) const EMAIL: &str = "who@mail.example";

/// Keys and certificates in a directory.
pub(crate) struct Authority {
    pub(crate) dir: PathBuf,
}

/// The extensions of a certificate of the subject that is wanted.
fn extensions(email: &str, usage: &str, issuers: &[(u32, &str)]) -> String {
    let mut text = format!(
        "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nsubjectAltName=critical,email:{email}\n"
    );
    if !usage.is_empty() {
        text += &format!("extendedKeyUsage={usage}\n");
    }
    for (number, issuer) in issuers {
        let value = match number {
            1 => {
                let bytes: Vec<String> = issuer.bytes().map(|byte| format!("{byte:02x}")).collect();
                format!("DER:{}", bytes.join(":"))
            }
            _ => format!("ASN1:UTF8String:{issuer}"),
        };
        text += &format!("1.3.6.1.4.1.57264.1.{number}={value}\n");
    }
    text
}

impl Authority {
    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        command.current_dir(&self.dir);
        command.words(words).run();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(name)).unwrap()
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8(self.read(name)).unwrap()
    }

    fn new(dir: PathBuf) -> Self {
        let new = Self { dir };
        for name in ["ca", "stranger"] {
            new.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 30 -subj /CN={name} -keyout \
                 {name}.key -out {name}.pem"
            ));
        }
        for name in ["log", "stranger-log", "plain"] {
            new.openssl(&format!(
                "ecparam -name prime256v1 -genkey -noout -out {name}.key"
            ));
            new.openssl(&format!("ec -in {name}.key -pubout -out {name}.pub"));
        }
        let both = [(1, ISSUER), (8, ISSUER)];
        new.issue(
            "between",
            "ca",
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n",
        );
        for (name, authority, text) in [
            ("good", "ca", extensions(EMAIL, "codeSigning", &both)),
            ("old", "ca", extensions(EMAIL, "codeSigning", &both[..1])),
            ("new", "ca", extensions(EMAIL, "", &both[1..])),
            ("chained", "between", extensions(EMAIL, "codeSigning", &both)),
            (
                "stranger-leaf",
                "stranger",
                extensions(EMAIL, "codeSigning", &both),
            ),
            (
                "other-mail",
                "ca",
                extensions("other@mail.example", "codeSigning", &both),
            ),
            (
                "other-issuer",
                "ca",
                extensions(EMAIL, "codeSigning", &[(8, "https://other.example")]),
            ),
            (
                "two-issuers",
                "ca",
                extensions(EMAIL, "codeSigning", &[(1, ISSUER), (8, "https://other.example")]),
            ),
            ("no-issuer", "ca", extensions(EMAIL, "codeSigning", &[])),
            ("server", "ca", extensions(EMAIL, "serverAuth", &both)),
        ] {
            new.issue(name, authority, &text);
        }
        new
    }

    /// Has an authority make a certificate for these days, or itself one of its own.
    pub(crate) fn issue_for_days(&self, name: &str, authority: &str, extensions: &str, days: [&str; 2]) {
        std::fs::write(self.dir.join("extensions"), extensions).unwrap();
        std::fs::write(self.dir.join("index"), "").unwrap();
        let config = "[ca]\ndefault_ca=all\n[all]\ndatabase=index\nnew_certs_dir=.\ndefault_md=sha256\npolicy=any\n\
                      rand_serial=yes\n[any]\ncommonName=optional\n";
        std::fs::write(self.dir.join("config"), config).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        let signer = match name == authority {
            true => "-selfsign".to_owned(),
            false => format!("-cert {authority}.pem"),
        };
        let [begin, end] = days;
        self.openssl(&format!(
            "ca -batch -notext -config config {signer} -keyfile {authority}.key -in {name}.csr -startdate {begin}000000Z \
             -enddate {end}000000Z -extfile extensions -out {name}.pem"
        ));
    }

    /// Has an authority make a certificate.
    pub(crate) fn issue(&self, name: &str, authority: &str, extensions: &str) {
        std::fs::write(self.dir.join("extensions"), extensions).unwrap();
        let subject = if name == "between" { "/CN=between" } else { "/" };
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj {subject} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {authority}.pem -CAkey {authority}.key -CAcreateserial -days 2 -extfile extensions \
             -out {name}.pem"
        ));
    }

    fn sign(&self, key: &str, bytes: &[u8]) -> Vec<u8> {
        std::fs::write(self.dir.join("bytes"), bytes).unwrap();
        self.openssl(&format!("dgst -sha256 -sign {key}.key -out signature bytes"));
        self.read("signature")
    }
}

/// How a signature is made.
pub(crate) struct Made {
    /// Whose key; the certificate has the same name, if there is one.
    signer: &'static str,
    log: &'static str,
    /// Seconds from now at which the log has taken it.
    after: i64,
    /// Changes the body of the entry, before the log signs it.
    body: fn(&mut Value),
    /// Changes what is signed by the log, afterwards.
    payload: fn(&mut Value),
    /// Changes the annotations at the end.
    annotations: fn(&mut Map<String, Value>),
}

const GOOD: Made = Made {
    signer: "good",
    log: "log",
    after: 0,
    body: |_| {},
    payload: |_| {},
    annotations: |_| {},
};

const BUNDLE: &str = "dev.sigstore.cosign/bundle";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";

pub(crate) fn base64(bytes: impl AsRef<[u8]>) -> String {
    STANDARD.encode(bytes)
}

impl Made {
    /// A good one by this signer.
    pub(crate) fn by(signer: &'static str) -> Self {
        Self { signer, ..GOOD }
    }

    /// The payload for an image, and its annotations.
    fn make(&self, authority: &Authority, manifest: &Digest, name: &str) -> (Vec<u8>, Value) {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": name},
                "image": {"docker-manifest-digest": manifest},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = payload.to_string().into_bytes();
        let signature = base64(authority.sign(self.signer, &payload));
        let pem = match self.signer {
            "plain" => authority.text("plain.pub"),
            signer => authority.text(&format!("{signer}.pem")),
        };
        let mut body = json!({
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": Digest::sha256(&payload).encoded()}},
                "signature": {"content": signature, "publicKey": {"content": base64(&pem)}},
            },
        });
        (self.body)(&mut body);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let time = i64::try_from(now).unwrap() + self.after;
        let id = "c0d23d6ad406973f9559f3ba2d1ca01f84147d8ffc5b8445c224f98b9591801d";
        // As it is signed, the keys are in this order.
        let logged = format!(
            r#"{{"body":"{}","integratedTime":{time},"logID":"{id}","logIndex":7}}"#,
            base64(body.to_string())
        );
        let promise = base64(authority.sign(self.log, logged.as_bytes()));
        let mut logged: Value = serde_json::from_str(&logged).unwrap();
        (self.payload)(&mut logged);
        let bundle = json!({"SignedEntryTimestamp": promise, "Payload": logged});
        let mut annotations = json!({
            "dev.cosignproject.cosign/signature": signature,
            BUNDLE: bundle.to_string(),
        });
        let fields = annotations.as_object_mut().unwrap();
        if self.signer != "plain" {
            fields.insert(CERTIFICATE.into(), pem.into());
        }
        if self.signer == "chained" {
            let chain = authority.text("between.pem") + &authority.text("ca.pem");
            fields.insert(CHAIN.into(), chain.into());
        }
        (self.annotations)(fields);
        (payload, annotations)
    }
}

/// Signatures, and whether they are good for a certificate of Fulcio.
fn certified() -> Vec<(&'static str, Made, bool)> {
    let by = Made::by;
    let body = |body| Made { body, ..GOOD };
    let annotations = |annotations| Made { annotations, ..GOOD };
    vec![
        ("good", GOOD, true),
        ("old issuer", by("old"), true),
        ("new issuer, no usage", by("new"), true),
        ("chained", by("chained"), true),
        ("of a stranger", by("stranger-leaf"), false),
        ("other mail", by("other-mail"), false),
        ("other issuer", by("other-issuer"), false),
        ("two issuers", by("two-issuers"), false),
        ("no issuer", by("no-issuer"), false),
        ("of a server", by("server"), false),
        ("the authority itself", by("ca"), false),
        (
            "other log",
            Made {
                log: "stranger-log",
                ..GOOD
            },
            false,
        ),
        (
            "too late",
            Made {
                after: 3 * 86_400,
                ..GOOD
            },
            false,
        ),
        (
            "too early",
            Made {
                after: -3 * 86_400,
                ..GOOD
            },
            false,
        ),
        ("other kind", body(|body| body["kind"] = "intoto".into()), false),
        (
            "other version",
            body(|body| body["apiVersion"] = "0.0.2".into()),
            false,
        ),
        ("no version", body(|body| body["apiVersion"] = Value::Null), false),
        (
            "other hash",
            body(|body| body["spec"]["data"]["hash"]["value"] = "00".repeat(32).into()),
            false,
        ),
        (
            "other algorithm",
            body(|body| body["spec"]["data"]["hash"]["algorithm"] = "sha512".into()),
            false,
        ),
        (
            "other signature",
            body(|body| body["spec"]["signature"]["content"] = base64("x").into()),
            false,
        ),
        (
            "no key",
            body(|body| body["spec"]["signature"]["publicKey"] = Value::Null),
            false,
        ),
        (
            "key that is none",
            body(|body| body["spec"]["signature"]["publicKey"]["content"] = base64("x").into()),
            false,
        ),
        ("more in the body", body(|body| body["more"] = 1.into()), true),
        (
            "changed afterwards",
            Made {
                payload: |payload| payload["logIndex"] = 8.into(),
                ..GOOD
            },
            false,
        ),
        (
            "more in the payload",
            Made {
                payload: |payload| payload["more"] = 8.into(),
                ..GOOD
            },
            false,
        ),
        ("no entry", annotations(|all| drop(all.remove(BUNDLE))), false),
        (
            "no certificate",
            annotations(|all| drop(all.remove(CERTIFICATE))),
            false,
        ),
        (
            "certificate twice",
            annotations(|all| {
                let text = all[CERTIFICATE].as_str().unwrap().repeat(2);
                all.insert(CERTIFICATE.into(), text.into());
            }),
            false,
        ),
        ("by a key alone", by("plain"), false),
    ]
}

/// An image in a repository of its own for each signature.
pub(crate) struct Signed {
    root: TestRoot,
    registry: OddRegistry,
    pub(crate) authority: Authority,
    manifest: Digest,
}

impl Signed {
    pub(crate) fn start(set: PeerSet) -> Self {
        let root = TestRoot::in_memory().of(set);
        let registry = OddRegistry::start(|asked| {
            let (_, digest) = asked.path.split_once("/manifests/sha256-")?;
            // What is attached is at the tag of another repository of the fake.
            let repository = asked.path.strip_prefix("/v2/")?.split("/manifests/").next()?;
            let target = format!("/v2/{repository}-attached/manifests/v1");
            let _digest = digest.strip_suffix(".sig")?;
            Some(Reply::new(307, "").header("Location", target))
        });
        let authority = Authority::new(root.scratch("authority"));
        let parts = Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1)]);
        let manifest = registry.add("x", &parts);
        Self {
            root,
            registry,
            authority,
            manifest,
        }
    }

    /// Adds the image with a signature to a repository; returns its reference.
    pub(crate) fn add(&self, number: usize, made: &Made) -> String {
        let repository = format!("team/app{number}");
        let parts = Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1)]);
        self.registry.add(&repository, &parts);
        let name = format!("{}/{repository}", self.registry.address());
        let (payload, annotations) = made.make(&self.authority, &self.manifest, &name);
        let mut listed = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
        listed["annotations"] = annotations;
        self.registry.add_blob(&repository, &payload);
        self.registry.add_blob(&repository, b"{}");
        let attached = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
            "layers": [listed],
        });
        self.registry
            .add_manifest(&format!("{repository}-attached"), &attached, OCI_MANIFEST);
        self.registry.image(&repository)
    }

    /// What we and Skopeo say of images under a requirement.
    pub(crate) async fn compare(&self, requirement: &Value, images: &[(&str, String, bool)]) {
        let policy = self.root.path().join("policy.json");
        std::fs::write(&policy, json!({"default": [requirement]}).to_string()).unwrap();
        let registries_d = self.root.scratch("registries.d");
        let text = "default-docker:\n  use-sigstore-attachments: true\n";
        std::fs::write(registries_d.join("default.yaml"), text).unwrap();
        let storage = SignatureStorage::from_directory(&registries_d).await.unwrap();
        let registry = RegistryOptions::default().retries(0).signature_storage(storage);
        let options = PullOptions::default()
            .registry(registry)
            .policy(Policy::from_file(&policy).await.unwrap());
        let store = self.root.open().await;
        for (what, image, is_good) in images {
            let reference: ImageRef = image.parse().unwrap();
            let pulled = Puller::new(&store, options.clone())
                .pull_as(&reference, &[])
                .await;
            assert_eq!(pulled.is_ok(), *is_good, "{what}: {pulled:?}");
            if let Err(error) = pulled {
                assert_eq!(error.kind(), ErrorKind::Rejected, "{what}: {error:?}");
            }
            let skopeo = self.skopeo(&policy, &registries_d, image);
            assert_eq!(skopeo.status.success(), *is_good, "{what}: {skopeo:?}");
        }
    }

    fn skopeo(&self, policy: &Path, registries_d: &Path, image: &str) -> std::process::Output {
        self.root
            .skopeo()
            .with(["--registries.d"])
            .with([registries_d])
            .with(["--policy"])
            .with([policy])
            .words("copy --quiet --src-tls-verify=false")
            .with([image, &format!("dir:{}", self.root.scratch("to").display())])
            .output()
            .unwrap()
    }
}

async fn certificates_and_entries_are_judged_as_by_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    let at = |name: &str| signed.authority.dir.join(name);
    let mut images = Vec::new();
    for (number, (what, made, is_good)) in certified().into_iter().enumerate() {
        images.push((what, signed.add(number, &made), is_good));
    }
    let fulcio = |authority: &str, issuer: &str, email: &str| {
        json!({
            "type": "sigstoreSigned",
            "fulcio": {"caPath": at(authority), "oidcIssuer": issuer, "subjectEmail": email},
            "rekorPublicKeyData": base64(signed.authority.read("log.pub")),
            "signedIdentity": {"type": "matchRepository"},
        })
    };
    signed.compare(&fulcio("ca.pem", ISSUER, EMAIL), &images).await;
    // The same signature under other policies.
    let good = |is_good| [("good", images[0].1.clone(), is_good)];
    signed
        .compare(&fulcio("ca.pem", "https://other.example", EMAIL), &good(false))
        .await;
    signed
        .compare(&fulcio("ca.pem", ISSUER, "who"), &good(false))
        .await;
    signed
        .compare(&fulcio("stranger.pem", ISSUER, EMAIL), &good(false))
        .await;
    signed
        .compare(&fulcio("log.pub", ISSUER, EMAIL), &good(false))
        .await;
    signed
        .compare(&fulcio("missing", ISSUER, EMAIL), &good(false))
        .await;
    // Keys, with the log and without.
    let keys = |key: &str, log: &[&str]| {
        let logs: Vec<_> = log.iter().map(|log| at(log)).collect();
        let mut requirement = json!({
            "type": "sigstoreSigned",
            "keyPaths": [at("stranger-log.pub"), at(key)],
            "signedIdentity": {"type": "matchRepository"},
        });
        if !logs.is_empty() {
            requirement["rekorPublicKeyPaths"] =
                logs.into_iter().map(|log| log.display().to_string()).collect();
        }
        requirement
    };
    let by_key = |is_good| [("by a key", images[images.len() - 1].1.clone(), is_good)];
    signed.compare(&keys("plain.pub", &[]), &by_key(true)).await;
    signed
        .compare(
            &keys("plain.pub", &["stranger-log.pub", "log.pub"]),
            &by_key(true),
        )
        .await;
    signed
        .compare(&keys("plain.pub", &["stranger-log.pub"]), &by_key(false))
        .await;
    signed
        .compare(&keys("log.pub", &["log.pub"]), &by_key(false))
        .await;
    signed
        .compare(&keys("plain.pub", &["log.pub"]), &good(false))
        .await;
}
each_set!(newer async certificates_and_entries_are_judged_as_by_skopeo: "skopeo", "openssl");

const HOSTNAME: &str = "build.team.example";

/// Adds certificates of people and machines that build images.
fn issue_to_builders(authority: &Authority) {
    let named = |names: &str, usage: &str| {
        let usage = format!("extendedKeyUsage={usage}\n");
        format!("basicConstraints=critical,CA:FALSE\nsubjectAltName={names}\n{usage}")
    };
    let both = format!("email:{EMAIL},DNS:{HOSTNAME}");
    for (name, by, text) in [
        ("builder", "ca", named(&both, "codeSigning")),
        ("any-usage", "ca", named(&both, "anyExtendedKeyUsage")),
        ("two-usages", "ca", named(&both, "serverAuth,codeSigning")),
        ("web-server", "ca", named(&both, "serverAuth")),
        (
            "mail-alone",
            "ca",
            named(&format!("email:{EMAIL}"), "codeSigning"),
        ),
        (
            "host-alone",
            "ca",
            named(&format!("DNS:{HOSTNAME}"), "codeSigning"),
        ),
        (
            "any-host",
            "ca",
            named(&format!("email:{EMAIL},DNS:*.team.example"), "codeSigning"),
        ),
        (
            "upper-case",
            "ca",
            named(&format!("email:{EMAIL},DNS:BUILD.Team.example"), "codeSigning"),
        ),
        (
            "upper-case-mail",
            "ca",
            named(&format!("email:WHO@mail.example,DNS:{HOSTNAME}"), "codeSigning"),
        ),
        (
            "below",
            "ca",
            named(&format!("email:{EMAIL},DNS:more.{HOSTNAME}"), "codeSigning"),
        ),
        ("of-a-stranger", "stranger", named(&both, "codeSigning")),
        ("of-between", "between", named(&both, "codeSigning")),
        ("of-a-leaf", "builder", named(&both, "codeSigning")),
        ("of-a-server-authority", "server-ca", named(&both, "codeSigning")),
    ] {
        if name == "of-a-server-authority" {
            let text = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\nextendedKeyUsage=serverAuth\n";
            authority.issue_for_days("server-ca", "ca", text, ["250101", "450101"]);
        }
        authority.issue(name, by, &text);
    }
    for (name, days) in [("expired", ["200101", "200201"]), ("early", ["450101", "450201"])] {
        authority.issue_for_days(name, "ca", &named(&both, "codeSigning"), days);
    }
    let text = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign\n";
    authority.issue_for_days("old-ca", "old-ca", text, ["200101", "200201"]);
    authority.issue("of-old-ca", "old-ca", &named(&both, "codeSigning"));
}

/// Signatures, and whether they are good for the mail address, for the host name, and for both.
fn of_builders() -> Vec<(&'static str, Made, [bool; 3])> {
    let by = |signer, good| (signer, Made::by(signer), good);
    let chain = |text: fn(&mut Map<String, Value>)| Made {
        signer: "of-between",
        annotations: text,
        ..GOOD
    };
    vec![
        by("builder", [true; 3]),
        by("any-usage", [true; 3]),
        by("two-usages", [true; 3]),
        by("web-server", [false; 3]),
        by("mail-alone", [true, false, false]),
        by("host-alone", [false, true, false]),
        by("any-host", [true; 3]),
        by("upper-case", [true; 3]),
        by("upper-case-mail", [false, true, false]),
        by("below", [true, false, false]),
        by("of-a-stranger", [false; 3]),
        by("of-between", [false; 3]),
        by("of-a-leaf", [false; 3]),
        by("of-a-server-authority", [false; 3]),
        by("expired", [false; 3]),
        by("early", [false; 3]),
        by("of-old-ca", [false; 3]),
        by("good", [true, false, false]),
        (
            "chain that is none",
            chain(|all| drop(all.insert(CHAIN.into(), "x".into()))),
            [false; 3],
        ),
        (
            "chain with a text behind it",
            Made {
                signer: "builder",
                annotations: |all| {
                    let text = all[CERTIFICATE].as_str().unwrap().repeat(2) + "x";
                    all.insert(CHAIN.into(), text.into());
                },
                ..GOOD
            },
            [false; 3],
        ),
        (
            "no certificate",
            chain(|all| drop(all.remove(CERTIFICATE))),
            [false; 3],
        ),
        (
            "of another key",
            Made {
                signer: "builder",
                annotations: |all| {
                    drop(all.insert("dev.cosignproject.cosign/signature".into(), base64("x").into()));
                },
                ..GOOD
            },
            [false; 3],
        ),
    ]
}

async fn certificates_of_another_authority_are_judged_as_by_skopeo(set: PeerSet) {
    let signed = Signed::start(set);
    issue_to_builders(&signed.authority);
    let at = |name: &str| signed.authority.dir.join(name);
    let pki = |roots: &str, more: Value| {
        let mut pki = json!({"caRootsPath": at(roots)});
        pki.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"type": "sigstoreSigned", "pki": pki, "signedIdentity": {"type": "matchRepository"}})
    };
    let made = of_builders();
    let images: Vec<_> = made
        .iter()
        .enumerate()
        .map(|(number, (what, made, good))| (*what, signed.add(number, made), *good))
        .collect();
    for (subject, index) in [
        (json!({"subjectEmail": EMAIL}), 0),
        (json!({"subjectHostname": HOSTNAME}), 1),
        (json!({"subjectEmail": EMAIL, "subjectHostname": HOSTNAME}), 2),
    ] {
        let judged: Vec<_> = images
            .iter()
            .map(|(what, image, good)| (*what, image.clone(), good[index]))
            .collect();
        signed.compare(&pki("ca.pem", subject), &judged).await;
    }
    // One and the same signature under other policies.
    let one = |name: &'static str, is_good| {
        let found = images.iter().find(|(what, ..)| *what == name).unwrap();
        [(name, found.1.clone(), is_good)]
    };
    let with = |more: Value| {
        let mut subject = json!({"subjectHostname": HOSTNAME});
        subject
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        subject
    };
    let chained = with(json!({"caIntermediatesPath": at("between.pem")}));
    signed
        .compare(&pki("ca.pem", chained.clone()), &one("of-between", true))
        .await;
    let data = with(json!({"caIntermediatesData": base64(signed.authority.read("between.pem"))}));
    signed
        .compare(&pki("ca.pem", data), &one("of-between", true))
        .await;
    signed
        .compare(&pki("stranger.pem", chained), &one("of-between", false))
        .await;
    signed
        .compare(&pki("between.pem", with(json!({}))), &one("of-between", true))
        .await;
    signed
        .compare(&pki("old-ca.pem", with(json!({}))), &one("of-old-ca", false))
        .await;
    for bad in ["missing", "log.pub"] {
        signed
            .compare(&pki(bad, with(json!({}))), &one("builder", false))
            .await;
        let bad = with(json!({"caIntermediatesPath": at(bad)}));
        signed.compare(&pki("ca.pem", bad), &one("builder", false)).await;
    }
    // More than the one root that is wanted.
    let bundle = signed.authority.text("stranger.pem") + &signed.authority.text("ca.pem");
    std::fs::write(at("bundle.pem"), bundle).unwrap();
    signed
        .compare(&pki("bundle.pem", with(json!({}))), &one("builder", true))
        .await;
    for (host, is_good) in [
        ("build", false),
        ("team.example", false),
        ("BUILD.team.example", true),
        ("build.team.example.", true),
        ("192.0.2.1", false),
    ] {
        signed
            .compare(
                &pki("ca.pem", json!({"subjectHostname": host})),
                &one("builder", is_good),
            )
            .await;
    }
}
each_set!(newer async certificates_of_another_authority_are_judged_as_by_skopeo: "skopeo", "openssl");
