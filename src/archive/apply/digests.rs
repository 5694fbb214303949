//! The digests of a layer: which have to be computed, and which go into the record.

use std::sync::Arc;

use crate::archive::apply::target::ApplyOptions;
use crate::archive::compress::hash_queue::HashQueue;
use crate::archive::compress::stream_hash::ContentSums;
use crate::compression::Compression;
use crate::digest::{Digest, Hasher};
use crate::error::{ErrorKind, Result};

/// What is to be hashed of the blob and of the decoded stream, by either side of the pipeline.
#[derive(Clone)]
pub(crate) struct HashQueues {
    /// `None` for a blob that is not compressed: both streams are the same.
    pub(crate) blob: Option<Arc<HashQueue>>,
    pub(crate) decoded: Arc<HashQueue>,
}

impl HashQueues {
    /// Queues for the digests that are missing or to be checked.
    pub(crate) fn new(options: &mut ApplyOptions, compression: Compression) -> Self {
        let contents = options.contents.take().map(ContentSums::new);
        let blob = hashers(options.original_digest.as_ref(), options.verify);
        let mut decoded = hashers(options.uncompressed_digest.as_ref(), options.verify);
        if compression != Compression::None {
            return Self {
                blob: Some(Arc::new(HashQueue::new(blob, None))),
                decoded: Arc::new(HashQueue::new(decoded, contents)),
            };
        }
        // Each algorithm once.
        for hasher in blob {
            if !decoded.iter().any(|have| have.is_like(&hasher)) {
                decoded.push(hasher);
            }
        }
        Self {
            blob: None,
            decoded: Arc::new(HashQueue::new(decoded, contents)),
        }
    }

    /// Hashes a chunk if there is one.
    pub(crate) fn help(&self) -> bool {
        self.decoded.help() || self.blob.as_ref().is_some_and(|blob| blob.help())
    }

    /// The digests of the blob and of the decoded stream for the record. To be called when no more chunks can come.
    pub(crate) fn finish(&self, options: &ApplyOptions) -> Result<(Digest, Digest)> {
        let decoded = self.decoded.finish()?;
        let blob = match &self.blob {
            Some(blob) => blob.finish()?,
            None => decoded.clone(),
        };
        let verify = options.verify;
        let blob = settle(
            options.original_digest.as_ref(),
            &blob,
            verify,
            "the layer as sent",
        )?;
        let given = options.uncompressed_digest.as_ref();
        Ok((blob, settle(given, &decoded, verify, "the uncompressed layer")?))
    }
}

/// Which digests have to be computed where one was given or not: always one in sha256, which records need.
fn hashers(given: Option<&Digest>, verify: bool) -> Vec<Hasher> {
    match given {
        Some(digest) if digest.algorithm() == "sha256" => verify.then(Hasher::sha256).into_iter().collect(),
        Some(digest) if verify => vec![Hasher::sha256(), Hasher::like(digest)],
        _ => vec![Hasher::sha256()],
    }
}

/// The digest for the record, out of the given one and the computed ones.
fn settle(given: Option<&Digest>, computed: &[Digest], verify: bool, what: &str) -> Result<Digest> {
    let with = |algorithm: &str| computed.iter().find(|digest| digest.algorithm() == algorithm);
    if let Some(given) = given {
        if verify {
            match with(given.algorithm()) {
                Some(digest) if digest == given => {}
                Some(digest) => {
                    return Err(ErrorKind::DigestMismatch
                        .err(format!("{what} has digest {digest}, expected {given}")));
                }
                None => {
                    return Err(
                        ErrorKind::DigestMismatch.err(format!("{what} was not checked against {given}"))
                    );
                }
            }
        }
        if given.algorithm() == "sha256" {
            return Ok(given.clone());
        }
    }
    with("sha256")
        .cloned()
        .ok_or_else(|| ErrorKind::DigestUnknown.err(what.to_owned()))
}
