//! Manifests and configs that image programs accept.

use std::path::Path;

use graphroot::{Digest, Image, ImageOptions, Layer, Store};
use serde_json::json;

/// What image programs read of an image besides its layers.
///
/// They expect the config under its digest as key, the manifest under `manifest` (and, as Podman stores it, under
/// `manifest-DIGEST` too), and the hexadecimal part of the config's digest as the image's ID.
#[derive(Clone, Debug)]
pub(crate) struct OciImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
}

impl OciImage {
    /// Describes an image of these layers, lowest first.
    pub(crate) fn new(layers: &[Layer]) -> Self {
        let diff_ids: Vec<String> = layers
            .iter()
            .map(|layer| layer.uncompressed_digest().unwrap().to_string())
            .collect();
        let history: Vec<_> = layers
            .iter()
            .map(|_| json!({"created": "2026-01-02T03:04:05Z", "created_by": "graphroot test"}))
            .collect();
        let config = serde_json::to_vec(&json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        }))
        .unwrap();
        // The plain form of each layer: what an export from the store yields.
        let blobs: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": layer.uncompressed_digest().unwrap().to_string(),
                    "size": layer.uncompressed_size().unwrap(),
                })
            })
            .collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::sha256(&config).to_string(),
                "size": config.len(),
            },
            "layers": blobs,
        }))
        .unwrap();
        Self { manifest, config }
    }

    /// The image's ID.
    pub(crate) fn id(&self) -> String {
        self.config_digest().encoded().to_owned()
    }

    pub(crate) fn config_digest(&self) -> Digest {
        Digest::sha256(&self.config)
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    /// Creates an image of one layer, under `name`.
    pub(crate) async fn create(store: &Store, layer: &Layer, name: &str) -> Image {
        Self::create_of(store, std::slice::from_ref(layer), name).await
    }

    /// Creates an image of these layers, lowest first, under `name`.
    pub(crate) async fn create_of(store: &Store, layers: &[Layer], name: &str) -> Image {
        let top = layers.last().unwrap().id();
        let options = Self::new(layers).options(name);
        store.create_image(Some(top), options).await.unwrap()
    }

    /// Options to create the image with, under `name`.
    pub(crate) fn options(&self, name: &str) -> ImageOptions {
        ImageOptions::default()
            .id(self.id())
            .name(name)
            .big_data(self.config_digest().to_string(), self.config.clone())
            .big_data(
                format!("manifest-{}", self.manifest_digest()),
                self.manifest.clone(),
            )
            .big_data("manifest", self.manifest.clone())
    }
}

/// The file of a blob of an OCI layout directory.
pub(crate) fn layout_blob_path(layout: &Path, digest: &str) -> std::path::PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

/// A blob of an OCI layout directory.
pub(crate) fn layout_blob(layout: &Path, digest: &str) -> Vec<u8> {
    let file = layout_blob_path(layout, digest);
    std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// A JSON blob of an OCI layout directory.
pub(crate) fn layout_json(layout: &Path, digest: &str) -> serde_json::Value {
    serde_json::from_slice(&layout_blob(layout, digest)).unwrap()
}

/// The manifest of the only image of an OCI layout directory.
pub(crate) fn layout_manifest(layout: &Path) -> serde_json::Value {
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    layout_json(layout, index["manifests"][0]["digest"].as_str().unwrap())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
