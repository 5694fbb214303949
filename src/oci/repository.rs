//! One repository of a registry: authorized requests with retries.
//!
//! A request goes out without credentials at first; only when it is answered with 401 does [`SignIn`] answer the
//! challenge. What it returns is sent with all further requests of this repository.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::auth;
use super::range_limits::RangeLimits;
use super::reference::RegistryRef;
use super::registry_options::{Credentials, RegistryOptions, Transport};
use super::response;
use super::retry::{Failure, RetryPolicy};
use super::sign_in::SignIn;
use super::tls;
use crate::bridge;
use crate::error::{ErrorKind, Result};

/// What a repository is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// The registries that one puller or push talks to; requests to one share connections.
#[derive(Debug)]
pub(crate) struct Registries {
    options: RegistryOptions,
    clients: Mutex<HashMap<String, Client>>,
    range_limits: Mutex<HashMap<String, Arc<RangeLimits>>>,
}

impl Registries {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self {
            options,
            clients: Mutex::default(),
            range_limits: Mutex::default(),
        }
    }

    fn range_limits(&self, registry: &str) -> Arc<RangeLimits> {
        let mut all = self.range_limits.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(registry.to_owned()).or_default())
    }

    /// The client for one registry, made at first use.
    async fn client(&self, registry: &str) -> Result<Client> {
        let known = self
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(registry)
            .cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let (tls, options) = (self.options.tls_of(registry), self.options.clone());
        let made = bridge::run(move || tls::http_client(&tls, &options))
            .await
            .map_err(|error| error.context(format!("setting up connections to {registry}")))?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.entry(registry.to_owned()).or_insert(made).clone())
    }

    /// One repository.
    pub(crate) async fn repository(&self, image: &RegistryRef, access: Access) -> Result<Repository> {
        let plain = self.options.tls_of(image.registry()).transport == Transport::Plain;
        let scheme = if plain { "http" } else { "https" };
        let url = format!("{scheme}://{}/v2/{}/", image.host(), image.repository());
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        Ok(Repository {
            http: self.client(image.registry()).await?,
            credentials: auth::find(image, &self.options).await?,
            base: Url::parse(&url)
                .map_err(|error| ErrorKind::InvalidInput.err(format!("{url:?}")).with_source(error))?,
            plain,
            scope: format!("repository:{}:{actions}", image.repository()),
            image: image.clone(),
            retry: RetryPolicy::new(&self.options),
            range_limits: self.range_limits(image.registry()),
            authorization: tokio::sync::Mutex::new(None),
        })
    }
}

/// One repository of a registry.
pub(crate) struct Repository {
    http: Client,
    credentials: Credentials,
    /// `SCHEME://HOST/v2/NAME/`.
    base: Url,
    plain: bool,
    scope: String,
    pub(crate) image: RegistryRef,
    pub(crate) retry: RetryPolicy,
    pub(crate) range_limits: Arc<RangeLimits>,
    /// The value for `Authorization`, once the registry has asked for it.
    authorization: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Repository").field(&self.base.as_str()).finish()
    }
}

impl Repository {
    /// The URL of something in this repository, `blobs/DIGEST` for example.
    pub(crate) fn url(&self, path: &str) -> Result<Url> {
        self.base.join(path).map_err(|error| {
            ErrorKind::InvalidInput
                .err(format!("{path:?} in {}", self.base))
                .with_source(error)
        })
    }

    /// Where an answer of this repository sends the client. Credentials must not leave TLS on the way.
    pub(crate) fn location(&self, text: &str) -> Result<Url> {
        let refuse = || ErrorKind::Registry.err(format!("{} sends the upload to {text:?}", self.image));
        let url = self
            .base
            .join(text)
            .map_err(|error| refuse().with_source(error))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain => Ok(url),
            _ => Err(refuse()),
        }
    }

    /// A request without authorization.
    pub(crate) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Sends a request once, with the current authorization if it goes to the registry itself.
    pub(crate) async fn send(
        &self,
        url: &Url,
        request: RequestBuilder,
        what: &str,
    ) -> Result<(Response, Option<HeaderValue>), Failure> {
        let mut request = request;
        let mut sent = None;
        if url.origin() == self.base.origin() {
            sent = self.authorization.lock().await.clone();
            if let Some(value) = &sent {
                request = request.header(AUTHORIZATION, value);
            }
        }
        match request.send().await {
            Ok(response) => Ok((response, sent)),
            Err(error) => Err(Failure::of_connection(what, error)),
        }
    }

    /// One attempt of a request that can be built again: signs in if the registry asks for it. Returns an answer of
    /// success, or one with a status that `accept` names.
    pub(crate) async fn attempt(
        &self,
        url: &Url,
        request: impl Fn() -> RequestBuilder + Send + Sync,
        accept: &[StatusCode],
        what: &str,
    ) -> Result<Response, Failure> {
        let mut signed_in = false;
        loop {
            let (response, sent) = self.send(url, request(), what).await?;
            let status = response.status();
            if status.is_success() || accept.contains(&status) {
                return Ok(response);
            }
            // Who answers after a redirection to elsewhere does not say where credentials go.
            let is_own = response.url().origin() == self.base.origin();
            if status != StatusCode::UNAUTHORIZED || signed_in || !is_own {
                return Err(response::refused(response, what).await);
            }
            self.sign_in(response.headers(), sent.as_ref(), what).await?;
            signed_in = true;
        }
    }

    /// Answers a challenge. `rejected` is the authorization that the registry has just refused.
    async fn sign_in(
        &self,
        headers: &HeaderMap,
        rejected: Option<&HeaderValue>,
        what: &str,
    ) -> Result<(), Failure> {
        let mut current = self.authorization.lock().await;
        // Another request may have signed in meanwhile.
        if current.is_some() && current.as_ref() != rejected {
            return Ok(());
        }
        let sign_in = SignIn {
            http: &self.http,
            credentials: &self.credentials,
            scope: &self.scope,
            plain: self.plain,
            what,
        };
        *current = Some(sign_in.answer(headers).await?);
        Ok(())
    }
}
