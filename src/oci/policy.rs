//! Which images may be pulled: `policy.json`, as in containers-policy.json(5).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::reference::ImageRef;
use super::requirement::Requirement;
#[cfg(feature = "signatures")]
use super::signatures::evaluate;
#[cfg(feature = "signatures")]
use super::signatures::signature::Signature;
use super::unique_json::is_object;
use crate::bridge;
use crate::config::{self, Loader, POLICY};
use crate::error::{ErrorKind, Result};

/// Which images may be pulled, as Podman, Buildah, Skopeo and CRI-O read it from `policy.json`. Cheap to clone. The default
/// accepts anything.
///
/// With the feature `signatures`, a pull verifies the signatures that the policy wants of images in registries and `dir:`
/// directories: OpenPGP
/// signatures (`signedBy`), and those of sigstore's programs (`sigstoreSigned`) with public keys (`keyPath`, `keyPaths`,
/// `keyData` or `keyDatas`; ECDSA on P-256 and P-384, RSA, Ed25519), certificates of Fulcio (`fulcio`) or of an authority of
/// one's own (`pki`), and their entries in the log of Rekor (`rekorPublicKeyPath` and so on), all without the network. A
/// registry's are where `RegistryOptions::signature_storage` says; a registry that serves OpenPGP signatures itself, which it says in an
/// answer at `/v2/` (`X-Registry-Supports-Signatures: 1`), is asked for them in place of what is beside it. What cannot be
/// verified is refused: every signature without the feature, keys of other kinds (P-521), signers' certificates that are
/// authorities' themselves, OpenPGP signatures with SHA-1 or MD5, signatures of a manifest's digest that is not SHA-256.
///
/// Signatures of sigstore's programs are attachments in the image's repository. They are read only where `registries.d` says so
/// for it: `docker: {registry.example: {use-sigstore-attachments: true}}`.
///
/// ```json
/// {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/etc/pki/team.gpg"}
/// {"type": "sigstoreSigned", "keyPath": "/etc/pki/team.pub"}
/// {"type": "sigstoreSigned", "pki": {"caRootsPath": "/etc/pki/roots.pem", "caIntermediatesPath": "/etc/pki/intermediates.pem",
///   "subjectEmail": "release@team.example", "subjectHostname": "ci.team.example"}}
/// ```
///
/// are requirements in place of `{"type": "reject"}` below. Of `pki`, the intermediates may be left out, and one of the two
/// subjects.
///
/// Where layers of an image are fetched without a pull, to heal a store or in parts, only `reject` counts: what they have to be
/// is known by digests, and of a signature nothing more would follow.
///
/// ```
/// use graphroot::oci::{ImageRef, Policy};
/// # fn main() -> graphroot::Result<()> {
/// let policy = Policy::parse(
///     r#"{"default": [{"type": "reject"}],
///         "transports": {"docker": {"registry.example": [{"type": "insecureAcceptAnything"}]}}}"#,
/// )?;
/// let image: ImageRef = "docker://registry.example/app:1".parse()?;
/// assert!(policy.check(&image).is_ok());
/// assert!(policy.check(&"docker://elsewhere.example/app:1".parse()?).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Policy {
    rules: Arc<Rules>,
}

/// Requirements, all of which have to be met.
type Requirements = Vec<Requirement>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    default: Requirements,
    /// By transport, then by scope.
    #[serde(default)]
    transports: Unique<Unique<Requirements>>,
}

/// A map in which no key stands twice: what counts then would differ from program to program.
#[derive(Debug)]
struct Unique<V>(BTreeMap<String, V>);

impl<V> Default for Unique<V> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<V>(PhantomData<V>);
        impl<'de, V: Deserialize<'de>> Visitor<'de> for Entries<V> {
            type Value = Unique<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map.next_value()?;
                    if all.insert(key.clone(), value).is_some() {
                        return Err(A::Error::custom(format!("duplicate key {key:?}")));
                    }
                }
                Ok(Unique(all))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            rules: Arc::new(Rules {
                default: vec![Requirement::Nothing],
                transports: Unique::default(),
            }),
        }
    }
}

impl Policy {
    /// The policy of this user on this machine: the file that `CONTAINERS_POLICY_JSON` names, else
    /// `containers/policy.json` of the user's directory of configuration, of `/etc` or of `/usr/share`, whichever comes first.
    /// If there is none anything is accepted; Podman pulls nothing then.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a file that makes no sense, and [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load() -> Result<Self> {
        Self::load_with(Loader::for_process()).await
    }

    /// As [`Policy::load`], for another environment.
    ///
    /// # Errors
    /// As [`Policy::load`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load_with(loader: Loader) -> Result<Self> {
        let found = bridge::run(move || config::read_one(&loader.environment, &POLICY)).await?;
        match found {
            Some(file) => Self::read(&file.path, &file.text),
            None => Ok(Self::default()),
        }
    }

    /// The policy in a file.
    ///
    /// # Errors
    /// As [`Policy::load`], and if there is no such file.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn from_file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let file = bridge::run(move || config::read_existing(&path, &POLICY, None)).await?;
        Self::read(&file.path, &file.text)
    }

    /// The policy in the text of a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it makes no sense.
    pub fn parse(text: &str) -> Result<Self> {
        let read = match is_object(text.as_bytes()) {
            true => serde_json::from_str(text),
            false => Err(serde_json::Error::custom("an object is expected")),
        };
        let rules: Rules = read.map_err(|error| {
            let what = "a policy that makes no sense";
            ErrorKind::InvalidInput.err(what).with_source(error)
        })?;
        let scopes = rules.transports.0.values().flat_map(|scopes| scopes.0.values());
        if scopes.chain([&rules.default]).any(Vec::is_empty) {
            let what = "List of verification policy requirements must not be empty";
            return Err(ErrorKind::InvalidInput.err(what));
        }
        for (transport, scopes) in &rules.transports.0 {
            if let Some(scope) = scopes.0.keys().find(|scope| !may_be_scope(transport, scope)) {
                return Err(ErrorKind::InvalidInput.err(format!("Unknown key {scope:?} for {transport:?}")));
            }
        }
        Ok(Self {
            rules: Arc::new(rules),
        })
    }

    fn read(path: &Path, text: &str) -> Result<Self> {
        let parsed = Self::parse(text);
        parsed.map_err(|error| error.context(format!("invalid policy in {path:?}")))
    }

    /// Whether an image may be pulled whatever signatures it has. Scopes are those of containers-policy.json(5): the narrowest
    /// one counts. An image of which a signature is wanted is refused here; whether it has one only a pull can tell.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if not, with the reason.
    pub fn check(&self, image: &ImageRef) -> Result<()> {
        for requirement in self.requirements(image) {
            match requirement {
                Requirement::Nothing => {}
                Requirement::Reject => {
                    return refuse(&format!("Running image {image} is rejected by policy."));
                }
                signed => {
                    let kind = signed.name();
                    return refuse(&format!(
                        "A signature was required ({kind}) of {image}, which is not verified here"
                    ));
                }
            }
        }
        Ok(())
    }

    /// As [`Policy::check`], but an image of which signatures are wanted that a pull verifies is not refused yet.
    /// Blocking: looks at paths.
    pub(crate) fn check_before_pull(&self, image: &ImageRef) -> Result<()> {
        let wants_more =
            |requirement: &Requirement| !matches!(requirement, Requirement::Nothing | Requirement::Reject);
        let requirements = self.requirements(image);
        if !cfg!(feature = "signatures") || !requirements.iter().any(wants_more) {
            return self.check(image);
        }
        self.refuse_rejected(image)?;
        match image {
            ImageRef::Registry(_) | ImageRef::Directory { .. } => Ok(()),
            _ => refuse("A signature was required, but no signature exists"),
        }
    }

    /// Refuses an image of which nothing may be pulled, whatever signatures it has. Blocking: looks at paths.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`].
    pub(crate) fn refuse_rejected(&self, image: &ImageRef) -> Result<()> {
        match self.requirements(image).contains(&Requirement::Reject) {
            true => refuse(&format!("Running image {image} is rejected by policy.")),
            false => Ok(()),
        }
    }

    /// Whether OpenPGP signatures of an image in a registry are wanted.
    #[cfg(feature = "signatures")]
    pub(crate) fn wants_openpgp(&self, image: &ImageRef) -> bool {
        let is_openpgp = |requirement: &Requirement| matches!(requirement, Requirement::SignedBy { .. });
        matches!(image, ImageRef::Registry(_)) && self.requirements(image).iter().any(is_openpgp)
    }

    /// Whether the signatures of an image are good for this manifest. Blocking: reads keys.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if not, with the reason.
    #[cfg(feature = "signatures")]
    pub(crate) fn verify(&self, image: &ImageRef, manifest: &[u8], signatures: &[Signature]) -> Result<()> {
        for requirement in self.requirements(image) {
            let verified = evaluate::verify(requirement, image, manifest, signatures);
            verified.or_else(|why| refuse(&why))?;
        }
        Ok(())
    }

    fn requirements(&self, image: &ImageRef) -> &[Requirement] {
        let (transport, scopes) = scopes(image);
        let known = self.rules.transports.0.get(transport);
        let found = known.and_then(|known| scopes.iter().find_map(|scope| known.0.get(scope)));
        found.unwrap_or(&self.rules.default)
    }
}

fn refuse(why: &str) -> Result<()> {
    Err(ErrorKind::Rejected.err(format!("Source image rejected: {why}")))
}

/// Whether an image of a transport can be in a scope: one that is written in another way than images are looked up would be
/// passed over, and what it rejects accepted.
fn may_be_scope(transport: &str, scope: &str) -> bool {
    match transport {
        _ if scope.is_empty() => true,
        "oci" | "dir" | "oci-archive" => {
            let is_clean = |part: &str| !matches!(part, "" | "." | "..");
            scope
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(is_clean))
        }
        "docker-archive" => false,
        _ => true,
    }
}

/// The transport of an image, and the scopes that it is in, the narrowest first.
fn scopes(image: &ImageRef) -> (&'static str, Vec<String>) {
    let (transport, mut scopes) = match image {
        ImageRef::Registry(reference) => ("docker", reference.scopes()),
        ImageRef::Layout { dir, .. } => ("oci", paths(dir)),
        ImageRef::Directory { dir } => ("dir", paths(dir)),
        ImageRef::OciArchive { file, .. } => ("oci-archive", paths(file)),
        ImageRef::DockerArchive { .. } => ("docker-archive", Vec::new()),
    };
    scopes.push(String::new());
    (transport, scopes)
}

/// A path with all links resolved, and the directories that it is in, but not the root.
fn paths(path: &Path) -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "the user names the path, not an image")]
    let resolved = std::fs::canonicalize(path).or_else(|_| std::path::absolute(path));
    let resolved = resolved.unwrap_or_else(|_| path.to_owned());
    let parents = resolved.ancestors().filter(|parent| *parent != Path::new("/"));
    parents
        .map(|parent| parent.to_string_lossy().into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_go_from_narrow_to_wide() {
        let of = |text: &str| scopes(&text.parse().unwrap());
        let (transport, all) = of("docker://a.b.example:5000/x/y:t");
        assert_eq!(transport, "docker");
        let wanted = [
            "a.b.example:5000/x/y:t",
            "a.b.example:5000/x/y",
            "a.b.example:5000/x",
            "a.b.example:5000",
            "*.b.example",
            "*.example",
            "",
        ];
        assert_eq!(all, wanted);
        assert_eq!(
            of("oci:/no/such:name"),
            ("oci", vec!["/no/such".into(), "/no".into(), String::new()])
        );
        assert_eq!(of("docker-archive:/x"), ("docker-archive", vec![String::new()]));
    }

    #[test]
    fn policies_that_make_no_sense_are_refused() {
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"default": []}"#,
            r#"{"default": [{"type": "reject"}], "x": 1}"#,
            r#"{"default": [{"type": "reject"}], "default": []}"#,
            r#"{"default": [{"type": "no such"}]}"#,
            r#"{"default": [{}]}"#,
            r#"{"default": [{"type": "reject", "x": 1}]}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": [], "a": []}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a": {}}}}"#,
            r#"{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}"#,
            // Scopes that no image is in.
            r#"{"default": [{"type": "reject"}], "transports": {"dir": {"a": [{"type": "reject"}]}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"dir": {"/": [{"type": "reject"}]}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"oci": {"/a/": [{"type": "reject"}]}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"oci": {"/a/../b": [{"type": "reject"}]}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"oci-archive": {"/a//b": [{"type": "reject"}]}}}"#,
            r#"{"default": [{"type": "reject"}], "transports": {"docker-archive": {"/a": [{"type": "reject"}]}}}"#,
        ] {
            let error = Policy::parse(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }

    #[test]
    fn a_signature_that_is_wanted_is_not_ignored() {
        let image = "docker://a.example/x".parse().unwrap();
        for kind in ["signedBy", "sigstoreSigned", "signedBaseLayer"] {
            let fields = match kind {
                "signedBy" => r#", "keyType": "GPGKeys", "keyPath": "/x""#,
                "sigstoreSigned" => r#", "keyPath": "/x""#,
                _ => r#", "baseLayerIdentity": {"type": "matchExact"}"#,
            };
            let text = format!(
                r#"{{"default": [{{"type": "insecureAcceptAnything"}}, {{"type": "{kind}"{fields}}}]}}"#
            );
            let error = Policy::parse(&text).unwrap().check(&image).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Rejected);
            assert!(
                error
                    .to_string()
                    .contains("Source image rejected: A signature was required"),
                "{error}"
            );
        }
        assert!(Policy::default().check(&image).is_ok());
    }

    #[tokio::test]
    async fn the_users_file_counts_more_than_that_of_the_system() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, kind: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!(r#"{{"default": [{{"type": "{kind}"}}]}}"#)).unwrap();
        };
        let image = "docker://a.example/x".parse().unwrap();
        let accepts = async || {
            let loader = Loader::new()
                .root(root.path())
                .variable("HOME", root.path().join("home"));
            Policy::load_with(loader).await.unwrap().check(&image).is_ok()
        };
        assert!(accepts().await, "no file");
        write("etc/containers/policy.json", "reject");
        assert!(!accepts().await);
        write("home/.config/containers/policy.json", "insecureAcceptAnything");
        assert!(accepts().await);
        std::fs::write(root.path().join("home/.config/containers/policy.json"), "x").unwrap();
        let loader = Loader::new()
            .root(root.path())
            .variable("HOME", root.path().join("home"));
        let error = Policy::load_with(loader).await.unwrap_err().chain();
        assert!(error.contains("invalid policy in"), "{error}");
        let error = Policy::from_file("/no/such/file").await.unwrap_err().chain();
        assert!(
            error.contains("/no/such/file") && !error.contains(POLICY.conf),
            "{error}"
        );
        let loader = Loader::new().variable(POLICY.conf, "/no/such/file");
        let error = Policy::load_with(loader).await.unwrap_err().chain();
        assert!(error.contains(POLICY.conf), "{error}");
    }

    #[test]
    fn a_misspelled_key_is_named_before_what_is_missing() {
        for requirement in [
            r#"{"type": "reject", "odd": 1}"#,
            r#"{"type": "signedBy", "odd": 1}"#,
            r#"{"type": "signedBaseLayer", "odd": 1}"#,
            r#"{"type": "sigstoreSigned", "odd": "/k"}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "fulcio": {}, "odd": 1}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"odd": "/k"}}"#,
            r#"{"type": "sigstoreSigned", "pki": {"odd": "/k", "subjectEmail": "a@b.example"}}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "matchExact", "odd": 1}}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactReference", "odd": 1}}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "exactRepository", "odd": 1}}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "signedIdentity": {"type": "remapIdentity", "odd": 1}}"#,
        ] {
            let policy = format!(r#"{{"default": [{requirement}]}}"#);
            let error = Policy::parse(&policy).unwrap_err().chain();
            assert!(error.contains(r#"Unknown key "odd""#), "{requirement}: {error}");
        }
    }
}
