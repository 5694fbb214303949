//! Certificates of an authority of one's own, which say who has made a signature. They are verified at the present time.

use std::time::{SystemTime, UNIX_EPOCH};

use rustls::pki_types::{CertificateDer, ServerName};

use super::chain::{self, Authorities};
use super::pem;
use super::sigstore::Key;
use super::x509::Certificate;
use crate::oci::unique_json::Refusal;

/// Who has to have made a signature.
pub(super) struct Subject<'a> {
    /// Certificates of authorities, in PEM.
    pub(super) roots: &'a [u8],
    /// Of those below them, in PEM.
    pub(super) intermediates: &'a [u8],
    pub(super) email: Option<&'a str>,
    pub(super) hostname: Option<&'a str>,
}

/// The key of a certificate that is good for the subject; `chain` are those between it and the authority, and that of the
/// authority, in PEM.
///
/// # Errors
/// Why it is not good.
pub(super) fn key_of(certificate: &[u8], chain: &str, subject: &Subject<'_>) -> Result<Key, Refusal> {
    let roots = pem::certificates(subject.roots)?;
    if roots.is_empty() {
        return Err("error loading PKI CA Roots certificates".to_owned());
    }
    let authorities = Authorities {
        roots,
        between: pem::certificates_alone(subject.intermediates)?,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(|error| error.to_string())?.as_secs();
    let leaf = CertificateDer::from(certificate);
    let leaf = chain::read_leaf(&leaf)?;
    authorities.verify(&leaf, chain, now)?;
    chain::check_names(&Certificate::read_given(certificate)?, subject.email)?;
    if let Some(hostname) = subject.hostname {
        let unexpected = |why: String| format!("Unexpected subject hostname: {why}");
        let name = ServerName::try_from(hostname).map_err(|error| unexpected(error.to_string()))?;
        leaf.verify_is_valid_for_subject_name(&name)
            .map_err(|error| unexpected(error.to_string()))?;
    }
    Key::of_info(&leaf.subject_public_key_info())
}
