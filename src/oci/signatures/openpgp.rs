//! Verifying OpenPGP signatures of "simple signing": a signed message, made by `gpg --sign`. The crate `pgp` verifies single
//! signatures.

use std::io::Read as _;

use pgp::composed::Message;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureType};
use pgp::types::{KeyDetails as _, Timestamp};

use super::openpgp_keys::{CLOCK_SKEW, Keyring, has_unknown_critical, is_past};
use crate::oci::unique_json::Refusal;

/// Longest signed content.
const MAX_CONTENT: u64 = 4 << 20;

/// Compressed data may hold compressed data, but no program makes more than one.
const MAX_COMPRESSED: usize = 2;

/// The content of a message that one of these keys has signed.
pub(super) fn verify(message: &[u8], keys: &Keyring) -> Result<Vec<u8>, Refusal> {
    let refuse = |error: &dyn std::fmt::Display| format!("Invalid GPG signature: {error}");
    let mut message = Message::from_bytes(message).map_err(|error| refuse(&error))?;
    for _ in 0..MAX_COMPRESSED {
        if message.is_compressed() {
            message = message.decompress().map_err(|error| refuse(&error))?;
        }
    }
    let mut content = Vec::new();
    let read = (&mut message).take(MAX_CONTENT + 1).read_to_end(&mut content);
    read.map_err(|error| refuse(&error))?;
    if content.len() as u64 > MAX_CONTENT {
        return Err(refuse(&"the signed content is too long"));
    }
    let Message::Signed { reader, .. } = &message else {
        return Err(refuse(&"not signed"));
    };
    if reader.num_signatures() != 1 {
        let count = reader.num_signatures();
        return Err(format!("Unexpected GPG signature count {count}"));
    }
    let now = Timestamp::now();
    let mut reason = None;
    for key in keys.all() {
        let primary = key.fingerprint();
        if let Ok(signature) = message.verify(key.primary()) {
            let good = key
                .check(now)
                .and_then(|()| check_signature(signature, key.primary().created_at(), now));
            match good {
                Ok(()) => return Ok(content),
                Err(why) => reason = Some(format!("signature by key {primary:X} is not accepted: {why}")),
            }
        }
        for subkey in key.subkeys() {
            let Ok(signature) = message.verify(&subkey.key) else {
                continue;
            };
            let good = key
                .check_subkey(subkey, now)
                .and_then(|()| check_signature(signature, subkey.key.created_at(), now));
            match good {
                Ok(()) => return Ok(content),
                Err(why) => reason = Some(format!("signature by key {primary:X} is not accepted: {why}")),
            }
        }
    }
    Err(reason.unwrap_or_else(|| {
        "Invalid GPG signature: made by none of the keys, or not of this content".to_owned()
    }))
}

/// Whether a signature of data counts now, by a key that was made at a time.
fn check_signature(signature: &Signature, born: Timestamp, now: Timestamp) -> Result<(), Refusal> {
    if !matches!(signature.typ(), Some(SignatureType::Binary | SignatureType::Text)) {
        return Err("it is no signature of a document".to_owned());
    }
    match signature.hash_alg() {
        Some(HashAlgorithm::Md5 | HashAlgorithm::Sha1 | HashAlgorithm::Ripemd160 | HashAlgorithm::None)
        | None => {
            return Err("its digest is weak".to_owned());
        }
        Some(_) => {}
    }
    if has_unknown_critical(signature) {
        return Err("it has a critical part that is not understood".to_owned());
    }
    let created = signature
        .created()
        .ok_or_else(|| "it does not say when it was made".to_owned())?;
    if created.as_secs() > now.as_secs().saturating_add(CLOCK_SKEW) {
        return Err("it is from the future".to_owned());
    }
    if created < born {
        return Err("it is older than the key".to_owned());
    }
    match is_past(created, signature.signature_expiration_time(), now) {
        true => Err("it has expired".to_owned()),
        false => Ok(()),
    }
}
