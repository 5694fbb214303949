//! Which name in a signature is good for an image: `signedIdentity` of containers-policy.json(5). Pure.

use serde_json::Value;

use super::registry_name::{self, RegistryName};
use super::unique_json::{Fields, Refusal};

/// How the name in a signature is compared.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum SignedIdentity {
    Exact,
    RepoDigestOrExact,
    Repository,
    ExactReference(Named),
    ExactRepository(Named),
    /// As `RepoDigestOrExact`, of the image's name with another beginning.
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

/// A name, with its tag and digest as written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Named {
    name: String,
    tag: Option<String>,
    digest: Option<String>,
}

impl Named {
    fn parse(text: &str) -> Option<Self> {
        let RegistryName {
            domain,
            path,
            tag,
            digest,
        } = registry_name::parse(text).ok()?;
        let last = text.rsplit('/').next().unwrap_or_default();
        let has_tag = last.split('@').next().is_some_and(|name| name.contains(':'));
        Some(Self {
            name: format!("{domain}/{path}"),
            // Not one that is understood.
            tag: tag.filter(|_| has_tag),
            digest: digest.map(|digest| digest.to_string()),
        })
    }

    fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }
}

impl SignedIdentity {
    pub(crate) fn parse(value: Value) -> Result<Self, Refusal> {
        let mut fields = Fields::of(value)?;
        let kind = fields.take("type").unwrap_or_default();
        let name = |text: String| Named::parse(&text).ok_or_else(|| format!("Invalid format of {text:?}"));
        let kind = kind.as_str().unwrap_or_default();
        fields.only(match kind {
            "exactReference" => &["dockerReference"],
            "exactRepository" => &["dockerRepository"],
            "remapIdentity" => &["prefix", "signedPrefix"],
            "matchExact" | "matchRepoDigestOrExact" | "matchRepository" => &[],
            other => return Err(format!("Unknown policy reference match type {other:?}")),
        })?;
        let identity = match kind {
            "matchExact" => Self::Exact,
            "matchRepoDigestOrExact" => Self::RepoDigestOrExact,
            "exactReference" => {
                let reference = name(fields.need_text("dockerReference")?)?;
                if reference.is_name_only() {
                    return Err("dockerReference contains neither a tag nor digest".to_owned());
                }
                Self::ExactReference(reference)
            }
            "exactRepository" => Self::ExactRepository(name(fields.need_text("dockerRepository")?)?),
            "remapIdentity" => Self::Remap {
                prefix: prefix(&mut fields, "prefix")?,
                signed_prefix: prefix(&mut fields, "signedPrefix")?,
            },
            _ => Self::Repository,
        };
        Ok(identity)
    }

    /// Whether the name in a signature is compared with that of the image.
    #[cfg(feature = "signatures")]
    pub(crate) fn needs_reference(&self) -> bool {
        !matches!(self, Self::ExactReference(_) | Self::ExactRepository(_))
    }

    /// Whether a signature for the name `signed` is good for `image`, a name with a tag or a digest.
    #[cfg(feature = "signatures")]
    pub(crate) fn accepts(&self, image: &str, signed: &str) -> bool {
        let Some(signed) = Named::parse(signed) else {
            return false;
        };
        let exact = |wanted: &Named| !wanted.is_name_only() && !signed.is_name_only() && signed == *wanted;
        let image = Named::parse(image);
        match self {
            Self::ExactReference(wanted) => exact(wanted),
            Self::ExactRepository(wanted) => signed.name == wanted.name,
            Self::Exact => image.is_some_and(|image| exact(&image)),
            Self::RepoDigestOrExact => image.is_some_and(|image| repo_digest_or_exact(&image, &signed)),
            Self::Repository => image.is_some_and(|image| signed.name == image.name),
            Self::Remap {
                prefix,
                signed_prefix,
            } => {
                let renamed = |image: Named| match rest_of(&image.name, prefix) {
                    None => Some(image),
                    Some(rest) => {
                        let name = format!("{signed_prefix}{rest}");
                        // It has to be a full name already.
                        let is_full = Named::parse(&name)?.name == name;
                        is_full.then_some(Named { name, ..image })
                    }
                };
                let image = image.and_then(renamed);
                image.is_some_and(|image| repo_digest_or_exact(&image, &signed))
            }
        }
    }
}

/// What follows a beginning of whole components.
#[cfg(feature = "signatures")]
fn rest_of<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// An image that is meant by its tag has to have the tag in the signature. What is meant by a digest is compared by that
/// elsewhere.
#[cfg(feature = "signatures")]
fn repo_digest_or_exact(image: &Named, signed: &Named) -> bool {
    match (signed.is_name_only(), &image.tag, &image.digest) {
        (true, ..) | (_, None, None) => false,
        (false, Some(_), _) => signed == image,
        (false, None, Some(_)) => signed.name == image.name,
    }
}

/// A beginning of names: a domain, or a name with a domain.
fn prefix(fields: &mut Fields, name: &str) -> Result<String, Refusal> {
    let text = fields.need_text(name)?;
    let last = text.rsplit('/').next().unwrap_or_default();
    let is_name = match text.contains('/') {
        true => !last.contains(':') && !text.contains('@') && registry_name::parse(&text).is_ok(),
        false => registry_name::is_domain(&text),
    };
    match is_name {
        true => Ok(text),
        false => Err(format!("prefix {text:?} is not valid")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        for bad in [
            json!({}),
            json!(null),
            json!({"type": "x"}),
            json!({"type": "matchExact", "x": 1}),
            json!({"type": "exactReference"}),
            json!({"type": "exactReference", "dockerReference": "a.example/x"}),
            json!({"type": "exactReference", "dockerReference": "UPPER:t"}),
            json!({"type": "exactRepository", "dockerRepository": 5}),
            json!({"type": "remapIdentity", "prefix": "a.example"}),
            json!({"type": "remapIdentity", "prefix": "a.example/x:t", "signedPrefix": "b.example"}),
            json!({"type": "remapIdentity", "prefix": "a.example/x", "signedPrefix": ""}),
        ] {
            assert!(SignedIdentity::parse(bad.clone()).is_err(), "{bad}");
        }
    }

    #[cfg(feature = "signatures")]
    #[test]
    fn names_are_compared_as_the_policy_says() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("a.example/x@{digest}");
        let accepts = |identity: Value, image: &str, signed: &str| {
            SignedIdentity::parse(identity).unwrap().accepts(image, signed)
        };
        let of = |kind: &str| json!({"type": kind});
        for (kind, image, signed, expected) in [
            ("matchExact", "a.example/x:t", "a.example/x:t", true),
            ("matchExact", "a.example/x:t", "a.example/x:u", false),
            ("matchExact", "a.example/x:latest", "a.example/x", false),
            ("matchExact", &*by_digest, "a.example/x:t", false),
            ("matchRepoDigestOrExact", "a.example/x:t", "a.example/x:t", true),
            ("matchRepoDigestOrExact", "a.example/x:t", "a.example/x:u", false),
            ("matchRepoDigestOrExact", &*by_digest, "a.example/x:t", true),
            ("matchRepoDigestOrExact", &*by_digest, "a.example/x", false),
            ("matchRepoDigestOrExact", &*by_digest, "a.example/y:t", false),
            ("matchRepository", "a.example/x:t", "a.example/x", true),
            ("matchRepository", "a.example/x:t", "a.example/x/y:t", false),
            ("matchRepository", "a.example/x:t", "no name", false),
        ] {
            assert_eq!(
                accepts(of(kind), image, signed),
                expected,
                "{kind} {image} {signed}"
            );
        }
        let exact = json!({"type": "exactReference", "dockerReference": "b.example/y:t"});
        assert!(accepts(exact.clone(), "a.example/x:1", "b.example/y:t"));
        assert!(!accepts(exact, "b.example/y:t", "b.example/y"));
        let repository = json!({"type": "exactRepository", "dockerRepository": "b.example/y"});
        assert!(accepts(repository, "a.example/x:1", "b.example/y:t"));
        let remap =
            json!({"type": "remapIdentity", "prefix": "cache.example/team", "signedPrefix": "b.example"});
        assert!(accepts(remap.clone(), "cache.example/team/x:t", "b.example/x:t"));
        assert!(!accepts(
            remap.clone(),
            "cache.example/team/x:t",
            "cache.example/team/x:t"
        ));
        assert!(!accepts(
            remap.clone(),
            "cache.example/teams/x:t",
            "b.example/x:t"
        ));
        assert!(accepts(remap, "c.example/x:t", "c.example/x:t"));
    }
}
