//! `registries.conf`: which registries names without one stand for, mirrors, registries that are blocked or insecure.

mod parse;
mod rules;
mod short_names;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::reference::{ImageRef, RegistryRef};
use crate::bridge;
use crate::config::{self, ConfigFile, Environment, Loader, REGISTRIES};
use crate::error::{ErrorKind, Result};
use parse::Parsed;
use rules::Registry;
use short_names::Alias;

pub use rules::PullSource;
pub use short_names::ShortNameMode;

/// Aliases that Podman remembers when a user has chosen a registry.
const ALIASES: &str = "containers/short-name-aliases.conf";

/// The configuration of registries that Podman, Buildah, Skopeo and CRI-O read, `registries.conf` in version 2 (see
/// containers-registries.conf(5)). Cheap to clone. The default is an empty one.
///
/// ```
/// use graphroot::oci::{RegistriesConf, RegistryRef};
/// # fn main() -> graphroot::Result<()> {
/// let conf = RegistriesConf::parse(
///     "unqualified-search-registries = ['registry.example']
///      [[registry]]
///      location = 'registry.example'
///      [[registry.mirror]]
///      location = 'cache.example:5000/mirror'",
/// )?;
/// let [image] = &conf.resolve("team/app")?[..] else { panic!() };
/// assert_eq!(image.to_string(), "registry.example/team/app:latest");
/// let sources = conf.sources(image)?;
/// assert_eq!(sources[0].image.to_string(), "cache.example:5000/mirror/team/app:latest");
/// assert_eq!(sources[1].image, *image);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct RegistriesConf {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    registries: BTreeMap<String, Registry>,
    search: Vec<String>,
    /// The file that says what is searched.
    search_origin: Option<PathBuf>,
    credential_helpers: Vec<String>,
    mode: ShortNameMode,
    aliases: BTreeMap<String, Alias>,
    /// All files, the least important first.
    files: Vec<PathBuf>,
}

impl Inner {
    /// Adds what a more important file says.
    fn add(&mut self, path: &Path, parsed: Parsed) {
        let mut own: BTreeMap<String, Registry> = BTreeMap::new();
        for registry in parsed.registries {
            // Within a file the first one counts.
            own.entry(registry.prefix.clone()).or_insert(registry);
        }
        self.registries.append(&mut own);
        if let Some(search) = parsed.search {
            self.search = search;
            self.search_origin = Some(path.to_owned());
        }
        if let Some(helpers) = parsed.credential_helpers {
            self.credential_helpers = helpers;
        }
        self.mode = parsed.mode.unwrap_or(self.mode);
        let mut aliases = parsed.aliases;
        self.aliases.append(&mut aliases);
        self.files.push(path.to_owned());
    }

    /// What is configured for a name: the registry with the longest prefix.
    fn registry_of(&self, name: &str) -> Option<&Registry> {
        let fitting = self
            .registries
            .values()
            .filter(|registry| registry.matches(name).is_some());
        // Of several of one length the first one.
        fitting.rev().max_by_key(|registry| registry.prefix.len())
    }
}

impl RegistriesConf {
    /// What the newest Podman would use for this user on this machine. The files and their order are those of `storage.conf`
    /// with `registries` instead of `storage`: see [`config`]; `CONTAINERS_REGISTRIES_CONF` names a file
    /// instead. Aliases in the user's cache (`short-name-aliases.conf`) count most.
    ///
    /// Everything is read anew at each call.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming file and line of a mistake; [`ErrorKind::Io`] for a file that a variable names
    /// and that does not exist, and for every file that exists and cannot be read.
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load() -> Result<Self> {
        Self::load_with(Loader::for_process()).await
    }

    /// As [`RegistriesConf::load`], for another environment.
    ///
    /// # Errors
    /// As [`RegistriesConf::load`].
    ///
    /// # Cancellation
    /// No effect.
    pub async fn load_with(loader: Loader) -> Result<Self> {
        bridge::run(move || read(&loader.environment)).await
    }

    /// From the text of one file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] naming the line of a mistake.
    pub fn parse(text: &str) -> Result<Self> {
        let mut inner = Inner::default();
        let path = Path::new("registries.conf");
        inner.add(path, parse::parse(path, text)?);
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The files that were read, the least important first.
    pub fn files(&self) -> &[PathBuf] {
        &self.inner.files
    }

    /// What is searched for names without a registry.
    pub fn unqualified_search_registries(&self) -> &[String] {
        &self.inner.search
    }

    /// What is done where several registries are searched.
    pub fn short_name_mode(&self) -> ShortNameMode {
        self.inner.mode
    }

    /// Where credentials are looked for and kept, in this order: `containers-auth.json` stands for the files, everything else is
    /// the name of a program `docker-credential-NAME`. Empty if nothing is configured, which means the files.
    pub fn credential_helpers(&self) -> &[String] {
        &self.inner.credential_helpers
    }

    /// The images in registries that a name may mean, the first to be tried first. A name with a registry means that; an
    /// alias what it stands for; any other one an image in each of the registries that are searched.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for what is no name, and for a name without a registry where none is to be searched or
    /// the user would have to choose ([`ShortNameMode::Enforcing`]).
    pub fn resolve(&self, name: &str) -> Result<Vec<RegistryRef>> {
        let Some(short) = short_names::split(name) else {
            return Ok(vec![name.parse()?]);
        };
        let Inner {
            search,
            mode,
            aliases,
            ..
        } = &*self.inner;
        let target = aliases.get(short.name).and_then(|alias| alias.target.as_ref());
        if let Some(target) = target {
            return Ok(vec![format!("{target}{}", short.suffix).parse()?]);
        }
        // Before anything is said of registries.
        name.parse::<RegistryRef>()?;
        let refuse = |why: String| Err(ErrorKind::InvalidInput.err(why));
        if search.is_empty() {
            let file = self.inner.search_origin.as_ref().or(self.inner.files.last());
            let nothing = format!("short-name {name:?} did not resolve to an alias and no");
            return refuse(match file {
                Some(file) => format!("{nothing} unqualified-search registries are defined in {file:?}"),
                None => format!("{nothing} containers-registries.conf(5) was found"),
            });
        }
        if *mode == ShortNameMode::Enforcing && search.len() > 1 {
            return refuse(format!(
                "short-name resolution enforced but cannot prompt without a TTY: {name:?} may be in any of {search:?}"
            ));
        }
        search
            .iter()
            .map(|registry| format!("{registry}/{name}").parse())
            .collect()
    }

    /// As [`RegistriesConf::resolve`], of text as [`ImageRef`] reads it: `docker://` and no prefix at all are names in
    /// registries; what begins with `docker://` has a registry, or is in that of Docker.
    ///
    /// # Errors
    /// As [`RegistriesConf::resolve`].
    pub fn resolve_ref(&self, text: &str) -> Result<Vec<ImageRef>> {
        let parsed: ImageRef = text.parse()?;
        match parsed {
            ImageRef::Registry(_) if !text.starts_with("docker://") => {
                let resolved = self.resolve(text)?;
                Ok(resolved.into_iter().map(ImageRef::Registry).collect())
            }
            other => Ok(vec![other]),
        }
    }

    /// Where an image is pulled from: mirrors, then the registry itself, each with the name that the image has there. Those
    /// that are blocked ([`RegistriesConf::is_blocked`]) are among them: a mirror may serve what the registry must not be
    /// asked for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if what the configuration makes of the name is no name.
    pub fn sources(&self, image: &RegistryRef) -> Result<Vec<PullSource>> {
        match self.inner.registry_of(&image.name()) {
            Some(registry) => registry.sources(image),
            None => Ok(vec![PullSource {
                image: image.clone(),
                insecure: false,
                is_mirror: false,
            }]),
        }
    }

    /// Whether the certificate of the registry of a name is not verified, and HTTP will do; `None` where nothing is said.
    pub(crate) fn is_insecure(&self, name: &str) -> Option<bool> {
        self.inner.registry_of(name)?.endpoint.insecure
    }

    /// Whether nothing must be asked of the registry of an image.
    pub fn is_blocked(&self, image: &RegistryRef) -> bool {
        self.refuse_blocked(&image.name()).is_err()
    }

    /// Refuses a name in a registry that is blocked.
    pub(crate) fn refuse_blocked(&self, name: &str) -> Result<()> {
        match self.inner.registry_of(name) {
            Some(registry) if registry.blocked => {
                let files = self.inner.files.iter();
                let files: Vec<_> = files.map(|file| file.display().to_string()).collect();
                let files = files.join(", ");
                let what = format!("registry {} is blocked in one of {files}", registry.prefix);
                Err(ErrorKind::Rejected.err(what))
            }
            _ => Ok(()),
        }
    }
}

/// Reads all files.
fn read(environment: &Environment) -> Result<RegistriesConf> {
    let mut inner = Inner::default();
    for ConfigFile { path, text } in config::read_all(environment, &REGISTRIES)? {
        let parsed = parse::parse(&path, &text)?;
        inner.add(&path, parsed);
    }
    if let Some(path) = aliases_file(environment)?
        && let Some(file) = config::read(&path, &REGISTRIES)?
    {
        let mut aliases = parse::parse_aliases(&path, &file.text)?;
        inner.aliases.append(&mut aliases);
    }
    Ok(RegistriesConf {
        inner: Arc::new(inner),
    })
}

/// Where the aliases of this user are remembered.
fn aliases_file(environment: &Environment) -> Result<Option<PathBuf>> {
    if !environment.is_per_user() {
        return Ok(Some(environment.system("var/cache").join(ALIASES)));
    }
    let cache = match environment.var("XDG_CACHE_HOME") {
        Some(dir) => Some(PathBuf::from(dir)),
        None => environment.home()?.map(|home| home.join(".cache")),
    };
    Ok(cache.map(|cache| cache.join(ALIASES)))
}
