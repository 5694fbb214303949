//! Reading one file in the format of `registries.conf`, version 2. Pure.
//!
//! As strict as in the Go library: a value of the wrong type, a registry without a location or settings that contradict
//! each other stop every program that reads the file. Keys that are not known are passed over.

use std::collections::BTreeMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::rules::{Endpoint, PullFromMirror, Registry};
use super::short_names::{self, Alias, ShortNameMode};
use crate::error::{Error, ErrorKind, Result};

/// What one file says; `None` and empty where it says nothing.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    pub(super) registries: Vec<Registry>,
    pub(super) search: Option<Vec<String>>,
    pub(super) credential_helpers: Option<Vec<String>>,
    pub(super) mode: Option<ShortNameMode>,
    pub(super) aliases: BTreeMap<String, Alias>,
}

/// Reads the text of the file `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Parsed> {
    let reader = Reader { path, text };
    let root = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        reader.refuse(
            at,
            format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")),
        )
    })?;
    let root = root.get_ref();
    reader.refuse_first_version(root)?;
    let mut parsed = Parsed {
        search: reader.texts(root, "unqualified-search-registries")?,
        credential_helpers: reader.texts(root, "credential-helpers")?,
        ..Parsed::default()
    };
    for registry in parsed.search.iter_mut().flatten() {
        *registry = reader.location(0, registry)?;
        if !short_names::is_domain(registry) {
            let what = format!("Invalid unqualified-search-registries entry {registry:?}");
            return Err(reader.refuse(0, what));
        }
    }
    if let Some((at, mode)) = reader
        .text(root, "short-name-mode")?
        .filter(|(_, mode)| !mode.is_empty())
    {
        let known = ShortNameMode::parse(&mode);
        let known = known.ok_or_else(|| reader.refuse(at, format!("invalid short-name mode: {mode:?}")));
        parsed.mode = Some(known?);
    }
    for (at, table) in reader.tables(root, "registry")? {
        parsed.registries.push(reader.registry(at, table)?);
    }
    reader.refuse_contradictions(&parsed.registries)?;
    parsed.aliases = reader.aliases(root)?;
    Ok(parsed)
}

/// Reads the aliases in a file, which holds nothing else that counts.
pub(super) fn parse_aliases(path: &Path, text: &str) -> Result<BTreeMap<String, Alias>> {
    Ok(parse(path, text)?.aliases)
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
}

/// The value of a key, which may be written in any case.
fn find<'t, 'd>(table: &'t DeTable<'d>, key: &str) -> Option<&'t Spanned<DeValue<'d>>> {
    let named = |exact: bool| {
        let mut entries = table.iter();
        entries.find(|(known, _)| match exact {
            true => known.get_ref().as_ref() == key,
            false => known.get_ref().eq_ignore_ascii_case(key),
        })
    };
    named(true).or_else(|| named(false)).map(|(_, value)| value)
}

impl Reader<'_> {
    fn refuse(&self, at: usize, what: String) -> Error {
        let before = self.text.as_bytes().get(..at).unwrap_or_default();
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let what = if at > 0 {
            format!("line {line}: {what}")
        } else {
            what
        };
        let error = ErrorKind::InvalidInput.err(what);
        error.context("reading registries configuration").at(self.path)
    }

    fn wrong_type(&self, value: &Spanned<DeValue<'_>>, key: &str, wanted: &str) -> Error {
        let found = value.get_ref().type_str();
        self.refuse(
            value.span().start,
            format!("{key} is of type {found} instead of {wanted}"),
        )
    }

    fn text(&self, table: &DeTable<'_>, key: &str) -> Result<Option<(usize, String)>> {
        let Some(value) = find(table, key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::String(text) => Ok(Some((value.span().start, text.to_string()))),
            _ => Err(self.wrong_type(value, key, "string")),
        }
    }

    fn switch(&self, table: &DeTable<'_>, key: &str) -> Result<Option<bool>> {
        let Some(value) = find(table, key) else {
            return Ok(None);
        };
        match value.get_ref() {
            DeValue::Boolean(on) => Ok(Some(*on)),
            _ => Err(self.wrong_type(value, key, "boolean")),
        }
    }

    fn texts(&self, table: &DeTable<'_>, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = find(table, key) else {
            return Ok(None);
        };
        let DeValue::Array(list) = value.get_ref() else {
            return Err(self.wrong_type(value, key, "array"));
        };
        let text = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(self.wrong_type(item, key, "string")),
        };
        list.iter().map(text).collect::<Result<_>>().map(Some)
    }

    fn tables<'t, 'd>(&self, table: &'t DeTable<'d>, key: &str) -> Result<Vec<(usize, &'t DeTable<'d>)>> {
        let Some(value) = find(table, key) else {
            return Ok(Vec::new());
        };
        let DeValue::Array(list) = value.get_ref() else {
            return Err(self.wrong_type(value, key, "array of tables"));
        };
        let table = |item: &'t Spanned<DeValue<'d>>| match item.get_ref() {
            DeValue::Table(table) => Ok((item.span().start, table)),
            _ => Err(self.wrong_type(item, key, "table")),
        };
        list.iter().map(table).collect()
    }

    /// Version 1 has tables of registries below `registries`.
    fn refuse_first_version(&self, root: &DeTable<'_>) -> Result<()> {
        let Some(value) = find(root, "registries") else {
            return Ok(());
        };
        let DeValue::Table(table) = value.get_ref() else {
            return Ok(());
        };
        let lists = ["search", "insecure", "block"]
            .iter()
            .filter_map(|key| find(table, key));
        let is_set = |list: &Spanned<DeValue<'_>>| {
            let DeValue::Table(list) = list.get_ref() else {
                return false;
            };
            find(list, "registries").is_some()
        };
        match { lists }.any(is_set) {
            true => Err(self.refuse(
                value.span().start,
                "registries.conf must be in v2 format but is in v1".into(),
            )),
            false => Ok(()),
        }
    }

    /// A host or more of a name, without slashes at its end.
    fn location(&self, at: usize, text: &str) -> Result<String> {
        if text.starts_with("http://") || text.starts_with("https://") {
            let what = format!("invalid location '{text}': URI schemes are not supported");
            return Err(self.refuse(at, what));
        }
        Ok(text.trim_end_matches('/').to_owned())
    }

    fn endpoint(&self, at: usize, table: &DeTable<'_>) -> Result<(Endpoint, Option<PullFromMirror>)> {
        let location = self.text(table, "location")?;
        let (place, location) = location.unwrap_or((at, String::new()));
        let endpoint = Endpoint {
            location: self.location(place, &location)?,
            insecure: self.switch(table, "insecure")?,
        };
        let from = match self.text(table, "pull-from-mirror")? {
            Some((place, text)) if !text.is_empty() => {
                let what = || {
                    let mirror = &endpoint.location;
                    self.refuse(
                        place,
                        format!("unsupported pull-from-mirror value {text:?} for mirror {mirror:?}"),
                    )
                };
                Some(PullFromMirror::parse(&text).ok_or_else(what)?)
            }
            _ => None,
        };
        Ok((endpoint, from))
    }

    fn registry(&self, at: usize, table: &DeTable<'_>) -> Result<Registry> {
        let (endpoint, from) = self.endpoint(at, table)?;
        let prefix = match self.text(table, "prefix")? {
            Some((place, text)) => self.location(place, &text)?,
            None => String::new(),
        };
        let is_wildcard = prefix.starts_with("*.");
        let what = match (prefix.is_empty(), endpoint.location.is_empty()) {
            (true, true) => "invalid condition: both location and prefix are unset".into(),
            (false, true) if !is_wildcard => {
                "invalid condition: location is unset and prefix is not in the format: *.example.com".into()
            }
            _ if is_wildcard && prefix.contains(['/', '@', ':']) => format!(
                "Wildcarded prefix should be in the format: *.example.com. Current prefix {prefix:?} is incorrectly \
                 formatted"
            ),
            _ if from.is_some() => {
                let prefix = if prefix.is_empty() {
                    &endpoint.location
                } else {
                    &prefix
                };
                format!("pull-from-mirror must not be set for a non-mirror registry {prefix:?}")
            }
            _ => String::new(),
        };
        if !what.is_empty() {
            return Err(self.refuse(at, what));
        }
        let by_digest = self.switch(table, "mirror-by-digest-only")? == Some(true);
        let mut registry = Registry {
            prefix: if prefix.is_empty() {
                endpoint.location.clone()
            } else {
                prefix
            },
            blocked: self.switch(table, "blocked")? == Some(true),
            mirrors: Vec::new(),
            endpoint,
        };
        for (at, table) in self.tables(table, "mirror")? {
            let (mirror, from) = self.endpoint(at, table)?;
            if mirror.location.is_empty() {
                return Err(self.refuse(at, "invalid condition: mirror location is unset".into()));
            }
            if by_digest && from.is_some() {
                let what = format!(
                    "cannot set mirror usage mirror-by-digest-only for the registry ({:?}) and pull-from-mirror for \
                     per-mirror ({:?}) at the same time",
                    registry.prefix, mirror.location
                );
                return Err(self.refuse(at, what));
            }
            let from = match by_digest {
                true => PullFromMirror::DigestOnly,
                false => from.unwrap_or_default(),
            };
            registry.mirrors.push((mirror, from));
        }
        Ok(registry)
    }

    /// What is said of one location several times must be the same.
    fn refuse_contradictions(&self, registries: &[Registry]) -> Result<()> {
        let mut known: BTreeMap<&str, &Registry> = BTreeMap::new();
        for registry in registries {
            let location = match registry.endpoint.location.as_str() {
                "" => registry.prefix.as_str(),
                location => location,
            };
            let other = *known.entry(location).or_insert(registry);
            let setting = match () {
                () if registry.is_insecure() != other.is_insecure() => "insecure",
                () if registry.blocked != other.blocked => "blocked",
                () => continue,
            };
            let what = format!(
                "registry '{}' is defined multiple times with conflicting '{setting}' setting",
                registry.endpoint.location
            );
            return Err(self.refuse(0, what));
        }
        Ok(())
    }

    fn aliases(&self, root: &DeTable<'_>) -> Result<BTreeMap<String, Alias>> {
        let Some(value) = find(root, "aliases") else {
            return Ok(BTreeMap::new());
        };
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.wrong_type(value, "aliases", "table"));
        };
        let mut aliases = BTreeMap::new();
        for (name, value) in table {
            let name = name.get_ref().as_ref();
            let DeValue::String(target) = value.get_ref() else {
                return Err(self.wrong_type(value, name, "string"));
            };
            let invalid = |error: Error| error.context("validating short-name aliases").at(self.path);
            short_names::check_short(name).map_err(invalid)?;
            let target = match target.as_ref() {
                "" => None,
                target => Some(short_names::alias_target(target).map_err(invalid)?),
            };
            let origin = self.path.to_owned();
            aliases.insert(name.to_owned(), Alias { target, origin });
        }
        Ok(aliases)
    }
}
