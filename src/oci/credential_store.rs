//! Where login programs keep credentials, to read and to change.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::auth::{self, Lookup};
use super::auth_file::{self, AuthFile};
use super::credential_helper::Helper;
use super::registry_name;
use super::registry_options::{Credentials, RegistryOptions};
use crate::bridge;
use crate::error::{Error, ErrorKind, Result};

/// The files and credential helpers in which `podman login`, `skopeo login` and `buildah login` keep credentials, as
/// containers-auth.json(5) says. Cheap to clone; nothing is read before it is asked for.
///
/// Scopes are `HOST[:PORT]`, or a namespace or repository in a registry.
///
/// Files are replaced atomically, with mode 0600; fields that are not known stay, and so does a symbolic link to the file, which
/// Podman replaces. Changes that processes with this library make at the same time are made one after the other: they hold the
/// lock of `FILE.lock` beside the file for moments. Podman and Docker take no lock: if one of them reads the file just before
/// and replaces it just after, what was changed in between is lost.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> graphroot::Result<()> {
/// use graphroot::oci::{CredentialStore, Credentials, RegistryOptions};
/// # let dir = std::env::temp_dir().join(format!("graphroot-credentials-doc-{}", std::process::id()));
/// let options = RegistryOptions::default().auth_file(dir.join("auth.json"));
/// let store = CredentialStore::new(&options);
/// store.set("registry.example/team", "user", "secret").await?;
/// assert_eq!(store.get("registry.example/team/app").await?, Credentials::password("user", "secret"));
/// assert!(store.remove("registry.example/team").await?);
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct CredentialStore {
    place: Place,
    /// Of `registries.conf`.
    helpers: Vec<String>,
    /// How long a helper may take.
    limit: Duration,
}

#[derive(Clone, Debug)]
enum Place {
    /// Read from all usual files, written to that of the session.
    Usual,
    File(PathBuf),
    /// Docker's `config.json`.
    Docker(PathBuf),
}

impl CredentialStore {
    /// That in which pulls with these options look: [`RegistryOptions::auth_file`], or what `REGISTRY_AUTH_FILE` or
    /// `DOCKER_CONFIG` name, or else the usual files, of which that of the session is written to
    /// (`$XDG_RUNTIME_DIR/containers/auth.json`, or `/run/containers/UID/auth.json`); with the helpers of
    /// [`RegistryOptions::registries_conf`].
    pub fn new(options: &RegistryOptions) -> Self {
        let place = match (&options.auth_file, auth::named_by_environment()) {
            (Some(file), _) => Place::File(file.clone()),
            (None, Some((file, false))) => Place::File(file),
            (None, Some((file, true))) => Place::Docker(file),
            (None, None) => Place::Usual,
        };
        Self {
            place,
            helpers: options.registries_conf.credential_helpers().to_vec(),
            limit: options.stall,
        }
    }

    /// Uses a `config.json` of Docker's instead, in a way that Docker understands: scopes are registries, and the helpers of
    /// `registries.conf` are not written to.
    #[must_use]
    pub fn docker_file(mut self, file: impl Into<PathBuf>) -> Self {
        self.place = Place::Docker(file.into());
        self
    }

    /// The credentials for a scope: its own, or those of what it is in; [`Credentials::Anonymous`] if there are none.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what is no scope, and for files and answers of helpers that make no sense;
    /// [`ErrorKind::Registry`] if a helper fails; [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// A helper is killed.
    pub async fn get(&self, scope: &str) -> Result<Credentials> {
        check(scope)?;
        let lookup = Lookup {
            files: match &self.place {
                Place::Usual => auth::usual_files(),
                Place::File(file) | Place::Docker(file) => vec![file.clone()],
            },
            must_exist: false,
            helpers: &self.helpers,
            limit: self.limit,
        };
        Ok(lookup.find(scope).await?.credentials)
    }

    /// Keeps a name and a password for a scope, in place of what was kept for it: in the first helper of `registries.conf`
    /// that takes them, in the helper that the file names for the registry, or in the file. Returns where, for people. They
    /// are not checked: see [`check_credentials`](super::check_credentials()).
    ///
    /// # Errors
    /// As [`CredentialStore::get`], and [`ErrorKind::NotSupported`] for a namespace in a place that knows registries only.
    ///
    /// # Cancellation
    /// Nothing has happened, or all.
    pub async fn set(&self, scope: &str, username: &str, password: &str) -> Result<String> {
        let scope = self.own_scope(scope)?;
        let mut failed = Failed::default();
        for helper in self.writable() {
            let set = match helper {
                Some(helper) => self.store(helper, &scope, username, password).await,
                None => self.set_in_file(&scope, username, password).await,
            };
            match set {
                Ok(place) => return Ok(place),
                Err(error) => failed.add(error),
            }
        }
        failed.into_result("storing credentials")?;
        Err(ErrorKind::NotSupported.err("nowhere to store credentials"))
    }

    /// Removes what is kept for exactly this scope, everywhere. Returns whether there was something.
    ///
    /// # Errors
    /// As [`CredentialStore::get`]; what other places have is removed all the same.
    ///
    /// # Cancellation
    /// What is kept in some places may be removed and in others not.
    pub async fn remove(&self, scope: &str) -> Result<bool> {
        let scope = self.own_scope(scope)?;
        let (mut failed, mut found) = (Failed::default(), false);
        for helper in self.writable() {
            let removed = match helper {
                Some(_) if scope.contains('/') && !scope.contains("://") => Ok(false),
                Some(helper) => Helper::new(helper, self.limit).erase(&scope).await,
                None => self.remove_from_file(&scope).await,
            };
            match removed {
                Ok(removed) => found |= removed,
                Err(error) => failed.add(error),
            }
        }
        failed.into_result("removing credentials")?;
        Ok(found)
    }

    /// Removes everything that is kept for any registry.
    ///
    /// # Errors
    /// As [`CredentialStore::remove`].
    ///
    /// # Cancellation
    /// As for [`CredentialStore::remove`].
    pub async fn remove_all(&self) -> Result<()> {
        let mut failed = Failed::default();
        for helper in self.writable() {
            let removed = match helper {
                Some(helper) => erase_all(&Helper::new(helper, self.limit)).await,
                None => self.clear_file().await,
            };
            if let Err(error) = removed {
                failed.add(error);
            }
        }
        failed.into_result("removing all credentials")
    }

    /// The helpers that are written to; `None` stands for the file.
    fn writable(&self) -> Vec<Option<&str>> {
        match &self.place {
            // Docker knows nothing of `registries.conf`.
            Place::Docker(_) => vec![None],
            _ if self.helpers.is_empty() => vec![None],
            _ => {
                let helpers = self.helpers.iter().map(String::as_str);
                helpers
                    .map(|helper| Some(helper).filter(|helper| *helper != auth::FILES))
                    .collect()
            }
        }
    }

    /// What a scope is called where it is kept.
    fn own_scope(&self, scope: &str) -> Result<String> {
        check(scope)?;
        match (&self.place, scope) {
            (Place::Docker(_), "docker.io") => Ok("https://index.docker.io/v1/".to_owned()),
            (Place::Docker(_), scope) if scope.contains('/') => Err(ErrorKind::NotSupported.err(format!(
                "Credentials cannot be recorded in Docker-compatible format with namespaced key {scope:?}"
            ))),
            _ => Ok(scope.to_owned()),
        }
    }

    /// The file that is written to.
    fn file(&self) -> Result<PathBuf> {
        match &self.place {
            Place::File(file) | Place::Docker(file) => Ok(file.clone()),
            Place::Usual => {
                let file = auth::session_file();
                let base = file.parent().and_then(Path::parent).unwrap_or(&file);
                // Whoever names one that is not there has made a mistake; without a name it is made.
                if std::env::var_os("XDG_RUNTIME_DIR").is_some_and(|dir| !dir.is_empty())
                    && rustix::fs::stat(base).err() == Some(rustix::io::Errno::NOENT)
                {
                    let what = format!("{base:?} directory set by $XDG_RUNTIME_DIR does not exist");
                    return Err(ErrorKind::InvalidInput.err(what));
                }
                Ok(file)
            }
        }
    }

    /// Has a helper keep credentials.
    async fn store(&self, helper: &str, scope: &str, username: &str, password: &str) -> Result<String> {
        if scope.contains('/') && !scope.contains("://") {
            let what = format!("namespaced key is not supported for credential helper {helper}");
            return Err(ErrorKind::NotSupported.err(what));
        }
        let program = Helper::new(helper, self.limit);
        program.store(scope, username, password).await?;
        Ok(format!("credential helper: {helper}"))
    }

    async fn set_in_file(&self, scope: &str, username: &str, password: &str) -> Result<String> {
        let path = self.file()?;
        let place = path.display().to_string();
        let [key, user, secret] = [scope, username, password].map(str::to_owned);
        let set = auth_file::change(path, move |file| {
            let helper = file.helper(&key);
            if helper.is_none() {
                file.set(&key, &user, &secret)?;
            }
            Ok((helper.is_none(), helper))
        });
        match set.await? {
            None => Ok(place),
            Some(helper) => self.store(&helper, scope, username, password).await,
        }
    }

    async fn remove_from_file(&self, scope: &str) -> Result<bool> {
        let key = scope.to_owned();
        let remove = auth_file::change(self.file()?, move |file| {
            let is_removed = file.remove(&key)?;
            Ok((is_removed, (is_removed, file.helper(&key))))
        });
        let (removed, helper) = remove.await?;
        let erased = match helper {
            Some(helper) => Helper::new(&helper, self.limit).erase(scope).await?,
            None => false,
        };
        Ok(removed || erased)
    }

    async fn clear_file(&self) -> Result<()> {
        let path = self.file()?;
        let helpers = {
            let path = path.clone();
            bridge::run(move || Ok(AuthFile::read(&path)?.helpers())).await?
        };
        for (server, helper) in helpers {
            Helper::new(&helper, self.limit).erase(&server).await?;
        }
        // Docker's file says more than what is logged in to.
        let with_helpers = !matches!(self.place, Place::Docker(_));
        auth_file::change(path, move |file| Ok((true, file.clear(with_helpers)?))).await
    }
}

/// Has a helper forget everything. One that is not installed has nothing.
async fn erase_all(helper: &Helper) -> Result<()> {
    let listed = match helper.list().await {
        Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => return Ok(()),
        listed => listed?,
    };
    for server in listed.keys() {
        helper.erase(server).await?;
    }
    Ok(())
}

/// Refuses what is no registry, and no namespace or repository in one.
fn check(scope: &str) -> Result<()> {
    let (registry, path) = scope.split_once('/').unwrap_or((scope, ""));
    let refuse = |why: &str| Err(ErrorKind::InvalidInput.err(format!("key {scope} {why}")));
    if scope.starts_with("http://") || scope.starts_with("https://") {
        return refuse("contains http[s]:// prefix");
    }
    if scope.contains('@') {
        return refuse("contains a '@' character");
    }
    if path.contains(':') {
        return refuse("contains a ':' character after host[:port]");
    }
    let is_odd = |letter: char| letter.is_whitespace() || letter.is_control();
    if registry.is_empty() || registry.contains(is_odd) {
        return refuse("names no registry");
    }
    if registry.len() < scope.len() {
        registry_name::parse(scope)?;
    }
    Ok(())
}

/// Failures of several places.
#[derive(Default)]
struct Failed(Option<Error>);

impl Failed {
    /// The first one counts, the others are told.
    fn add(&mut self, error: Error) {
        self.0 = Some(match self.0.take() {
            None => error,
            Some(first) => first.context(error.chain()),
        });
    }

    fn into_result(self, what: &'static str) -> Result<()> {
        self.0.map_or(Ok(()), |error| Err(error.context(what)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_registries_and_what_is_in_them() {
        for scope in [
            "h.io",
            "localhost:5000",
            "h.io/team",
            "localhost:5000/a/b",
            "docker.io/vendor",
        ] {
            assert!(check(scope).is_ok(), "{scope}");
        }
        for scope in [
            "",
            "/a",
            "a b",
            "https://h.io",
            "http://h.io/a",
            "h.io/a:tag",
            "h.io/a@sha256:0",
            "h.io/A B",
            "h.io/",
        ] {
            let error = check(scope).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{scope}");
        }
    }

    #[tokio::test]
    async fn dockers_file_knows_registries_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, r#"{"auths": {}, "HttpHeaders": {}}"#).unwrap();
        let store = CredentialStore::new(&RegistryOptions::default()).docker_file(&path);
        let error = store.set("h.io/team", "u", "p").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotSupported);
        store.set("docker.io", "u", "p").await.unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.contains("https://index.docker.io/v1/") && text.contains("HttpHeaders"),
            "{text}"
        );
        assert_eq!(
            store.get("docker.io").await.unwrap(),
            Credentials::password("u", "p")
        );
        assert!(store.remove("docker.io").await.unwrap());
        assert!(!store.remove("docker.io").await.unwrap());
    }
}
