//! Verifying OpenPGP signatures of "simple signing": a signed message, made by `gpg --sign`.
//!
//! The crate `pgp` verifies single signatures; which keys are good for what is decided here, with the rules of GnuPG: a key
//! that is revoked or expired now signs nothing, whenever the signature was made.

use std::io::Read as _;

use pgp::composed::{Message, PublicOrSecret, SignedPublicKey, SignedPublicSubKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, Signature, SignatureType, SubpacketData};
use pgp::types::{Duration, KeyDetails as _, Tag, Timestamp};

use crate::oci::unique_json::Refusal;

/// Longest signed content.
const MAX_CONTENT: u64 = 4 << 20;

/// Compressed data may hold compressed data, but no program makes more than one.
const MAX_COMPRESSED: usize = 2;

/// How far clocks may differ, in seconds.
const CLOCK_SKEW: u32 = 300;

/// The line before an armored key.
const ARMOR: &[u8] = b"-----BEGIN PGP PUBLIC KEY BLOCK-----";

/// The keys in a file: not armored, or in one or several armored blocks.
pub(super) fn parse_keys(bytes: &[u8]) -> Result<Vec<SignedPublicKey>, Refusal> {
    let starts: Vec<usize> = bytes
        .windows(ARMOR.len())
        .enumerate()
        .filter_map(|(at, window)| (window == ARMOR).then_some(at))
        .collect();
    let refuse = |error: pgp::errors::Error| format!("reading public keys: {error}");
    let mut parsed: Vec<PublicOrSecret> = Vec::new();
    if starts.is_empty() {
        let keys =
            PublicOrSecret::from_bytes_many(bytes).and_then(|keys| keys.collect::<Result<Vec<_>, _>>());
        parsed = keys.map_err(refuse)?;
    }
    for (index, start) in starts.iter().enumerate() {
        let end = starts.get(index + 1).copied().unwrap_or(bytes.len());
        let block = bytes.get(*start..end).unwrap_or_default();
        let keys = PublicOrSecret::from_armor_many_buf(block)
            .and_then(|(keys, _headers)| keys.collect::<Result<Vec<_>, _>>());
        parsed.extend(keys.map_err(refuse)?);
    }
    let public = parsed.into_iter().filter_map(|key| match key {
        PublicOrSecret::Public(key) => Some(key),
        PublicOrSecret::Secret(_) => None,
    });
    Ok(public.collect())
}

/// The content of a message that one of these keys has signed.
pub(super) fn verify(message: &[u8], keys: &[SignedPublicKey]) -> Result<Vec<u8>, Refusal> {
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
    for key in keys {
        let primary = key.primary_key.fingerprint();
        if let Ok(signature) = message.verify(&key.primary_key) {
            let good = check_primary(key, now).and_then(|flags| {
                may_sign(&flags, true)?;
                check_signature(signature, now)
            });
            match good {
                Ok(()) => return Ok(content),
                Err(why) => reason = Some(format!("signature by key {primary:X} is not accepted: {why}")),
            }
        }
        for subkey in &key.public_subkeys {
            let Ok(signature) = message.verify(&subkey.key) else {
                continue;
            };
            let good = check_primary(key, now)
                .and_then(|_flags| check_subkey(subkey, key, now))
                .and_then(|()| check_signature(signature, now));
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

/// Whether a signature of data counts now.
fn check_signature(signature: &Signature, now: Timestamp) -> Result<(), Refusal> {
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
    let unknown = signature
        .config()
        .into_iter()
        .flat_map(|config| config.hashed_subpackets())
        .any(|part| {
            let is_unknown = matches!(
                part.data,
                SubpacketData::Other(..) | SubpacketData::Experimental(..) | SubpacketData::Notation(_)
            );
            part.is_critical && is_unknown
        });
    if unknown {
        return Err("it has a critical part that is not understood".to_owned());
    }
    let created = signature
        .created()
        .ok_or_else(|| "it does not say when it was made".to_owned())?;
    if created.as_secs() > now.as_secs().saturating_add(CLOCK_SKEW) {
        return Err("it is from the future".to_owned());
    }
    match is_past(created, signature.signature_expiration_time(), now) {
        true => Err("it has expired".to_owned()),
        false => Ok(()),
    }
}

/// Whether a time is over that begins at `from`; none and zero last for ever.
fn is_past(from: Timestamp, lasts: Option<Duration>, now: Timestamp) -> bool {
    let lasts = lasts.map_or(0, Duration::as_secs);
    lasts != 0 && from.as_secs().saturating_add(lasts) <= now.as_secs()
}

/// Keys without flags are of old programs, which used the primary key for everything.
fn may_sign(flags: &KeyFlags, is_primary: bool) -> Result<(), Refusal> {
    match flags.sign() || is_primary && *flags == KeyFlags::default() {
        true => Ok(()),
        false => Err("it is not for signatures".to_owned()),
    }
}

/// The newest of some signatures that are in force.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>, now: Timestamp) -> Option<&'a Signature> {
    let latest = now.as_secs().saturating_add(CLOCK_SKEW);
    signatures
        .filter(|one| one.created().is_some_and(|created| created.as_secs() <= latest))
        .filter(|one| {
            let created = one.created().unwrap_or(now);
            !is_past(created, one.signature_expiration_time(), now)
        })
        .max_by_key(|one| one.created().map_or(0, Timestamp::as_secs))
}

/// Whether the primary key is good now, and what for.
fn check_primary(key: &SignedPublicKey, now: Timestamp) -> Result<KeyFlags, Refusal> {
    let primary = &key.primary_key;
    // Whoever configured the key has put it there: it need not be verified to count.
    if !key.details.revocation_signatures.is_empty() {
        return Err("the key is revoked".to_owned());
    }
    let direct = key.details.direct_signatures.iter();
    let direct =
        direct.filter(|one| one.typ() == Some(SignatureType::Key) && one.verify_key(primary).is_ok());
    let of_users = key.details.users.iter().filter_map(|user| {
        let own = user.signatures.iter();
        let own = own.filter(|one| one.verify_certification(primary, Tag::UserId, &user.id).is_ok());
        let latest = newest(own, now)?;
        // Revoked otherwise.
        latest.is_certification().then_some(latest)
    });
    let all: Vec<&Signature> = direct.chain(of_users).collect();
    let latest =
        newest(all.into_iter(), now).ok_or_else(|| "the key has no valid signature of its own".to_owned())?;
    if primary.created_at().as_secs() > now.as_secs().saturating_add(CLOCK_SKEW) {
        return Err("the key is from the future".to_owned());
    }
    match is_past(primary.created_at(), latest.key_expiration_time(), now) {
        true => Err("the key has expired".to_owned()),
        false => Ok(latest.key_flags()),
    }
}

/// Whether a subkey is good for signatures now; that the primary key is good is checked already.
fn check_subkey(subkey: &SignedPublicSubKey, key: &SignedPublicKey, now: Timestamp) -> Result<(), Refusal> {
    let primary = &key.primary_key;
    let is = |one: &Signature, kind: SignatureType| one.typ() == Some(kind);
    if subkey
        .signatures
        .iter()
        .any(|one| is(one, SignatureType::SubkeyRevocation))
    {
        return Err("the subkey is revoked".to_owned());
    }
    let bindings = subkey.signatures.iter().filter(|one| {
        is(one, SignatureType::SubkeyBinding) && one.verify_subkey_binding(primary, &subkey.key).is_ok()
    });
    let binding = newest(bindings, now).ok_or_else(|| "the subkey does not belong to the key".to_owned())?;
    may_sign(&binding.key_flags(), false)?;
    let back = binding.embedded_signature();
    let is_mutual = back.is_some_and(|back| back.verify_primary_key_binding(&subkey.key, primary).is_ok());
    if !is_mutual {
        return Err("the subkey has not signed the key".to_owned());
    }
    match is_past(subkey.key.created_at(), binding.key_expiration_time(), now) {
        true => Err("the subkey has expired".to_owned()),
        false => Ok(()),
    }
}
