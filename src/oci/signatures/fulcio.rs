//! Certificates of Fulcio, which say who has made a signature, for minutes. They are verified at the time at which the log has
//! taken the signature.

use rustls::pki_types::CertificateDer;

use super::chain::{self, Authorities};
use super::pem;
use super::sigstore::Key;
use super::x509::Certificate;
use crate::oci::unique_json::Refusal;

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
    let roots = pem::certificates(subject.authorities)?;
    if roots.is_empty() {
        return Err("error loading Fulcio CA certificates".to_owned());
    }
    let authorities = Authorities {
        roots,
        between: Vec::new(),
    };
    let leaf = CertificateDer::from(certificate);
    let leaf = chain::read_leaf(&leaf)?;
    authorities.verify(&leaf, chain, time)?;
    let read = Certificate::read_given(certificate)?;
    let issuer = read.issuer();
    let issuer = issuer.ok_or_else(|| "Fulcio certificate is missing the issuer extension".to_owned())?;
    if issuer != subject.issuer {
        return Err(format!("Unexpected Fulcio OIDC issuer {issuer:?}"));
    }
    chain::check_names(&read, Some(subject.email))?;
    Key::of_info(&leaf.subject_public_key_info())
}
