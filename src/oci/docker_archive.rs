//! An archive as `docker save` writes it, as an image with a derived manifest.
//!
//! `manifest.json` lists images: a config, names, and the layers as uncompressed tar files. There is no manifest; one is
//! derived, byte for byte as Podman derives it, so that both give the image the same digest.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::manifest::{Config, Fetched, MAX_DOCUMENT};
use super::reference::{self, full_name, own_name};
use super::spool::Spool;
use super::tarball::Tarball;
use crate::chunked::FileBlob;
use crate::compression::Compression;
use crate::digest::Digest;
use crate::error::{ErrorKind, Result, ResultExt as _};
use crate::store::Store;
use crate::store::image_manifest::{Descriptor, MAX_LAYERS};
use crate::store::image_types::{DOCKER_CONFIG, DOCKER_MANIFEST};

/// The media type that Podman's derived manifest has for the layers, although they are not compressed.
const LAYER_TYPE: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DerivedManifest {
    schema_version: i32,
    media_type: &'static str,
    config: DerivedBlob,
    layers: Vec<DerivedBlob>,
}

/// A blob, with its fields in the order in which Podman writes them.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DerivedBlob {
    media_type: &'static str,
    size: u64,
    digest: Digest,
}

/// One image of an archive.
#[derive(Clone, Debug)]
pub(crate) struct DockerArchive {
    pub(crate) manifest: Fetched,
    pub(crate) config: Bytes,
    /// Names that the archive gives the image.
    pub(crate) names: Vec<String>,
    /// The layers, uncompressed.
    layers: HashMap<Digest, FileBlob>,
}

impl DockerArchive {
    pub(crate) async fn open(tar: Tarball, wanted: Option<&str>, store: &Store) -> Result<Self> {
        let bytes = tar.small("manifest.json", MAX_DOCUMENT).await?;
        let items: Vec<Item> = serde_json::from_slice(&bytes).map_err(|error| {
            ErrorKind::InvalidInput
                .err("manifest.json cannot be read")
                .with_source(error)
        })?;
        let item = pick(items, wanted)?;
        let config: Bytes = tar.small(&item.config, MAX_DOCUMENT).await?.into();
        let diff_ids = Config::parse(&config)?.diff_ids;
        let files = item.layers.unwrap_or_default();
        if files.len() != diff_ids.len() {
            let what = format!("{} layers for a config of {}", files.len(), diff_ids.len());
            return Err(ErrorKind::InvalidInput.err(what));
        }
        if files.len() > MAX_LAYERS {
            return Err(ErrorKind::InvalidInput.err(format!("an image with {} layers", files.len())));
        }
        let mut layers = HashMap::new();
        let mut listed = Vec::new();
        for (file, diff_id) in files.iter().zip(diff_ids) {
            let blob = match layers.get(&diff_id) {
                Some(blob) => FileBlob::clone(blob),
                None => uncompressed(&tar, file, store)
                    .await
                    .context(|| format!("layer {file:?}"))?,
            };
            listed.push(Descriptor::new(LAYER_TYPE, diff_id.clone(), blob.size()));
            layers.insert(diff_id, blob);
        }
        // Podman gives one after the other, and each goes before the last one.
        let names = item.repo_tags.iter().flatten().rev();
        Ok(Self {
            manifest: manifest(&config, &listed)?,
            config,
            names: names.map(|name| own_name(name)).collect::<Result<_>>()?,
            layers,
        })
    }

    /// A layer.
    pub(crate) fn file(&self, blob: &Descriptor) -> Result<FileBlob> {
        let found = self.layers.get(&blob.digest).cloned();
        found.ok_or_else(|| ErrorKind::NotFound.err(format!("layer {}", blob.digest)))
    }
}

/// A layer of an archive. One that is compressed, as some programs have them, is decompressed into a temporary file of the
/// store: the derived manifest tells its size.
async fn uncompressed(tar: &Tarball, name: &str, store: &Store) -> Result<FileBlob> {
    let (offset, size) = tar.place(name)?;
    let start = tar.part(offset, size.min(10)).await?;
    let blob = tar.file_at(offset, size);
    match Compression::detect(&start) {
        Compression::None => Ok(blob),
        _ => Ok(Spool::decompress(store, blob.reader()).await?.blob()),
    }
}

/// The manifest for a config and uncompressed layers.
pub(crate) fn manifest(config: &Bytes, layers: &[Descriptor]) -> Result<Fetched> {
    let manifest = DerivedManifest {
        schema_version: 2,
        media_type: DOCKER_MANIFEST,
        config: DerivedBlob {
            media_type: DOCKER_CONFIG,
            size: config.len() as u64,
            digest: Digest::sha256(config),
        },
        layers: layers
            .iter()
            .map(|layer| DerivedBlob {
                media_type: LAYER_TYPE,
                size: layer.size,
                digest: layer.digest.clone(),
            })
            .collect(),
    };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| {
        ErrorKind::InvalidInput
            .err("deriving a manifest")
            .with_source(error)
    })?;
    Ok(Fetched {
        digest: Digest::sha256(&bytes),
        bytes: bytes.into(),
    })
}

/// The image that is meant; of one that is meant by a name, only that counts.
fn pick(mut items: Vec<Item>, wanted: Option<&str>) -> Result<Item> {
    let Some(wanted) = wanted else {
        let names: Vec<String> = items.iter().enumerate().map(called).collect();
        return match (items.pop(), items.len()) {
            (Some(item), 0) => Ok(item),
            (None, _) => Err(ErrorKind::NotFound.err("an archive without images")),
            (Some(_), more) => {
                let what = format!(
                    "Unexpected tar manifest.json: expected 1 item, got {}: choose one of {}",
                    more + 1,
                    names.join(", ")
                );
                Err(ErrorKind::InvalidInput.err(what))
            }
        };
    };
    if let Some(number) = wanted.strip_prefix('@') {
        return reference::by_number(items.into_iter(), number);
    }
    let wanted = full_name(wanted)?;
    let is_wanted = |name: &String| full_name(name).is_ok_and(|name| name == wanted);
    for mut item in items {
        let tag = item
            .repo_tags
            .iter()
            .flatten()
            .find(|name| is_wanted(name))
            .cloned();
        if let Some(tag) = tag {
            item.repo_tags = Some(vec![tag]);
            return Ok(item);
        }
    }
    Err(ErrorKind::NotFound.err(format!("Tag {wanted:?} not found")))
}

/// How an image of an archive is named in a reference.
fn called((index, item): (usize, &Item)) -> String {
    let name = item.repo_tags.iter().flatten().next();
    let short = name.map(|name| name.chars().take(200).collect());
    short.unwrap_or_else(|| format!("@{index}"))
}
