//! Credentials for a registry: those given by value, else those that login programs have left in files or hand to
//! credential helpers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::files;
use super::reference::RegistryRef;
use super::registry_options::{Credentials, RegistryOptions};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// The longest file of credentials, or answer of a helper, that is read.
const MAX_FILE: u64 = 1 << 20;

/// A file of credentials: `auth.json`, or Docker's `config.json`.
#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    /// Helpers by registry.
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    /// The helper for every registry without an entry of its own.
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

impl Entry {
    fn credentials(&self, file: &Path, key: &str) -> Result<Option<Credentials>> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(Credentials::BearerToken(self.registrytoken.clone())));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identitytoken.clone())));
        }
        if !self.username.is_empty() {
            return Ok(Some(Credentials::password(&self.username, &self.password)));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        // Neither the text nor the decoder's error goes into the message: they may show the secret.
        let bad = || ErrorKind::InvalidInput.err(format!("credentials for {key:?} in {}", file.display()));
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(&self.auth)
            .map_err(|_secret| bad())?;
        let text = String::from_utf8(decoded).map_err(|_secret| bad())?;
        let (user, password) = text.split_once(':').ok_or_else(bad)?;
        Ok(Some(Credentials::password(user, password.trim_end_matches('\0'))))
    }
}

/// The files that may hold credentials, in the order in which image programs look.
fn usual_files() -> Vec<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(file) = variable("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let mut files = Vec::new();
    let user = rustix::process::getuid().as_raw();
    match variable("XDG_RUNTIME_DIR") {
        Some(dir) => files.push(dir.join("containers/auth.json")),
        None => files.push(format!("/run/containers/{user}/auth.json").into()),
    }
    let home = variable("HOME");
    if let Some(dir) = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")))
    {
        files.push(dir.join("containers/auth.json"));
    }
    match (variable("DOCKER_CONFIG"), home) {
        (Some(dir), _) => files.push(dir.join("config.json")),
        (None, Some(home)) => files.push(home.join(".docker/config.json")),
        (None, None) => {}
    }
    files
}

/// The keys that apply to an image, the narrowest first: `HOST/A/B`, `HOST/A`, `HOST`.
fn keys(image: &RegistryRef) -> impl Iterator<Item = String> {
    let whole = format!("{}/{}", image.registry(), image.repository());
    std::iter::successors(Some(whole), |key| {
        key.rsplit_once('/').map(|(wider, _)| wider.to_owned())
    })
}

/// A key of a file without what old programs put around the host.
fn host_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .map_or(key, |rest| rest.split_once('/').map_or(rest, |(host, _)| host));
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    }
}

/// Credentials for an image's repository; anonymous if none are known.
pub(crate) async fn find(image: &RegistryRef, options: &RegistryOptions) -> Result<Credentials> {
    if let Some(given) = keys(image).find_map(|key| options.credentials.get(&key)) {
        return Ok(given.clone());
    }
    let named = options.auth_file.as_ref();
    let files = named.map_or_else(usual_files, |file| vec![file.clone()]);
    for file in files {
        let bytes = match files::read_small(file.clone(), MAX_FILE).await {
            Ok(bytes) => bytes,
            // A file that was named has to exist; the usual ones need not, and may belong to another user.
            Err(error) if named.is_some() => return Err(error.context("looking for credentials")),
            Err(error) => {
                if error.io_kind() != Some(std::io::ErrorKind::NotFound) {
                    tracing::debug!(error = %error.chain(), "skipping a file of credentials");
                }
                continue;
            }
        };
        if let Some(found) = find_in(&bytes, image, &file, options.stall).await? {
            return Ok(found);
        }
    }
    Ok(Credentials::Anonymous)
}

async fn find_in(
    bytes: &[u8],
    image: &RegistryRef,
    file: &Path,
    limit: Duration,
) -> Result<Option<Credentials>> {
    // The parser's error is left out: it may quote a secret.
    let parsed: AuthFile = serde_json::from_slice(bytes).map_err(|_secret| {
        ErrorKind::InvalidInput.err(format!("{} is no file of credentials", file.display()))
    })?;
    let helpers = &mut parsed.helpers.iter();
    if let Some((key, helper)) = helpers.find(|(key, _)| host_of(key) == image.registry())
        && !helper.is_empty()
        && let Some(credentials) = ask(helper, key, limit).await?
    {
        return Ok(Some(credentials));
    }
    for key in keys(image) {
        let found = parsed.auths.iter().find(|(known, _)| host_of(known) == key);
        if let Some((known, entry)) = found
            && let Some(credentials) = entry.credentials(file, known)?
        {
            return Ok(Some(credentials));
        }
    }
    if let Some(helper) = parsed.store.filter(|helper| !helper.is_empty()) {
        let server = match image.registry() {
            "docker.io" => "https://index.docker.io/v1/",
            other => other,
        };
        return ask(&helper, server, limit).await;
    }
    Ok(None)
}

/// Asks the program `docker-credential-HELPER` for the credentials of a server.
///
/// # Cancellation
/// The program is killed.
async fn ask(helper: &str, server: &str, limit: Duration) -> Result<Option<Credentials>> {
    let name = format!("docker-credential-{helper}");
    // A file of credentials names a program of the search path, not any file.
    if helper.contains('/') {
        return Err(ErrorKind::InvalidInput.err(format!("{name:?} is no name of a credential helper")));
    }
    let asked = tokio::time::timeout(limit, run(&name, server)).await;
    let answered = asked
        .map_err(|_elapsed| ErrorKind::Registry.err(format!("{name} does not answer within {limit:?}")))?;
    answered.map_err(|error| error.context(format!("asking {name} for credentials of {server:?}")))
}

async fn run(name: &str, server: &str) -> Result<Option<Credentials>> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Answer {
        username: String,
        secret: String,
    }
    let mut child = tokio::process::Command::new(name)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .at("starting", name)?;
    if let Some(mut input) = child.stdin.take()
        && let Err(error) = input.write_all(server.as_bytes()).await
        // A helper that does not read its input may answer all the same.
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        return Err(Error::io("writing to the helper", error));
    }
    let mut answer = Vec::new();
    if let Some(output) = child.stdout.take() {
        let mut output = output.take(MAX_FILE);
        output
            .read_to_end(&mut answer)
            .await
            .map_err(|error| Error::io("reading from the helper", error))?;
    }
    let status = child
        .wait()
        .await
        .map_err(|error| Error::io("waiting for the helper", error))?;
    if !status.success() {
        // So every helper says that it has none; its other messages may hold secrets.
        let text = String::from_utf8_lossy(&answer);
        return match text.trim() {
            "credentials not found in native keychain" => Ok(None),
            _ => Err(ErrorKind::Registry.err(format!("it failed with {status}"))),
        };
    }
    let answer: Answer = serde_json::from_slice(&answer)
        .map_err(|_secret| ErrorKind::InvalidInput.err("it does not answer with credentials"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(answer.secret),
        username => Credentials::password(username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup(file: &str, image: &str) -> Result<Option<Credentials>> {
        let limit = Duration::from_secs(60);
        find_in(
            file.as_bytes(),
            &image.parse().unwrap(),
            Path::new("auth.json"),
            limit,
        )
        .await
    }

    #[tokio::test]
    async fn the_narrowest_entry_wins() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let file = format!(
            r#"{{"auths":{{"h.io":{{"auth":"{}"}},"h.io/team":{{"auth":"{}"}},"https://index.docker.io/v1/":{{"auth":"{}"}},"t.io":{{"identitytoken":"t"}}}}}}"#,
            encode("all:1"),
            encode("team:a:b"),
            encode("hub:3")
        );
        let password = |user: &str, password: &str| Some(Credentials::password(user, password));
        assert_eq!(
            lookup(&file, "h.io/team/app").await.unwrap(),
            password("team", "a:b")
        );
        assert_eq!(
            lookup(&file, "h.io/other/app").await.unwrap(),
            password("all", "1")
        );
        assert_eq!(lookup(&file, "busybox").await.unwrap(), password("hub", "3"));
        assert_eq!(
            lookup(&file, "t.io/x").await.unwrap(),
            Some(Credentials::IdentityToken("t".into()))
        );
        assert_eq!(lookup(&file, "i.io/x").await.unwrap(), None);
        assert_eq!(lookup("{}", "h.io/x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn values_go_before_files_and_narrow_keys_before_wide_ones() {
        let options = RegistryOptions::default()
            .auth_file("/nonexistent/auth.json")
            .credentials_for("h.io", Credentials::password("wide", "1"))
            .credentials_for("h.io/team", Credentials::password("narrow", "2"))
            .credentials_for("a.io", Credentials::Anonymous);
        let found = async |image: &str| find(&image.parse().unwrap(), &options).await;
        assert_eq!(
            found("h.io/team/app").await.unwrap(),
            Credentials::password("narrow", "2")
        );
        assert_eq!(
            found("h.io/teams/app").await.unwrap(),
            Credentials::password("wide", "1")
        );
        assert_eq!(found("a.io/app").await.unwrap(), Credentials::Anonymous);
        assert_eq!(found("b.io/app").await.unwrap_err().kind(), ErrorKind::Io);
    }

    #[tokio::test]
    async fn a_secret_is_never_in_the_message() {
        for file in [
            r#"{"auths":{"h.io":{"auth":"s3cret"}}}"#,
            r#"{"auths":{"h.io":{"auth":"#,
        ] {
            let error = lookup(file, "h.io/x").await.unwrap_err();
            assert!(!error.chain().contains("s3cret"), "{error:?}");
            assert!(error.chain().contains("auth.json"), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_helper_is_a_program_of_the_search_path() {
        for helper in ["../../bin/sh", "/bin/sh"] {
            let error = lookup(&format!(r#"{{"credsStore":"{helper}"}}"#), "h.io/x")
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
        }
        let error = lookup(r#"{"credHelpers":{"h.io":"there-is-none"}}"#, "h.io/x")
            .await
            .unwrap_err();
        assert!(
            error.chain().contains("docker-credential-there-is-none"),
            "{error:?}"
        );
    }
}
