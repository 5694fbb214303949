//! One repository of a registry: authorized requests with retries.
//!
//! A request goes out without credentials at first; only when it is answered with 401 does [`SignIn`] answer the
//! challenge. What it returns is sent with all further requests of this repository.
//!
//! Some registries hide from strangers that a repository exists: they answer 400, 403 or 404, and name their challenge at
//! `/v2/` alone, which is then asked for once.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};

use super::auth;
use super::certificates;
use super::challenge::{self, Challenge};
use super::range_limits::RangeLimits;
use super::reference::{self, RegistryRef};
use super::registry_options::{Credentials, RegistryOptions, Transport};
use super::response;
use super::retry::{Failure, RetryPolicy};
use super::sign_in::{Authorization, SignIn};
use super::tls;
use crate::bridge;
use crate::error::{ErrorKind, Result};

/// How often one request is sent while authorizations change, by this task and by others.
const MAX_ATTEMPTS: u32 = 8;

/// What a repository is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// Clients by registry and whether it is insecure by configuration, and how their connections are encrypted.
type Clients = HashMap<(String, Option<bool>), (Client, Transport)>;

/// The registries that one puller or push talks to; requests to one share connections.
#[derive(Debug)]
pub(crate) struct Registries {
    pub(crate) options: RegistryOptions,
    clients: Mutex<Clients>,
    /// Which registries that need not speak TLS do not.
    without_tls: Mutex<HashMap<String, bool>>,
    range_limits: Mutex<HashMap<String, Arc<RangeLimits>>>,
    /// Which registries serve signatures of images themselves, by what they said at `/v2/`.
    #[cfg(feature = "signatures")]
    pub(super) serving_signatures: Mutex<HashMap<String, bool>>,
}

impl Registries {
    pub(crate) fn new(options: RegistryOptions) -> Self {
        Self {
            options,
            clients: Mutex::default(),
            without_tls: Mutex::default(),
            range_limits: Mutex::default(),
            #[cfg(feature = "signatures")]
            serving_signatures: Mutex::default(),
        }
    }

    /// Has requests repeated as the options say, but `most` times at the most.
    pub(crate) fn retry(&self, most: u32) -> RetryPolicy {
        RetryPolicy::new(&self.options, most)
    }

    fn range_limits(&self, registry: &str) -> Arc<RangeLimits> {
        let mut all = self.range_limits.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(registry.to_owned()).or_default())
    }

    /// The client for one registry or other host, made at first use, and how its connections are encrypted.
    pub(crate) async fn client(&self, registry: &str, insecure: Option<bool>) -> Result<(Client, Transport)> {
        let key = (registry.to_owned(), insecure);
        let known = self
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(client) = known {
            return Ok(client);
        }
        let (options, host) = (self.options.clone(), registry.to_owned());
        let made = bridge::run(move || {
            let tls = certificates::tls_of(&options, &host, insecure)?;
            Ok((tls::http_client(&tls, &options)?, tls.transport))
        });
        let made = made
            .await
            .map_err(|error| error.context(format!("setting up connections to {registry}")))?;
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.entry(key).or_insert(made).clone())
    }

    /// Whether a registry that need not speak TLS does not. It is asked once; one that answers neither way as often as `retry`
    /// says.
    async fn is_without_tls(&self, host: &str, http: &Client, retry: &RetryPolicy) -> Result<bool> {
        let known = || self.without_tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known().get(host).copied() {
            return Ok(known);
        }
        let ping = async |scheme: &str| http.get(format!("{scheme}://{host}/v2/")).send().await;
        let attempt = || async {
            let Err(error) = ping("https").await else {
                return Ok(false);
            };
            tracing::debug!(host, %error, "no TLS");
            match ping("http").await {
                Ok(_) => Ok(true),
                Err(error) => Err(Failure::of_connection(
                    &format!("pinging {host}"),
                    error.without_url(),
                )),
            }
        };
        let found = retry.run(attempt).await?;
        known().insert(host.to_owned(), found);
        Ok(found)
    }

    /// A connection to the registry of a name, which is `insecure` perhaps because a mirror is configured so. How it is encrypted
    /// is asked as often as `retry` says.
    ///
    /// # Errors
    /// [`ErrorKind::Rejected`] if the registry is blocked; [`ErrorKind::Registry`] if one that need not speak TLS cannot be
    /// reached.
    pub(crate) async fn connect(
        &self,
        name: &str,
        insecure: bool,
        retry: &RetryPolicy,
    ) -> Result<Connection> {
        let conf = &self.options.registries_conf;
        conf.refuse_blocked(name)?;
        let insecure = match insecure {
            true => Some(true),
            false => conf.is_insecure(name),
        };
        let registry = reference::registry_of(name);
        let host = reference::host_of(registry);
        let (http, transport) = self.client(registry, insecure).await?;
        let plain = match transport {
            Transport::Plain => true,
            Transport::Tls | Transport::TlsUnverified => false,
            Transport::Insecure => self.is_without_tls(host, &http, retry).await?,
        };
        let scheme = if plain { "http" } else { "https" };
        let url = format!("{scheme}://{host}/v2/");
        let base = Url::parse(&url)
            .map_err(|error| ErrorKind::InvalidInput.err(format!("{url:?}")).with_source(error))?;
        Ok(Connection { http, base, plain })
    }

    /// One repository, whose registry is `insecure` perhaps because a mirror is configured so. Requests are repeated as `retry`
    /// says.
    ///
    /// # Errors
    /// Those of [`Registries::connect`].
    pub(crate) async fn repository(
        self: &Arc<Self>,
        image: &RegistryRef,
        access: Access,
        insecure: bool,
        retry: RetryPolicy,
    ) -> Result<Repository> {
        let name = image.name();
        let connection = self.connect(&name, insecure, &retry).await?;
        let base = connection.base.join(&format!("{}/", image.repository()));
        let base = base.map_err(|error| ErrorKind::InvalidInput.err(name.clone()).with_source(error))?;
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let found = auth::find(&name, &self.options).await?;
        Ok(Repository {
            http: connection.http,
            credentials: found.credentials,
            lack: found.lack,
            base,
            plain: connection.plain,
            scopes: vec![format!("repository:{}:{actions}", image.repository())],
            image: image.clone(),
            retry,
            range_limits: self.range_limits(image.registry()),
            registries: Arc::clone(self),
            in_pieces: AtomicBool::new(false),
            session: tokio::sync::Mutex::default(),
        })
    }
}

/// How a registry is reached.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) http: Client,
    /// `SCHEME://HOST/v2/`.
    pub(crate) base: Url,
    /// Whether without TLS.
    pub(crate) plain: bool,
}

/// How a repository is talked to, as far as it has told.
#[derive(Default)]
struct Session {
    authorization: Option<Authorization>,
    /// The last challenges that can be answered.
    challenges: Vec<Challenge>,
    /// Whether `/v2/` was asked for challenges.
    is_base_known: bool,
}

/// One repository of a registry.
pub(crate) struct Repository {
    http: Client,
    credentials: Credentials,
    /// Why there are no credentials, where that is not as it should be.
    lack: Option<String>,
    /// `SCHEME://HOST/v2/NAME/`.
    base: Url,
    plain: bool,
    /// What is signed in for, the own repository first.
    pub(crate) scopes: Vec<String>,
    pub(crate) image: RegistryRef,
    pub(crate) retry: RetryPolicy,
    pub(crate) range_limits: Arc<RangeLimits>,
    pub(crate) registries: Arc<Registries>,
    /// Whether blobs are uploaded in several pieces, since the registry takes them in no other way.
    pub(crate) in_pieces: AtomicBool,
    session: tokio::sync::Mutex<Session>,
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

    /// Where an answer of this repository to a request for `from` sends the client. Credentials must not leave TLS on the
    /// way.
    pub(crate) fn location(&self, from: &Url, text: &str) -> Result<Url> {
        let refuse = || ErrorKind::Registry.err(format!("{} sends the upload to {text:?}", self.image));
        let mut url = from.join(text).map_err(|error| refuse().with_source(error))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.plain => Ok(url),
            // A registry behind a proxy may not know that it is reached by TLS.
            "http" if url.host() == self.base.host() => {
                let upgraded = url
                    .set_scheme("https")
                    .and_then(|()| url.set_port(self.base.port()));
                upgraded.map(|()| url).map_err(|()| refuse())
            }
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
        if self.is_own(url) {
            let session = self.session.lock().await;
            sent = session
                .authorization
                .as_ref()
                .map(|authorization| authorization.value.clone());
            if let Some(value) = &sent {
                request = request.header(AUTHORIZATION, value);
            }
        }
        match request.send().await {
            Ok(response) => Ok((response, sent)),
            Err(error) => Err(Failure::of_connection(what, error)),
        }
    }

    /// Whether a URL is one of the registry itself. Who answers after a redirection to elsewhere does not say where
    /// credentials go.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
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
        let mut renewals = 0;
        for _ in 0..MAX_ATTEMPTS {
            let (response, sent) = self.send(url, request(), what).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let is_own = self.is_own(response.url());
            let may_hide = matches!(status.as_u16(), 400 | 403 | 404) && sent.is_none() && is_own;
            if may_hide && self.sign_in_at_base(what).await? {
                continue;
            }
            if accept.contains(&status) {
                return Ok(response);
            }
            let again = status == StatusCode::UNAUTHORIZED
                && is_own
                && self
                    .sign_in(response.headers(), sent.as_ref(), &mut renewals, what)
                    .await?;
            if !again {
                return Err(response::refused(response, what).await);
            }
        }
        Err(ErrorKind::Registry
            .err(format!(
                "{what}: the registry asks for authorization again and again"
            ))
            .into())
    }

    /// Answers the challenge of a 401 to a request with this authorization. Returns whether there is another one now: a
    /// token that was refused is asked for anew once, a password stays what it is.
    pub(crate) async fn sign_in(
        &self,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
        renewals: &mut u32,
        what: &str,
    ) -> Result<bool, Failure> {
        let mut session = self.session.lock().await;
        if let Some(current) = &session.authorization {
            // Another request may have signed in meanwhile.
            if Some(&current.value) != refused {
                return Ok(true);
            }
            if !current.is_renewable || *renewals > 0 {
                return Ok(false);
            }
            *renewals += 1;
        }
        let mut challenges = challenge::challenges(headers);
        if !challenges.iter().any(Challenge::is_known) {
            if session.challenges.is_empty() {
                self.ask_base(&mut session).await;
            }
            if !session.challenges.is_empty() {
                challenges.clone_from(&session.challenges);
            }
        }
        let answered = self.answer(&challenges, what).await?;
        if challenges.iter().any(Challenge::is_known) {
            session.challenges = challenges;
        }
        session.authorization = Some(answered);
        Ok(true)
    }

    /// Signs in by the challenge of `/v2/`, if that has one which can be answered. Returns whether requests come with an
    /// authorization now.
    async fn sign_in_at_base(&self, what: &str) -> Result<bool, Failure> {
        let mut session = self.session.lock().await;
        if session.authorization.is_some() {
            return Ok(true);
        }
        if session.is_base_known {
            return Ok(false);
        }
        self.ask_base(&mut session).await;
        if session.challenges.is_empty() {
            return Ok(false);
        }
        match self.answer(&session.challenges, what).await {
            Ok(answered) => {
                session.authorization = Some(answered);
                Ok(true)
            }
            // The answer to the request tells a stranger more.
            Err(_failure) if self.credentials == Credentials::Anonymous => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    /// Asks `/v2/` for challenges, once.
    async fn ask_base(&self, session: &mut Session) {
        if std::mem::replace(&mut session.is_base_known, true) {
            return;
        }
        let Ok(url) = self.url("/v2/") else { return };
        match self.http.get(url).send().await {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED && self.is_own(response.url()) => {
                session.challenges = challenge::challenges(response.headers());
                session.challenges.retain(Challenge::is_known);
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "asking a registry how to sign in"),
        }
    }

    async fn answer(&self, challenges: &[Challenge], what: &str) -> Result<Authorization, Failure> {
        let sign_in = SignIn {
            http: &self.http,
            credentials: &self.credentials,
            scopes: &self.scopes,
            plain: self.plain,
            what,
            lack: self.lack.as_deref(),
        };
        sign_in.answer(challenges).await
    }
}
