//! Credentials for a registry: those given by value, else those that login programs have left in files or hand to
//! credential helpers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use serde_json::Value;

use super::credential_helper::Helper;
use super::files;
use super::reference;
use super::registry_options::{Credentials, RegistryOptions};
use crate::error::{ErrorKind, Result};

/// The longest file of credentials that is read.
pub(crate) const MAX_FILE: u64 = 1 << 20;

/// What stands for the files among the helpers of `registries.conf`.
pub(crate) const FILES: &str = "containers-auth.json";

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

/// A variable of the process that is set and not empty, as a path.
fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name)
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
}

/// The file that the environment names for credentials, and whether it is Docker's.
pub(crate) fn named_by_environment() -> Option<(PathBuf, bool)> {
    match (variable("REGISTRY_AUTH_FILE"), variable("DOCKER_CONFIG")) {
        (Some(file), _) => Some((file, false)),
        (None, dir) => dir.map(|dir| (dir.join("config.json"), true)),
    }
}

/// The file of this session of the user, to which credentials are written.
pub(crate) fn session_file() -> PathBuf {
    let user = rustix::process::getuid().as_raw();
    match variable("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("containers/auth.json"),
        None => format!("/run/containers/{user}/auth.json").into(),
    }
}

/// The files that may hold credentials, in the order in which Podman looks: only the one that the environment names, if it
/// does.
pub(crate) fn usual_files() -> Vec<PathBuf> {
    if let Some((file, _)) = named_by_environment() {
        return vec![file];
    }
    let mut files = vec![session_file()];
    let home = variable("HOME");
    if let Some(dir) = variable("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")))
    {
        files.push(dir.join("containers/auth.json"));
    }
    if let Some(home) = home {
        files.extend([home.join(".docker/config.json"), home.join(LEGACY)]);
    }
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

/// Credentials for `HOST[:PORT]` or a namespace or repository in it; anonymous if none are known.
pub(crate) async fn find(scope: &str, options: &RegistryOptions) -> Result<Found> {
    if let Some(given) = reference::widening(scope).find_map(|key| options.credentials.get(key)) {
        return Ok(Found {
            credentials: given.clone(),
            lack: None,
        });
    }
    let lookup = Lookup {
        files: options
            .auth_file
            .as_ref()
            .map_or_else(usual_files, |file| vec![file.clone()]),
        must_exist: options.auth_file.is_some(),
        helpers: options.registries_conf.credential_helpers(),
        limit: options.stall,
    };
    lookup.find(scope).await
}

/// Where credentials are looked for.
#[derive(Debug)]
pub(crate) struct Lookup<'a> {
    pub(crate) files: Vec<PathBuf>,
    /// Whether a file that is not there is an error: the usual ones need not, and may belong to another user.
    pub(crate) must_exist: bool,
    /// The helpers of `registries.conf`, one of which may stand for the files; none is the files only.
    pub(crate) helpers: &'a [String],
    /// How long a helper may take.
    pub(crate) limit: Duration,
}

impl Lookup<'_> {
    pub(crate) async fn find(&self, scope: &str) -> Result<Found> {
        let mut lack = None;
        let only_files = [FILES.to_owned()];
        let helpers = if self.helpers.is_empty() {
            &only_files
        } else {
            self.helpers
        };
        for helper in helpers {
            let found = match helper.as_str() {
                FILES => self.find_in_files(scope, &mut lack).await?,
                helper => {
                    let asked = Helper::new(helper, self.limit);
                    let asked = asked.get(reference::registry_of(scope)).await;
                    or_lack(asked, &mut lack)
                }
            };
            if let Some(credentials) = found {
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

    async fn find_in_files(&self, scope: &str, lack: &mut Option<String>) -> Result<Option<Credentials>> {
        for file in &self.files {
            let bytes = match files::read_small(file.clone(), MAX_FILE).await {
                Ok(bytes) => bytes,
                Err(error) if self.must_exist => return Err(error.context("looking for credentials")),
                Err(error) => {
                    if error.io_kind() != Some(std::io::ErrorKind::NotFound) {
                        tracing::debug!(error = %error.chain(), "skipping a file of credentials");
                    }
                    continue;
                }
            };
            let found = find_in(&bytes, scope, file, self.limit, lack).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The answer of a helper for all registries, also for those that want no credentials: it keeps nobody from public images, and
/// the configuration may come from another machine. `lack` becomes why it does not answer.
fn or_lack(asked: Result<Option<Credentials>>, lack: &mut Option<String>) -> Option<Credentials> {
    asked.unwrap_or_else(|error| {
        tracing::warn!(error = %error.chain(), "a credential helper does not answer");
        lack.get_or_insert_with(|| error.chain());
        None
    })
}

/// Looks into one file: `auth.json`, or Docker's `config.json`. Only the entries that apply have to make sense, so it is read
/// field by field: what is `null`, absent or of another type is not there. `lack` becomes what keeps credentials from being
/// found.
async fn find_in(
    bytes: &[u8],
    scope: &str,
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
    for (key, helper) in entries(field(&document, "credHelpers"), reference::registry_of(scope)) {
        let helper = helper.as_str().unwrap_or_default();
        if !helper.is_empty()
            && let Some(credentials) = Helper::new(helper, limit).get(key).await?
        {
            return Ok(Some(credentials));
        }
    }
    let auths = match path.file_name().is_some_and(|name| name == LEGACY) {
        true => &document,
        false => field(&document, "auths"),
    };
    for key in reference::widening(scope) {
        for (known, entry) in entries(auths, key) {
            if let Some(credentials) = credentials_in(path, known, entry)? {
                return Ok(Some(credentials));
            }
        }
    }
    let helper = text(&document, "credsStore");
    if helper.is_empty() {
        return Ok(None);
    }
    let server = match reference::registry_of(scope) {
        "docker.io" => "https://index.docker.io/v1/",
        other => other,
    };
    let asked = Helper::new(&helper, limit).get(server).await;
    Ok(or_lack(asked, lack))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::RegistryRef;

    async fn lookup(file: &str, image: &str) -> Result<Option<Credentials>> {
        look_in("auth.json", file, image).await.0
    }

    async fn look_in(path: &str, file: &str, image: &str) -> (Result<Option<Credentials>>, Option<String>) {
        let (limit, mut lack) = (Duration::from_secs(60), None);
        let image: RegistryRef = image.parse().unwrap();
        let found = find_in(file.as_bytes(), &image.name(), Path::new(path), limit, &mut lack).await;
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
            let found = find(image, &options).await;
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
