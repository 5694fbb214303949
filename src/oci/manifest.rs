//! Manifests, indexes and configs, parsed from untrusted bytes without I/O.

use std::collections::HashMap;
use std::time::SystemTime;

use bytes::Bytes;
use oci_spec::image::ImageIndex;
use serde::Deserialize;

use super::platform::Platform;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_config::read_time;
use crate::store::image_manifest::{DOCKER_MANIFEST, Descriptor, ImageManifest, OCI_CONFIG, OCI_MANIFEST};

/// What is accepted for a manifest or an index.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    OCI_MANIFEST,
    DOCKER_MANIFEST,
];

/// The config of an image of Docker.
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Longest manifest or config that is read, as other image programs do.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// A descriptor of an index.
fn described(entry: &oci_spec::image::Descriptor) -> Result<Descriptor> {
    Ok(Descriptor::new(
        entry.media_type().as_ref(),
        entry.digest().as_ref().parse()?,
        entry.size(),
    ))
}

/// A manifest, index or config as a source delivers it, before it is parsed.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
    /// The media type that the source claims.
    pub(crate) media_type: Option<String>,
}

/// A manifest or a list of them.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Image(ImageManifest),
    Index(Box<ImageIndex>),
}

/// The fields that tell the kind of a document.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    #[serde(default)]
    schema_version: i64,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

fn unreadable(what: &str, error: serde_json::Error) -> crate::error::Error {
    ErrorKind::InvalidInput
        .err(format!("{what} cannot be read"))
        .with_source(error)
}

/// Reads a manifest or an index. `claimed` is what the source says it is.
pub(crate) fn parse(bytes: &Bytes, claimed: Option<&str>) -> Result<Document> {
    let refuse = |why: &str| Err(ErrorKind::NotSupported.err(why.to_owned()));
    let probe: Probe = serde_json::from_slice(bytes).map_err(|error| unreadable("the manifest", error))?;
    if probe.schema_version != 2 || probe.fs_layers.is_some() {
        return refuse("manifests of schema version 1");
    }
    let is_index = match (probe.manifests.is_some(), probe.layers.is_some()) {
        (true, false) => true,
        (false, true) => false,
        // Readers would differ in what it means.
        (true, true) => return Err(ErrorKind::InvalidInput.err("a manifest with both layers and manifests")),
        (false, false) => return refuse("a manifest with neither layers nor manifests"),
    };
    let media_type = probe.media_type.as_deref().or(claimed).unwrap_or(OCI_MANIFEST);
    let says_index = media_type.contains("index") || media_type.contains("manifest.list");
    if media_type != "application/json" && probe.media_type.is_some() && says_index != is_index {
        return Err(
            ErrorKind::InvalidInput.err(format!("a manifest that is not the {media_type:?} it says it is"))
        );
    }
    if is_index {
        let index = serde_json::from_slice(bytes).map_err(|error| unreadable("the index", error))?;
        return Ok(Document::Index(Box::new(index)));
    }
    let mut manifest = ImageManifest::parse(bytes.clone())?;
    check_image(&manifest)?;
    let media_type = if media_type == "application/json" {
        OCI_MANIFEST
    } else {
        media_type
    };
    media_type.clone_into(&mut manifest.media_type);
    Ok(Document::Image(manifest))
}

/// Refuses the manifest of what is no container image, or of one that cannot be unpacked.
pub(crate) fn check_image(manifest: &ImageManifest) -> Result<()> {
    let config = manifest.config.media_type.as_str();
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&config) {
        let what = format!("an artifact of type {config:?} is no container image");
        return Err(ErrorKind::NotSupported.err(what));
    }
    let encrypted = |layer: &&Descriptor| layer.media_type.contains("+encrypted");
    match manifest.layers.iter().find(encrypted) {
        Some(layer) => Err(ErrorKind::NotSupported.err(format!("encrypted layer {}", layer.digest))),
        None => Ok(()),
    }
}

/// The manifest of an index that fits the platform best; the first of equals.
pub(crate) fn choose(index: &ImageIndex, wanted: &Platform) -> Result<Descriptor> {
    let mut best: Option<(usize, &oci_spec::image::Descriptor)> = None;
    let mut offers = Vec::new();
    for descriptor in index.manifests() {
        let offered = match descriptor.platform() {
            Some(platform) => Platform {
                os: platform.os().to_string(),
                architecture: platform.architecture().to_string(),
                variant: platform.variant().clone(),
            },
            // A single image without a platform is for all platforms.
            None if index.manifests().len() == 1 => wanted.clone(),
            None => continue,
        };
        if let Some(rank) = wanted.rank(&offered)
            && best.is_none_or(|(known, _)| rank < known)
        {
            best = Some((rank, descriptor));
        }
        offers.push(offered.to_string());
    }
    match best {
        Some((_, descriptor)) => described(descriptor),
        None => {
            let what = format!("no image for {wanted} among those for {}", offers.join(", "));
            Err(ErrorKind::NotFound.err(what))
        }
    }
}

/// The fields of a config that a pull needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// When the image was made, if it says so.
    pub(crate) created: Option<SystemTime>,
    /// Digests of the uncompressed layers, lowest first.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            created: Option<String>,
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            // `null` is how Go writes an empty list.
            diff_ids: Option<Vec<Digest>>,
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| unreadable("the image's config", error))?;
        Ok(Self {
            created: read_time(raw.created.as_deref())?,
            diff_ids: raw.rootfs.diff_ids.unwrap_or_default(),
        })
    }
}

/// For each diff the index of an earlier one with the same digest.
pub(crate) fn repeated<'a>(diff_ids: impl IntoIterator<Item = &'a Digest>) -> Vec<Option<usize>> {
    let mut first: HashMap<&Digest, usize> = HashMap::new();
    diff_ids
        .into_iter()
        .enumerate()
        .map(|(index, diff_id)| {
            let known = *first.entry(diff_id).or_insert(index);
            (known != index).then_some(known)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::sha256(text)
    }

    fn manifest(extra: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,{extra}"config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":3}},"layers":[]}}"#,
            digest("config")
        )
    }

    #[test]
    fn documents_are_what_they_say_or_refused() {
        let Document::Image(image) = parse(&manifest("").into(), None).unwrap() else {
            panic!("it is an image");
        };
        assert_eq!((image.config.digest, image.config.size), (digest("config"), 3));
        for (text, kind) in [
            (manifest(r#""manifests":[],"#), ErrorKind::InvalidInput),
            (
                manifest(r#""mediaType":"application/vnd.oci.image.index.v1+json","#),
                ErrorKind::InvalidInput,
            ),
            (
                manifest("").replace("image.config", "helm.config"),
                ErrorKind::NotSupported,
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                ErrorKind::NotSupported,
            ),
            (r#"{"schemaVersion":2}"#.into(), ErrorKind::NotSupported),
            (
                manifest("").replace("\"size\":3", "\"size\":-3"),
                ErrorKind::InvalidInput,
            ),
            ("{".into(), ErrorKind::InvalidInput),
        ] {
            assert_eq!(
                parse(&text.clone().into(), None).unwrap_err().kind(),
                kind,
                "{text}"
            );
        }
    }

    #[test]
    fn the_index_entry_for_the_platform_is_chosen() {
        let entry = |name: &str, platform: &str| {
            format!(
                r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{}","size":1{platform}}}"#,
                digest(name)
            )
        };
        let platform =
            |os: &str, arch: &str| format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#);
        let index = |entries: &[String]| -> ImageIndex {
            serde_json::from_str(&format!(
                r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
                entries.join(",")
            ))
            .unwrap()
        };
        let two = index(&[
            entry("unknown", &platform("unknown", "unknown")),
            entry("arm", &platform("linux", "arm64")),
            entry("amd", &platform("linux", "amd64")),
        ]);
        let chosen = |index: &ImageIndex, platform: &str| choose(index, &platform.parse().unwrap());
        assert_eq!(chosen(&two, "linux/amd64").unwrap().digest, digest("amd"));
        assert_eq!(chosen(&two, "linux/arm64").unwrap().digest, digest("arm"));
        let error = chosen(&two, "linux/s390x").unwrap_err();
        assert!(error.chain().contains("linux/arm64, linux/amd64"), "{error:?}");
        assert_eq!(
            chosen(&index(&[entry("only", "")]), "linux/amd64")
                .unwrap()
                .digest,
            digest("only")
        );
        assert!(chosen(&index(&[entry("one", ""), entry("two", "")]), "linux/amd64").is_err());
    }

    #[test]
    fn configs_give_diff_ids_and_a_date() {
        let config = |created: &str| {
            let text = format!(
                r#"{{"created":{created},"rootfs":{{"diff_ids":["{}"]}}}}"#,
                digest("a")
            );
            Config::parse(text.as_bytes())
        };
        let dated = config(r#""2020-01-02T03:04:05.5Z""#).unwrap();
        assert_eq!(dated.diff_ids, [digest("a")]);
        assert!(dated.created.is_some());
        assert_eq!(config("null").unwrap().created, None);
        assert_eq!(config(r#""0001-01-01T00:00:00Z""#).unwrap().created, None);
        assert!(config(r#""yesterday""#).is_err());
        assert!(Config::parse(br#"{"rootfs":{"diff_ids":["sha256:xyz"]}}"#).is_err());
        assert!(
            Config::parse(br#"{"rootfs":{"diff_ids":null}}"#)
                .unwrap()
                .diff_ids
                .is_empty()
        );
    }

    #[test]
    fn equal_diffs_point_to_the_first_of_them() {
        let (a, b) = (digest("a"), digest("b"));
        assert_eq!(repeated([&a, &b, &a, &a]), [None, None, Some(0), Some(0)]);
    }
}
