//! Credentials for registries, from the files in which login programs leave them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use super::files;
use super::reference::RegistryRef;
use crate::error::{ErrorKind, Result};

/// Longest file of credentials that is read.
const MAX_FILE: u64 = 1 << 20;

#[derive(Deserialize)]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
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
    registrytoken: String,
}

impl Entry {
    fn credentials(&self, file: &Path, key: &str) -> Result<Option<RegistryAuth>> {
        if !self.registrytoken.is_empty() {
            return Ok(Some(RegistryAuth::Bearer(self.registrytoken.clone())));
        }
        if !self.username.is_empty() {
            return Ok(Some(RegistryAuth::Basic(
                self.username.clone(),
                self.password.clone(),
            )));
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
        Ok(Some(RegistryAuth::Basic(
            user.to_owned(),
            password.trim_end_matches('\0').to_owned(),
        )))
    }
}

/// The files in which credentials may lie, in the order in which image programs look.
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

/// The keys under which an image's credentials may be, the narrowest first.
fn keys(image: &RegistryRef) -> Vec<String> {
    let mut keys = Vec::new();
    let mut path = format!("{}/{}", image.registry(), image.repository());
    loop {
        keys.push(path.clone());
        match path.rfind('/') {
            Some(at) => path.truncate(at),
            None => break,
        }
    }
    keys
}

/// A key as it is compared: what old programs put around the host goes.
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

/// Credentials for an image's repository: from `given` or the usual files; anonymous if there are none.
pub(crate) async fn find(image: &RegistryRef, given: Option<&Path>) -> Result<RegistryAuth> {
    let files = given.map_or_else(usual_files, |file| vec![file.to_owned()]);
    for file in files {
        let bytes = match files::read_small(file.clone(), MAX_FILE).await {
            Ok(bytes) => bytes,
            // A file that was named has to be there; the usual ones need not, and may be somebody else's.
            Err(error) if given.is_some() => return Err(error.context("looking for credentials")),
            Err(error) => {
                if error.io_kind() != Some(std::io::ErrorKind::NotFound) {
                    tracing::debug!(error = %error.chain(), "passing over a file of credentials");
                }
                continue;
            }
        };
        if let Some(found) = find_in(&bytes, image, &file)? {
            return Ok(found);
        }
    }
    Ok(RegistryAuth::Anonymous)
}

fn find_in(bytes: &[u8], image: &RegistryRef, file: &Path) -> Result<Option<RegistryAuth>> {
    // The parser's error is left out: it may quote a secret.
    let parsed: AuthFile = serde_json::from_slice(bytes).map_err(|_secret| {
        ErrorKind::InvalidInput.err(format!("{} is no file of credentials", file.display()))
    })?;
    for key in keys(image) {
        let found = parsed.auths.iter().find(|(known, _)| host_of(known) == key);
        if let Some((known, entry)) = found
            && let Some(credentials) = entry.credentials(file, known)?
        {
            return Ok(Some(credentials));
        }
    }
    if let Some(helper) = parsed.helpers.get(image.registry()) {
        tracing::warn!(
            helper,
            registry = image.registry(),
            "credential helpers are not asked"
        );
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(file: &str, image: &str) -> Result<Option<RegistryAuth>> {
        find_in(file.as_bytes(), &image.parse().unwrap(), Path::new("auth.json"))
    }

    #[test]
    fn the_narrowest_entry_wins() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let file = format!(
            r#"{{"auths":{{"h.io":{{"auth":"{}"}},"h.io/team":{{"auth":"{}"}},"https://index.docker.io/v1/":{{"auth":"{}"}}}}}}"#,
            encode("all:1"),
            encode("team:a:b"),
            encode("hub:3")
        );
        let basic = |user: &str, password: &str| Some(RegistryAuth::Basic(user.into(), password.into()));
        assert_eq!(lookup(&file, "h.io/team/app").unwrap(), basic("team", "a:b"));
        assert_eq!(lookup(&file, "h.io/other/app").unwrap(), basic("all", "1"));
        assert_eq!(lookup(&file, "busybox").unwrap(), basic("hub", "3"));
        assert_eq!(lookup(&file, "i.io/x").unwrap(), None);
        assert_eq!(lookup("{}", "h.io/x").unwrap(), None);
    }

    #[test]
    fn a_secret_is_never_in_the_message() {
        for file in [
            r#"{"auths":{"h.io":{"auth":"s3cret"}}}"#,
            r#"{"auths":{"h.io":{"auth":"#,
        ] {
            let error = lookup(file, "h.io/x").unwrap_err();
            assert!(!error.chain().contains("s3cret"), "{error:?}");
            assert!(error.chain().contains("auth.json"), "{error:?}");
        }
    }
}
