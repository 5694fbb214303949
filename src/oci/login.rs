//! Whether a registry takes credentials.

use std::sync::Arc;

use reqwest::StatusCode;
use reqwest::header::{AUTHORIZATION, HeaderValue};

use super::challenge;
use super::registry_options::{Credentials, RegistryOptions};
use super::repository::{Connection, Registries};
use super::response;
use super::retry::Failure;
use super::sign_in::SignIn;
use crate::error::Result;

/// Asks a registry (`HOST[:PORT]`, or the name of anything in it) whether it takes credentials: signs in at `/v2/`, as a login
/// program does before it keeps them. A registry that asks nobody for credentials takes any.
///
/// ```no_run
/// # async fn demo() -> graphroot::Result<()> {
/// use graphroot::oci::{CredentialStore, Credentials, RegistryOptions, check_credentials};
/// let options = RegistryOptions::default_for_user().await?;
/// let credentials = Credentials::password("user", "secret");
/// if check_credentials("registry.example", &credentials, &options).await? {
///     CredentialStore::new(&options).set("registry.example", "user", "secret").await?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// [`ErrorKind::Registry`](crate::ErrorKind::Registry) if the registry cannot be reached or answers something else;
/// [`ErrorKind::Rejected`](crate::ErrorKind::Rejected) if it is blocked; [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput)
/// for certificates that cannot be read.
///
/// # Cancellation
/// Nothing remains.
pub async fn check_credentials(
    registry: &str,
    credentials: &Credentials,
    options: &RegistryOptions,
) -> Result<bool> {
    let registries = Arc::new(Registries::new(options.clone()));
    let retry = registries.retry(u32::MAX);
    let connection = registries.connect(registry, false, &retry).await?;
    let tried = retry
        .try_run(|| attempt(registry, &connection, credentials))
        .await;
    match tried {
        Ok(()) => Ok(true),
        Err(failure) if failure.status == Some(StatusCode::UNAUTHORIZED) => Ok(false),
        Err(failure) => Err(failure.error),
    }
}

async fn attempt(registry: &str, connection: &Connection, credentials: &Credentials) -> Result<(), Failure> {
    let Connection { http, base, plain } = connection;
    let what = format!("logging into {registry:?}");
    let ask = async |authorization: Option<HeaderValue>| {
        let mut request = http.get(base.clone());
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let sent = request.send().await;
        sent.map_err(|error| Failure::of_connection(&what, error))
    };
    let mut answer = ask(None).await?;
    // Who answers after a redirection to elsewhere does not say where credentials go.
    if answer.status() == StatusCode::UNAUTHORIZED && answer.url().origin() == base.origin() {
        let sign_in = SignIn {
            http,
            credentials,
            scopes: &[],
            plain: *plain,
            what: &what,
            lack: None,
        };
        let signed_in = sign_in.answer(&challenge::challenges(answer.headers())).await?;
        answer = ask(Some(signed_in.value)).await?;
    }
    match answer.status().is_success() {
        true => Ok(()),
        false => Err(response::refused(answer, &what).await),
    }
}
