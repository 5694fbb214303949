//! Fetching the signatures of an image in a registry: from itself where it serves them, else from files or a server beside it,
//! and what is attached to it.

use std::sync::PoisonError;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::BytesMut;
use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;

use super::signature::{self, Attached, MAX_SIGNATURE, MAX_SIGNATURES, Signature};
use crate::digest::Digest;
use crate::error::{ErrorKind, Result};
use crate::oci::files;
use crate::oci::repository::Repository;
use crate::oci::response;
use crate::oci::retry::Failure;
use crate::store::image_manifest::Descriptor;

/// The header of a registry that serves signatures itself, as OpenShift's did.
const SERVES_SIGNATURES: &str = "X-Registry-Supports-Signatures";

/// The signatures that such a registry serves: those of this version and type are OpenPGP messages.
const SERVED: (i64, &str) = (2, "atomic");

impl Repository {
    /// The signatures of a manifest, not verified. Whether the registry serves OpenPGP signatures is asked only if these are
    /// `wanted`.
    ///
    /// # Errors
    /// As for other requests; [`ErrorKind::InvalidInput`] for what is no signature where one should be.
    pub(crate) async fn signatures(&self, manifest: &Digest, wanted: bool) -> Result<Vec<Signature>> {
        let storage = &self.registries.options.signature_storage;
        let mut found = Vec::new();
        if wanted && self.serves_signatures().await? {
            self.served(manifest, &mut found).await?;
        } else if let Some(base) = storage.lookaside(&self.image)? {
            self.look_aside(&base, manifest, &mut found).await?;
        }
        if storage.uses_attachments(&self.image) {
            self.attached(manifest, &mut found).await?;
        }
        Ok(found)
    }

    /// Whether the registry serves signatures; asked once.
    async fn serves_signatures(&self) -> Result<bool> {
        let known = &self.registries.serving_signatures;
        let known = || known.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = self.image.registry();
        if let Some(known) = known().get(registry).copied() {
            return Ok(known);
        }
        let (url, what) = (self.url("/v2/")?, format!("pinging {registry}"));
        let ask = || async {
            let sent = self.request(Method::GET, url.clone()).send().await;
            let answer = sent.map_err(|error| Failure::of_connection(&what, error))?;
            Ok(answer
                .headers()
                .get(SERVES_SIGNATURES)
                .is_some_and(|value| value == "1"))
        };
        let found = self.retry.run(ask).await?;
        known().insert(registry.to_owned(), found);
        Ok(found)
    }

    /// Adds the signatures that the registry itself serves.
    async fn served(&self, manifest: &Digest, found: &mut Vec<Signature>) -> Result<()> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            signatures: Option<Vec<Served>>,
        }
        #[derive(Deserialize)]
        struct Served {
            #[serde(rename = "schemaVersion", default)]
            version: i64,
            #[serde(rename = "type", default)]
            kind: String,
            #[serde(default)]
            content: Option<String>,
        }
        let what = format!("reading the signatures of {}", self.image);
        let path = format!("/extensions/v2/{}/signatures/{manifest}", self.image.repository());
        let url = self.url(&path)?;
        let ask = || async {
            let request = || self.request(Method::GET, url.clone());
            let answer = self.attempt(&url, request, &[], &what).await?;
            response::read_all(answer, &what).await
        };
        let bytes = self.retry.run(ask).await?;
        let refuse = |why: String| ErrorKind::InvalidInput.err(format!("{what}: {why}"));
        let document: Document = serde_json::from_slice(&bytes).map_err(|error| refuse(error.to_string()))?;
        let all = document.signatures.unwrap_or_default();
        if all.len() > MAX_SIGNATURES {
            return Err(refuse(format!("more than {MAX_SIGNATURES} signatures")));
        }
        for served in all
            .into_iter()
            .filter(|served| (served.version, &*served.kind) == SERVED)
        {
            let message = STANDARD.decode(served.content.unwrap_or_default());
            let message = message.map_err(|error| refuse(error.to_string()))?;
            signature::add(found, Signature::Simple(message)).map_err(refuse)?;
        }
        Ok(())
    }

    /// Adds the signatures beside the registry, which have numbers.
    async fn look_aside(&self, base: &Url, manifest: &Digest, found: &mut Vec<Signature>) -> Result<()> {
        for number in 1..=MAX_SIGNATURES {
            let mut url = base.clone();
            let (algorithm, encoded) = (manifest.algorithm(), manifest.encoded());
            url.set_path(&format!(
                "{}@{algorithm}={encoded}/signature-{number}",
                base.path()
            ));
            let what = format!("reading signature {number} of {}", self.image);
            let bytes = match url.scheme() {
                "file" => {
                    let path = url
                        .to_file_path()
                        .map_err(|()| ErrorKind::InvalidInput.err(format!("{what}: {url} is no file")))?;
                    match files::read_small(path, MAX_SIGNATURE).await {
                        Ok(bytes) => Some(bytes),
                        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => None,
                        Err(error) => return Err(error.context(what)),
                    }
                }
                _ => self.retry.run(|| self.signature_at(&url, &what)).await?,
            };
            let Some(bytes) = bytes else { return Ok(()) };
            let added = Signature::parse(&bytes).and_then(|read| signature::add(found, read));
            added.map_err(|why| ErrorKind::InvalidInput.err(format!("{what}: {why}")))?;
        }
        Err(ErrorKind::InvalidInput.err(format!(
            "{} has more than {MAX_SIGNATURES} signatures",
            self.image
        )))
    }

    /// One attempt to read a signature from a server; `None` if there is none. No credentials go there.
    async fn signature_at(&self, url: &Url, what: &str) -> Result<Option<Vec<u8>>, Failure> {
        let host = url.host_str().unwrap_or_default();
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        let insecure = self
            .registries
            .options
            .registries_conf
            .is_insecure(&self.image.name());
        let (http, _) = self.registries.client(&host, insecure).await?;
        let sent = http.get(url.clone()).send().await;
        let mut answer = sent.map_err(|error| Failure::of_connection(what, error.without_url()))?;
        match answer.status() {
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::OK => {}
            _ => return Err(response::refused(answer, what).await),
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = answer
            .chunk()
            .await
            .map_err(|error| Failure::of_connection(what, error.without_url()))?
        {
            if (bytes.len() + chunk.len()) as u64 > MAX_SIGNATURE {
                let what = format!("{what}: longer than {MAX_SIGNATURE} bytes");
                return Err(ErrorKind::Registry.err(what).into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes.to_vec()))
    }

    /// Adds what is attached to the image: the layers of an image of its own, which the digest names.
    async fn attached(&self, manifest: &Digest, found: &mut Vec<Signature>) -> Result<()> {
        #[derive(Deserialize)]
        struct Document {
            #[serde(default)]
            layers: Vec<Layer>,
        }
        #[derive(Deserialize)]
        struct Layer {
            #[serde(rename = "mediaType", default)]
            media_type: String,
            digest: Digest,
            size: u64,
            #[serde(default)]
            annotations: Option<std::collections::BTreeMap<String, String>>,
        }
        let tag = format!("{}-{}.sig", manifest.algorithm(), manifest.encoded());
        let fetched = match self.tagged(&tag).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            fetched => fetched?,
        };
        let refuse =
            |why: String| ErrorKind::InvalidInput.err(format!("what is attached to {}: {why}", self.image));
        let document: Document =
            serde_json::from_slice(&fetched.bytes).map_err(|error| refuse(error.to_string()))?;
        if document.layers.len() > MAX_SIGNATURES {
            return Err(refuse(format!("more than {MAX_SIGNATURES} signatures")));
        }
        for layer in document.layers {
            if layer.size > MAX_SIGNATURE {
                return Err(refuse(format!(
                    "{} is longer than {MAX_SIGNATURE} bytes",
                    layer.digest
                )));
            }
            let blob = Descriptor::new(&layer.media_type, layer.digest, layer.size);
            let payload = self.small_blob(&blob).await?;
            blob.digest.check(&payload, "the signature")?;
            let attached = Signature::Sigstore(Attached {
                media_type: layer.media_type,
                payload: payload.to_vec(),
                annotations: layer.annotations,
            });
            signature::add(found, attached).map_err(refuse)?;
        }
        Ok(())
    }
}
