//! Whether the signatures of an image meet a requirement.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::openpgp;
use super::payload::{self, Payload};
use super::signature::{Attached, SIGSTORE_TYPE, Signature};
use super::sigstore::Key;
use crate::oci::files;
use crate::oci::reference::RegistryRef;
use crate::oci::requirement::{Keys, Requirement};
use crate::oci::signed_identity::SignedIdentity;
use crate::oci::unique_json::Refusal;

/// The annotation with a signature, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Larger files hold no keys.
const MAX_KEYS: u64 = 4 << 20;

/// Checks one requirement. Blocking: reads the keys.
///
/// # Errors
/// Why it is not met.
pub(crate) fn verify(
    requirement: &Requirement,
    image: &RegistryRef,
    manifest: &[u8],
    signatures: &[Signature],
) -> Result<(), Refusal> {
    let check = |bytes: &[u8], kind, identity: &SignedIdentity| {
        check_payload(&Payload::parse(bytes, kind)?, image, manifest, identity)
    };
    match requirement {
        Requirement::Nothing => Ok(()),
        Requirement::Reject => Err(format!("Running image {image} is rejected by policy.")),
        Requirement::SignedBaseLayer => Err("signedBaseLayer is not verified by any program".to_owned()),
        Requirement::SignedBy { keys, identity } => {
            let messages = signatures.iter().filter_map(|signature| match signature {
                Signature::Simple(message) => Some(message),
                Signature::Sigstore(_) => None,
            });
            one_of(messages, |message| {
                let keys = keys.as_ref();
                let keys = keys.ok_or_else(|| "Unimplemented \"keyType\" value".to_owned())?;
                let mut all = Vec::new();
                for bytes in read(keys)? {
                    all.extend(openpgp::parse_keys(&bytes)?);
                }
                if all.is_empty() {
                    return Err("No public keys imported".to_owned());
                }
                let content = openpgp::verify(message, &all)?;
                check(&content, payload::SIMPLE, identity)
            })
        }
        Requirement::SigstoreSigned { keys, identity } => {
            let attached = signatures.iter().filter_map(|signature| match signature {
                Signature::Sigstore(attached) if attached.media_type == SIGSTORE_TYPE => Some(attached),
                _ => None,
            });
            one_of(attached, |attached| {
                let keys = keys.as_ref().map_err(|what| {
                    format!("the signature is to be verified with {what}, which graphroot does not do")
                })?;
                let keys = read(keys)?;
                // One that cannot be read is told of even if another one would do.
                let keys = keys.iter().map(|pem| Key::parse(pem));
                let keys = keys.collect::<Result<Vec<_>, _>>()?;
                check_signature(attached, &keys)?;
                check(&attached.payload, payload::SIGSTORE, identity)
            })
        }
    }
}

/// One good signature is enough.
fn one_of<T>(
    signatures: impl Iterator<Item = T>,
    check: impl Fn(T) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    let mut reasons = Vec::new();
    for signature in signatures {
        match check(signature) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(match reasons.len() {
        0 => "A signature was required, but no signature exists".to_owned(),
        1 => reasons.concat(),
        _ => format!(
            "None of the signatures were accepted, reasons: {}",
            reasons.join("; ")
        ),
    })
}

fn read(keys: &Keys) -> Result<Vec<Vec<u8>>, Refusal> {
    match keys {
        Keys::Data(all) => Ok(all.clone()),
        Keys::Files(files) => {
            let read = files.iter().map(|file| files::read_small_now(file, MAX_KEYS));
            read.collect::<Result<_, _>>().map_err(|error| error.chain())
        }
    }
}

fn check_signature(attached: &Attached, keys: &[Key]) -> Result<(), Refusal> {
    let annotations = attached.annotations.as_ref();
    let signature = annotations.and_then(|all| all.get(SIGNATURE));
    let signature = signature.ok_or_else(|| format!("missing {SIGNATURE} annotation"))?;
    let signature = STANDARD
        .decode(signature)
        .map_err(|error| format!("base64 decoding: {error}"))?;
    match keys
        .iter()
        .any(|key| key.has_signed(&attached.payload, &signature))
    {
        true => Ok(()),
        false => Err("cryptographic signature verification failed".to_owned()),
    }
}

/// Whether what is signed is this manifest, and a good name for it.
fn check_payload(
    payload: &Payload,
    image: &RegistryRef,
    manifest: &[u8],
    identity: &SignedIdentity,
) -> Result<(), Refusal> {
    let Payload { digest, name } = payload;
    if digest.check(manifest, "the manifest").is_err() {
        return Err(format!("Signature for digest {digest} does not match"));
    }
    match identity.accepts(&image.to_string(), name) {
        true => Ok(()),
        false => Err(format!("Signature for identity {name:?} is not accepted")),
    }
}
