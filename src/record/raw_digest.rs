//! A digest as it is in a record: parsed if it is valid, and kept as text if it is not.

use crate::digest::Digest;
use crate::record::row::text_field;

/// The digest in a field of a record. Text of another writer that is no digest is kept as it is.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum RawDigest {
    /// No digest; the field is left out.
    #[default]
    Empty,
    /// A digest.
    Valid(Digest),
    /// Anything else: an unknown algorithm, or not a digest at all.
    Other(Box<str>),
}

impl RawDigest {
    /// The text as in the file.
    pub(crate) fn as_str(&self) -> &str {
        match self {
            Self::Empty => "",
            Self::Valid(digest) => digest.as_str(),
            Self::Other(text) => text,
        }
    }

    /// The digest, if it is one.
    pub(crate) fn valid(&self) -> Option<&Digest> {
        match self {
            Self::Valid(digest) => Some(digest),
            Self::Empty | Self::Other(_) => None,
        }
    }

    /// Whether there is no text.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }
}

impl From<Digest> for RawDigest {
    fn from(digest: Digest) -> Self {
        Self::Valid(digest)
    }
}

impl From<Option<Digest>> for RawDigest {
    fn from(digest: Option<Digest>) -> Self {
        digest.map_or(Self::Empty, Self::Valid)
    }
}

impl From<&str> for RawDigest {
    fn from(text: &str) -> Self {
        match text.parse() {
            Ok(digest) => Self::Valid(digest),
            Err(_invalid) if text.is_empty() => Self::Empty,
            Err(_invalid) => Self::Other(text.into()),
        }
    }
}

text_field!(RawDigest);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_kept_whether_valid_or_not() {
        let digest = Digest::sha256(b"x");
        let valid = RawDigest::from(digest.as_str());
        assert_eq!((valid.valid(), valid.as_str()), (Some(&digest), digest.as_str()));
        for text in ["md5:d41d8cd98f00b204e9800998ecf8427e", "SHA256:00", "x"] {
            let other = RawDigest::from(text);
            assert_eq!(
                (other.valid(), other.as_str(), other.is_empty()),
                (None, text, false)
            );
        }
        assert!(RawDigest::from("").is_empty() && RawDigest::from(None).is_empty());
    }
}
