//! Image manifests as the store holds them: read from untrusted bytes, written as image programs write
//! them. No I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::store::image_types::{self, DOCKER_MANIFEST, OCI_CONFIG, OCI_MANIFEST};

/// Media type of an uncompressed layer in OCI manifests.
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of an uncompressed layer in Docker manifests.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// Highest number of layers that a manifest may have; no driver stacks as many.
pub(crate) const MAX_LAYERS: usize = 1000;

/// A blob as a manifest names it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Its media type; empty for a config of Docker's that has none.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Where else it is, besides the registry; the only places for a layer that may not be redistributed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
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
            urls: Vec::new(),
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
struct Raw {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
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

fn unwritable(error: serde_json::Error) -> crate::error::Error {
    ErrorKind::InvalidInput
        .err("writing an image manifest")
        .with_source(error)
}

impl ImageManifest {
    /// Reads an image manifest.
    pub(crate) fn parse(bytes: Bytes) -> Result<Self> {
        let kind = image_types::kind(&bytes)?;
        if kind.is_index() {
            return Err(ErrorKind::NotSupported.err("a list of images where an image manifest is expected"));
        }
        let raw: Raw = image_types::read_manifest(&bytes)?;
        if raw.layers.len() > MAX_LAYERS {
            return Err(ErrorKind::InvalidInput.err(format!("an image with {} layers", raw.layers.len())));
        }
        Ok(Self {
            digest: Digest::sha256(&bytes),
            media_type: kind.media_type().to_owned(),
            config: raw.config,
            layers: raw.layers,
            bytes,
        })
    }

    /// Refuses a manifest that image programs cannot read in a store.
    pub(crate) fn check_readable(&self) -> Result<()> {
        let config = &self.config.media_type;
        if !self.is_docker() && config != OCI_CONFIG {
            let what =
                format!("a config of media type {config:?} in an OCI manifest: it is no container image");
            return Err(ErrorKind::NotSupported.err(what));
        }
        for Descriptor {
            media_type, digest, ..
        } in &self.layers
        {
            let why = if media_type.ends_with("+encrypted") {
                "is encrypted"
            } else if self.is_docker() && !image_types::is_docker_type(media_type) {
                "has a media type that manifests of Docker's do not know"
            } else {
                continue;
            };
            let what = format!("layer {digest} of media type {media_type:?} {why}");
            return Err(ErrorKind::NotSupported.err(what));
        }
        Ok(())
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
        if self.is_docker() { DOCKER_LAYER } else { OCI_LAYER }
    }

    /// The same manifest with other blobs for its layers; everything else in it stays, also what it says about a blob
    /// that stays in its place.
    pub(crate) fn with_layers(self, layers: &[Descriptor]) -> Result<Self> {
        self.rewritten(layers, None)
    }

    /// As [`ImageManifest::with_layers`], with the media types of OCI for the document and the config.
    #[cfg(feature = "pull")]
    pub(crate) fn with_oci_layers(self, layers: &[Descriptor]) -> Result<Self> {
        match self.is_docker() {
            true => self.rewritten(layers, Some((OCI_MANIFEST, OCI_CONFIG))),
            false => self.rewritten(layers, None),
        }
    }

    /// Whether it is a manifest of Docker's own format.
    pub(crate) fn is_docker(&self) -> bool {
        self.media_type == DOCKER_MANIFEST
    }

    /// With other layers, and other media types of the document and the config.
    fn rewritten(mut self, layers: &[Descriptor], types: Option<(&str, &str)>) -> Result<Self> {
        let same = |(old, new): (&Descriptor, &Descriptor)| {
            (&old.media_type, &old.digest, old.size) == (&new.media_type, &new.digest, new.size)
        };
        let all_same = self.layers.len() == layers.len() && self.layers.iter().zip(layers).all(same);
        if all_same && types.is_none() {
            return Ok(self);
        }
        let mut document: Map<String, Value> = image_types::read_manifest(&self.bytes)?;
        let listed = document.get_mut("layers").and_then(Value::as_array_mut);
        let mut listed = listed.map(std::mem::take).unwrap_or_default().into_iter();
        let mut entries = Vec::with_capacity(layers.len());
        let mut kept = Vec::with_capacity(layers.len());
        for (index, layer) in layers.iter().enumerate() {
            // Annotations and URLs are about the blob that was in this place.
            let old = self.layers.get(index).filter(|old| old.digest == layer.digest);
            entries.push(match (listed.next(), old) {
                (Some(Value::Object(mut entry)), Some(old)) => {
                    entry.insert("mediaType".into(), layer.media_type.as_str().into());
                    entry.insert("size".into(), layer.size.into());
                    kept.push(Descriptor {
                        urls: old.urls.clone(),
                        annotations: old.annotations.clone(),
                        ..layer.clone()
                    });
                    entry.into()
                }
                _ => {
                    kept.push(layer.clone());
                    serde_json::to_value(layer).map_err(unwritable)?
                }
            });
        }
        document.insert("layers".into(), entries.into());
        if let Some((own, config)) = types {
            own.clone_into(&mut self.media_type);
            config.clone_into(&mut self.config.media_type);
            if let Some(Value::Object(entry)) = document.get_mut("config") {
                entry.insert("mediaType".into(), config.into());
            }
        }
        document.insert("mediaType".into(), self.media_type.as_str().into());
        self.bytes = crate::json::to_bytes(&document).map_err(unwritable)?.into();
        self.digest = Digest::sha256(&self.bytes);
        self.layers = kept;
        Ok(self)
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
        assert_eq!(written.clone().with_layers(&[layer("a")]).unwrap(), written);
        let changed = written.clone().with_layers(&[layer("b")]).unwrap();
        assert_ne!(changed.digest, written.digest);
        let read = ImageManifest::parse(changed.bytes.clone()).unwrap();
        assert_eq!(read, changed);
        assert_eq!((&read.config, &read.layers), (&written.config, &vec![layer("b")]));
        assert!(String::from_utf8_lossy(&changed.bytes).contains("image.base.name"));
    }

    #[cfg(feature = "pull")]
    #[test]
    fn a_docker_manifest_becomes_one_of_oci_and_keeps_what_is_not_about_other_blobs() {
        let (kept, old, new) = (layer("kept"), layer("old"), layer("new"));
        let text = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": DOCKER_MANIFEST,
            "annotations": {"a": "b"},
            "config": {"mediaType": "x", "digest": Digest::sha256("c"), "size": 1, "own": true},
            "layers": [
                {"mediaType": "x", "digest": kept.digest, "size": 1, "urls": ["of kept"]},
                {"mediaType": "x", "digest": old.digest, "size": 1, "annotations": {"of": "old"}},
            ],
        });
        let docker = ImageManifest::parse(text.to_string().into()).unwrap();
        let oci = docker.with_oci_layers(&[kept, new.clone()]).unwrap();
        assert_eq!(oci.media_type, OCI_MANIFEST);
        assert_eq!(ImageManifest::parse(oci.bytes.clone()).unwrap(), oci);
        let value: Value = serde_json::from_slice(&oci.bytes).unwrap();
        assert_eq!(value["mediaType"], OCI_MANIFEST);
        assert_eq!(value["annotations"]["a"], "b");
        assert_eq!(value["config"]["mediaType"], OCI_CONFIG);
        assert_eq!(value["config"]["own"], true);
        assert_eq!(value["layers"][0]["urls"][0], "of kept");
        assert_eq!(value["layers"][0]["mediaType"], OCI_LAYER);
        assert_eq!(value["layers"][1], serde_json::to_value(&new).unwrap());
    }

    #[test]
    fn what_is_no_image_manifest_is_refused() {
        let text = String::from_utf8(written().bytes.to_vec()).unwrap();
        for (text, kind) in [
            ("{".to_owned(), ErrorKind::InvalidInput),
            (text.replace("\"size\":5", "\"size\":-5"), ErrorKind::InvalidInput),
            (
                text.replace(":2,", ":1,").replace(OCI_MANIFEST, ""),
                ErrorKind::NotSupported,
            ),
            (
                text.replace("\"layers\"", "\"manifests\""),
                ErrorKind::InvalidInput,
            ),
            (
                text.replace(OCI_MANIFEST, image_types::OCI_INDEX),
                ErrorKind::InvalidInput,
            ),
            (
                format!(r#"{{"mediaType":"{}","manifests":[]}}"#, image_types::OCI_INDEX),
                ErrorKind::NotSupported,
            ),
            (text.replace("\"config\"", "\"other\""), ErrorKind::InvalidInput),
            (format!("[2,{text}]"), ErrorKind::InvalidInput),
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
