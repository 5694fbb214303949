//! Naming an image: where it comes from or goes to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::registry_name::{self, RegistryName};
use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Where an image lies outside of the store, as image programs write it. Parsed from text:
///
/// ```
/// use graphroot::oci::ImageRef;
/// # fn main() -> graphroot::Result<()> {
/// let registry: ImageRef = "docker://registry.example:5000/team/app:1.2".parse()?;
/// let layout: ImageRef = "oci:/var/tmp/layout:latest".parse()?;
/// let archives: [ImageRef; 2] = ["oci-archive:image.tar".parse()?, "docker-archive:saved.tar".parse()?];
/// assert_eq!(layout.to_string(), "oci:/var/tmp/layout:latest");
/// # drop((registry, archives));
/// # Ok(())
/// # }
/// ```
///
/// Text without one of these prefixes is taken for `docker://`, and a name without a host for one of `docker.io`. The other
/// transports of Podman and Skopeo, such as `containers-storage:`, are refused.
/// Serialized as its text.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum ImageRef {
    /// `docker://[HOST[:PORT]/]NAME[:TAG|@DIGEST]`: in a registry.
    Registry(RegistryRef),
    /// `oci:DIRECTORY[:NAME|:@INDEX]`: in an OCI image layout.
    Layout {
        /// The layout's directory.
        dir: PathBuf,
        /// Which image of the layout, if it has several: a name, or `@0` for the first of them.
        name: Option<String>,
    },
    /// `dir:DIRECTORY`: in a directory with its manifest and blobs, as Skopeo writes it.
    Directory {
        /// The directory.
        dir: PathBuf,
    },
    /// `oci-archive:FILE[:NAME|:@INDEX]`: in a tar file of an OCI image layout.
    OciArchive {
        /// The tar file.
        file: PathBuf,
        /// As for a layout.
        name: Option<String>,
    },
    /// `docker-archive:FILE[:NAME[:TAG]|:@INDEX]`: in a tar file as `docker save` writes it.
    DockerArchive {
        /// The tar file.
        file: PathBuf,
        /// Which image of the archive, if it has several: a name, or `@0` for the first of them.
        name: Option<String>,
    },
}

/// An image in a registry: `HOST[:PORT]/NAME`, and a tag or a digest. Serialized as its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegistryRef {
    registry: String,
    repository: String,
    /// `None` beside a digest, which says all.
    tag: Option<String>,
    digest: Option<Digest>,
}

impl RegistryRef {
    /// Host and port of the registry.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's name in the registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless a digest says which image is meant.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest that is meant.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `REGISTRY/REPOSITORY`.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The names that stand for it and others, the narrowest first: `HOST/A/B`, `HOST/A`, `HOST`.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        let name = self.name();
        let names: Vec<String> = widening(&name).map(str::to_owned).collect();
        names.into_iter()
    }

    /// The scopes of configuration that it is in, the narrowest first: itself, its names, `*.DOMAIN` of its host.
    pub(crate) fn scopes(&self) -> Vec<String> {
        let mut scopes = vec![self.to_string()];
        scopes.extend(self.names());
        let host = self.registry.split(':').next().unwrap_or_default();
        let domains = std::iter::successors(Some(host), |host| Some(host.split_once('.')?.1));
        scopes.extend(domains.skip(1).map(|domain| format!("*.{domain}")));
        scopes
    }
}

/// A name and what it is in, the narrowest first: `HOST/A/B`, `HOST/A`, `HOST`.
pub(crate) fn widening(name: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(name), |name| name.rsplit_once('/').map(|(wider, _)| wider))
}

/// The registry of a name in one.
pub(crate) fn registry_of(name: &str) -> &str {
    name.split_once('/').map_or(name, |(registry, _)| registry)
}

/// Host and port that requests to a registry go to.
pub(crate) fn host_of(registry: &str) -> &str {
    match registry {
        "docker.io" => "registry-1.docker.io",
        other => other,
    }
}

impl fmt::Display for RegistryRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, Some(tag)) => write!(f, ":{tag}"),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for RegistryRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = registry_name::parse(text)?;
        Ok(Self {
            registry: name.domain,
            repository: name.path,
            tag: name.tag.filter(|_| name.digest.is_none()),
            digest: name.digest,
        })
    }
}

impl TryFrom<String> for RegistryRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<RegistryRef> for String {
    fn from(reference: RegistryRef) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for ImageRef {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl Serialize for ImageRef {
    /// Fails for a path that is no UTF-8 or holds a colon: its text would name another image.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = self.to_string();
        match text.parse::<Self>() {
            Ok(read) if read == *self => serializer.serialize_str(&text),
            _ => Err(serde::ser::Error::custom(format!("no text stands for {self:?}"))),
        }
    }
}

/// Transports that other image programs have, which are never the names of images to them.
const OTHER_TRANSPORTS: [&str; 4] = ["containers-storage", "docker-daemon", "sif", "tarball"];

/// Whether what stands around the first colon of text that is no name looks like a transport and a path: no `HOST:PORT/NAME`.
fn is_like_transport(prefix: &str, rest: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    let first = rest.split('/').next().unwrap_or_default();
    !prefix.is_empty()
        && prefix.bytes().all(is_word)
        && rest.contains('/')
        && !first.contains('@')
        && (first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()))
}

impl FromStr for ImageRef {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let file_and_name = |rest: &str| -> Result<(PathBuf, Option<String>)> {
            let (file, name) = match rest.split_once(':') {
                Some((file, name)) => (file, Some(name.to_owned()).filter(|name| !name.is_empty())),
                None => (rest, None),
            };
            if file.is_empty() {
                return Err(ErrorKind::InvalidInput.err(format!("image reference {text:?} without a path")));
            }
            Ok((file.into(), name))
        };
        if let Some(name) = text.strip_prefix("docker://") {
            return Ok(Self::Registry(name.parse()?));
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, name) = file_and_name(rest)?;
            return Ok(Self::Layout { dir, name });
        }
        if let Some(dir) = text.strip_prefix("dir:") {
            if dir.is_empty() {
                return Err(ErrorKind::InvalidInput.err(format!("image reference {text:?} without a path")));
            }
            return Ok(Self::Directory { dir: dir.into() });
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            let (file, name) = file_and_name(rest)?;
            return Ok(Self::OciArchive { file, name });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, name) = file_and_name(rest)?;
            return Ok(Self::DockerArchive { file, name });
        }
        let (prefix, rest) = text.split_once(':').unwrap_or((text, ""));
        let refuse = |error: Error| {
            let what = format!(
                "{prefix:?} is no transport of images here (known are docker://, oci:, dir:, oci-archive: and docker-archive:)"
            );
            ErrorKind::InvalidInput.err(what).with_source(error)
        };
        if !rest.is_empty() && OTHER_TRANSPORTS.contains(&prefix) {
            return Err(refuse(ErrorKind::NotSupported.err(format!("image {text:?}"))));
        }
        let name = text.parse();
        name.map(Self::Registry)
            .map_err(|error| match is_like_transport(prefix, rest) {
                true => refuse(error),
                false => error,
            })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prefix, path, name) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::Directory { dir } => ("dir", dir, &None),
            Self::Layout { dir, name } => ("oci", dir, name),
            Self::OciArchive { file, name } => ("oci-archive", file, name),
            Self::DockerArchive { file, name } => ("docker-archive", file, name),
        };
        write!(f, "{prefix}:{}", path.display())?;
        match name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

/// A name as the store keeps it: with host and tag or digest.
pub(crate) fn full_name(name: &str) -> Result<String> {
    Ok(name.parse::<RegistryRef>()?.to_string())
}

/// A name that an archive gives an image: without a host it is one of this machine, not of a registry.
pub(crate) fn own_name(name: &str) -> Result<String> {
    let host = name.split_once('/').map(|(host, _)| host);
    match host {
        Some(host) if registry_name::is_registry(host) => full_name(name),
        _ => full_name(&format!("localhost/{name}")),
    }
}

/// The name of the store for what a layout calls an image: as that of an image in a registry, also with both tag and digest.
pub(crate) fn layout_name(name: &str) -> Result<String> {
    let RegistryName {
        domain,
        path,
        tag,
        digest,
    } = registry_name::parse(name)?;
    let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
    Ok(format!("{domain}/{path}{tag}{digest}"))
}

/// That of several images which `@NUMBER` means.
pub(crate) fn by_number<T>(mut images: impl ExactSizeIterator<Item = T>, number: &str) -> Result<T> {
    let count = images.len();
    let found = number.parse().ok().and_then(|number| images.nth(number));
    let what = || format!("Invalid source index @{number}, only {count} images available, from @0 on");
    found.ok_or_else(|| ErrorKind::NotFound.err(what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written() {
        for (text, shown) in [
            ("docker://127.0.0.1:5000/a/b:c", "docker://127.0.0.1:5000/a/b:c"),
            ("docker://localhost:5000/a", "docker://localhost:5000/a:latest"),
            ("busybox", "docker://docker.io/library/busybox:latest"),
            ("quay.io/x/y:z", "docker://quay.io/x/y:z"),
            ("oci:/some/dir", "oci:/some/dir"),
            ("oci:dir:some/name:tag", "oci:dir:some/name:tag"),
            ("dir:/some/dir:1", "dir:/some/dir:1"),
            ("oci-archive:f.tar:x", "oci-archive:f.tar:x"),
            ("docker-archive:f.tar", "docker-archive:f.tar"),
        ] {
            assert_eq!(text.parse::<ImageRef>().unwrap().to_string(), shown);
        }
        let digest = Digest::sha256(b"x");
        let pinned: ImageRef = format!("h.io/n:tag@{digest}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("docker://h.io/n@{digest}"));
        for bad in [
            "",
            "oci:",
            "dir:",
            "docker://",
            "docker://h.io/UPPER",
            "docker-archive::x",
            "h.io/n@sha256:12",
        ] {
            assert_eq!(
                bad.parse::<ImageRef>().unwrap_err().kind(),
                ErrorKind::InvalidInput,
                "{bad}"
            );
        }
    }

    #[test]
    fn an_unknown_transport_is_named_with_those_that_are_known() {
        for (text, is_transport) in [
            ("foo:/dir", true),
            ("foo:dir/x", true),
            ("foo:./dir", true),
            ("http://h.io/x", true),
            ("docker:/x", true),
            ("containers-storage:foo", true),
            ("docker-daemon:foo:1", true),
            ("host:5000/UPPER", false),
            ("h.io:x/UPPER", false),
            ("name:a b", false),
        ] {
            let error = text.parse::<ImageRef>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
            assert_eq!(
                error.chain().contains("known are docker://, oci:, dir:"),
                is_transport,
                "{error}"
            );
        }
        for name in ["host:5000/x", "docker:dind", "sif", "name:tag", "oci-layout:1"] {
            assert!(matches!(name.parse(), Ok(ImageRef::Registry(_))), "{name}");
        }
    }

    #[test]
    fn references_are_serialized_as_text_that_names_the_same() {
        let json = |reference: &ImageRef| serde_json::to_string(reference);
        for text in [
            "docker://h.io/a:b",
            "oci:/dir:name",
            "dir:/a:b",
            "docker-archive:f.tar",
        ] {
            let reference: ImageRef = text.parse().unwrap();
            assert_eq!(json(&reference).unwrap(), format!("{text:?}"));
            assert_eq!(
                serde_json::from_str::<ImageRef>(&format!("{text:?}")).unwrap(),
                reference
            );
        }
        let colon = ImageRef::Layout {
            dir: "a:b".into(),
            name: None,
        };
        assert!(json(&colon).is_err());
        assert!(serde_json::from_str::<ImageRef>(r#""oci:""#).is_err());
        let registry: RegistryRef =
            "h.io/a@sha256:0000000000000000000000000000000000000000000000000000000000000000"
                .parse()
                .unwrap();
        let text = serde_json::to_string(&registry).unwrap();
        assert_eq!(serde_json::from_str::<RegistryRef>(&text).unwrap(), registry);
        let sorted = std::collections::BTreeSet::from(
            ["b.io/x", "a.io/y:2", "a.io/y:1"].map(|text| text.parse::<RegistryRef>().unwrap()),
        );
        assert_eq!(sorted.first().unwrap().to_string(), "a.io/y:1");
    }

    #[test]
    fn names_in_archives_and_layouts_become_names_of_the_store() {
        let digest = Digest::sha256(b"x");
        for (name, stored) in [
            ("1.0", "docker.io/library/1.0:latest".to_owned()),
            ("localhost/foo:2", "localhost/foo:2".to_owned()),
            (&format!("h.io/a:1@{digest}"), format!("h.io/a:1@{digest}")),
            (&format!("a@{digest}"), format!("docker.io/library/a@{digest}")),
        ] {
            assert_eq!(layout_name(name).unwrap(), stored);
        }
        for bad in ["Upper", "a+b", "a@0", &"0".repeat(64)] {
            assert!(layout_name(bad).is_err(), "{bad}");
        }
        let both = format!("h.io/a:1@{digest}");
        assert_eq!(own_name(&both).unwrap(), format!("h.io/a@{digest}"));
        assert_eq!(own_name("ref").unwrap(), "localhost/ref:latest");
        assert_eq!(own_name("localhost/a:b").unwrap(), "localhost/a:b");
        assert_eq!(own_name("h.io/a").unwrap(), "h.io/a:latest");
    }
}
