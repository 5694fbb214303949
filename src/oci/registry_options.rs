//! How registries are reached: credentials, TLS, retries and time limits.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;

use super::proxies::Proxies;
use super::registries_conf::RegistriesConf;
#[cfg(feature = "signatures")]
use super::signatures::storage::SignatureStorage;

/// Credentials for a registry. `Debug` shows no secret.
#[non_exhaustive]
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Credentials {
    /// No credentials, even if a file has some.
    #[default]
    Anonymous,
    /// A user name and a password.
    Password {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token of OAuth 2, which the token service of the registry exchanges.
    IdentityToken(String),
    /// A token that is sent to the registry as it is.
    BearerToken(String),
}

impl Credentials {
    /// A user name and a password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password {
            username: username.into(),
            password: password.into(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Password { username, .. } => f
                .debug_struct("Password")
                .field("username", username)
                .finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken(…)"),
            Self::BearerToken(_) => f.write_str("BearerToken(…)"),
        }
    }
}

/// How the connection to a registry is protected.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Transport {
    /// HTTPS with a certificate that a known root has signed.
    #[default]
    Tls,
    /// HTTPS with any certificate: encrypted, but any server may answer.
    TlsUnverified,
    /// HTTP: any host on the way may read and answer.
    Plain,
    /// HTTPS with any certificate, or HTTP where the registry does not speak TLS: what `registries.conf` calls insecure.
    Insecure,
}

/// A client certificate with its private key, both PEM. `Debug` does not show the key.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    pub(crate) certificates: Bytes,
    pub(crate) key: Bytes,
}

impl ClientIdentity {
    /// The certificate chain, the client's own certificate first, and its private key (PKCS #1, PKCS #8 or SEC 1).
    /// They are parsed at the first connection.
    pub fn from_pem(certificates: impl Into<Bytes>, key: impl Into<Bytes>) -> Self {
        Self {
            certificates: certificates.into(),
            key: key.into(),
        }
    }
}

impl fmt::Debug for ClientIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientIdentity").finish_non_exhaustive()
    }
}

/// How connections to a registry are encrypted.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// Whether and how strictly TLS is used.
    pub transport: Transport,
    /// Root certificates that are trusted beside those of the system, PEM; each may hold several.
    pub root_certificates: Vec<Bytes>,
    /// What is shown to a registry that asks for a client certificate.
    pub identity: Option<ClientIdentity>,
}

impl TlsOptions {
    /// Sets [`TlsOptions::transport`].
    #[must_use]
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Adds PEM to [`TlsOptions::root_certificates`].
    #[must_use]
    pub fn root_certificate(mut self, pem: impl Into<Bytes>) -> Self {
        self.root_certificates.push(pem.into());
        self
    }

    /// Sets [`TlsOptions::root_certificates`].
    #[must_use]
    pub fn root_certificates(mut self, pem: impl IntoIterator<Item: Into<Bytes>>) -> Self {
        self.root_certificates = pem.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`TlsOptions::identity`].
    #[must_use]
    pub fn identity(mut self, identity: Option<ClientIdentity>) -> Self {
        self.identity = identity;
        self
    }
}

/// How registries are reached.
///
/// ```
/// use graphroot::oci::{Credentials, RegistryOptions, TlsOptions, Transport};
///
/// let options = RegistryOptions::default()
///     .credentials_for("registry.example/team", Credentials::password("user", "secret"))
///     .tls_for("10.0.0.7:5000", TlsOptions::default().transport(Transport::TlsUnverified));
/// assert!(!format!("{options:?}").contains("secret"));
/// ```
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct RegistryOptions {
    /// Credentials by `HOST[:PORT]` or `HOST[:PORT]/NAMESPACE…`. The longest key that fits a repository is used, and no
    /// file is then read.
    pub credentials: BTreeMap<String, Credentials>,
    /// A file of credentials instead of the usual ones: that which `REGISTRY_AUTH_FILE` names or `config.json` in the
    /// directory that `DOCKER_CONFIG` names, or else `containers/auth.json` of the runtime and the configuration directory
    /// and Docker's `config.json`. Where [`RegistryOptions::registries_conf`] has credential helpers, they are asked in its
    /// order, `containers-auth.json` being the files.
    pub auth_file: Option<PathBuf>,
    /// TLS for registries without an entry in [`RegistryOptions::tls_by_registry`]. Registries on this machine
    /// (`localhost`, 127.0.0.0/8, `::1`) are reached without TLS, unless [`RegistryOptions::registries_conf`] says of them
    /// `insecure = false` or there are certificates for them in [`RegistryOptions::certificate_directories`] or
    /// [`RegistryOptions::certificate_directory`].
    pub tls: TlsOptions,
    /// TLS by `HOST[:PORT]`.
    pub tls_by_registry: BTreeMap<String, TlsOptions>,
    /// How often in a row a request without progress is repeated.
    pub retries: u32,
    /// Wait before the first retry. It doubles with each retry in a row, and up to as much again is added at random.
    /// A registry that sends `Retry-After` is asked again then.
    pub backoff: Duration,
    /// No wait is longer than this, whatever the registry asks for.
    pub max_wait: Duration,
    /// A registry that accepts no connection or sends nothing for this long has failed. One that need not speak TLS is taken for
    /// one without if it has not agreed on it within a sixth of that.
    pub stall: Duration,
    /// Mirrors, and registries that are blocked or insecure; by default none.
    pub registries_conf: RegistriesConf,
    /// Whether certificates are verified, whatever [`RegistryOptions::registries_conf`] and [`RegistryOptions::tls`]
    /// say: with `false` all registries are [`Transport::Insecure`], with `true` none. Entries of
    /// [`RegistryOptions::tls_by_registry`] count more.
    pub tls_verify: Option<bool>,
    /// Directories in which a registry may have one of the name `HOST[:PORT]` with its root certificates (`*.crt`) and the
    /// certificate and key of the client (`*.cert`, `*.key`); the first one that there is counts. By default none.
    pub certificate_directories: Vec<PathBuf>,
    /// A directory of such certificates for all registries, instead.
    pub certificate_directory: Option<PathBuf>,
    /// Which requests go through a proxy; by default as the environment of this process says.
    pub proxies: Proxies,
    /// Where the signatures of images are; by default nowhere. (Feature `signatures`.)
    #[cfg(feature = "signatures")]
    pub signature_storage: SignatureStorage,
}

impl Default for RegistryOptions {
    fn default() -> Self {
        Self {
            credentials: BTreeMap::new(),
            auth_file: None,
            tls: TlsOptions::default(),
            tls_by_registry: BTreeMap::new(),
            retries: 5,
            backoff: Duration::from_millis(250),
            max_wait: Duration::from_secs(60),
            stall: Duration::from_secs(60),
            registries_conf: RegistriesConf::default(),
            tls_verify: None,
            certificate_directories: Vec::new(),
            certificate_directory: None,
            proxies: Proxies::from_environment(),
            #[cfg(feature = "signatures")]
            signature_storage: SignatureStorage::default(),
        }
    }
}

impl RegistryOptions {
    /// Sets [`RegistryOptions::credentials`].
    #[must_use]
    pub fn credentials(mut self, credentials: impl IntoIterator<Item = (String, Credentials)>) -> Self {
        self.credentials = credentials.into_iter().collect();
        self
    }

    /// Adds to [`RegistryOptions::credentials`].
    #[must_use]
    pub fn credentials_for(mut self, scope: impl Into<String>, credentials: Credentials) -> Self {
        self.credentials.insert(scope.into(), credentials);
        self
    }

    /// Sets [`RegistryOptions::auth_file`].
    #[must_use]
    pub fn auth_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.auth_file = Some(file.into());
        self
    }

    /// Sets [`RegistryOptions::tls`].
    #[must_use]
    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = tls;
        self
    }

    /// Sets [`RegistryOptions::tls_by_registry`].
    #[must_use]
    pub fn tls_by_registry(mut self, tls: impl IntoIterator<Item = (String, TlsOptions)>) -> Self {
        self.tls_by_registry = tls.into_iter().collect();
        self
    }

    /// Adds to [`RegistryOptions::tls_by_registry`].
    #[must_use]
    pub fn tls_for(mut self, registry: impl Into<String>, tls: TlsOptions) -> Self {
        self.tls_by_registry.insert(registry.into(), tls);
        self
    }

    /// Has a registry (`HOST[:PORT]`) reached without TLS.
    #[must_use]
    pub fn plain_http(self, registry: impl Into<String>) -> Self {
        self.tls_for(registry, TlsOptions::default().transport(Transport::Plain))
    }

    /// Sets [`RegistryOptions::retries`].
    #[must_use]
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets [`RegistryOptions::backoff`].
    #[must_use]
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = backoff;
        self
    }

    /// Sets [`RegistryOptions::max_wait`].
    #[must_use]
    pub fn max_wait(mut self, wait: Duration) -> Self {
        self.max_wait = wait;
        self
    }

    /// Sets [`RegistryOptions::stall`].
    #[must_use]
    pub fn stall(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// Sets [`RegistryOptions::registries_conf`].
    #[must_use]
    pub fn registries_conf(mut self, conf: RegistriesConf) -> Self {
        self.registries_conf = conf;
        self
    }

    /// Sets [`RegistryOptions::tls_verify`].
    #[must_use]
    pub fn tls_verify(mut self, verify: Option<bool>) -> Self {
        self.tls_verify = verify;
        self
    }

    /// Sets [`RegistryOptions::certificate_directories`].
    #[must_use]
    pub fn certificate_directories(
        mut self,
        directories: impl IntoIterator<Item = impl Into<PathBuf>>,
    ) -> Self {
        self.certificate_directories = directories.into_iter().map(Into::into).collect();
        self
    }

    /// Sets [`RegistryOptions::certificate_directory`].
    #[must_use]
    pub fn certificate_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.certificate_directory = Some(directory.into());
        self
    }

    /// Sets [`RegistryOptions::proxies`].
    #[must_use]
    pub fn proxies(mut self, proxies: Proxies) -> Self {
        self.proxies = proxies;
        self
    }

    /// Sets [`RegistryOptions::signature_storage`].
    #[cfg(feature = "signatures")]
    #[must_use]
    pub fn signature_storage(mut self, storage: SignatureStorage) -> Self {
        self.signature_storage = storage;
        self
    }

    /// How connections to a registry (`HOST[:PORT]`) are encrypted. The configuration may say whether it is `insecure`, and there
    /// may be certificates for it.
    pub(crate) fn transport_of(
        &self,
        registry: &str,
        insecure: Option<bool>,
        has_certificates: bool,
    ) -> Transport {
        if let Some(own) = self.tls_by_registry.get(registry) {
            return own.transport;
        }
        match (self.tls_verify, insecure) {
            (Some(true), _) => Transport::Tls,
            (Some(false), _) | (None, Some(true)) => Transport::Insecure,
            // Not with TLS first: many a small server waits for more of what it takes for a request.
            (None, None) if is_loopback(registry) && !has_certificates => Transport::Plain,
            (None, _) => self.tls.transport,
        }
    }
}

/// Whether a registry is on this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_registries_on_this_machine_are_plain_by_default() {
        let options = RegistryOptions::default();
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.3.2.1",
            "[::1]:5000",
        ] {
            assert_eq!(
                options.transport_of(host, None, false),
                Transport::Plain,
                "{host}"
            );
            assert_eq!(
                options.transport_of(host, Some(false), false),
                Transport::Tls,
                "{host}"
            );
        }
        for host in [
            "localhost.example",
            "127.0.0.1.example:5000",
            "10.0.0.1",
            "docker.io",
            "[::2]:1",
            "",
        ] {
            assert_eq!(options.transport_of(host, None, false), Transport::Tls, "{host}");
        }
        let options = options
            .plain_http("10.0.0.1")
            .tls_for("localhost:5000", TlsOptions::default());
        assert_eq!(options.transport_of("10.0.0.1", None, false), Transport::Plain);
        assert_eq!(
            options.transport_of("localhost:5000", None, false),
            Transport::Tls
        );
    }

    #[test]
    fn what_is_said_of_all_registries_counts_more_than_the_configuration() {
        let transports = |options: &RegistryOptions| {
            ["h.io", "localhost"]
                .map(|host| [None, Some(true)].map(|insecure| options.transport_of(host, insecure, false)))
        };
        let options = RegistryOptions::default();
        let (tls, any, plain) = (Transport::Tls, Transport::Insecure, Transport::Plain);
        assert_eq!(transports(&options), [[tls, any], [plain, any]]);
        assert_eq!(transports(&options.clone().tls_verify(Some(true))), [[tls; 2]; 2]);
        assert_eq!(
            transports(&options.clone().tls_verify(Some(false))),
            [[any; 2]; 2]
        );
        let own = options.tls_verify(Some(false)).plain_http("h.io");
        assert_eq!(transports(&own), [[plain; 2], [any; 2]]);
    }

    #[test]
    fn debug_shows_no_secret() {
        let options = RegistryOptions::default()
            .credentials_for("a", Credentials::password("user", "s3cret"))
            .credentials_for("b", Credentials::IdentityToken("s3cret".into()))
            .credentials_for("c", Credentials::BearerToken("s3cret".into()))
            .tls(TlsOptions::default().identity(Some(ClientIdentity::from_pem("s3cret", "s3cret"))));
        let text = format!("{options:?}");
        assert!(text.contains("user") && !text.contains("s3cret"), "{text}");
    }
}
