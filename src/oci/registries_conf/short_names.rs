//! Names of images without a registry. Pure.

use std::path::PathBuf;

use super::super::reference::RegistryRef;
use super::super::registry_name;
use crate::error::{ErrorKind, Result};

/// What is done with a name without a registry that is no alias, where several registries are searched.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShortNameMode {
    /// The registries are asked one after the other.
    Disabled,
    /// So here: Podman would ask the user at a terminal, and nobody else.
    #[default]
    Permissive,
    /// Nothing is pulled: the user would have to choose.
    Enforcing,
}

impl ShortNameMode {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "disabled" => Some(Self::Disabled),
            "permissive" => Some(Self::Permissive),
            "enforcing" => Some(Self::Enforcing),
            _ => None,
        }
    }
}

/// What a short name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Alias {
    /// A name with a registry, without a tag; `None` if there is no alias in spite of what less important files say.
    pub(super) target: Option<String>,
    /// The file that says so.
    pub(super) origin: PathBuf,
}

/// A name without a registry, and the tag and digest behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShortName<'a> {
    pub(super) name: &'a str,
    /// `:TAG`, `@DIGEST`, both or nothing.
    pub(super) suffix: &'a str,
}

/// Whether a text is the domain of a name.
pub(super) fn is_domain(text: &str) -> bool {
    registry_name::parse(&format!("{text}/a"))
        .is_ok_and(|name| name.domain == text || text == "index.docker.io")
}

/// Whether what stands before the first slash of a name is a registry.
fn has_registry(name: &str) -> bool {
    let domain = name.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(registry_name::is_registry)
}

/// Splits a name that says no registry; `None` if it says one.
pub(super) fn split(text: &str) -> Option<ShortName<'_>> {
    if has_registry(text) {
        return None;
    }
    let name = text.split(['@', ':']).next().unwrap_or_default();
    Some(ShortName {
        name,
        suffix: text.get(name.len()..).unwrap_or_default(),
    })
}

/// Refuses what cannot be the name of an alias.
pub(super) fn check_short(name: &str) -> Result<()> {
    let refuse = |why: &str| Err(ErrorKind::InvalidInput.err(format!("invalid short name {name:?}: {why}")));
    let parsed = registry_name::parse(name);
    let parsed = parsed.map_err(|error| {
        let what = format!("cannot parse short name: {name:?}");
        ErrorKind::InvalidInput.err(what).with_source(error)
    })?;
    match split(name) {
        None => refuse("must not contain registry"),
        Some(_) if parsed.digest.is_some() => refuse("must not contain digest"),
        Some(short) if !short.suffix.is_empty() => refuse("must not contain tag"),
        Some(_) => Ok(()),
    }
}

/// What an alias may stand for: a name with a registry, without tag and digest.
pub(super) fn alias_target(text: &str) -> Result<String> {
    let refuse = |why: &str| Err(ErrorKind::InvalidInput.err(format!("invalid alias {text:?}: {why}")));
    let parsed: RegistryRef = text.parse().map_err(|error| {
        let what = format!("parsing alias {text:?}");
        ErrorKind::InvalidInput.err(what).with_source(error)
    })?;
    let last = text.rsplit('/').next().unwrap_or_default();
    if parsed.digest().is_some() {
        return refuse("must not contain digest");
    }
    if last.contains(':') {
        return refuse("must not contain tag");
    }
    if !has_registry(text) {
        return refuse("must contain registry and repository");
    }
    Ok(parsed.name())
}
