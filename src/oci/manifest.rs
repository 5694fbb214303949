//! Manifests and configs, parsed from untrusted bytes without I/O.

use std::collections::HashMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::Deserialize;

use super::index::Index;
use crate::digest::Digest;
use crate::error::Result;
use crate::store::image_config::read_time;
use crate::store::image_manifest::ImageManifest;
use crate::store::image_types::{self, DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};

/// What is accepted for a manifest or an index.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// Longest manifest or config that is read, as other image programs do.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;

/// A manifest, index or config as a source delivers it, before it is parsed.
#[derive(Clone, Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Bytes,
    pub(crate) digest: Digest,
}

/// A manifest or a list of them.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Image(ImageManifest),
    Index(Index),
}

/// Reads a manifest or an index. Only its bytes tell which it is, since a store keeps nothing else: what a registry claims
/// in `Content-Type`, or an index about its entries, does not count.
pub(crate) fn parse(bytes: &Bytes) -> Result<Document> {
    if image_types::kind(bytes)?.is_index() {
        return Ok(Document::Index(Index::parse(bytes)?));
    }
    let manifest = ImageManifest::parse(bytes.clone())?;
    manifest.check_readable()?;
    Ok(Document::Image(manifest))
}

/// The fields of a config that a pull needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// When the image was made, if it says so.
    pub(crate) created: Option<SystemTime>,
    /// Digests of the uncompressed layers, lowest first; none if the config does not tell them.
    pub(crate) diff_ids: Vec<Digest>,
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Raw {
            created: Option<String>,
            #[serde(default)]
            rootfs: RootFs,
        }
        #[derive(Default, Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<Digest>,
        }
        let raw: Raw = image_types::read_config(bytes)?;
        Ok(Self {
            created: read_time(raw.created.as_deref())?,
            diff_ids: raw.rootfs.diff_ids,
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
    use crate::error::ErrorKind;
    use crate::store::image_types::{DOCKER_CONFIG, OCI_CONFIG};

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
        let Document::Image(image) = parse(&manifest("").into()).unwrap() else {
            panic!("it is an image");
        };
        assert_eq!((image.config.digest, image.config.size), (digest("config"), 3));
        let docker = |text: &str| {
            let typed = manifest(&format!(r#""mediaType":"{DOCKER_MANIFEST}","#));
            parse(&typed.replace(OCI_CONFIG, text).into())
        };
        for config in [
            DOCKER_CONFIG,
            OCI_CONFIG,
            "application/octet-stream",
            "text/html",
            "",
        ] {
            assert!(docker(config).is_ok(), "{config:?}");
        }
        let untyped = format!("\"mediaType\":\"{OCI_CONFIG}\",");
        let typed = manifest(&format!(r#""mediaType":"{DOCKER_MANIFEST}","#));
        assert!(parse(&typed.replace(&untyped, "").into()).is_ok());
        let layer = |media_type: &str| {
            let digest = digest("layer");
            format!(r#""layers":[{{"mediaType":"{media_type}","digest":"{digest}","size":1}}]"#)
        };
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
                manifest(&format!(r#""mediaType":"{OCI_MANIFEST}","#)).replace(OCI_CONFIG, DOCKER_CONFIG),
                ErrorKind::NotSupported,
            ),
            (
                manifest("").replace(OCI_CONFIG, DOCKER_CONFIG),
                ErrorKind::NotSupported,
            ),
            (
                typed.replace(r#""layers":[]"#, &layer("application/vnd.oci.image.layer.v1.tar")),
                ErrorKind::NotSupported,
            ),
            (
                manifest("").replace(r#""layers":[]"#, &layer("x+encrypted")),
                ErrorKind::NotSupported,
            ),
            (
                r#"{"schemaVersion":1,"fsLayers":[]}"#.into(),
                ErrorKind::NotSupported,
            ),
            (r#"{"schemaVersion":2}"#.into(), ErrorKind::InvalidInput),
            (
                manifest("").replace("\"size\":3", "\"size\":-3"),
                ErrorKind::InvalidInput,
            ),
            ("{".into(), ErrorKind::InvalidInput),
        ] {
            assert_eq!(parse(&text.clone().into()).unwrap_err().kind(), kind, "{text}");
        }
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
        assert!(config(r#""""#).is_err());
        assert_eq!(Config::parse(b"{}").unwrap().diff_ids, []);
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
