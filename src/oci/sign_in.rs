//! Signing in to a registry: from the challenges of a 401 and credentials to a value for `Authorization`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{CONTENT_LENGTH, HeaderValue};
use reqwest::{Body, Client, RequestBuilder, Url};
use serde_json::Value;

use super::challenge::Challenge;
use super::registry_options::Credentials;
use super::response;
use super::retry::Failure;
use crate::error::{ErrorKind, Result};

/// What is signed in for.
#[derive(Debug)]
pub(crate) struct SignIn<'a> {
    pub(crate) http: &'a Client,
    pub(crate) credentials: &'a Credentials,
    /// `repository:NAME:ACTIONS`, the own repository first.
    pub(crate) scopes: &'a [String],
    /// Whether the registry is reached without TLS, so that its token service may be, too.
    pub(crate) plain: bool,
    /// For messages.
    pub(crate) what: &'a str,
    /// Why there are no credentials, where that is not as it should be.
    pub(crate) lack: Option<&'a str>,
}

/// A value for `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authorization {
    pub(crate) value: HeaderValue,
    /// Whether asking for it again gives another one, so that it makes sense after the registry has refused this one.
    pub(crate) is_renewable: bool,
}

impl Authorization {
    fn new(text: &str, is_renewable: bool) -> Result<Self> {
        let mut value = HeaderValue::from_str(text)
            .map_err(|_secret| ErrorKind::InvalidInput.err("credentials that no header can hold"))?;
        // It is not logged.
        value.set_sensitive(true);
        Ok(Self { value, is_renewable })
    }

    fn basic(username: &str, password: &str) -> Result<Self> {
        let pair = STANDARD.encode(format!("{username}:{password}"));
        Self::new(&format!("Basic {pair}"), false)
    }
}

/// The scopes to ask for: the own ones, and those of the challenge as far as they let nobody do more. Registries that keep a
/// repository under another name, as caches do, name that one.
fn scopes(own: &[String], challenge: &Challenge) -> Vec<String> {
    let mut scopes = own.to_vec();
    let known: Vec<(&str, &str)> = own.iter().filter_map(|scope| scope.rsplit_once(':')).collect();
    let mine: Vec<&str> = known
        .first()
        .map_or_else(Vec::new, |(_, actions)| actions.split(',').collect());
    for scope in challenge.param("scope").unwrap_or_default().split_whitespace() {
        let Some((resource, actions)) = scope.rsplit_once(':') else {
            continue;
        };
        let wanted: Vec<&str> = actions
            .split(',')
            .filter(|action| mine.contains(action))
            .collect();
        let is_known = known.iter().any(|(known, _)| *known == resource);
        if resource.starts_with("repository:") && !wanted.is_empty() && !is_known {
            scopes.push(format!("{resource}:{}", wanted.join(",")));
        }
    }
    scopes
}

impl SignIn<'_> {
    fn refusal(&self, why: &str) -> Failure {
        let what = self.what;
        ErrorKind::Registry
            .err(format!("signing in for {what}: {why}"))
            .into()
    }

    /// Answers one of the challenges: a token is preferred to a password in every request.
    pub(crate) async fn answer(&self, challenges: &[Challenge]) -> Result<Authorization, Failure> {
        let mut known: Vec<&Challenge> = challenges
            .iter()
            .filter(|challenge| challenge.is_known())
            .collect();
        known.sort_by_key(|challenge| challenge.scheme != "bearer");
        if let (Credentials::BearerToken(token), false) = (self.credentials, known.is_empty()) {
            return Ok(Authorization::new(&format!("Bearer {token}"), false)?);
        }
        let mut first: Option<Failure> = None;
        for challenge in known {
            let answered = match challenge.scheme.as_str() {
                "bearer" => self.token(challenge).await,
                _ => self.password(),
            };
            match answered {
                Err(failure) if !failure.transient => drop(first.get_or_insert(failure)),
                answered => return answered,
            }
        }
        let schemes: Vec<String> = challenges
            .iter()
            .map(|challenge| challenge.scheme.chars().take(40).collect())
            .collect();
        Err(first.unwrap_or_else(|| match schemes.is_empty() {
            true => self.refusal("the registry does not say how"),
            false => self.refusal(&format!(
                "the registry asks for {schemes:?}, of which none is known here"
            )),
        }))
    }

    fn password(&self) -> Result<Authorization, Failure> {
        match self.credentials {
            Credentials::Password { username, password } => Ok(Authorization::basic(username, password)?),
            Credentials::IdentityToken(_) => {
                Err(self.refusal("the registry takes passwords only, not identity tokens"))
            }
            _ => Err(match self.lack {
                Some(lack) => self.refusal(&format!("credentials are needed and none are known: {lack}")),
                None => self.refusal("credentials are needed and none are known"),
            }),
        }
    }

    /// A request with a form that is not sent again: who redirects it elsewhere keeps the token from being given, and whoever
    /// is there from seeing what is in the form.
    fn post_once(&self, url: Url, fields: &[(&str, &str)]) -> Result<RequestBuilder, Failure> {
        let made = self.http.post(url).form(fields).build();
        let mut request = made.map_err(|_secret| self.refusal("the token service cannot be asked"))?;
        let form = request.body().and_then(Body::as_bytes).unwrap_or_default();
        let form = form.to_vec();
        request.headers_mut().insert(CONTENT_LENGTH, form.len().into());
        let once = futures::stream::iter([Ok::<_, std::convert::Infallible>(form)]);
        *request.body_mut() = Some(Body::wrap_stream(once));
        Ok(RequestBuilder::from_parts(self.http.clone(), request))
    }

    /// Asks the token service that a challenge names.
    async fn token(&self, challenge: &Challenge) -> Result<Authorization, Failure> {
        let realm = Url::parse(challenge.param("realm").unwrap_or_default())
            .map_err(|_reason| self.refusal("the token service has no URL"))?;
        match realm.scheme() {
            "https" => {}
            "http" if self.plain => {}
            // The credentials would go over the network in the clear.
            _ => return Err(self.refusal("the token service is not reached by HTTPS")),
        }
        let what = format!("signing in for {}", self.what);
        let scopes = scopes(self.scopes, challenge);
        let service = challenge.param("service").map(|service| ("service", service));
        let in_query = || scopes.iter().map(|scope| ("scope", scope.as_str()));
        let request = match self.credentials {
            Credentials::IdentityToken(token) => {
                let scope = scopes.join(" ");
                let fields = [
                    Some(("grant_type", "refresh_token")),
                    Some(("client_id", "graphroot")),
                    Some(("refresh_token", token.as_str())),
                    service,
                    Some(("scope", scope.as_str())),
                ];
                let fields: Vec<_> = fields.into_iter().flatten().collect();
                self.post_once(realm, &fields)?
            }
            Credentials::Password { username, password } => {
                let account = Some(("account", username.as_str()));
                let fields: Vec<_> = service.into_iter().chain(in_query()).chain(account).collect();
                let own = Authorization::basic(username, password)?;
                self.http
                    .get(realm)
                    .query(&fields)
                    .header(reqwest::header::AUTHORIZATION, own.value)
            }
            _ => {
                let fields: Vec<_> = service.into_iter().chain(in_query()).collect();
                self.http.get(realm).query(&fields)
            }
        };
        let answer = request
            .send()
            .await
            .map_err(|error| Failure::of_connection(&what, error))?;
        if !answer.status().is_success() {
            return Err(response::refused(answer, &what).await);
        }
        let body = response::read_all(answer, &what).await?;
        // The parser's error is left out: it may quote a token.
        let answer: Value = serde_json::from_slice(&body)
            .map_err(|_secret| ErrorKind::Registry.err(format!("{what}: the token service sends no JSON")))?;
        // Either may be absent, null or empty.
        let found = ["token", "access_token"].into_iter().find_map(|name| {
            let token = answer.get(name)?.as_str()?.trim();
            (!token.is_empty()).then_some(token)
        });
        match found {
            Some(token) => Ok(Authorization::new(&format!("Bearer {token}"), true)?),
            None => Err(ErrorKind::Registry
                .err(format!("{what}: the token service sends no token"))
                .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

    use super::super::challenge::challenges;
    use super::*;

    #[test]
    fn a_challenge_adds_scopes_but_no_more_rights() {
        let own = ["repository:cache/app:pull".to_owned()];
        let asked = |scope: &str| {
            let text = format!(r#"Bearer realm="x",scope="{scope}""#);
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, text.parse().unwrap())]);
            let all = scopes(&own, &challenges(&headers)[0]);
            assert_eq!(all[..1], own);
            all[1..].to_vec()
        };
        assert_eq!(asked("repository:app:pull"), ["repository:app:pull"]);
        assert_eq!(
            asked("repository:a:pull,push repository:h.io:5000/b:pull"),
            ["repository:a:pull", "repository:h.io:5000/b:pull"]
        );
        let none: [&str; 0] = [];
        for scope in [
            "",
            "repository:cache/app:pull",
            "registry:catalog:*",
            "repository:a:push",
            "pull",
        ] {
            assert_eq!(asked(scope), none, "{scope}");
        }
    }
}
