//! Names of images, as image programs read them: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`.
//!
//! The store itself takes any text. But one image with a name that is no reference makes Podman refuse to list all the
//! others, so what makes images checks their names.

use crate::digest::Digest;
use crate::driver::is_usual_id;
use crate::error::{ErrorKind, Result};

/// Bytes of a name without its tag and digest at the most.
const MAX_NAME: usize = 255;

/// Bytes of a tag at the most.
const MAX_TAG: usize = 128;

/// Refuses names that image programs cannot read.
pub(crate) fn check_all(names: &[String]) -> Result<()> {
    match names.iter().find(|name| !is_reference(name)) {
        None => Ok(()),
        Some(name) => Err(ErrorKind::InvalidInput.err(format!("{name:?} as the name of an image"))),
    }
}

fn is_reference(text: &str) -> bool {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest.get(last..).and_then(|part| part.find(':')) {
        Some(colon) => (rest.get(..last + colon), rest.get(last + colon + 1..)),
        None => (Some(rest), None),
    };
    let name = name.unwrap_or_default();
    let is_id = is_usual_id(name);
    let path = match name.split_once('/') {
        Some((first, path)) if is_host(first) => path,
        _ => name,
    };
    name.len() <= MAX_NAME
        && !is_id
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(|digest| digest.parse::<Digest>().is_ok())
}

/// A part of a path: lower-case letters and digits in groups, between them `.`, `_`, `__` or hyphens.
fn is_component(part: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [part.bytes().next(), part.bytes().next_back()];
    ends.iter().all(|end| end.is_some_and(is_plain))
        && part
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|between| {
                matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
            })
}

/// `HOST[:PORT]`, also with an IPv6 address in brackets.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let is_address = |address: &str| {
        address
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b':')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_fits = match address {
        Some(address) => !address.is_empty() && is_address(address),
        None => host.split('.').all(is_label),
    };
    host_fits && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_image_programs_read() {
        let digest = format!("localhost/a@sha256:{}", "0a".repeat(32));
        let tagged = digest.replace('@', ":1@");
        for name in [
            "app",
            "localhost/app",
            "localhost/app:1",
            "Host.example:5000/a/b-c__d.e:V1_.-x",
            "a--b",
            "[::1]:5000/a",
            "docker.io/library/x:latest",
            &digest,
            &tagged,
        ] {
            assert!(is_reference(name), "{name}");
        }
        let (long_tag, long_name) = (format!("a:{}", "t".repeat(129)), "a".repeat(256));
        for name in [
            "",
            " ",
            "\n",
            "\0",
            "App",
            "localhost/App:1",
            "localhost/a b",
            "../x",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a___b",
            "a..b",
            "-a",
            "a-",
            "<none>:<none>",
            "a@sha256:12",
            "a:1:2",
            "h:x/a",
            &"0a".repeat(32),
            &long_tag,
            &long_name,
        ] {
            assert!(!is_reference(name), "{name:?}");
        }
    }
}
