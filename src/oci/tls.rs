//! HTTP clients with TLS set up by value: nothing here chooses a TLS implementation for the whole process.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_platform_verifier::Verifier;

use super::registry_options::{RegistryOptions, TlsOptions, Transport};
use crate::error::{Error, ErrorKind, Result};

/// The part of [`RegistryOptions::stall`] within which a registry has to agree on TLS that need not speak it: 10 seconds by
/// default, as for Podman.
const INSECURE_SHARE: u32 = 6;

/// Most redirections that are followed.
const MAX_REDIRECTS: usize = 10;

fn invalid(what: &'static str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    ErrorKind::InvalidInput.err(what).with_source(error)
}

/// Accepts every certificate or none, without looking at roots. The signatures of the handshake are verified.
#[derive(Debug)]
struct WithoutRoots {
    accept: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for WithoutRoots {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.accept {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn verifier(tls: &TlsOptions, provider: &Arc<CryptoProvider>) -> Result<Arc<dyn ServerCertVerifier>> {
    let without_roots = |accept| {
        Ok(Arc::new(WithoutRoots {
            accept,
            provider: Arc::clone(provider),
        }) as Arc<dyn ServerCertVerifier>)
    };
    if matches!(tls.transport, Transport::TlsUnverified | Transport::Insecure) {
        return without_roots(true);
    }
    let mut roots = Vec::new();
    for pem in &tls.root_certificates {
        let before = roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            roots.push(certificate.map_err(|error| invalid("reading a root certificate", error))?);
        }
        if roots.len() == before {
            return Err(ErrorKind::InvalidInput.err("root certificates without a certificate in PEM"));
        }
    }
    match Verifier::new_with_extra_roots(roots, Arc::clone(provider)) {
        Ok(verifier) => Ok(Arc::new(verifier)),
        // A machine without root certificates can talk to registries that need none.
        Err(error) if tls.transport == Transport::Plain && tls.root_certificates.is_empty() => {
            tracing::debug!(%error, "no root certificates: redirections to HTTPS will fail");
            without_roots(false)
        }
        Err(error) => Err(invalid("reading root certificates", error)),
    }
}

fn client_config(tls: &TlsOptions) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(tls, &provider)?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("setting up TLS", error))?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &tls.identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&identity.certificates)
                .collect::<Result<_, _>>()
                .map_err(|error| invalid("reading a client certificate", error))?;
            let key = PrivateKeyDer::from_pem_slice(&identity.key)
                .map_err(|error| invalid("reading a client certificate's key", error))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| invalid("using a client certificate", error))?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// How long a connection may take until it is there, with TLS. One that need not speak TLS is asked without it afterwards, and
/// may be one that waits for more of what it does not understand.
fn connect_timeout(tls: &TlsOptions, options: &RegistryOptions) -> Duration {
    match tls.transport {
        Transport::Insecure => options.stall / INSECURE_SHARE,
        _ => options.stall,
    }
}

/// A client with these TLS options. Blocking: reads the system's root certificates.
pub(crate) fn http_client(tls: &TlsOptions, options: &RegistryOptions) -> Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        // None but those that the options name.
        .no_proxy()
        .user_agent(concat!("graphroot/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout(tls, options))
        .read_timeout(options.stall)
        .redirect(redirect::Policy::limited(MAX_REDIRECTS))
        .tls_backend_preconfigured(client_config(tls)?);
    if options.proxies.is_any() {
        let proxies = options.proxies.clone();
        builder = builder.proxy(reqwest::Proxy::custom(move |url| proxies.proxy_for(url)));
    }
    builder.build().map_err(|error| {
        ErrorKind::Registry
            .err("setting up an HTTP client")
            .with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::registry_options::ClientIdentity;

    #[test]
    fn pem_that_is_none_is_refused() {
        let options = RegistryOptions::default();
        for tls in [
            TlsOptions::default().root_certificate("no certificate"),
            TlsOptions::default()
                .root_certificate("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
            TlsOptions::default().identity(Some(ClientIdentity::from_pem("no", "key"))),
        ] {
            let error = http_client(&tls, &options).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error:?}");
        }
        assert!(
            CryptoProvider::get_default().is_none(),
            "the process has no provider"
        );
    }
}
