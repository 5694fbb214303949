//! PEM with one thing in it and nothing beside it. Pure.

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};

use crate::oci::unique_json::Refusal;

pub(super) const CERTIFICATE: &str = "CERTIFICATE";
pub(super) const PUBLIC_KEY: &str = "PUBLIC KEY";
/// How everything in PEM begins.
const BEGIN: &[u8] = b"-----BEGIN ";

/// All certificates.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    all.map_err(|error| format!("reading certificates: {error}"))
}

/// All certificates, if there is nothing else between and behind them.
pub(super) fn certificates_alone(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Refusal> {
    let all = certificates(pem)?;
    let text = pem.trim_ascii();
    let begins = text.windows(BEGIN.len()).filter(|part| *part == BEGIN).count();
    let is_whole = text.is_empty() || text.ends_with(b"-----END CERTIFICATE-----");
    match is_whole && begins == all.len() {
        true => Ok(all),
        false => Err("something else among certificates".to_owned()),
    }
}

/// The content of what is the only thing in it, and is called `label`: [`CERTIFICATE`] or [`PUBLIC_KEY`].
pub(super) fn only(pem: &[u8], label: &str) -> Result<Vec<u8>, Refusal> {
    let refuse = || format!("not one {} in PEM and nothing else", label.to_lowercase());
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let text = pem.trim_ascii();
    let is_whole = text.starts_with(begin.as_bytes()) && text.ends_with(end.as_bytes());
    let is_more = || {
        let mut begins = text.windows(begin.len()).filter(|part| *part == begin.as_bytes());
        begins.nth(1).is_some()
    };
    if !is_whole || is_more() {
        return Err(refuse());
    }
    let read = match label {
        CERTIFICATE => CertificateDer::from_pem_slice(text).map(|read| read.to_vec()),
        _ => SubjectPublicKeyInfoDer::from_pem_slice(text).map(|read| read.to_vec()),
    };
    read.map_err(|_reason| refuse())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_read_and_nothing_beside_it() {
        let block =
            |label: &str, text: &str| format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n");
        let key = block(PUBLIC_KEY, "MAA=");
        assert_eq!(only(key.as_bytes(), PUBLIC_KEY).unwrap(), [0x30, 0]);
        assert_eq!(
            only(block(CERTIFICATE, "MAA=").as_bytes(), CERTIFICATE).unwrap(),
            [0x30, 0]
        );
        for bad in [
            String::new(),
            format!("{key}{key}"),
            format!("x{key}"),
            format!("{key}x"),
            block(CERTIFICATE, "MAA="),
            block(PUBLIC_KEY, "%"),
            "-----BEGIN PUBLIC KEY-----".to_owned(),
        ] {
            assert!(only(bad.as_bytes(), PUBLIC_KEY).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates_are_alone() {
        let block = |label: &str| format!("-----BEGIN {label}-----\nMAA=\n-----END {label}-----\n");
        let one = block(CERTIFICATE);
        for (good, count) in [
            (String::new(), 0),
            (one.clone(), 1),
            (format!("subject\n{one}\n{one}\n"), 2),
        ] {
            assert_eq!(
                certificates_alone(good.as_bytes()).unwrap().len(),
                count,
                "{good}"
            );
        }
        for bad in [
            "x".to_owned(),
            block(PUBLIC_KEY),
            format!("{one}{}", block(PUBLIC_KEY)),
            format!("{}{one}", block("SOMETHING")),
            format!("{one}x"),
            "-----BEGIN CERTIFICATE-----".to_owned(),
        ] {
            assert!(certificates_alone(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
