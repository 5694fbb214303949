//! Signed images in a registry, and the keys, policies and programs to verify them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use graphroot::oci::{ImageRef, Policy, PullOptions, Puller, RegistryOptions, SignatureStorage};
use graphroot::{Digest, Store};
use serde_json::{Value, json};

use crate::fake_registry::layer;
use crate::odd_registry::{OCI_MANIFEST, OddRegistry, Parts, good_config};
use crate::registry::Registry;
use crate::support::peers::{PeerSet, Run as _};
use crate::support::root::TestRoot;

/// OpenPGP keys of a test.
pub(crate) struct Keys {
    pub(crate) home: PathBuf,
}

impl Keys {
    pub(crate) fn new(root: &TestRoot) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let home = root.scratch("gpg");
        std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { home }
    }

    pub(crate) fn gpg(&self, line: &str) -> Command {
        let mut command = Command::new("gpg");
        command.env("GNUPGHOME", &self.home).stdin(Stdio::null());
        command
            .words("--batch --quiet --yes --passphrase '' --pinentry-mode loopback")
            .words(line)
    }

    /// Makes a key and writes its public part to a file.
    pub(crate) fn add(&self, name: &str, line: &str) -> PathBuf {
        self.gpg(line).run();
        let file = self.home.join(format!("{name}.pub"));
        self.gpg(&format!("--export --output {} {name}@example", file.display()))
            .run();
        file
    }

    pub(crate) fn fingerprint(&self, name: &str) -> String {
        let listed = self
            .gpg(&format!("--with-colons --list-keys {name}@example"))
            .run();
        let line = listed.lines().find(|line| line.starts_with("fpr")).unwrap();
        line.split(':').nth(9).unwrap().to_owned()
    }

    /// The file with the revocation of a key that GnuPG makes together with it, made ready for use.
    pub(crate) fn revocation(&self, name: &str) -> PathBuf {
        let file = format!("openpgp-revocs.d/{}.rev", self.fingerprint(name));
        let file = self.home.join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(":-----BEGIN", "-----BEGIN")).unwrap();
        file
    }

    /// A signature for a manifest and a name, made with these options.
    pub(crate) fn sign(&self, options: &str, manifest: &str, name: &str) -> Vec<u8> {
        let payload = json!({
            "critical": {
                "type": "atomic container signature",
                "image": {"docker-manifest-digest": manifest},
                "identity": {"docker-reference": name},
            },
            "optional": {},
        });
        let (from, to) = (self.home.join("payload"), self.home.join("signature"));
        std::fs::write(&from, payload.to_string()).unwrap();
        let (from, to) = (from.display(), to.display());
        self.gpg(&format!("{options} --output {to} --sign {from}")).run();
        std::fs::read(self.home.join("signature")).unwrap()
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let mut command = Command::new("gpgconf");
        command.env("GNUPGHOME", &self.home).args(["--kill", "all"]);
        // It ends by itself when its directory is gone.
        command.output().ok();
    }
}

/// A registry with signed images, and all that is needed to verify them.
pub(crate) struct Signed {
    pub(crate) root: TestRoot,
    pub(crate) registry: Registry,
    pub(crate) keys: Keys,
    /// Configuration of where signatures are.
    pub(crate) registries_d: PathBuf,
    pub(crate) lookaside: PathBuf,
    /// Of the image, the same under all names.
    pub(crate) manifest: String,
}

impl Signed {
    /// Beside the newest Skopeo, if it is there.
    pub(crate) fn start_beside_newest() -> Option<Self> {
        let set = PeerSet::Forky;
        set.is_ready(&["skopeo"]).then(|| Self::start(set))
    }

    pub(crate) fn start(set: PeerSet) -> Self {
        let root = TestRoot::in_memory().of(set);
        let registry = Registry::start(&root.scratch("registry"), &root.path().join("data"));
        let keys = Keys::new(&root);
        for (name, kind) in [("alice", "rsa2048"), ("bob", "ed25519"), ("carol", "nistp256")] {
            keys.add(name, &format!("--quick-gen-key {name}@example {kind} sign never"));
        }
        let registries_d = root.scratch("registries.d");
        let lookaside = root.scratch("lookaside");
        let text = format!(
            "default-docker:\n  lookaside: file://{}\n  use-sigstore-attachments: true\n",
            lookaside.display()
        );
        std::fs::write(registries_d.join("default.yaml"), text).unwrap();
        let source = OddRegistry::start(|_| None);
        source.add("x", &Parts::new(OCI_MANIFEST, good_config(), &[layer("a", 1)]));
        let mut signed = Self {
            root,
            registry,
            keys,
            registries_d,
            lookaside,
            manifest: String::new(),
        };
        for name in [
            "app", "bob", "moved", "unsigned", "many", "cosign", "both", "other", "odd",
        ] {
            signed.copy("--remove-signatures", &source.image("x"), &signed.docker(name));
        }
        signed.manifest = Digest::sha256(signed.fetched("app")).to_string();
        signed
    }

    /// The manifest of an image.
    pub(crate) fn fetched(&self, image: &str) -> Vec<u8> {
        let raw = self
            .skopeo()
            .words("inspect --raw --tls-verify=false")
            .with([self.docker(image)]);
        { raw }.output().unwrap().stdout
    }

    pub(crate) fn name(&self, image: &str) -> String {
        format!("{}/team/{image}:v1", self.registry.address())
    }

    pub(crate) fn docker(&self, image: &str) -> String {
        format!("docker://{}", self.name(image))
    }

    pub(crate) fn skopeo(&self) -> Command {
        let mut skopeo = self.root.skopeo();
        skopeo.env("GNUPGHOME", &self.keys.home);
        skopeo.with(["--registries.d"]).with([&self.registries_d])
    }

    /// Copies an image with Skopeo, whatever the policy of this machine says.
    pub(crate) fn copy(&self, options: &str, from: &str, to: &str) {
        let policy = self.root.path().join("accept.json");
        std::fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
        self.skopeo()
            .with(["--policy"])
            .with([&policy])
            .words(&format!(
                "copy --quiet --src-tls-verify=false --dest-tls-verify=false {options} {from} {to}"
            ))
            .run();
    }

    /// Where the signatures of an image are.
    pub(crate) fn dir(&self, image: &str) -> PathBuf {
        self.lookaside
            .join(format!("team/{image}@{}", self.manifest.replace(':', "=")))
    }

    pub(crate) fn put(&self, image: &str, number: usize, signature: &[u8]) {
        std::fs::create_dir_all(self.dir(image)).unwrap();
        std::fs::write(self.dir(image).join(format!("signature-{number}")), signature).unwrap();
    }

    pub(crate) async fn options(&self, policy: &str) -> graphroot::Result<PullOptions> {
        let storage = SignatureStorage::from_directory(&self.registries_d).await?;
        let registry = RegistryOptions::default().retries(0).signature_storage(storage);
        Ok(PullOptions::default()
            .registry(registry)
            .policy(Policy::parse(policy)?))
    }

    pub(crate) async fn pull(&self, store: &Store, policy: &str, image: &str) -> graphroot::Result<()> {
        let puller = Puller::new(store, self.options(policy).await?);
        puller.pull_as(&image.parse::<ImageRef>()?, &[]).await.map(drop)
    }

    /// Whether Skopeo copies an image, and what it says.
    pub(crate) fn skopeo_copies(&self, policy: &str, image: &str) -> (bool, String) {
        let file = self.root.path().join("policy.json");
        std::fs::write(&file, policy).unwrap();
        let to = format!("dir:{}", self.root.scratch("to").display());
        let mut skopeo = self
            .skopeo()
            .with(["--policy"])
            .with([&file])
            .words("copy --quiet --src-tls-verify=false")
            .with([image, &to]);
        let output = skopeo.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

pub(crate) fn with_default(requirements: &Value) -> String {
    json!({"default": requirements}).to_string()
}

pub(crate) fn base64(path: &Path) -> String {
    base64::engine::general_purpose::STANDARD.encode(std::fs::read(path).unwrap())
}
