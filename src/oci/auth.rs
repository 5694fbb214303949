//! Credentials for a registry: those given by value, else those that login programs have left in files or hand to
//! credential helpers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::files;
use super::reference::RegistryRef;
use super::registry_options::{Credentials, RegistryOptions};
use crate::error::{Error, ErrorKind, IoContext as _, Result};

/// The longest file of credentials, or answer of a helper, that is read.
const MAX_FILE: u64 = 1 << 20;

/// The file of old versions of Docker, which is the list of registries itself.
const LEGACY: &str = ".dockercfg";

/// What is known for an image's repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) credentials: Credentials,
    /// Why there are none, where that is not as it should be.
    pub(crate) lack: Option<String>,
}

/// A field, by its name in upper or lower case.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let fields = value.as_object();
    let mut found = fields.into_iter().flatten();
    let found = found.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.map_or(&Value::Null, |(_, value)| value)
}

/// A text, without the ends of lines that editors and scripts leave in it.
fn text(value: &Value, name: &str) -> String {
    let text = field(value, name).as_str().unwrap_or_default();
    text.replace(['\r', '\n'], "").trim().to_owned()
}

/// The entries of a map for a host or repository: first that of exactly this name, then those that mean the same.
fn entries<'a>(map: &'a Value, key: &str) -> Vec<(&'a str, &'a Value)> {
    let all = map.as_object().into_iter().flatten();
    let mut found: Vec<_> = all
        .filter(|(known, _)| host_of(known) == key)
        .map(|(known, value)| (known.as_str(), value))
        .collect();
    found.sort_by_key(|(known, _)| *known != key);
    found
}

/// The credentials in the entry for `key` of the file at `path`.
fn credentials_in(path: &Path, key: &str, entry: &Value) -> Result<Option<Credentials>> {
    let token = text(entry, "registrytoken");
    if !token.is_empty() {
        return Ok(Some(Credentials::BearerToken(token)));
    }
    let token = text(entry, "identitytoken");
    if !token.is_empty() {
        return Ok(Some(Credentials::IdentityToken(token)));
    }
    let auth = text(entry, "auth");
    if auth.is_empty() {
        // Where there are both, programs leave these two behind.
        let username = text(entry, "username");
        let password = field(entry, "password").as_str().unwrap_or_default();
        return Ok((!username.is_empty()).then(|| Credentials::password(username, password)));
    }
    // Neither the text nor the decoder's error goes into the message: they may show the secret.
    let bad = || ErrorKind::InvalidInput.err(format!("credentials for {key:?} in {}", path.display()));
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(&auth)
        .map_err(|_secret| bad())?;
    let text = String::from_utf8(decoded).map_err(|_secret| bad())?;
    let Some((user, password)) = text.split_once(':') else {
        tracing::warn!(file = %path.display(), key, "skipping credentials without a password");
        return Ok(None);
    };
    Ok(Some(Credentials::password(user, password.trim_matches('\0'))))
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
    match (variable("DOCKER_CONFIG"), &home) {
        (Some(dir), _) => files.push(dir.join("config.json")),
        (None, Some(home)) => files.push(home.join(".docker/config.json")),
        (None, None) => {}
    }
    files.extend(home.map(|home| home.join(LEGACY)));
    files
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
pub(crate) async fn find(image: &RegistryRef, options: &RegistryOptions) -> Result<Found> {
    if let Some(given) = image.names().find_map(|key| options.credentials.get(&key)) {
        return Ok(Found {
            credentials: given.clone(),
            lack: None,
        });
    }
    let named = options.auth_file.as_ref();
    let files = named.map_or_else(usual_files, |file| vec![file.clone()]);
    let mut lack = None;
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
        if let Some(credentials) = find_in(&bytes, image, &file, options.stall, &mut lack).await? {
            return Ok(Found {
                credentials,
                lack: None,
            });
        }
    }
    Ok(Found {
        credentials: Credentials::Anonymous,
        lack,
    })
}

/// Looks into one file: `auth.json`, or Docker's `config.json`. Only the entries that apply have to make sense, so it is read
/// field by field: what is `null`, absent or of another type is not there. `lack` becomes what keeps credentials from being
/// found.
async fn find_in(
    bytes: &[u8],
    image: &RegistryRef,
    path: &Path,
    limit: Duration,
    lack: &mut Option<String>,
) -> Result<Option<Credentials>> {
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    // The parser's error is left out: it may quote a secret.
    let document: Value = serde_json::from_slice(bytes).map_err(|_secret| {
        ErrorKind::InvalidInput.err(format!("{} is no file of credentials", path.display()))
    })?;
    for (key, helper) in entries(field(&document, "credHelpers"), image.registry()) {
        let helper = helper.as_str().unwrap_or_default();
        if !helper.is_empty()
            && let Some(credentials) = ask(helper, key, limit).await?
        {
            return Ok(Some(credentials));
        }
    }
    let auths = match path.file_name().is_some_and(|name| name == LEGACY) {
        true => &document,
        false => field(&document, "auths"),
    };
    for key in image.names() {
        for (known, entry) in entries(auths, &key) {
            if let Some(credentials) = credentials_in(path, known, entry)? {
                return Ok(Some(credentials));
            }
        }
    }
    let helper = text(&document, "credsStore");
    if helper.is_empty() {
        return Ok(None);
    }
    let server = match image.registry() {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    // It is for all registries, also for those that want no credentials, and the file may come from another machine.
    match ask(&helper, server, limit).await {
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the store of credentials does not answer");
            lack.get_or_insert_with(|| error.chain());
            Ok(None)
        }
        found => found,
    }
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
        username: Option<String>,
        secret: Option<String>,
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
    let secret = answer.secret.unwrap_or_default();
    Ok(match answer.username.as_deref() {
        Some("<token>") => Some(Credentials::IdentityToken(secret)),
        None | Some("") if secret.is_empty() => None,
        username => Some(Credentials::password(username.unwrap_or_default(), secret)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lookup(file: &str, image: &str) -> Result<Option<Credentials>> {
        look_in("auth.json", file, image).await.0
    }

    async fn look_in(path: &str, file: &str, image: &str) -> (Result<Option<Credentials>>, Option<String>) {
        let (limit, mut lack) = (Duration::from_secs(60), None);
        let image = image.parse().unwrap();
        let found = find_in(file.as_bytes(), &image, Path::new(path), limit, &mut lack).await;
        (found, lack)
    }

    #[tokio::test]
    async fn odd_entries_break_nothing_for_others() {
        let good = r#""h.io":{"auth":"dXNlcjpz\r\nZWNyZXQ=\n","username":"x","password":"y"}"#;
        let user = Some(Credentials::password("user", "secret"));
        for odd in [
            "null",
            "5",
            "[]",
            r#""text""#,
            r#"{"auth":null,"username":null,"identitytoken":null}"#,
            r#"{"auth":5}"#,
            r#"{"auth":"%"}"#,
        ] {
            let file = format!(
                r#"{{"auths":{{"a.io":{odd},{good},"z.io":{odd}}},"credHelpers":null,"credsStore":null}}"#
            );
            assert_eq!(lookup(&file, "h.io/x").await.unwrap(), user, "{odd}");
            let helpers = format!(r#"{{"credHelpers":{{"a.io":{odd},"h.io":null}},"auths":{{{good}}}}}"#);
            assert_eq!(lookup(&helpers, "h.io/x").await.unwrap(), user, "{odd}");
        }
        for file in [
            "",
            " \n",
            "null",
            "[]",
            r#"{"auths":null}"#,
            r#"{"auths":[1],"credHelpers":"x"}"#,
        ] {
            assert_eq!(lookup(file, "h.io/x").await.unwrap(), None, "{file}");
        }
        // What has no colon counts for nothing, and the next wider entry does.
        let file = format!(r#"{{"auths":{{"h.io/a":{{"auth":"eA=="}},{good}}}}}"#);
        assert_eq!(lookup(&file, "h.io/a").await.unwrap(), user);
        // Exactly this name goes before one that means the same.
        let file = format!(r#"{{"auths":{{"http://h.io/v1/":{{"auth":"YTpi"}},{good}}}}}"#);
        assert_eq!(lookup(&file, "h.io/a").await.unwrap(), user);
        let token =
            r#"{"auths":{"h.io":{"identityToken":"t\n","auth":"YTpi"},"r.io":{"registrytoken":"r\r\n"}}}"#;
        assert_eq!(
            lookup(token, "h.io/a").await.unwrap(),
            Some(Credentials::IdentityToken("t".into()))
        );
        assert_eq!(
            lookup(token, "r.io/a").await.unwrap(),
            Some(Credentials::BearerToken("r".into()))
        );
        let (legacy, _) = look_in(".dockercfg", &format!("{{{good}}}"), "h.io/x").await;
        assert_eq!(legacy.unwrap(), user);
    }

    #[tokio::test]
    async fn a_store_of_another_machine_keeps_nobody_from_public_images() {
        let (found, lack) = look_in("auth.json", r#"{"credsStore":"there-is-none"}"#, "h.io/x").await;
        assert_eq!(found.unwrap(), None);
        assert!(lack.unwrap().contains("docker-credential-there-is-none"));
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
        let found = async |image: &str| {
            let found = find(&image.parse().unwrap(), &options).await;
            found.map(|found| found.credentials)
        };
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
            let error = lookup(&format!(r#"{{"credHelpers":{{"h.io":"{helper}"}}}}"#), "h.io/x")
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
