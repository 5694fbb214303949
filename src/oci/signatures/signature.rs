//! A signature of an image, and how it is kept in files and in a store. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::json;
use crate::oci::unique_json::{Refusal, is_object};

/// The type of sigstore's signatures among the things that are attached to images.
pub(super) const SIGSTORE_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// The longest signature that is read.
pub(crate) const MAX_SIGNATURE: u64 = 4 << 20;

/// More signatures than any image has.
pub(crate) const MAX_SIGNATURES: usize = 128;

/// The most bytes that all signatures of an image have.
const MAX_ALL: usize = 16 << 20;

/// The signature of an image, not verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    /// An OpenPGP message.
    Simple(Vec<u8>),
    /// Something that sigstore's programs have attached to an image, a signature perhaps.
    Sigstore(Attached),
}

/// What is attached to an image, as the Go library stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attached {
    #[serde(rename = "mimeType", default)]
    pub(super) media_type: String,
    #[serde(with = "in_base64", default)]
    pub(super) payload: Vec<u8>,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
}

/// Bytes in JSON as Go writes them.
mod in_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map_err(D::Error::custom)
    }
}

/// Adds a signature to those of its image.
///
/// # Errors
/// If they are more than any image has.
pub(crate) fn add(found: &mut Vec<Signature>, signature: Signature) -> Result<(), Refusal> {
    if found.len() == MAX_SIGNATURES {
        return Err(format!("more than {MAX_SIGNATURES} signatures"));
    }
    found.push(signature);
    match found.iter().map(Signature::size).sum::<usize>() > MAX_ALL {
        true => Err(format!("signatures of more than {MAX_ALL} bytes")),
        false => Ok(()),
    }
}

impl Signature {
    fn size(&self) -> usize {
        match self {
            Self::Simple(message) => message.len(),
            Self::Sigstore(attached) => {
                let annotations = attached.annotations.iter().flatten();
                let annotations = annotations.map(|(name, value)| name.len() + value.len());
                attached.payload.len() + annotations.sum::<usize>()
            }
        }
    }

    /// As it is kept in files and in a store: an OpenPGP message as it is, anything else behind a line with the format.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Refusal> {
        match self {
            Self::Simple(message) => Ok(message.clone()),
            Self::Sigstore(attached) => {
                let mut bytes = b"\0sigstore-json\n".to_vec();
                bytes.extend(json::to_bytes(attached).map_err(|error| error.to_string())?);
                Ok(bytes)
            }
        }
    }

    /// Reads what [`Signature::to_bytes`] gives.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        match bytes {
            [] => Err("empty signature blob".to_owned()),
            // The first byte of an OpenPGP packet that begins a signed message.
            [
                0x88..=0x8b | 0x90..=0x92 | 0xa0..=0xa3 | 0xc2 | 0xc4 | 0xc8 | 0x3d,
                ..,
            ] => Ok(Self::Simple(bytes.to_vec())),
            [0, rest @ ..] => {
                let end = rest.iter().position(|byte| *byte == b'\n');
                let end = end.ok_or_else(|| "invalid signature format, missing newline".to_owned())?;
                let (format, content) = rest.split_at(end);
                let content = content.get(1..).unwrap_or_default();
                match format {
                    b"simple-signing" => Ok(Self::Simple(content.to_vec())),
                    b"sigstore-json" if !is_object(content) => Err("an object is expected".to_owned()),
                    b"sigstore-json" => {
                        let attached = serde_json::from_slice(content).map_err(|error| error.to_string())?;
                        Ok(Self::Sigstore(attached))
                    }
                    other => Err(format!(
                        "unrecognized signature format {:?}",
                        String::from_utf8_lossy(other)
                    )),
                }
            }
            [first, ..] => Err(format!(
                "unrecognized signature format, starting with binary {first:#x}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_not_more_than_memory_holds() {
        let mut found = Vec::new();
        let large = Signature::Simple(vec![0x90; 4 << 20]);
        for _ in 0..4 {
            add(&mut found, large.clone()).unwrap();
        }
        assert!(add(&mut found, large).is_err());
        let (mut found, small) = (Vec::new(), Signature::Simple(vec![0x90]));
        for _ in 0..MAX_SIGNATURES {
            add(&mut found, small.clone()).unwrap();
        }
        assert!(add(&mut found, small).is_err() && found.len() == MAX_SIGNATURES);
    }

    #[test]
    fn a_signature_is_kept_as_the_go_library_keeps_it() {
        let attached = Attached {
            media_type: SIGSTORE_TYPE.to_owned(),
            payload: b"{}".to_vec(),
            annotations: Some(BTreeMap::from([("a".to_owned(), "<b>".to_owned())])),
        };
        let kept = Signature::Sigstore(attached.clone()).to_bytes().unwrap();
        let text = "\0sigstore-json\n{\"mimeType\":\"application/vnd.dev.cosign.simplesigning.v1+json\",\"payload\":\"e30=\",\
                    \"annotations\":{\"a\":\"\\u003cb\\u003e\"}}";
        assert_eq!(String::from_utf8(kept.clone()).unwrap(), text);
        assert_eq!(Signature::parse(&kept).unwrap(), Signature::Sigstore(attached));
        let simple = Signature::Simple(vec![0x90, 1, 2]);
        assert_eq!(simple.to_bytes().unwrap(), [0x90, 1, 2]);
        assert_eq!(Signature::parse(&[0x90, 1, 2]).unwrap(), simple);
        assert_eq!(
            Signature::parse(b"\0simple-signing\n\x90\x01\x02").unwrap(),
            simple
        );
        for bad in [
            &b""[..],
            b"\0",
            b"\0x\n",
            b"\0sigstore-json\n[",
            b"\0sigstore-json\n[\"x\", \"e30=\", {}]",
            b"<html>",
        ] {
            assert!(Signature::parse(bad).is_err(), "{bad:?}");
        }
    }
}
