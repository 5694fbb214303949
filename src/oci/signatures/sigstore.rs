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
pub(super) struct Key {
    key: UnparsedPublicKey<Vec<u8>>,
    /// As a `SubjectPublicKeyInfo`.
    info: Vec<u8>,
    /// Whether it is one of an elliptic curve, but not Edwards's.
    pub(super) is_ecdsa: bool,
}

impl Key {
    /// Reads a key in PEM.
    pub(super) fn parse(pem: &[u8]) -> Result<Self, Refusal> {
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|error| format!("no public key in PEM: {error}"))?;
        Self::of_info(&info)
    }

    /// The key in a `SubjectPublicKeyInfo`.
    pub(super) fn of_info(info: &[u8]) -> Result<Self, Refusal> {
        let read = read(info).ok_or_else(|| "a public key of a type that is not known".to_owned());
        let (algorithm, key, kind) = read?;
        Ok(Self {
            key: UnparsedPublicKey::new(algorithm, key.to_vec()),
            info: info.to_vec(),
            is_ecdsa: kind == EC,
        })
    }

    /// As a `SubjectPublicKeyInfo`.
    pub(super) fn info(&self) -> &[u8] {
        &self.info
    }

    /// Whether it has made a signature of these bytes.
    pub(super) fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        self.key.verify(bytes, signature).is_ok()
    }
}

/// Reads a `SubjectPublicKeyInfo`: how the key verifies, the key, and its kind.
fn read(info: &[u8]) -> Option<(&'static dyn VerificationAlgorithm, &[u8], &[u8])> {
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
    let kind = algorithm.take(OBJECT)?;
    let algorithm: &'static dyn VerificationAlgorithm = match kind {
        EC => match algorithm.take(OBJECT)? {
            P256 => &ECDSA_P256_SHA256_ASN1,
            P384 => &ECDSA_P384_SHA256_ASN1,
            _ => return None,
        },
        RSA => &RSA_PKCS1_2048_8192_SHA256,
        EDWARDS => &ED25519,
        _ => return None,
    };
    Some((algorithm, key, kind))
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// Public keys of each type and their signatures of `payload`, both in base64, made by OpenSSL.
    const MADE: [(&str, &str); 4] = [
        (
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEf5a6FlLVAO7jHrTHQU8JG8YtYppPl3M97PogR5ZNqa+TcUpcKyr3Ijx2AzE3gVV7\
             FaxwwU6f1zs0n5o01xlJ9A==",
            "MEUCIQCli4f4DgJAIhLldV5QYpcYPf/Q5Qoj4Zdf3z3TZCP8DQIgLIHMLOEcv7md1k8+ijYZB912FYR5yGEuk1kid5Pvs6A=",
        ),
        (
            "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEKoo0G9RHKXVQ8NYOPvUUNArprMJJoZvkqTa0wT86n6JlVEuqAPDDfNjLQg9nTGuxSfoB\
             pJy3wHDTI7NixKH6oPIu3MGv9txw6aQ1N0WtRmtqxHiG1OBrFHnqSFEpCSVU",
            "MGUCMQC3ngWkjvoIa1mMSIpT5pxjYL6QkqnQubJ/stIZ/xhKD5kXBp6t3jWzRMcqDNV9XloCMA3ooXfEsBcVyyZUcasUKW3GFQPi\
             32npKrx1n59MHYupGteXwJZMzP95Jsgt3ogL7g==",
        ),
        (
            "MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAzCGgGcHY6NyGR9QpY9GqbTwxZoXQqzwn7lkUjA5Ws8uTGogjDmOw9CQf\
             eF9gLfMETQ/WCsFhDT5ptC8YzvqgkB0vTK5inqobL/HKQGJbRK2BYnqV1pwMFTbw9ZSF1QKrbmKYuWM0WS8MWPsV2haXBfD9uR2P\
             qmqooWtBqJ1+dmklq5xmPahJS+Ji9jh7T8Sc/vjMXM8fzqjbbN4qCkT3O+qlmINPYkqOGsXAkS4nDbkCt/hFxjwf2xpS3tnOMlqz\
             /3QquneC+3RI8Qja9h3cdlDqayqxeRzDm1qhcquLsOwYptKPdLWsuKYas3owBrFjx+pJu5Mil52jQ0cPXNxW4wIDAQAB",
            "QCU/bmeH0Js0HB/7emRcf7HYO6N6JqyXMBgLddfk5pbbBYWN8Vf0BfoIUlsJ6xWFXY70IjvmGGhQJtpCHJA5XYWHQzDHr8YTyUDU\
             QBWw15FYtvFYcyzWExqRCtNSo+EHEcuUw2UqhZIg/wfCtxUeNv5cSeN/uu//AeQSnyMkix2/tGSZkyE88ITJHpxTeFzc9SAgFe/B\
             NqftS4vhQ3y5Tt7Xcl4uClhrkYv0b0NhX/IGUmyau0A+cVNs/I+kFtAmuBgtW7AdY1nM7azwh9wDGIrtq1cHIuwsnjbv3SYzLWzf\
             pbLaofCC3RIT/2LIW+M0m9X6AmrGgmVwoLTjIU/eOA==",
        ),
        (
            "MCowBQYDK2VwAyEAHeuypvhu4EC4HBlEPbxegKxJC76xUzXBhQKOxabb718=",
            "9utw43XrOG3pWq0vP/2gF9Xde9tBlcDTzpy1dEexA1zwcMLUmfq3YjPLkknmGe+KVB6LJi+s8V9Cp6kC3nQxCA==",
        ),
    ];

    /// A key on P-521.
    const UNKNOWN: &str = "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBmwgq2rwvejayTN3DEKPJ+fYetncGtfhgcLjKNMpg9+Yv63nmr3V8PtNmKdXds9AC\
             W24LQ+B+AgeqED+MTkiS1IwBKxlFsYy94gj7KWcCCqSX3m/lPnrg6bTMKLDvRC4tTb/5RSdPMzDd5DqUp72JFSBXhxNyaSmkCkH0\
             CtVNiJgQ+/w=";

    fn pem(key: &str) -> String {
        format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n")
    }

    #[test]
    fn keys_of_all_types_verify_what_they_have_signed() {
        for (key, signature) in MADE {
            let key = Key::parse(pem(key).as_bytes()).unwrap_or_else(|why| panic!("{key}: {why}"));
            let signature = STANDARD.decode(signature).unwrap();
            assert!(key.has_signed(b"payload", &signature));
            assert!(!key.has_signed(b"Payload", &signature));
            assert!(!key.has_signed(b"payload", &[]));
            for (other, _) in MADE {
                let other = Key::parse(pem(other).as_bytes()).unwrap_or_else(|why| panic!("{why}"));
                let is_same = other.info() == key.info();
                assert_eq!(other.has_signed(b"payload", &signature), is_same);
            }
        }
    }

    #[test]
    fn what_is_no_known_key_is_refused() {
        for bad in [String::new(), pem(UNKNOWN), pem("MAA="), "no key".to_owned()] {
            assert!(Key::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
