//! Image manifests as the store holds them: read from bytes that nobody has checked, written as image programs write
//! them. No I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};

/// Media type of an OCI image manifest.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a Docker image manifest, version 2 schema 2.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Media type of an OCI image config.
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of an uncompressed layer in OCI manifests.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of an uncompressed layer in Docker manifests.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Highest number of layers that a manifest may have; no driver stacks as many.
const MAX_LAYERS: usize = 1000;

/// A blob as a manifest names it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Annotations of the manifest on it.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
        }
    }
}

/// Reads JSON `null`, which Go writes for an empty list or map, as empty.
pub(crate) fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The manifest of an image: which config and which layers it has.
///
/// Made by [`Store::image_manifest`](crate::Store::image_manifest) and
/// [`Store::image_manifest_uncompressed`](crate::Store::image_manifest_uncompressed).
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    /// The JSON document, byte for byte.
    pub bytes: Bytes,
    /// Digest of [`ImageManifest::bytes`].
    pub digest: Digest,
    /// Media type of the document: that of an OCI or a Docker (version 2 schema 2) image manifest.
    pub media_type: String,
    /// The image's config.
    pub config: Descriptor,
    /// The blobs of its layers, the lowest first.
    pub layers: Vec<Descriptor>,
}

/// What is read of a manifest.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: i64,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<IgnoredAny>,
}

/// What is written of a new manifest, in this order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct New<'a> {
    schema_version: i64,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: &'a [Descriptor],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<&'static str, String>,
}

fn unreadable(error: serde_json::Error) -> crate::error::Error {
    ErrorKind::InvalidInput
        .err("the image's manifest cannot be read")
        .with_source(error)
}

fn unwritable(error: serde_json::Error) -> crate::error::Error {
    ErrorKind::InvalidInput
        .err("writing an image manifest")
        .with_source(error)
}

impl ImageManifest {
    /// Reads an image manifest.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self> {
        let raw: Raw = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if raw.schema_version != 2 {
            let what = format!("image manifests of schema version {}", raw.schema_version);
            return Err(ErrorKind::NotSupported.err(what));
        }
        let (Some(config), None) = (raw.config, raw.manifests) else {
            return Err(ErrorKind::NotSupported.err("a list of images where an image manifest is expected"));
        };
        let layers = raw.layers.unwrap_or_default();
        if layers.len() > MAX_LAYERS {
            return Err(ErrorKind::InvalidInput.err(format!("an image with {} layers", layers.len())));
        }
        Ok(Self {
            digest: Digest::sha256(&bytes),
            media_type: raw.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned()),
            config,
            layers,
            bytes,
        })
    }

    /// Writes an OCI image manifest.
    pub(crate) fn new(
        config: Descriptor,
        layers: Vec<Descriptor>,
        annotations: &BTreeMap<&'static str, String>,
    ) -> Result<Self> {
        let new = New {
            schema_version: 2,
            media_type: OCI_MANIFEST,
            config: &config,
            layers: &layers,
            annotations,
        };
        let bytes = Bytes::from(crate::json::to_bytes(&new).map_err(unwritable)?);
        Ok(Self {
            digest: Digest::sha256(&bytes),
            media_type: OCI_MANIFEST.to_owned(),
            config,
            layers,
            bytes,
        })
    }

    /// Media type of an uncompressed layer in a manifest of this kind.
    pub(crate) fn plain_layer_type(&self) -> &'static str {
        if self.media_type == DOCKER_MANIFEST {
            DOCKER_LAYER
        } else {
            OCI_LAYER
        }
    }

    /// The same manifest with other blobs for its layers; everything else in it stays.
    pub(crate) fn with_layers(self, layers: Vec<Descriptor>) -> Result<Self> {
        let same = |(old, new): (&Descriptor, &Descriptor)| {
            (&old.media_type, &old.digest, old.size) == (&new.media_type, &new.digest, new.size)
        };
        if self.layers.len() == layers.len() && self.layers.iter().zip(&layers).all(same) {
            return Ok(self);
        }
        let mut document: serde_json::Value = serde_json::from_slice(&self.bytes).map_err(unreadable)?;
        document["layers"] = serde_json::to_value(&layers).map_err(unwritable)?;
        let bytes = Bytes::from(crate::json::to_bytes(&document).map_err(unwritable)?);
        Ok(Self {
            digest: Digest::sha256(&bytes),
            bytes,
            layers,
            ..self
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(name: &str) -> Descriptor {
        Descriptor::new(OCI_LAYER, Digest::sha256(name), 5)
    }

    fn written() -> ImageManifest {
        let config = Descriptor::new(OCI_CONFIG, Digest::sha256("config"), 3);
        let annotations =
            BTreeMap::from([("org.opencontainers.image.base.name", "localhost/a&b".to_owned())]);
        ImageManifest::new(config, vec![layer("a")], &annotations).unwrap()
    }

    #[test]
    fn what_is_written_is_read_and_looks_as_image_programs_write_it() {
        let written = written();
        assert_eq!(ImageManifest::parse(written.bytes.clone()).unwrap(), written);
        let text = String::from_utf8(written.bytes.to_vec()).unwrap();
        let expected = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"{OCI_CONFIG}","digest":"{}","size":3}},"layers":[{{"mediaType":"{OCI_LAYER}","digest":"{}","size":5}}],"annotations":{{"org.opencontainers.image.base.name":"localhost/a\u0026b"}}}}"#,
            Digest::sha256("config"),
            Digest::sha256("a")
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn other_layers_leave_the_rest_of_a_manifest_as_it_is() {
        let written = written();
        assert_eq!(written.clone().with_layers(vec![layer("a")]).unwrap(), written);
        let changed = written.clone().with_layers(vec![layer("b")]).unwrap();
        assert_ne!(changed.digest, written.digest);
        let read = ImageManifest::parse(changed.bytes.clone()).unwrap();
        assert_eq!(read, changed);
        assert_eq!((&read.config, &read.layers), (&written.config, &vec![layer("b")]));
        assert!(String::from_utf8_lossy(&changed.bytes).contains("image.base.name"));
    }

    #[test]
    fn what_is_no_image_manifest_is_refused() {
        let text = String::from_utf8(written().bytes.to_vec()).unwrap();
        for (text, kind) in [
            ("{".to_owned(), ErrorKind::InvalidInput),
            (text.replace("\"size\":5", "\"size\":-5"), ErrorKind::InvalidInput),
            (text.replace(":2,", ":1,"), ErrorKind::NotSupported),
            (
                text.replace("\"layers\"", "\"manifests\""),
                ErrorKind::NotSupported,
            ),
            (text.replace("\"config\"", "\"other\""), ErrorKind::NotSupported),
        ] {
            let error = ImageManifest::parse(text.clone().into()).unwrap_err();
            assert_eq!(error.kind(), kind, "{text}");
        }
        let none = text.replace(
            &text[text.find("\"layers\":[").unwrap() + 9..text.find("],").unwrap() + 1],
            "null",
        );
        assert!(ImageManifest::parse(none.into()).unwrap().layers.is_empty());
    }
}
