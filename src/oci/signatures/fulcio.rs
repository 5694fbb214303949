//! Certificates of Fulcio, which say who has made a signature, for minutes. `webpki` verifies them at the time at which the log
//! has taken the signature.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::pem;
use super::sigstore::Key;
use super::x509::{CODE_SIGNING, Certificate};
use crate::oci::unique_json::Refusal;

/// More certificates than lie between any root and any signature.
const MAX_CHAIN: usize = 16;

/// Who has to have made a signature.
pub(super) struct Subject<'a> {
    /// Certificates of authorities, in PEM.
    pub(super) authorities: &'a [u8],
    pub(super) issuer: &'a str,
    pub(super) email: &'a str,
}

/// The key of a certificate that is good for the subject at a time in seconds since 1970; `chain` are those between it and the
/// authority, and that of the authority, in PEM.
///
/// # Errors
/// Why it is not good.
pub(super) fn key_of(
    certificate: &[u8],
    chain: &str,
    time: u64,
    subject: &Subject<'_>,
) -> Result<Key, Refusal> {
    let seconds = i64::try_from(time).map_err(|error| error.to_string())?;
    let roots = pem::certificates(subject.authorities)?;
    if roots.is_empty() {
        return Err("error loading Fulcio CA certificates".to_owned());
    }
    // `webpki` takes roots as they are.
    let is_good = |root: &&CertificateDer<'_>| {
        let read = Certificate::read(root).and_then(|read| read.may_sign_code(seconds));
        read == Some(true)
    };
    let anchors = roots.iter().filter(is_good).map(anchor_from_trusted_cert);
    let anchors = anchors.collect::<Result<Vec<_>, _>>().map_err(refuse)?;
    let mut chain = pem::certificates(chain.as_bytes())?;
    chain.pop();
    if chain.len() > MAX_CHAIN {
        return Err(format!("a chain of more than {MAX_CHAIN} certificates"));
    }
    let leaf = CertificateDer::from(certificate);
    let verified = EndEntityCert::try_from(&leaf).map_err(refuse)?;
    verified
        .verify_for_usage(
            rustls::crypto::ring::default_provider()
                .signature_verification_algorithms
                .all,
            &anchors,
            &chain,
            UnixTime::since_unix_epoch(Duration::from_secs(time)),
            // Without any usage named, a certificate is good for all.
            KeyUsage::required_if_present(CODE_SIGNING),
            None,
            None,
        )
        .map_err(refuse)?;
    let read =
        Certificate::read(certificate).ok_or_else(|| "a certificate that makes no sense".to_owned())?;
    let issuer = read.issuer();
    let issuer = issuer.ok_or_else(|| "Fulcio certificate is missing the issuer extension".to_owned())?;
    if issuer != subject.issuer {
        return Err(format!("Unexpected Fulcio OIDC issuer {issuer:?}"));
    }
    let emails = read.emails().unwrap_or_default();
    if !emails.contains(&subject.email) {
        return Err(format!(
            "Required email {:?} not found (got {emails:?})",
            subject.email
        ));
    }
    Key::of_info(&verified.subject_public_key_info())
}

fn refuse(error: webpki::Error) -> Refusal {
    format!("verifying leaf certificate failed: {error}")
}
