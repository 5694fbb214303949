//! Whether the signatures of an image meet a requirement.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::fulcio;
use super::openpgp;
use super::openpgp_keys::Keyring;
use super::payload::{self, Payload};
use super::pem;
use super::pki;
use super::rekor::{self, Logged};
use super::signature::{Attached, SIGSTORE_TYPE, Signature};
use super::sigstore::Key;
use crate::digest::Digest;
use crate::oci::files;
use crate::oci::reference::ImageRef;
use crate::oci::requirement::{Keys, Requirement, Signer};
use crate::oci::signed_identity::SignedIdentity;
use crate::oci::unique_json::Refusal;

/// The annotation with a signature, in base64.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

/// Those with an entry of the log, a certificate, and the certificates between that and an authority's.
const ENTRY: &str = "dev.sigstore.cosign/bundle";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";

/// Larger files hold no keys.
const MAX_KEYS: u64 = 4 << 20;

/// Checks one requirement. Blocking: reads the keys.
///
/// # Errors
/// Why it is not met.
pub(crate) fn verify(
    requirement: &Requirement,
    image: &ImageRef,
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
                let keys = Keyring::parse(&read(keys)?)?;
                if keys.is_empty() {
                    return Err("No public keys imported".to_owned());
                }
                let content = openpgp::verify(message, &keys)?;
                check(&content, payload::SIMPLE, identity)
            })
        }
        Requirement::SigstoreSigned { by, log, identity } => {
            let attached = signatures.iter().filter_map(|signature| match signature {
                Signature::Sigstore(attached) if attached.media_type == SIGSTORE_TYPE => Some(attached),
                _ => None,
            });
            one_of(attached, |attached| {
                let signature = annotation(attached, SIGNATURE)?;
                let signature = STANDARD
                    .decode(signature)
                    .map_err(|error| format!("base64 decoding: {error}"))?;
                let keys = good_keys(by, log.as_ref(), attached, &signature)?;
                if !keys
                    .iter()
                    .any(|key| key.has_signed(&attached.payload, &signature))
                {
                    return Err("cryptographic signature verification failed".to_owned());
                }
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

fn annotation<'a>(attached: &'a Attached, name: &str) -> Result<&'a str, Refusal> {
    let annotations = attached.annotations.as_ref();
    let found = annotations.and_then(|all| all.get(name));
    found
        .map(String::as_str)
        .ok_or_else(|| format!("missing {name} annotation"))
}

/// The keys of which one has to have made a signature.
fn good_keys(
    by: &Signer,
    log: Option<&Keys>,
    attached: &Attached,
    signature: &[u8],
) -> Result<Vec<Key>, Refusal> {
    let log = log.map(log_keys).transpose()?;
    let is_logged = |log: &[Key], key: (&'static str, &[u8])| {
        let wanted = Logged {
            key,
            signature,
            payload: &attached.payload,
        };
        rekor::verify(log, annotation(attached, ENTRY)?, &wanted)
    };
    match (by, log) {
        (Signer::Pki { .. }, Some(_)) => Err("keys of Rekor are not supported for pki".to_owned()),
        (
            Signer::Pki {
                roots,
                intermediates,
                email,
                hostname,
            },
            None,
        ) => {
            let (certificate, chain) = certificate(attached)?;
            let intermediates = intermediates.as_ref().map(read).transpose()?;
            let subject = pki::Subject {
                roots: &read(roots)?.concat(),
                intermediates: &intermediates.unwrap_or_default().concat(),
                email: email.as_deref(),
                hostname: hostname.as_deref(),
            };
            Ok(vec![pki::key_of(&certificate, chain, &subject)?])
        }
        (Signer::Keys(keys), None) => parse(keys),
        (Signer::Keys(keys), Some(log)) => {
            let (mut good, mut reasons) = (Vec::new(), Vec::new());
            for key in parse(keys)? {
                match is_logged(&log, (pem::PUBLIC_KEY, key.info())) {
                    Ok(_time) => good.push(key),
                    Err(reason) => reasons.push(reason),
                }
            }
            match good.is_empty() {
                true => Err(format!(
                    "No public key verified against the RekorSET: {}",
                    reasons.join(", ")
                )),
                false => Ok(good),
            }
        }
        (Signer::Fulcio { .. }, None) => Err("a key of Rekor must be specified if fulcio is used".to_owned()),
        (
            Signer::Fulcio {
                authorities,
                issuer,
                email,
            },
            Some(log),
        ) => {
            let (certificate, chain) = certificate(attached)?;
            let time = is_logged(&log, (pem::CERTIFICATE, &certificate))?;
            let subject = fulcio::Subject {
                authorities: &read(authorities)?.concat(),
                issuer,
                email,
            };
            Ok(vec![fulcio::key_of(&certificate, chain, time, &subject)?])
        }
    }
}

/// The certificate that comes with a signature, and those that come with that, in PEM.
fn certificate(attached: &Attached) -> Result<(Vec<u8>, &str), Refusal> {
    let certificate = pem::only(annotation(attached, CERTIFICATE)?.as_bytes(), pem::CERTIFICATE)?;
    Ok((certificate, annotation(attached, CHAIN).unwrap_or_default()))
}

/// Keys in PEM. One that cannot be read is told of even if another one would do.
fn parse(keys: &Keys) -> Result<Vec<Key>, Refusal> {
    read(keys)?.iter().map(|pem| Key::parse(pem)).collect()
}

/// The keys of a log.
fn log_keys(keys: &Keys) -> Result<Vec<Key>, Refusal> {
    let keys = parse(keys)?;
    match keys.iter().all(|key| key.is_ecdsa) {
        true => Ok(keys),
        false => Err("Rekor public key is not using ECDSA".to_owned()),
    }
}

/// Whether what is signed is this manifest, and a good name for it.
fn check_payload(
    payload: &Payload,
    image: &ImageRef,
    manifest: &[u8],
    identity: &SignedIdentity,
) -> Result<(), Refusal> {
    let Payload { digest, name } = payload;
    // As all programs that read signatures: those of digests of other kinds are for nothing.
    if *digest != Digest::sha256(manifest) {
        return Err(format!("Signature for digest {digest} does not match"));
    }
    let reference = match image {
        ImageRef::Registry(reference) => Some(reference.to_string()),
        // It is not in a registry, and has the name that the signature gives it at the most.
        _ => None,
    };
    if reference.is_none() && identity.needs_reference() {
        return Err(format!(
            "Docker reference match attempted on image {image} with no known Docker reference identity"
        ));
    }
    match identity.accepts(&reference.unwrap_or_default(), name) {
        true => Ok(()),
        false => Err(format!("Signature for identity {name:?} is not accepted")),
    }
}
