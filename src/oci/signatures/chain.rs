//! Whether a certificate is one that an authority has given for signatures of code. `webpki` verifies it.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage,
    RequiredEkuNotFoundContext, VerifiedPath, anchor_from_trusted_cert,
};

use super::pem;
use super::x509::{ANY_USAGE, CODE_SIGNING, Certificate};
use crate::oci::unique_json::Refusal;

/// More certificates than lie between any root and any signature.
const MAX_CHAIN: usize = 16;

/// Certificates of authorities.
pub(super) struct Authorities {
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// Between those and others, in any order.
    pub(super) between: Vec<CertificateDer<'static>>,
}

impl Authorities {
    /// Checks a certificate at a time in seconds since 1970. `chain`, in PEM, comes with it: the certificates between it and an
    /// authority's, and that of the authority, which is not used.
    ///
    /// # Errors
    /// Why it is not good.
    pub(super) fn verify(&self, leaf: &EndEntityCert<'_>, chain: &str, time: u64) -> Result<(), Refusal> {
        let seconds = i64::try_from(time).map_err(|error| error.to_string())?;
        let mut anchors = Vec::new();
        let mut lengths = Vec::new();
        for root in &self.roots {
            let read = Certificate::read(root);
            let length = read.as_ref().and_then(Certificate::length);
            let is_good =
                read.and_then(|read| Some(read.may_sign_code(seconds)? && read.may_be_root()?)) == Some(true);
            // One that `webpki` cannot use does not keep the others from being used.
            if let (true, Ok(anchor)) = (is_good, anchor_from_trusted_cert(root)) {
                anchors.push(anchor);
                lengths.push(length);
            }
        }
        let mut given = pem::certificates_alone(chain.as_bytes())?;
        given.pop();
        if given.len() > MAX_CHAIN {
            return Err(format!("a chain of more than {MAX_CHAIN} certificates"));
        }
        let mut between = Vec::new();
        for certificate in given.into_iter().chain(self.between.iter().cloned()) {
            if Certificate::read_given(&certificate)?.may_sign_certificates() == Some(true) {
                between.push(certificate);
            }
        }
        let is_short = |path: &VerifiedPath<'_>| {
            let count = path.intermediate_certificates().count();
            let mut known = anchors.iter().zip(&lengths);
            match known
                .any(|(root, length)| root == path.anchor() && length.is_none_or(|length| count <= length))
            {
                true => Ok(()),
                false => Err(webpki::Error::PathLenConstraintViolated),
            }
        };
        leaf.verify_for_usage(
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .all,
            &anchors,
            &between,
            UnixTime::since_unix_epoch(Duration::from_secs(time)),
            SigningOfCode,
            None,
            Some(&is_short),
        )
        .map_err(refuse)?;
        Ok(())
    }
}

/// Usages of a certificate that is good for signatures of code: this one, any, or none named.
struct SigningOfCode;

impl ExtendedKeyUsageValidator for SigningOfCode {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        let good = [CODE_SIGNING, ANY_USAGE].map(KeyPurposeId::new);
        let mut present = Vec::new();
        for usage in usages {
            let usage = usage?;
            if good.contains(&usage) {
                return Ok(());
            }
            present.push(usage.to_decoded_oid());
        }
        match present.is_empty() {
            true => Ok(()),
            false => Err(webpki::Error::RequiredEkuNotFoundContext(
                RequiredEkuNotFoundContext {
                    required: KeyUsage::required_if_present(CODE_SIGNING),
                    present,
                },
            )),
        }
    }
}

/// Reads the certificate of a signer.
pub(super) fn read_leaf<'a>(certificate: &'a CertificateDer<'_>) -> Result<EndEntityCert<'a>, Refusal> {
    EndEntityCert::try_from(certificate).map_err(refuse)
}

/// Checks that the names of a certificate make sense, and that it is for an address of mail, if one is wanted.
pub(super) fn check_names(certificate: &Certificate<'_>, email: Option<&str>) -> Result<(), Refusal> {
    let emails = certificate.emails();
    let emails = emails.ok_or_else(|| "a certificate with names that make no sense".to_owned())?;
    match email {
        Some(email) if !emails.contains(&email) => {
            Err(format!("Required email {email:?} not found (got {emails:?})"))
        }
        _ => Ok(()),
    }
}

fn refuse(error: webpki::Error) -> Refusal {
    format!("verifying leaf certificate failed: {error}")
}
