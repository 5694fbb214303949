//! The types into which image programs decode manifests and configs, and which documents they take for an image.
//!
//! A store is read by Podman, Buildah, Skopeo and CRI-O too. One image that they cannot read makes `podman images` fail
//! for all of them, so it must not get into a store. They decode the config of an image twice, by OCI's specification
//! and as Docker's own, and so does this: every field has to fit both.

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{ErrorKind, Result};
use crate::store::typed_json::{Shape, decode, typed};

/// Media type of an OCI image manifest.
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an OCI image index.
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a Docker image manifest, version 2 schema 2.
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of a list of Docker's image manifests.
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an OCI image config.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of the config in Docker's manifests.
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// The media types that programs in Go let a layer of a Docker manifest have; not all are those of layers.
const DOCKER_TYPES: [&str; 10] = [
    DOCKER_LIST,
    DOCKER_MANIFEST,
    DOCKER_CONFIG,
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

type Field = (&'static str, Shape);

const TEXTS: Shape = Shape::List(&Shape::Text);
const TEXT_MAP: Shape = Shape::Map(&Shape::Text);
const KEYS: Shape = Shape::Map(&Shape::Object(&[]));

const HEALTH_CHECK: Shape = Shape::Object(&[
    ("Test", TEXTS),
    ("StartPeriod", Shape::Integer),
    ("StartInterval", Shape::Integer),
    ("Interval", Shape::Integer),
    ("Timeout", Shape::Integer),
    ("Retries", Shape::Integer),
]);

/// What a container runs; `words` is the shape of a command.
const fn run_config(words: Shape) -> [Field; 25] {
    [
        ("Hostname", Shape::Text),
        ("Domainname", Shape::Text),
        ("User", Shape::Text),
        ("AttachStdin", Shape::Bool),
        ("AttachStdout", Shape::Bool),
        ("AttachStderr", Shape::Bool),
        ("ExposedPorts", KEYS),
        ("Tty", Shape::Bool),
        ("OpenStdin", Shape::Bool),
        ("StdinOnce", Shape::Bool),
        ("Env", TEXTS),
        ("Cmd", words),
        ("Healthcheck", HEALTH_CHECK),
        ("ArgsEscaped", Shape::Bool),
        ("Image", Shape::Text),
        ("Volumes", KEYS),
        ("WorkingDir", Shape::Text),
        ("Entrypoint", words),
        ("NetworkDisabled", Shape::Bool),
        ("MacAddress", Shape::Text),
        ("OnBuild", TEXTS),
        ("Labels", TEXT_MAP),
        ("StopSignal", Shape::Text),
        ("StopTimeout", Shape::Integer),
        ("Shell", Shape::Words),
    ]
}

const ROOT_FS: Shape = Shape::Object(&[("type", Shape::Text), ("diff_ids", TEXTS)]);

const STEP: Shape = Shape::Object(&[
    ("created", Shape::Time),
    ("created_by", Shape::Text),
    ("author", Shape::Text),
    ("comment", Shape::Text),
    ("empty_layer", Shape::Bool),
]);

/// A config. Its commands are lists for OCI; in that of the container it was made from, which only Docker's type has,
/// they may be texts.
static CONFIG: Shape = Shape::Object(&[
    ("id", Shape::Text),
    ("parent", Shape::Text),
    ("comment", Shape::Text),
    ("created", Shape::Time),
    ("container", Shape::Text),
    ("container_config", Shape::Object(&run_config(Shape::Words))),
    ("docker_version", Shape::Text),
    ("author", Shape::Text),
    ("config", Shape::Object(&run_config(TEXTS))),
    ("architecture", Shape::Text),
    ("variant", Shape::Text),
    ("os", Shape::Text),
    ("Size", Shape::Integer),
    ("rootfs", ROOT_FS),
    ("history", Shape::List(&STEP)),
    ("os.version", Shape::Text),
    ("os.features", TEXTS),
]);

const PLATFORM: Shape = Shape::Object(&[
    ("architecture", Shape::Text),
    ("os", Shape::Text),
    ("os.version", Shape::Text),
    ("os.features", TEXTS),
    ("variant", Shape::Text),
]);

const DESCRIPTOR: Shape = Shape::Object(&[
    ("mediaType", Shape::Text),
    ("digest", Shape::Text),
    ("size", Shape::Integer),
    ("urls", TEXTS),
    ("annotations", TEXT_MAP),
    ("data", Shape::Bytes),
    ("platform", PLATFORM),
    ("artifactType", Shape::Text),
]);

static MANIFEST: Shape = Shape::Object(&[
    ("schemaVersion", Shape::Integer),
    ("mediaType", Shape::Text),
    ("artifactType", Shape::Text),
    ("config", DESCRIPTOR),
    ("layers", Shape::List(&DESCRIPTOR)),
    ("subject", DESCRIPTOR),
    ("annotations", TEXT_MAP),
]);

#[cfg(feature = "pull")]
static INDEX: Shape = Shape::Object(&[
    ("schemaVersion", Shape::Integer),
    ("mediaType", Shape::Text),
    ("artifactType", Shape::Text),
    ("manifests", Shape::List(&DESCRIPTOR)),
    ("subject", DESCRIPTOR),
    ("annotations", TEXT_MAP),
]);

/// The fields that tell one kind of document from another.
static KINDS: Shape = Shape::Object(&[
    ("schemaVersion", Shape::Integer),
    ("mediaType", Shape::Text),
    ("config", Shape::Any),
    ("fsLayers", Shape::Any),
    ("history", Shape::Any),
    ("layers", Shape::Any),
    ("manifests", Shape::Any),
]);

/// What a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    OciManifest,
    DockerManifest,
    OciIndex,
    DockerList,
}

impl Kind {
    /// The media type.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::OciManifest => OCI_MANIFEST,
            Self::DockerManifest => DOCKER_MANIFEST,
            Self::OciIndex => OCI_INDEX,
            Self::DockerList => DOCKER_LIST,
        }
    }

    /// Whether it lists images.
    pub(crate) fn is_index(self) -> bool {
        matches!(self, Self::OciIndex | Self::DockerList)
    }
}

/// Reads an image config.
pub(crate) fn read_config<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let what = "the image's config";
    let mut config = decode(bytes, &CONFIG, what)?;
    if let Some(root_fs) = config.get_mut("rootfs").and_then(Value::as_object_mut) {
        let diff_ids = root_fs.get("diff_ids").and_then(Value::as_array);
        // Some programs write empty ones, which say no more than none.
        if diff_ids.is_some_and(|list| list.iter().all(|diff_id| diff_id == "")) {
            root_fs.remove("diff_ids");
        }
    }
    typed(config, what)
}

/// Reads an image manifest.
pub(crate) fn read_manifest<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let what = "the image's manifest";
    typed(decode(bytes, &MANIFEST, what)?, what)
}

/// Reads an index of images.
#[cfg(feature = "pull")]
pub(crate) fn read_index<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let what = "the index";
    typed(decode(bytes, &INDEX, what)?, what)
}

/// What a document is for programs that know nothing but its bytes, as those that find it in a store. What a registry says
/// about it does not count.
pub(crate) fn kind(bytes: &[u8]) -> Result<Kind> {
    let document = decode(bytes, &KINDS, "the manifest")?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let there = |field: &str| document.get(field).is_some();
    let own = document.get("mediaType").map(text).unwrap_or_default();
    let config = document
        .pointer("/config/mediaType")
        .map(text)
        .unwrap_or_default();
    let version = document.get("schemaVersion").and_then(Value::as_i64).unwrap_or(0);
    let lists_images = document
        .get("manifests")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    let kind = match (own.as_str(), version, config.as_str()) {
        (OCI_MANIFEST, ..) => Kind::OciManifest,
        (DOCKER_MANIFEST, ..) => Kind::DockerManifest,
        (OCI_INDEX, ..) => Kind::OciIndex,
        (DOCKER_LIST, ..) => Kind::DockerList,
        (_, 2, OCI_CONFIG) => Kind::OciManifest,
        (_, 2, DOCKER_CONFIG) => {
            let what =
                format!("a manifest of Docker's with the media type {own:?}, expected {DOCKER_MANIFEST:?}");
            return Err(ErrorKind::NotSupported.err(what));
        }
        (_, 2, "") if lists_images => Kind::OciIndex,
        (_, 2, _) => Kind::OciManifest,
        _ => {
            let what = format!("manifests of schema version {version} and media type {own:?}");
            return Err(ErrorKind::NotSupported.err(what));
        }
    };
    let own_fields: &[&str] = if kind.is_index() {
        &["manifests"]
    } else {
        &["config", "layers"]
    };
    let all = ["config", "fsLayers", "history", "layers", "manifests"];
    match all
        .into_iter()
        .find(|field| there(field) && !own_fields.contains(field))
    {
        // Readers would differ in what it means.
        Some(field) => {
            let what = format!("the field {field:?} in what is a {}", kind.media_type());
            Err(ErrorKind::InvalidInput.err(what))
        }
        None => Ok(kind),
    }
}

/// Whether a layer of a Docker manifest may have this media type.
pub(crate) fn is_docker_type(media_type: &str) -> bool {
    DOCKER_TYPES.contains(&media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_of_a_document_follows_from_its_bytes() {
        let of = |fields: &str| kind(format!("{{{fields}}}").as_bytes());
        let typed = |media_type: &str| format!(r#""config":{{"mediaType":"{media_type}"}}"#);
        for (fields, expected) in [
            (format!(r#""mediaType":"{OCI_MANIFEST}""#), Kind::OciManifest),
            (
                format!(r#""mediaType":"{DOCKER_MANIFEST}","layers":[]"#),
                Kind::DockerManifest,
            ),
            (
                format!(r#""MediaType":"{DOCKER_LIST}","manifests":[]"#),
                Kind::DockerList,
            ),
            (
                format!(r#""schemaVersion":1,"mediaType":"{OCI_INDEX}""#),
                Kind::OciIndex,
            ),
            (
                format!(r#""schemaVersion":2,{}"#, typed(OCI_CONFIG)),
                Kind::OciManifest,
            ),
            (format!(r#""schemaVersion":2,{}"#, typed("x")), Kind::OciManifest),
            (r#""schemaVersion":2,"manifests":[{}]"#.to_owned(), Kind::OciIndex),
            (r#""schemaVersion":2"#.to_owned(), Kind::OciManifest),
        ] {
            assert_eq!(of(&fields).unwrap(), expected, "{fields}");
        }
        for (fields, expected) in [
            (String::new(), ErrorKind::NotSupported),
            (
                r#""schemaVersion":1,"fsLayers":[]"#.to_owned(),
                ErrorKind::NotSupported,
            ),
            (
                format!(r#""schemaVersion":2,{}"#, typed(DOCKER_CONFIG)),
                ErrorKind::NotSupported,
            ),
            (
                format!(r#""mediaType":"{OCI_MANIFEST}","manifests":[]"#),
                ErrorKind::InvalidInput,
            ),
            (
                format!(r#""mediaType":"{OCI_MANIFEST}","History":[]"#),
                ErrorKind::InvalidInput,
            ),
            (
                format!(r#""mediaType":"{OCI_INDEX}","config":{{}}"#),
                ErrorKind::InvalidInput,
            ),
            (r#""schemaVersion":"2""#.to_owned(), ErrorKind::InvalidInput),
        ] {
            assert_eq!(of(&fields).unwrap_err().kind(), expected, "{fields}");
        }
    }
}
