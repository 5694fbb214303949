//! Changing a file of credentials: `auth.json`, or Docker's `config.json`.
//!
//! What is not understood stays: other fields of the file and of its entries.
//!
//! All tasks and processes of this library that change one file do so one after the other: each holds the lock of
//! `<file>.lock` beside it while it reads, changes and replaces the file. Podman and Docker take no lock.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use rustix::fs::FileType;
use rustix::io::Errno;
use serde::Serialize as _;
use serde_json::{Map, Value, json};

use super::auth::MAX_FILE;
use super::files;
use crate::bridge;
use crate::error::{ErrorKind, IoContext as _, Result};
use crate::lock::single_flight::{self, Flight};
use crate::sys::atomic::AtomicFile;

/// Nobody else may read it.
const MODE: u32 = 0o600;

/// How long others are waited for who change the same file, which takes moments.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// More links, one leading to the other, than the kernel follows.
const MAX_LINKS: u32 = 40;

/// A file of credentials in memory.
#[derive(Debug)]
pub(crate) struct AuthFile {
    path: PathBuf,
    fields: Map<String, Value>,
}

/// Has `change` change the file at `path`, which is replaced if that says so; with what it is in if that is missing. A link
/// stays, and what it leads to is replaced.
///
/// # Cancellation
/// Nothing has happened, or all.
pub(crate) async fn change<T, F>(path: PathBuf, change: F) -> Result<T>
where
    T: Send + 'static,
    F: FnOnce(&mut AuthFile) -> Result<(bool, T)> + Send + 'static,
{
    let target = bridge::run(move || {
        let target = followed(path)?;
        make_dir_of(&target)?;
        Ok(target)
    })
    .await?;
    let lock = lock(&target).await;
    bridge::run(move || {
        let _lock = lock;
        let mut file = AuthFile::read(&target)?;
        let (is_changed, value) = change(&mut file)?;
        if is_changed {
            file.write()?;
        }
        Ok(value)
    })
    .await
}

/// The lock of a file among all who change it with this library. Where it cannot be had, or another user holds it for ever, the
/// file is changed without it, as other programs do.
async fn lock(path: &Path) -> Option<Flight> {
    let (dir, name) = (dir_of(path), path.file_name()?.to_string_lossy());
    let key = format!("{name}.lock");
    let locked = tokio::time::timeout(LOCK_WAIT, single_flight::acquire(dir, &key)).await;
    let reason = match locked {
        Ok(Ok(lock)) => return Some(lock),
        Ok(Err(error)) => error.chain(),
        Err(_elapsed) => "another process holds the lock".to_owned(),
    };
    tracing::warn!(file = %path.display(), reason, "changing a file of credentials without its lock");
    None
}

/// What a path leads to that may be a link. A link of a user who is neither this one nor root is not followed: it may lead the
/// secret anywhere.
fn followed(mut path: PathBuf) -> Result<PathBuf> {
    for _ in 0..MAX_LINKS {
        let status = match rustix::fs::lstat(&path) {
            Ok(status) => status,
            Err(Errno::NOENT) => return Ok(path),
            Err(error) => return Err(error).at("looking at", &path),
        };
        let is_trusted = [0, rustix::process::geteuid().as_raw()].contains(&status.st_uid);
        if !FileType::from_raw_mode(status.st_mode).is_symlink() || !is_trusted {
            return Ok(path);
        }
        let link = std::fs::read_link(&path).at("reading", &path)?;
        path = dir_of(&path).join(link);
    }
    Err(Errno::LOOP).at("following", &path)
}

fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn make_dir_of(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let dir = dir_of(path);
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(dir).at("creating", dir)
}

impl AuthFile {
    /// Reads the file at `path`; one that is not there, or is blank, is empty.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = match files::read_small_now(path, MAX_FILE) {
            Err(error) if error.io_kind() == Some(std::io::ErrorKind::NotFound) => Vec::new(),
            read => read?,
        };
        let fields = match bytes.trim_ascii() {
            b"" | b"null" => Map::new(),
            // The parser's error may quote a secret.
            text => serde_json::from_slice(text).map_err(|_secret| no_credentials(path))?,
        };
        Ok(Self {
            path: path.to_owned(),
            fields,
        })
    }

    /// Replaces the file.
    fn write(&self) -> Result<()> {
        let mut text = Vec::new();
        let format = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
        self.fields
            .serialize(&mut serializer)
            .map_err(|_secret| no_credentials(&self.path))?;
        // A process that is killed leaves no copy of the secrets.
        let mut file = AtomicFile::create_unnamed(&self.path, MODE)?;
        file.write_all(&text).at("writing", &self.path)?;
        file.commit(true, MODE).map(drop)
    }

    /// The map of this name in whatever case, made if it is missing.
    fn map(&mut self, name: &str) -> Result<&mut Map<String, Value>> {
        let bad = no_credentials(&self.path);
        let known = self.fields.keys().find(|key| key.eq_ignore_ascii_case(name));
        let name = known.map_or_else(|| name.to_owned(), Clone::clone);
        let value = self.fields.entry(name).or_insert(Value::Null);
        if value.is_null() {
            *value = json!({});
        }
        value.as_object_mut().ok_or(bad)
    }

    /// The helpers, by the registries that they are for.
    pub(crate) fn helpers(&self) -> Vec<(String, String)> {
        let fields = self.fields.iter();
        let found = fields.filter(|(key, _)| key.eq_ignore_ascii_case("credHelpers"));
        let entries = found.filter_map(|(_, value)| value.as_object()).flatten();
        let named = entries.filter_map(|(key, helper)| Some((key.clone(), helper.as_str()?.to_owned())));
        named.filter(|(_, helper)| !helper.is_empty()).collect()
    }

    /// The helper for exactly this key.
    pub(crate) fn helper(&self, key: &str) -> Option<String> {
        let mut all = self.helpers().into_iter();
        all.find(|(known, _)| known == key).map(|(_, helper)| helper)
    }

    /// Sets the credentials of a key.
    pub(crate) fn set(&mut self, key: &str, username: &str, password: &str) -> Result<()> {
        let pair = format!("{username}:{password}");
        let auth = base64::engine::general_purpose::STANDARD.encode(pair);
        self.map("auths")?.insert(key.to_owned(), json!({"auth": auth}));
        Ok(())
    }

    /// Removes the credentials of exactly this key. Returns whether there were some.
    pub(crate) fn remove(&mut self, key: &str) -> Result<bool> {
        Ok(self.map("auths")?.remove(key).is_some())
    }

    /// Removes all credentials, and which helpers are used if that is no file of Docker's.
    pub(crate) fn clear(&mut self, with_helpers: bool) -> Result<()> {
        self.map("auths")?.clear();
        if with_helpers {
            self.fields
                .retain(|key, _| !key.eq_ignore_ascii_case("credHelpers"));
        }
        Ok(())
    }
}

fn no_credentials(path: &Path) -> crate::error::Error {
    ErrorKind::InvalidInput.err(format!("{} is no file of credentials", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_is_not_understood_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/dir/auth.json");
        make_dir_of(&path).unwrap();
        let mut file = AuthFile::read(&path).unwrap();
        file.set("h.io", "u", "p").unwrap();
        file.write().unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            written,
            "{\n\t\"auths\": {\n\t\t\"h.io\": {\n\t\t\t\"auth\": \"dTpw\"\n\t\t}\n\t}\n}"
        );
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));

        let text = r#"{"HttpHeaders": {"a": [1]}, "Auths": {"x": {"auth": "x", "email": "e"}}, "credHelpers": {"c": "h"}}"#;
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut file = AuthFile::read(&path).unwrap();
        assert_eq!((file.helper("c").as_deref(), file.helper("x")), (Some("h"), None));
        file.set("h.io/team", "u", "p").unwrap();
        assert!(!file.remove("h.io").unwrap());
        file.write().unwrap();
        assert_eq!(mode(&path), 0o600);
        let read = |path: &Path| serde_json::from_slice::<Value>(&std::fs::read(path).unwrap()).unwrap();
        let mut wanted: Value = serde_json::from_str(text).unwrap();
        wanted["Auths"]["h.io/team"] = json!({"auth": "dTpw"});
        assert_eq!(read(&path), wanted);
        let mut file = AuthFile::read(&path).unwrap();
        file.clear(true).unwrap();
        file.write().unwrap();
        assert_eq!(read(&path), json!({"HttpHeaders": {"a": [1]}, "Auths": {}}));
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no temporary file stays");
    }

    #[test]
    fn a_file_that_makes_no_sense_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        for (text, sensible) in [
            ("", true),
            (" \n", true),
            ("null", true),
            (r#"{"auths": null}"#, true),
            ("s3cret", false),
            ("[]", false),
            (r#"{"auths": ["s3cret"]}"#, false),
        ] {
            std::fs::write(&path, text).unwrap();
            let set = AuthFile::read(&path).and_then(|mut file| file.set("h.io", "u", "p"));
            assert_eq!(set.is_ok(), sensible, "{text}");
            let error = set.err().map(|error| error.chain());
            assert!(!error.unwrap_or_default().contains("s3cret"));
        }
    }

    async fn set(path: &Path, key: String) {
        let set = change(path.to_owned(), move |file| Ok((true, file.set(&key, "u", "p")?)));
        set.await.unwrap();
    }

    fn keys(path: &Path) -> usize {
        let value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        value["auths"].as_object().unwrap().len()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_at_the_same_time_are_all_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/auth.json");
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..32 {
            let path = path.clone();
            tasks.spawn(async move { set(&path, format!("h{number}.io")).await });
        }
        tasks.join_all().await;
        assert_eq!(keys(&path), 32);
        let names = std::fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(names.count(), 1, "no lock is left");
    }

    #[tokio::test]
    async fn links_stay_and_lead_to_what_is_changed() {
        use std::os::unix::fs::symlink;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        symlink("second", at("auth.json")).unwrap();
        symlink(at("real/config.json"), at("second")).unwrap();
        for (number, key) in ["a.io", "b.io"].into_iter().enumerate() {
            set(&at("auth.json"), key.to_owned()).await;
            assert_eq!(keys(&at("real/config.json")), number + 1);
            for link in ["auth.json", "second"] {
                assert!(at(link).symlink_metadata().unwrap().is_symlink());
            }
        }
        symlink("round", at("round")).unwrap();
        let error = change(at("round"), |_| Ok((true, ()))).await.unwrap_err();
        assert!(error.has_errno(Errno::LOOP), "{error:?}");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::lchown(at("auth.json"), Some(1000), None).unwrap();
            set(&at("auth.json"), "c.io".to_owned()).await;
            assert_eq!((keys(&at("auth.json")), keys(&at("second"))), (3, 2));
            assert!(at("auth.json").symlink_metadata().unwrap().is_file());
        }
    }

    #[tokio::test]
    async fn who_cannot_have_the_lock_changes_the_file_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth.json");
        std::fs::create_dir(dir.path().join("auth.json.lock")).unwrap();
        set(&path, "h.io".to_owned()).await;
        assert_eq!(keys(&path), 1);
    }
}
