//! Where signatures of images are: `registries.d`, as in containers-registries.d(5).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::Url;
use yaml_rust2::{Yaml, YamlLoader};

use crate::bridge;
use crate::config::{self, ConfigFile, Environment, Loader, REGISTRIES_D};
use crate::error::{Error, ErrorKind, Result};
use crate::oci::reference::RegistryRef;
use crate::oci::unique_json::Refusal;

/// Where the signatures of images in registries are, as Podman, Skopeo and CRI-O read it from `registries.d`: beside the
/// registry ("lookaside"), and attached to the image in the registry if that is asked for. Cheap to clone. The default looks
/// nowhere. Where a policy wants an OpenPGP signature, a registry is asked first whether it serves such signatures itself.
#[derive(Clone, Debug, Default)]
pub struct SignatureStorage {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// For what has no lookaside; `None`: nothing is looked for.
    built_in: Option<PathBuf>,
    default: Option<Namespace>,
    namespaces: BTreeMap<String, Namespace>,
}

/// What is said of some images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Namespace {
    lookaside: Option<String>,
    attachments: Option<bool>,
}

impl SignatureStorage {
    /// As the newest Podman looks for signatures for this user on this machine: `registries.d` in the directories of
    /// `registries.conf`, and `/var/lib/containers/sigstore`, or `.local/share/containers/sigstore` of another user than
    /// root, for images of which nothing is said.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for files that make no sense or contradict each other, and [`ErrorKind::Io`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load() -> Result<Self> {
        Self::load_with(Loader::for_process()).await
    }

    /// As [`SignatureStorage::load`], for another environment.
    ///
    /// # Errors
    /// As [`SignatureStorage::load`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load_with(loader: Loader) -> Result<Self> {
        bridge::run(move || {
            let files = config::read_drop_ins(&loader.environment, &REGISTRIES_D)?;
            Self::of_files(files, built_in(&loader.environment)?)
        })
        .await
    }

    /// That of the files in a directory (`*.yaml`) instead.
    ///
    /// # Errors
    /// As [`SignatureStorage::load`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn from_directory(directory: impl Into<PathBuf>) -> Result<Self> {
        let (directory, loader) = (directory.into(), Loader::for_process());
        bridge::run(move || {
            let files = config::read_directory(&directory, &REGISTRIES_D)?;
            Self::of_files(files, built_in(&loader.environment)?)
        })
        .await
    }

    fn of_files(files: Vec<ConfigFile>, built_in: Option<PathBuf>) -> Result<Self> {
        let mut inner = Inner {
            built_in,
            ..Inner::default()
        };
        for ConfigFile { path, text } in files {
            let refuse = |why: Refusal| {
                let error = ErrorKind::InvalidInput.err(why);
                error.context("parsing signature storage configuration").at(&path)
            };
            let (default, namespaces) = parse(&text).map_err(refuse)?;
            if default.is_some() && inner.default.is_some() {
                return Err(refuse("\"default-docker\" defined twice".to_owned()));
            }
            inner.default = default.or(inner.default);
            for (name, namespace) in namespaces {
                if inner.namespaces.contains_key(&name) {
                    return Err(refuse(format!("\"docker\" namespace {name:?} defined twice")));
                }
                inner.namespaces.insert(name, namespace);
            }
        }
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The first that something is said of, from narrow to wide.
    fn find<T>(&self, image: &RegistryRef, part: impl Fn(&Namespace) -> Option<T>) -> Option<T> {
        let Inner {
            default, namespaces, ..
        } = &*self.inner;
        let scopes = image.scopes();
        let known = scopes.iter().filter_map(|scope| namespaces.get(scope));
        known.chain(default).find_map(part)
    }

    /// Whether signatures of an image are looked for among what is attached to it.
    pub(super) fn uses_attachments(&self, image: &RegistryRef) -> bool {
        self.find(image, |namespace| namespace.attachments)
            .unwrap_or(false)
    }

    /// The beginning of the URLs of the signatures of an image beside the registry.
    pub(super) fn lookaside(&self, image: &RegistryRef) -> Result<Option<Url>> {
        let refuse = |text: &str| -> Error {
            ErrorKind::InvalidInput.err(format!("Invalid signature storage URL {text}"))
        };
        let text = match (
            self.find(image, |namespace| namespace.lookaside.clone()),
            &self.inner.built_in,
        ) {
            (Some(text), _) => text,
            (None, Some(dir)) => match Url::from_file_path(dir) {
                Ok(url) => url.into(),
                Err(()) => return Err(refuse(&dir.display().to_string())),
            },
            (None, None) => return Ok(None),
        };
        let mut base = Url::parse(&text).map_err(|error| refuse(&text).with_source(error))?;
        if !matches!(base.scheme(), "file" | "http" | "https") {
            return Err(refuse(base.as_str()));
        }
        // What is written without a slash at the end has none.
        let path = match text.ends_with('/') {
            true => base.path(),
            false => base.path().trim_end_matches('/'),
        };
        base.set_path(&format!("{path}/{}", image.repository()));
        Ok(Some(base))
    }
}

/// Where signatures are that nothing is said of.
fn built_in(environment: &Environment) -> Result<Option<PathBuf>> {
    match environment.is_per_user() {
        false => Ok(Some(environment.system("var/lib/containers/sigstore"))),
        true => {
            let home = environment.home()?;
            Ok(home.map(|home| Path::new(&home).join(".local/share/containers/sigstore")))
        }
    }
}

type Parsed = (Option<Namespace>, BTreeMap<String, Namespace>);

fn parse(text: &str) -> Result<Parsed, Refusal> {
    let documents = YamlLoader::load_from_str(text).map_err(|error| error.to_string())?;
    let Some(document) = documents.first() else {
        return Ok(Parsed::default());
    };
    if !matches!(document, Yaml::Hash(_) | Yaml::Null) {
        return Err("not a map".to_owned());
    }
    let default = match &document["default-docker"] {
        Yaml::BadValue | Yaml::Null => None,
        value => Some(namespace(value)?),
    };
    let mut namespaces = BTreeMap::new();
    match &document["docker"] {
        Yaml::BadValue | Yaml::Null => {}
        Yaml::Hash(all) => {
            for (name, value) in all {
                let name = name.as_str().ok_or_else(|| "a name that is no text".to_owned())?;
                namespaces.insert(name.to_owned(), namespace(value)?);
            }
        }
        _ => return Err("docker is no map".to_owned()),
    }
    Ok((default, namespaces))
}

fn namespace(value: &Yaml) -> Result<Namespace, Refusal> {
    if !matches!(value, Yaml::Hash(_) | Yaml::Null) {
        return Err("a namespace that is no map".to_owned());
    }
    let text = |name: &str| match &value[name] {
        Yaml::BadValue | Yaml::Null => Ok(None),
        Yaml::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(format!("{name} is no text")),
    };
    let attachments = match &value["use-sigstore-attachments"] {
        Yaml::BadValue | Yaml::Null => None,
        Yaml::Boolean(value) => Some(*value),
        // The words of YAML 1.1.
        Yaml::String(word) if matches!(word.to_ascii_lowercase().as_str(), "yes" | "on" | "y") => Some(true),
        Yaml::String(word) if matches!(word.to_ascii_lowercase().as_str(), "no" | "off" | "n") => Some(false),
        _ => return Err("use-sigstore-attachments is neither true nor false".to_owned()),
    };
    Ok(Namespace {
        lookaside: text("lookaside")?.or(text("sigstore")?),
        attachments,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(texts: &[&str]) -> Result<SignatureStorage> {
        let files = texts.iter().map(|text| ConfigFile {
            path: "x.yaml".into(),
            text: (*text).to_owned(),
        });
        SignatureStorage::of_files(files.collect(), Some("/built-in".into()))
    }

    #[test]
    fn the_narrowest_namespace_counts() {
        let storage = storage(&[
            "default-docker:\n  sigstore: https://old.example/sigs\n",
            "docker:\n  a.example:\n    lookaside: file:///a\n  a.example/team/x:\n    use-sigstore-attachments: true\n  \
             '*.example':\n    sigstore: https://b.example:5000/s\n  a.example/team:\n    lookaside: https://c.example\n    \
             use-sigstore-attachments: no\n    unknown: 1\n",
            "",
        ])
        .unwrap();
        let of = |image: &str| {
            let image: RegistryRef = image.parse().unwrap();
            let base = storage.lookaside(&image).unwrap().unwrap();
            (base.to_string(), storage.uses_attachments(&image))
        };
        assert_eq!(of("a.example/y:1"), ("file:///a/y".to_owned(), false));
        assert_eq!(
            of("a.example/team/x:1"),
            ("https://c.example/team/x".to_owned(), true)
        );
        assert_eq!(
            of("a.example/team/y:1"),
            ("https://c.example/team/y".to_owned(), false)
        );
        assert_eq!(of("z.example/y:1").0, "https://b.example:5000/s/y");
        assert_eq!(of("else.where/y:1").0, "https://old.example/sigs/y");
        let none = SignatureStorage::default();
        assert!(
            none.lookaside(&"a.example/y:1".parse().unwrap())
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn files_that_make_no_sense_are_refused() {
        for bad in [
            &["- a"][..],
            &["docker: 5"],
            &["docker: {a: 5}"],
            &["docker: {a: {lookaside: [1]}}"],
            &["docker: {a: {use-sigstore-attachments: perhaps}}"],
            &["docker: {a: {}, a: {}}"],
            &["docker: {a: {}}", "docker: {a: {}}"],
            &["default-docker: {}", "default-docker: {}"],
            &["a: b: c"],
        ] {
            let error = storage(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad:?}");
        }
        let odd = storage(&["default-docker: {lookaside: 'ftp://x'}"]).unwrap();
        assert!(odd.lookaside(&"a.example/y:1".parse().unwrap()).is_err());
    }
}
