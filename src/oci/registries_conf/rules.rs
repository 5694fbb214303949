//! What is configured for registries, and where images are pulled from by that. Pure.

use super::super::reference::RegistryRef;
use crate::error::{ErrorKind, Result};

/// Where requests go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// What takes the place of the prefix in a name. Empty for a wildcard that rewrites nothing.
    pub(super) location: String,
    /// `None` where nothing is said.
    pub(super) insecure: Option<bool>,
}

/// Which references a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum PullFromMirror {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

impl PullFromMirror {
    pub(super) fn parse(text: &str) -> Option<Self> {
        match text {
            "all" => Some(Self::All),
            "digest-only" => Some(Self::DigestOnly),
            "tag-only" => Some(Self::TagOnly),
            _ => None,
        }
    }

    fn includes(self, image: &RegistryRef) -> bool {
        match self {
            Self::All => true,
            Self::DigestOnly => image.digest().is_some(),
            Self::TagOnly => image.digest().is_none(),
        }
    }
}

/// One table `registry`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Registry {
    /// The names that it is for begin so.
    pub(super) prefix: String,
    pub(super) endpoint: Endpoint,
    pub(super) mirrors: Vec<(Endpoint, PullFromMirror)>,
    pub(super) blocked: bool,
}

/// One place that an image is pulled from.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullSource {
    /// The image's name there.
    pub image: RegistryRef,
    /// Whether its certificate is not verified, and HTTP will do where there is no TLS.
    pub insecure: bool,
    /// Whether it is a mirror of the registry that the name says.
    pub is_mirror: bool,
}

impl Registry {
    /// Whether it is said to be insecure.
    pub(super) fn is_insecure(&self) -> bool {
        self.endpoint.insecure == Some(true)
    }

    /// How many bytes of a name the prefix stands for; `None` if it is not for this name.
    pub(super) fn matches(&self, name: &str) -> Option<usize> {
        let end = match self.prefix.strip_prefix('*') {
            Some(domain) if domain.starts_with('.') => {
                let index = name.find(domain)?;
                if name.get(..index)?.contains('/') {
                    return None;
                }
                index + domain.len()
            }
            _ => name.strip_prefix(&self.prefix).map(|_| self.prefix.len())?,
        };
        match name.as_bytes().get(end) {
            None | Some(b':' | b'/' | b'@') => Some(end),
            Some(_) => None,
        }
    }

    /// Where to pull an image from, the first one first.
    pub(super) fn sources(&self, image: &RegistryRef) -> Result<Vec<PullSource>> {
        let mirrors = self.mirrors.iter().filter(|(_, from)| from.includes(image));
        let mirrors = mirrors.map(|(mirror, _)| (mirror, true));
        let endpoints = mirrors.chain(std::iter::once((&self.endpoint, false)));
        let source = |(endpoint, is_mirror): (&Endpoint, bool)| {
            Ok(PullSource {
                image: self.rewrite(endpoint, image)?,
                insecure: endpoint.insecure == Some(true),
                is_mirror,
            })
        };
        endpoints.map(source).collect()
    }

    fn rewrite(&self, endpoint: &Endpoint, image: &RegistryRef) -> Result<RegistryRef> {
        let name = image.to_string();
        if endpoint.location.is_empty() {
            return Ok(image.clone());
        }
        let invalid = |text: &str| {
            let what = format!("rewriting reference: the registries configuration makes {text:?} of {name}");
            ErrorKind::InvalidInput.err(what)
        };
        let end = self.matches(&name).ok_or_else(|| invalid(""))?;
        let rest = name.get(end..).unwrap_or_default();
        let text = format!("{}{rest}", endpoint.location);
        let rewritten: RegistryRef = text.parse().map_err(|error| invalid(&text).with_source(error))?;
        // A location without a host is completed nowhere else either.
        match rewritten.to_string() == text {
            true => Ok(rewritten),
            false => Err(invalid(&text)),
        }
    }
}
