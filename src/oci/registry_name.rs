//! The grammar of names of images in registries, as the distribution project writes it down. Pure.
//!
//! ```text
//! reference  = [domain "/"] path [":" tag] ["@" digest]
//! domain     = label *("." label) [":" 1*DIGIT]          label = letters and digits, hyphens within
//! path       = component *("/" component)                component = lower-case letters and digits, separated by
//!                                                                    ".", "_", "__" or any number of "-"
//! tag        = 1*128 of letters, digits, "_", "." and "-", not beginning with one of the last two
//! ```
//!
//! What begins like a path, with neither dot nor port, is one of `docker.io`. An image ID is no name.

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};

/// Where names without a domain are.
const HUB: &str = "docker.io";

/// Another name of it.
const LEGACY_HUB: &str = "index.docker.io";

/// Bytes of a name with its domain, as for Podman and Skopeo; the distribution project counts the path alone.
const MAX_NAME: usize = 255;

/// Characters of a name in a message: a whole name, but no more of what some archive calls one.
const MAX_SHOWN: usize = 512;

/// Bytes of a tag.
const MAX_TAG: usize = 128;

/// The parts of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RegistryName {
    pub(super) domain: String,
    pub(super) path: String,
    /// `latest` where there is neither tag nor digest.
    pub(super) tag: Option<String>,
    pub(super) digest: Option<Digest>,
}

/// Reads a name.
///
/// # Errors
/// [`ErrorKind::InvalidInput`].
pub(super) fn parse(text: &str) -> Result<RegistryName> {
    read(text).map_err(|error| {
        let short: String = text.chars().take(MAX_SHOWN).collect();
        let what = format!("image name {short:?}");
        ErrorKind::InvalidInput.err(what).with_source(error)
    })
}

fn read(text: &str) -> Result<RegistryName> {
    let is_hexadecimal = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if text.len() == 64 && text.bytes().all(is_hexadecimal) {
        return Err(invalid("cannot specify 64-byte hexadecimal strings"));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(last..).unwrap_or_default().split_once(':') {
        Some((component, tag)) => (rest.get(..last + component.len()).unwrap_or_default(), Some(tag)),
        None => (rest, None),
    };
    let (domain, path) = match name.split_once('/') {
        Some((domain, path)) if is_registry(domain) => (domain, path),
        _ => (HUB, name),
    };
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(invalid("repository name must be lowercase"));
    }
    let is_sound = is_domain(domain) && path.split('/').all(is_component) && tag.is_none_or(is_tag);
    if !is_sound {
        return Err(invalid("invalid reference format"));
    }
    let domain = if domain == LEGACY_HUB { HUB } else { domain };
    let path = match domain == HUB && !path.contains('/') {
        true => format!("library/{path}"),
        false => path.to_owned(),
    };
    if domain.len() + 1 + path.len() > MAX_NAME {
        return Err(invalid("repository name must not be more than 255 characters"));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some("latest"),
        (tag, _) => tag,
    };
    Ok(RegistryName {
        domain: domain.to_owned(),
        path,
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// Whether what stands before the first slash of a name is a registry, not the beginning of a path.
pub(super) fn is_registry(text: &str) -> bool {
    text == "localhost" || text.contains(['.', ':'])
}

fn invalid(what: &str) -> Error {
    ErrorKind::InvalidInput.err(what.to_owned())
}

pub(super) fn is_domain(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let is_label = |label: &str| {
        let inside = label
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators = text.split(|character: char| u8::try_from(character).is_ok_and(is_word));
    // Before the first word and behind the last one there is nothing.
    separators.next() == Some("")
        && text.bytes().next_back().is_some_and(is_word)
        && separators.all(|between| {
            matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(is_word)
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_parts() {
        for (text, domain, path, tag) in [
            ("a", "docker.io", "library/a", "latest"),
            ("a:b", "docker.io", "library/a", "b"),
            ("host:5000", "docker.io", "library/host", "5000"),
            ("a/b", "docker.io", "a/b", "latest"),
            ("docker.io/a", "docker.io", "library/a", "latest"),
            ("index.docker.io/a:1", "docker.io", "library/a", "1"),
            ("localhost/a", "localhost", "a", "latest"),
            ("localhost:1/a/b:c", "localhost:1", "a/b", "c"),
            ("Host.Example:5000/a", "Host.Example:5000", "a", "latest"),
            (
                "a.b-c.d/e_f/g__h/i---j/k.l:M_.-",
                "a.b-c.d",
                "e_f/g__h/i---j/k.l",
                "M_.-",
            ),
            ("1.2.3.4/5", "1.2.3.4", "5", "latest"),
            (":b", "", "", ""),
            ("", "", "", ""),
            ("/", "", "", ""),
            ("a/", "", "", ""),
            ("/a", "", "", ""),
            ("h.io/", "", "", ""),
            ("h.io//a", "", "", ""),
            ("h.io/A", "", "", ""),
            ("A/b", "", "", ""),
            ("h.io/a_", "", "", ""),
            ("h.io/_a", "", "", ""),
            ("h.io/a___b", "", "", ""),
            ("h.io/a._b", "", "", ""),
            ("h.io/a..b", "", "", ""),
            ("h.io/\u{e4}", "", "", ""),
            ("h.io/a b", "", "", ""),
            ("-h.io/a", "", "", ""),
            ("h-.io/a", "", "", ""),
            ("h..io/a", "", "", ""),
            ("h.io:/a", "", "", ""),
            ("h.io:x/a", "", "", ""),
            ("h.io:1:2/a", "", "", ""),
            ("h_.io/a", "", "", ""),
            ("h.io/a:", "", "", ""),
            ("h.io/a:.b", "", "", ""),
            ("h.io/a:b:c", "", "", ""),
            ("h.io/a:b\n", "", "", ""),
            ("[::1]:5000/a", "", "", ""),
        ] {
            let found = parse(text);
            if domain.is_empty() {
                let error = found.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}");
                continue;
            }
            let expected = RegistryName {
                domain: domain.to_owned(),
                path: path.to_owned(),
                tag: Some(tag.to_owned()),
                digest: None,
            };
            assert_eq!(found.unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let long = |length: usize| format!("h.io/{}", "a".repeat(length));
        assert!(parse(&long(250)).is_ok());
        assert!(parse(&long(251)).is_err());
        let hub = "docker.io/library/".len();
        assert!(parse(&"a".repeat(255 - hub)).is_ok());
        assert!(parse(&"a".repeat(256 - hub)).is_err());
        assert!(parse(&format!("a:{}", "b".repeat(128))).is_ok());
        assert!(parse(&format!("a:{}", "b".repeat(129))).is_err());
    }

    #[test]
    fn a_digest_may_stand_beside_a_tag_or_alone() {
        let digest = Digest::sha256(b"x");
        let alone = parse(&format!("h.io/a@{digest}")).unwrap();
        assert_eq!((alone.tag, alone.digest.as_ref()), (None, Some(&digest)));
        let both = parse(&format!("h.io/a:b@{digest}")).unwrap();
        assert_eq!(
            (both.tag.as_deref(), both.digest),
            (Some("b"), Some(digest.clone()))
        );
        for bad in ["h.io/a@", "h.io/a@sha256:12", "h.io/a@b@c", "@sha256:12"] {
            assert_eq!(parse(bad).unwrap_err().kind(), ErrorKind::InvalidInput, "{bad}");
        }
        assert!(parse(&format!("@{digest}")).is_err());
    }
}
