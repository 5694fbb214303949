//! Verifying OpenPGP signatures of "simple signing": a signed message, made by `gpg --sign`. The crate `pgp` verifies single
//! signatures.

use std::borrow::Cow;
use std::io::Read as _;

use pgp::composed::Message;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Packet, PacketParser, Signature, SignatureType};
use pgp::types::{KeyDetails as _, Timestamp};

use super::openpgp_keys::{CLOCK_SKEW, Key, Keyring, has_unknown_critical, is_named, is_past};
use crate::oci::unique_json::Refusal;

/// Longest signed content.
const MAX_CONTENT: u64 = 4 << 20;

/// Longest message with it.
const MAX_MESSAGE: u64 = MAX_CONTENT + (1 << 20);

/// Compressed data may hold compressed data, but no program makes more than one.
const MAX_COMPRESSED: usize = 2;

/// The content of a message that one of these keys has signed.
pub(super) fn verify(message: &[u8], keys: &Keyring) -> Result<Vec<u8>, Refusal> {
    let refuse = |error: &dyn std::fmt::Display| format!("Invalid GPG signature: {error}");
    let message = uncompressed(message).map_err(|error| refuse(&error))?;
    let mut message = Message::from_bytes(&*message).map_err(|error| refuse(&error))?;
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
    let mut verdicts = keys.all().filter_map(|key| {
        let verdict = judge(&message, key, now)?;
        let primary = key.fingerprint();
        Some(verdict.map_err(|why| format!("signature by key {primary:X} is not accepted: {why}")))
    });
    match (verdicts.next(), verdicts.next()) {
        (None, _) => {
            Err("Invalid GPG signature: made by none of the keys, or not of this content".to_owned())
        }
        (Some(verdict), None) => verdict.map(|()| content),
        // It may be good as that of one, and not of another.
        (Some(_), Some(_)) => Err("the key that made the signature belongs to several keys".to_owned()),
    }
}

/// Whether a signature that a key, or a subkey of it, has made counts; `None` if it has not.
fn judge(message: &Message<'_>, key: &Key, now: Timestamp) -> Option<Result<(), Refusal>> {
    let mut verdict = None;
    if let Ok(signature) = message.verify(key.primary())
        && is_named(signature, key.primary())
    {
        let born = key.primary().created_at();
        verdict = Some(
            key.check(now)
                .and_then(|()| check_signature(signature, born, now)),
        );
    }
    for subkey in key.subkeys() {
        if let Ok(signature) = message.verify(&subkey.key)
            && is_named(signature, &subkey.key)
        {
            let born = subkey.key.created_at();
            let good = key.check_subkey(subkey, now);
            let good = good.and_then(|()| check_signature(signature, born, now));
            verdict = Some(verdict.unwrap_or(Ok(())).and(good));
        }
    }
    verdict
}

/// A message that is compressed, or that itself.
fn uncompressed(message: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    let mut message = Cow::Borrowed(message);
    for _ in 0..MAX_COMPRESSED {
        let mut packets = PacketParser::new(&*message);
        let mut next =
            || packets.find(|packet| !matches!(packet, Ok(Packet::Marker(_) | Packet::Padding(_))));
        let Some(Ok(Packet::CompressedData(data))) = next() else {
            break;
        };
        if next().is_some() {
            return Err("something follows the compressed data".to_owned());
        }
        let mut inner = Vec::new();
        let read = data
            .decompress()
            .map_err(|error| error.to_string())?
            .take(MAX_MESSAGE + 1)
            .read_to_end(&mut inner);
        read.map_err(|error| error.to_string())?;
        if inner.len() as u64 > MAX_MESSAGE {
            return Err("the message is too long".to_owned());
        }
        message = Cow::Owned(inner);
    }
    Ok(message)
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
