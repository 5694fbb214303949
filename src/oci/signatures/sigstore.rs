//! Verifying sigstore's signatures with public keys: those of a type that the crate `ring` verifies, with SHA-256.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;

use super::der::{BITS, Der, OBJECT, SEQUENCE};
use crate::oci::unique_json::Refusal;

const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EDWARDS: &[u8] = &[0x2b, 0x65, 0x70];

/// A public key.
pub(super) struct Key(UnparsedPublicKey<Vec<u8>>);

impl Key {
    /// Reads a key in PEM.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, Refusal> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|error| format!("no public key in PEM: {error}"))?;
        let (algorithm, key) =
            read(&info).ok_or_else(|| "a public key of a type that is not known".to_owned())?;
        Ok(Self(UnparsedPublicKey::new(algorithm, key.to_vec())))
    }

    /// Whether it has made a signature of these bytes.
    pub(super) fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        self.0.verify(bytes, signature).is_ok()
    }
}

/// Reads a `SubjectPublicKeyInfo`.
fn read(info: &[u8]) -> Option<(&'static dyn VerificationAlgorithm, &[u8])> {
    let mut outer = Der(info);
    let mut fields = Der(outer.take(SEQUENCE)?);
    let mut algorithm = Der(fields.take(SEQUENCE)?);
    // The first byte says how many bits at the end do not count.
    let [0, key @ ..] = fields.take(BITS)? else {
        return None;
    };
    if !outer.is_at_end() || !fields.is_at_end() {
        return None;
    }
    let algorithm: &'static dyn VerificationAlgorithm = match algorithm.take(OBJECT)? {
        EC => match algorithm.take(OBJECT)? {
            P256 => &ECDSA_P256_SHA256_ASN1,
            P384 => &ECDSA_P384_SHA256_ASN1,
            _ => return None,
        },
        RSA => &RSA_PKCS1_2048_8192_SHA256,
        EDWARDS => &ED25519,
        _ => return None,
    };
    Some((algorithm, key))
}
