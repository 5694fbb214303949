//! Entries of Rekor, sigstore's log, as they are attached to a signature: a promise of the log, signed with its key, that it has
//! an entry, and the entry, which names the signature, its key or certificate, and what is signed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::pem;
use super::sigstore::Key;
use crate::digest::Digest;
use crate::oci::unique_json::{Fields, Refusal};

/// Numbers up to this one are the same in all programs that take them for floating point.
const MAX_NUMBER: u64 = 1 << 53;

/// What an entry has to name.
pub(super) struct Logged<'a> {
    /// The key or certificate, in DER, and what it is called in PEM.
    pub(super) key: (&'static str, &'a [u8]),
    pub(super) signature: &'a [u8],
    pub(super) payload: &'a [u8],
}

/// Verifies an entry with the keys of the log. Returns when it was made, in seconds since 1970.
///
/// # Errors
/// Why it is not good.
pub(super) fn verify(log: &[Key], entry: &str, wanted: &Logged<'_>) -> Result<u64, Refusal> {
    let mut entry = Fields::parse(entry.as_bytes())?;
    let promise = base64(&entry.need_text("SignedEntryTimestamp")?, "SignedEntryTimestamp")?;
    let mut payload = Fields::of(entry.need("Payload")?)?;
    entry.end()?;
    let body = payload.need_text("body")?;
    let record = base64(&body, "body")?;
    let id = payload.need_text("logID")?;
    let time = number(&payload.need("integratedTime")?, "integratedTime")?;
    let index = number(&payload.need("logIndex")?, "logIndex")?;
    payload.end()?;
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err("\"logID\" is no name of a log".to_owned());
    }
    // The canonical form of these four: no character of the two texts can be written in another way.
    let signed = format!(r#"{{"body":"{body}","integratedTime":{time},"logID":"{id}","logIndex":{index}}}"#);
    if !log.iter().any(|key| key.has_signed(signed.as_bytes(), &promise)) {
        return Err("cryptographic signature verification of Rekor SET failed".to_owned());
    }
    names(&record, wanted)?;
    Ok(time)
}

/// Checks that the body of an entry names what is wanted.
fn names(record: &[u8], wanted: &Logged<'_>) -> Result<(), Refusal> {
    let mut record = Fields::parse(record)
        .map_err(|error| format!("decoding the body of a Rekor SET payload: {error}"))?;
    let (kind, version) = (record.need_text("kind")?, record.need_text("apiVersion")?);
    if (&*kind, &*version) != ("hashedrekord", "0.0.1") {
        return Err(format!(
            "unsupported Rekor SET Payload {kind:?} version {version:?}"
        ));
    }
    let mut spec = Fields::of(record.need("spec")?)?;
    let mut signature = Fields::of(spec.need("signature")?)?;
    let content = signature.need_text("content")?;
    let public_key = Fields::of(signature.need("publicKey")?)?.need_text("content")?;
    let mut hash = Fields::of(Fields::of(spec.need("data")?)?.need("hash")?)?;
    let (algorithm, value) = (hash.need_text("algorithm")?, hash.need_text("value")?);
    let (label, key) = wanted.key;
    let logged = pem::only(&base64(&public_key, "publicKey")?, label)?;
    if logged != key {
        return Err("publicKey in Rekor SET does not match".to_owned());
    }
    if base64(&content, "signature")? != wanted.signature {
        return Err("signature in Rekor SET does not match".to_owned());
    }
    if algorithm != "sha256" {
        return Err(format!("Unexpected \"data.hash.algorithm\" value {algorithm:?}"));
    }
    match value.eq_ignore_ascii_case(Digest::sha256(wanted.payload).encoded()) {
        true => Ok(()),
        false => Err("payload in Rekor SET does not match".to_owned()),
    }
}

fn base64(text: &str, name: &str) -> Result<Vec<u8>, Refusal> {
    let decoded = STANDARD.decode(text);
    decoded.map_err(|error| format!("{name:?} of a Rekor SET: {error}"))
}

fn number(value: &Value, name: &str) -> Result<u64, Refusal> {
    let number = value.as_u64().filter(|number| *number <= MAX_NUMBER);
    number.ok_or_else(|| format!("{name:?} of a Rekor SET is no number"))
}
