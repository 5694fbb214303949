//! Signing in to a registry: from the challenge of a 401 and credentials to a value for `Authorization`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_auth::ChallengeRef;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Client, Url};
use serde::Deserialize;

use super::registry_options::Credentials;
use super::response;
use super::retry::Failure;
use crate::error::{ErrorKind, Result};

/// What a registry asks for.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    /// A token of this service.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// What is signed in for.
#[derive(Debug)]
pub(crate) struct SignIn<'a> {
    pub(crate) http: &'a Client,
    pub(crate) credentials: &'a Credentials,
    /// `repository:NAME:ACTIONS`.
    pub(crate) scope: &'a str,
    /// Whether the registry is reached without TLS, so that its token service may be, too.
    pub(crate) plain: bool,
    /// For messages.
    pub(crate) what: &'a str,
}

fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let param = |challenge: &ChallengeRef<'_>, name: &str| {
        let mut params = challenge.params.iter();
        params
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_unescaped())
    };
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let Ok(challenges) = http_auth::parse_challenges(text) else {
            continue;
        };
        for challenge in challenges {
            if challenge.scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = param(&challenge, "realm")
            {
                return Some(Challenge::Bearer {
                    realm,
                    service: param(&challenge, "service"),
                });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// A header value that is not logged.
fn secret(text: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_secret| ErrorKind::InvalidInput.err("credentials that no header can hold"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic(username: &str, password: &str) -> Result<HeaderValue> {
    secret(&format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

impl SignIn<'_> {
    /// Answers the challenge in the headers of a 401.
    pub(crate) async fn answer(&self, headers: &HeaderMap) -> Result<HeaderValue, Failure> {
        let what = self.what;
        let refuse =
            |why: &str| Failure::from(ErrorKind::Registry.err(format!("signing in for {what}: {why}")));
        match (challenge(headers), self.credentials) {
            (None, _) => Err(refuse("the registry does not say how")),
            (Some(_), Credentials::BearerToken(token)) => Ok(secret(&format!("Bearer {token}"))?),
            (Some(Challenge::Basic), Credentials::Password { username, password }) => {
                Ok(basic(username, password)?)
            }
            (Some(Challenge::Basic), Credentials::Anonymous) => {
                Err(refuse("credentials are needed and none are known"))
            }
            (Some(Challenge::Basic), Credentials::IdentityToken(_)) => {
                Err(refuse("the registry takes passwords only, not identity tokens"))
            }
            (Some(Challenge::Bearer { realm, service }), _) => {
                let realm = Url::parse(&realm).map_err(|_reason| refuse("the token service has no URL"))?;
                match realm.scheme() {
                    "https" => {}
                    "http" if self.plain => {}
                    // The credentials would go over the network in the clear.
                    _ => return Err(refuse("the token service is not reached by HTTPS")),
                }
                self.token(realm, service.as_deref()).await
            }
        }
    }

    async fn token(&self, realm: Url, service: Option<&str>) -> Result<HeaderValue, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let what = format!("signing in for {}", self.what);
        let service = service.map(|service| ("service", service));
        let scope = Some(("scope", self.scope));
        let request = match self.credentials {
            Credentials::IdentityToken(token) => {
                let fields = [
                    Some(("grant_type", "refresh_token")),
                    Some(("client_id", "graphroot")),
                    Some(("refresh_token", token.as_str())),
                    service,
                    scope,
                ];
                let fields: Vec<_> = fields.into_iter().flatten().collect();
                self.http.post(realm).form(&fields)
            }
            Credentials::Password { username, password } => {
                let fields = [service, scope, Some(("account", username.as_str()))];
                let fields: Vec<_> = fields.into_iter().flatten().collect();
                self.http
                    .get(realm)
                    .query(&fields)
                    .header(reqwest::header::AUTHORIZATION, basic(username, password)?)
            }
            _ => {
                let fields: Vec<_> = [service, scope].into_iter().flatten().collect();
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
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_secret| ErrorKind::Registry.err(format!("{what}: the token service sends no JSON")))?;
        match answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
        {
            Some(token) => Ok(secret(&format!("Bearer {token}"))?),
            None => Err(ErrorKind::Registry
                .err(format!("{what}: the token service sends no token"))
                .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_and_bearer_goes_first() {
        let parse = |values: &[&str]| {
            let headers = values
                .iter()
                .map(|value| (WWW_AUTHENTICATE, value.parse().unwrap()));
            challenge(&HeaderMap::from_iter(headers))
        };
        let bearer = |service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".into(),
                service: service.map(str::to_owned),
            })
        };
        let text = r#"Bearer realm="https://auth.example/token",service="here",scope="a:b:c""#;
        assert_eq!(parse(&[text]), bearer(Some("here")));
        assert_eq!(
            parse(&[r#"Basic realm="x", bearer REALM="https://auth.example/token""#]),
            bearer(None)
        );
        assert_eq!(parse(&["Negotiate", "basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(parse(&["Bearer service=x"]), None);
        assert_eq!(parse(&["\"\"", "Digest realm=x"]), None);
        assert_eq!(parse(&[]), None);
    }
}
