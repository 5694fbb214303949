//! Registries as sources: manifests and blobs over HTTP.
//!
//! Signing in is `oci-client`'s work. The `GET` requests are made here, because what decides about them is in headers
//! that `oci-client` does not hand out: `Retry-After` says when an overloaded registry wants to be asked again, and
//! `Content-Range` where an interrupted blob goes on. Nothing is asked for before it is needed: a request goes out as
//! it is, and only when it is answered with 401 does signing in begin.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RANGE, RETRY_AFTER};
use reqwest::{Response, StatusCode};

use super::auth;
use super::document::{Fetched, check};
use super::manifest::{Blob, MANIFEST_TYPES, MAX_DOCUMENT};
use super::reference::RegistryRef;
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// How registries are talked to.
#[derive(Clone, Debug)]
pub(crate) struct RegistryOptions {
    /// File of credentials instead of the usual ones.
    pub(crate) auth_file: Option<PathBuf>,
    /// Registries that are asked without TLS, besides those on this machine.
    pub(crate) plain_http: Vec<String>,
    /// How often in a row a request is repeated when nothing comes of it.
    pub(crate) retries: u32,
    /// Wait before the first repetition; doubled for each further one.
    pub(crate) backoff: Duration,
    /// No wait is longer than this, whatever the registry asks for.
    pub(crate) max_wait: Duration,
    /// A registry that sends nothing for this long counts as gone.
    pub(crate) stall: Duration,
}

impl RegistryOptions {
    /// How long to wait before attempt number `attempts` + 1.
    pub(crate) fn wait(&self, attempts: u32, retry_after: Option<Duration>) -> Duration {
        let own = self
            .backoff
            .saturating_mul(1 << attempts.saturating_sub(1).min(16));
        retry_after.unwrap_or(own).min(self.max_wait)
    }
}

/// The connections of one puller.
#[derive(Debug)]
pub(crate) struct Registries {
    pub(crate) options: RegistryOptions,
    tls: OnceLock<reqwest::Client>,
    plain: OnceLock<reqwest::Client>,
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

/// An error of the HTTP client, with all its causes.
pub(crate) fn failed(what: String, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    ErrorKind::Registry.err(what).with_source(error)
}

impl Registries {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self {
            options,
            tls: OnceLock::new(),
            plain: OnceLock::new(),
        }
    }

    /// The client for encrypted or plain connections, made at first use.
    fn http(&self, plain: bool) -> Result<reqwest::Client> {
        let slot = if plain { &self.plain } else { &self.tls };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        // Whoever links this library may have chosen an implementation of TLS already.
        drop(rustls::crypto::ring::default_provider().install_default());
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("graphroot/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(self.options.stall)
            .read_timeout(self.options.stall);
        if plain {
            builder = builder.no_proxy();
        }
        let client = builder
            .build()
            .map_err(|error| failed("setting up an HTTP client".into(), error))?;
        Ok(slot.get_or_init(|| client).clone())
    }

    fn is_plain(&self, registry: &str) -> bool {
        is_loopback(registry) || self.options.plain_http.iter().any(|plain| plain == registry)
    }

    /// A client of `oci-client` for one registry.
    pub(crate) fn oci_client(&self, registry: &str) -> Result<Client> {
        // It needs an implementation of TLS to be chosen as well.
        drop(self.http(self.is_plain(registry))?);
        let protocol = if self.is_plain(registry) {
            ClientProtocol::Http
        } else {
            ClientProtocol::Https
        };
        Client::try_from(ClientConfig {
            protocol,
            use_monolithic_push: true,
            user_agent: concat!("graphroot/", env!("CARGO_PKG_VERSION")),
            connect_timeout: Some(self.options.stall),
            read_timeout: Some(self.options.stall),
            ..ClientConfig::default()
        })
        .map_err(|error| failed(format!("setting up a client for {registry}"), error))
    }

    /// One repository of a registry.
    pub(crate) async fn repository(&self, image: &RegistryRef) -> Result<Repository> {
        let registry = image.inner.resolve_registry().to_owned();
        let plain = self.is_plain(&registry);
        Ok(Repository {
            http: self.http(plain)?,
            credentials: auth::find(image, self.options.auth_file.as_deref()).await?,
            login: self.oci_client(&registry)?,
            base: format!(
                "{}://{registry}/v2/{}",
                if plain { "http" } else { "https" },
                image.repository()
            ),
            image: image.clone(),
            options: self.options.clone(),
            authorization: tokio::sync::Mutex::new(None),
        })
    }
}

/// One repository of a registry.
pub(crate) struct Repository {
    http: reqwest::Client,
    login: Client,
    credentials: RegistryAuth,
    base: String,
    image: RegistryRef,
    pub(crate) options: RegistryOptions,
    /// What the registry wants to see with each request, once it has said so.
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Repository").field(&self.base).finish()
    }
}

impl Repository {
    /// What the image's reference names.
    pub(crate) async fn top(&self) -> Result<Fetched> {
        match self.image.digest() {
            Some(digest) => self.manifest(&digest).await,
            None => {
                let tag = self.image.tag().unwrap_or("latest");
                self.fetch(tag, None).await
            }
        }
    }

    /// A manifest by digest.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Result<Fetched> {
        self.fetch(digest.as_str(), Some(digest)).await
    }

    async fn fetch(&self, reference: &str, digest: Option<&Digest>) -> Result<Fetched> {
        let what = format!("fetching manifest {reference} of {}", self.image);
        let url = format!("{}/manifests/{reference}", self.base);
        let response = self.get(&url, &what, None).await?;
        let media_type = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.split(';').next())
            .map(|value| value.trim().to_owned());
        let bytes = read_all(response, &what).await?;
        let digest = match digest {
            Some(digest) => {
                check(&bytes, digest, "the manifest")?;
                digest.clone()
            }
            None => Digest::sha256(&bytes),
        };
        Ok(Fetched {
            bytes,
            digest,
            media_type,
        })
    }

    /// A small blob as a whole; not verified.
    pub(crate) async fn small_blob(&self, blob: &Blob) -> Result<Bytes> {
        let what = format!("fetching {} of {}", blob.digest, self.image);
        let response = self.get(&self.blob_url(&blob.digest), &what, None).await?;
        read_all(response, &what).await
    }

    /// Asks for a blob from `offset` on. The answer may begin at 0 all the same.
    pub(crate) async fn blob_from(&self, digest: &Digest, offset: u64) -> Result<Response> {
        let what = format!("fetching {digest} of {}", self.image);
        self.get(
            &self.blob_url(digest),
            &what,
            Some(offset).filter(|offset| *offset > 0),
        )
        .await
    }

    fn blob_url(&self, digest: &Digest) -> String {
        format!("{}/blobs/{digest}", self.base)
    }

    /// Gets an answer of success, with patience.
    async fn get(&self, url: &str, what: &str, mut offset: Option<u64>) -> Result<Response> {
        let mut attempts = 0;
        let mut signed_in = false;
        loop {
            let mut request = self.http.get(url).header(ACCEPT, MANIFEST_TYPES.join(", "));
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let authorization = self.authorization.lock().await.clone();
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value);
            }
            let (error, wait) = match request.send().await {
                Ok(response) => match response.status() {
                    StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                    StatusCode::UNAUTHORIZED if !signed_in => {
                        self.sign_in(authorization.as_ref(), what).await?;
                        signed_in = true;
                        continue;
                    }
                    StatusCode::RANGE_NOT_SATISFIABLE if offset.is_some() => {
                        offset = None;
                        continue;
                    }
                    status => {
                        let wait = retry_after(&response);
                        let error = refused(response, what).await;
                        if !is_transient(status) {
                            return Err(error);
                        }
                        (error, wait)
                    }
                },
                Err(error) => (failed(what.to_owned(), error), None),
            };
            attempts += 1;
            self.pause(attempts, wait, error).await?;
        }
    }

    /// Waits before attempt number `attempts` + 1; hands the error back if there shall be none.
    pub(crate) async fn pause(
        &self,
        attempts: u32,
        retry_after: Option<Duration>,
        error: Error,
    ) -> Result<()> {
        if attempts > self.options.retries {
            return Err(error);
        }
        let wait = self.options.wait(attempts, retry_after);
        tracing::debug!(error = %error.chain(), ?wait, "trying again");
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Finds out what the registry wants to see. `rejected` is what it has just refused.
    async fn sign_in(&self, rejected: Option<&HeaderValue>, what: &str) -> Result<()> {
        let mut current = self.authorization.lock().await;
        // Another request may have signed in meanwhile.
        if current.is_some() && current.as_ref() != rejected {
            return Ok(());
        }
        let reference: &Reference = &self.image.inner;
        let token = self
            .login
            .auth(reference, &self.credentials, RegistryOperation::Pull)
            .await
            .map_err(|error| failed(format!("signing in for {what}"), error))?;
        let text = match (token, &self.credentials) {
            (Some(token), _) => format!("Bearer {token}"),
            (None, RegistryAuth::Basic(user, password)) => {
                use base64::Engine as _;
                let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
                format!("Basic {encoded}")
            }
            (None, _) => {
                return Err(
                    ErrorKind::Registry.err(format!("{what}: credentials are needed and none are known"))
                );
            }
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|error| failed(format!("signing in for {what}"), error))?;
        value.set_sensitive(true);
        *current = Some(value);
        Ok(())
    }
}

/// Whether the same request may be answered otherwise a little later.
fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// The wait that the registry asks for: seconds, or a date.
fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or(Duration::ZERO))
}

/// The error for an answer that is none.
async fn refused(response: Response, what: &str) -> Error {
    #[derive(serde::Deserialize)]
    struct Answer {
        errors: Vec<Cause>,
    }
    #[derive(serde::Deserialize)]
    struct Cause {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let status = response.status();
    let causes = match read_all(response, what).await {
        Ok(body) => serde_json::from_slice::<Answer>(&body)
            .map(|answer| answer.errors)
            .unwrap_or_default(),
        Err(_unreadable) => Vec::new(),
    };
    let causes: Vec<String> = causes
        .iter()
        .take(3)
        .map(|cause| format!(", {} ({})", show(&cause.code), show(&cause.message)))
        .collect();
    let what = format!("{what}: the registry answers {status}{}", causes.concat());
    match status {
        StatusCode::NOT_FOUND => ErrorKind::NotFound.err(what),
        _ => ErrorKind::Registry.err(what),
    }
}

/// A text of the registry's, fit for a message.
fn show(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A body that has to be short.
async fn read_all(mut response: Response, what: &str) -> Result<Bytes> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| failed(what.to_owned(), error))?
    {
        if (body.len() + chunk.len()) as u64 > MAX_DOCUMENT {
            return Err(
                ErrorKind::Registry.err(format!("{what}: the answer is longer than {MAX_DOCUMENT} bytes"))
            );
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_asked_without_encryption() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:80",
            "127.3.2.1",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "localhost.example",
            "127.0.0.1.example:5000",
            "10.0.0.1",
            "docker.io",
            "[::2]:1",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
