//! `login` and `logout`: credentials for registries, in the files of `podman login`.

use std::io::{self, Read as _};

use graphroot::oci::{CredentialStore, Credentials, RegistriesConf, RegistryOptions, check_credentials};

use super::transfer::registry_options;
use crate::call::Call;
use crate::flags::{login as flags, transfer};
use crate::outcome::{CommandError, DONE, Outcome};
use crate::output::Output;
use crate::prompt;

/// Longer passwords are none.
const MAX_PASSWORD: u64 = 1 << 20;

/// What is logged in to: host and port, or a namespace or repository in a registry.
fn scope(call: &Call, conf: &RegistriesConf, what: &str) -> Result<String, CommandError> {
    let Some(given) = call.optional(0) else {
        let first = conf.unqualified_search_registries().first();
        return first.cloned().ok_or_else(|| {
            format!("please provide a registry to {what}: no registries found in registries.conf").into()
        });
    };
    let url = given
        .strip_prefix("https://")
        .or_else(|| given.strip_prefix("http://"));
    let host = url.map(|rest| rest.split(['/', '?', '#']).next().unwrap_or_default());
    Ok(host.unwrap_or(given).to_owned())
}

/// Where credentials are kept, as the flags say.
fn store(call: &Call, options: &RegistryOptions) -> Result<CredentialStore, CommandError> {
    let store = CredentialStore::new(options);
    match call.flags.text(&flags::COMPAT_AUTH_FILE) {
        "" => Ok(store),
        _ if options.auth_file.is_some() => {
            let what = "options for paths to the credential file and to the Docker-compatible credential file can not be \
                        set simultaneously";
            Err(what.into())
        }
        file => Ok(store.docker_file(file)),
    }
}

fn read_password(call: &Call) -> Result<String, CommandError> {
    if !call.flags.text(&flags::PASSWORD).is_empty() {
        return Err("can't specify both --password-stdin and --password".into());
    }
    if call.flags.text(&flags::USERNAME).is_empty() {
        return Err("must provide --username with --password-stdin".into());
    }
    let mut text = String::new();
    let mut input = io::stdin().lock().take(MAX_PASSWORD);
    input
        .read_to_string(&mut text)
        .map_err(|error| format!("reading password from stdin: {error}"))?;
    // As Podman does: all lines are one password.
    Ok(text.lines().collect())
}

/// As Podman says it, in the same words.
fn not_given(error: CommandError, what: &str) -> CommandError {
    error.context(what).context("getting username and password")
}

/// Checks credentials with the registry and keeps them.
pub(crate) async fn login(call: &Call, out: &mut Output) -> Outcome {
    let options = registry_options(call).await?;
    let scope = scope(call, &options.registries_conf, "log in to")?;
    let store = store(call, &options)?;
    let known = store.get(&scope).await;
    let known = known.map_err(|error| CommandError::from(error).context("get credentials"))?;
    let known = match known {
        Credentials::IdentityToken(_) if !call.flags.is_on(&flags::GET_LOGIN) => {
            return Err("currently logged in, auth file contains an Identity token".into());
        }
        Credentials::Password { username, password } => Some((username, password)),
        _ => None,
    };
    if call.flags.is_on(&flags::GET_LOGIN) {
        let (username, _) = known.ok_or_else(|| format!("not logged into {scope}"))?;
        out.line(username)?;
        return DONE;
    }
    let mut password = match call.flags.is_on(&flags::PASSWORD_STDIN) {
        true => read_password(call)?,
        false => call.flags.text(&flags::PASSWORD).to_owned(),
    };
    let mut username = call.flags.text(&flags::USERNAME).to_owned();
    if let Some((user, secret)) = &known
        && username.is_empty()
        && password.is_empty()
        && !user.is_empty()
        && !secret.is_empty()
    {
        out.line(format!("Authenticating with existing credentials for {scope}"))?;
        let credentials = Credentials::password(user, secret);
        if let Ok(true) = check_credentials(&scope, &credentials, &options).await {
            out.line(format!(
                "Existing credentials are valid. Already logged in to {scope}"
            ))?;
            return DONE;
        }
        out.line("Existing credentials are invalid, please enter valid username and password")?;
    }
    if username.is_empty() {
        let before = known.map(|(user, _)| user).filter(|user| !user.is_empty());
        let question = match &before {
            Some(user) => format!("Username ({user}): "),
            None => "Username: ".to_owned(),
        };
        username = prompt::line(out, &question).map_err(|error| not_given(error, "reading username"))?;
        if username.is_empty() {
            username = before.unwrap_or_default();
        }
    }
    if password.is_empty() {
        password = prompt::secret(out, "Password: ").map_err(|error| not_given(error, "reading password"))?;
    }
    let username = username.trim();
    let credentials = Credentials::password(username, &*password);
    if !check_credentials(&scope, &credentials, &options).await? {
        return Err(format!("logging into {scope:?}: invalid username/password").into());
    }
    let place = store.set(&scope, username, &password).await?;
    if call.flags.is_on(&flags::VERBOSE) {
        out.line(format!("Used:  {place}"))?;
    }
    out.line("Login Succeeded!")?;
    DONE
}

/// Forgets credentials.
pub(crate) async fn logout(call: &Call, out: &mut Output) -> Outcome {
    let mut options = RegistryOptions::default_for_user().await?;
    let file = call.flags.text(&transfer::AUTH_FILE);
    if !file.is_empty() {
        options = options.auth_file(file);
    }
    for file in [file, call.flags.text(&flags::COMPAT_AUTH_FILE)] {
        if !file.is_empty() {
            std::fs::metadata(file).map_err(|error| format!("credential file is not accessible: {error}"))?;
        }
    }
    let store = store(call, &options)?;
    if call.flags.is_on(&flags::ALL) {
        if !call.args.is_empty() {
            return Err("--all takes no arguments".into());
        }
        store.remove_all().await?;
        out.line("Removed login credentials for all registries")?;
        return DONE;
    }
    let scope = scope(call, &options.registries_conf, "log out from")?;
    if store.remove(&scope).await? {
        out.line(format!("Removed login credentials for {scope}"))?;
        return DONE;
    }
    Err(match store.get(&scope).await? {
        Credentials::Anonymous => format!("not logged into {scope}"),
        _ => format!(
            "not logged into {scope}: the credentials for it are of a wider scope, or of a file or helper that is not changed here"
        ),
    }
    .into())
}
