//! Content digests as OCI writes them: `sha256:` and 64 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::error::{Error, ErrorKind};

/// A checked digest, `ALGORITHM:HEX` with the algorithm sha256, sha384 or sha512. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

impl Digest {
    /// The SHA-256 digest of `bytes`.
    pub fn sha256(bytes: impl AsRef<[u8]>) -> Self {
        let mut hasher = sha2::Sha256::new();
        hasher.update(bytes.as_ref());
        Self::of_sha256(hasher)
    }

    /// The digest of the bytes given to `hasher`.
    pub(crate) fn of_sha256(hasher: sha2::Sha256) -> Self {
        Self(format!("sha256:{}", hex(&hasher.finalize())).into())
    }

    /// The digest with this sha256 sum.
    pub(crate) fn of_sum(sum: &[u8; 32]) -> Self {
        Self(format!("sha256:{}", hex(sum)).into())
    }

    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part before the colon.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The part after the colon.
    pub fn encoded(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, encoded)| encoded)
    }

    /// Refuses bytes that have another digest; `what` names them in the error.
    pub(crate) fn check(&self, bytes: &[u8], what: &str) -> Result<(), Error> {
        let mut hasher = Hasher::like(self);
        hasher.update(bytes);
        let found = hasher.finish();
        if found == *self {
            return Ok(());
        }
        Err(ErrorKind::DigestMismatch.err(format!("{what} has digest {found}, expected {self}")))
    }
}

/// Computes a digest, in any algorithm that a [`Digest`] can have.
#[derive(Clone)]
pub(crate) enum Hasher {
    /// sha256.
    Sha256(sha2::Sha256),
    /// sha384.
    Sha384(sha2::Sha384),
    /// sha512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// The default algorithm.
    pub(crate) fn sha256() -> Self {
        Self::Sha256(sha2::Sha256::new())
    }

    /// One with the algorithm of `digest`.
    pub(crate) fn like(digest: &Digest) -> Self {
        match digest.algorithm() {
            "sha384" => Self::Sha384(sha2::Sha384::new()),
            "sha512" => Self::Sha512(sha2::Sha512::new()),
            _ => Self::sha256(),
        }
    }

    /// Whether both compute digests of one algorithm.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha384(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything added.
    pub(crate) fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Sha384(hasher) => format!("sha384:{}", hex(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        Digest(text.into())
    }
}

/// The sum in the text of a sha256 digest; `None` for every other text.
pub(crate) fn sha256_sum(text: &[u8]) -> Option<[u8; 32]> {
    let (digits, rest) = text.strip_prefix(b"sha256:")?.as_chunks::<2>();
    let mut sum = [0; 32];
    if digits.len() != sum.len() || !rest.is_empty() {
        return None;
    }
    let mut all = 0;
    for (byte, [high, low]) in sum.iter_mut().zip(digits) {
        let (high, low) = (VALUES[usize::from(*high)], VALUES[usize::from(*low)]);
        all |= high | low;
        *byte = high << 4 | low & 15;
    }
    (all < 16).then_some(sum)
}

/// What each byte stands for as a digit; 255 where it is none, nor is it in upper case.
static VALUES: [u8; 256] = {
    let mut values = [u8::MAX; 256];
    let mut value = 0;
    while value < 16 {
        values[b"0123456789abcdef"[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The algorithm and the value of a text that has the form of a digest: `sha256:…`, `sha256+b64:…`.
fn parts(text: &str) -> Option<(&str, &str)> {
    let (algorithm, encoded) = text.split_once(':')?;
    let is_word = |word: &str| {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        !word.is_empty() && word.bytes().all(plain)
    };
    let is_value = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'=' | b'_' | b'-');
    let good = algorithm.split(['.', '+', '_', '-']).all(is_word)
        && !encoded.is_empty()
        && encoded.bytes().all(is_value);
    good.then_some((algorithm, encoded))
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| ErrorKind::InvalidInput.err(format!("digest {text:?}: {why}"));
        let (algorithm, encoded) = parts(text).ok_or_else(|| bad("invalid checksum digest format"))?;
        let length = match algorithm {
            "sha256" => 64,
            "sha384" => 96,
            "sha512" => 128,
            _ => return Err(bad("unsupported digest algorithm")),
        };
        if encoded.len() != length {
            return Err(bad("invalid checksum digest length"));
        }
        if !encoded
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(bad("invalid checksum digest format (not lower-case hexadecimal)"));
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.as_ref().into()
    }
}

impl AsRef<str> for Digest {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hasher_makes_the_digest_it_is_like() {
        for (algorithm, length) in [("sha256", 64), ("sha384", 96), ("sha512", 128)] {
            let example: Digest = format!("{algorithm}:{}", "0".repeat(length)).parse().unwrap();
            let mut hasher = Hasher::like(&example);
            hasher.update(b"abc");
            let digest = hasher.finish();
            assert_eq!(digest.algorithm(), algorithm);
            assert_eq!(digest.as_str().parse::<Digest>().unwrap(), digest);
        }
        let mut hasher = Hasher::sha256();
        hasher.update(b"abc");
        assert_eq!(hasher.finish(), Digest::sha256(b"abc"));
    }

    #[test]
    fn only_whole_lower_case_digests_are_accepted() {
        let empty = Digest::sha256(b"");
        assert_eq!(
            empty.as_str(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(empty.as_str().parse::<Digest>().unwrap(), empty);
        assert_eq!((empty.algorithm(), empty.encoded().len()), ("sha256", 64));
        for bad in [
            "",
            "sha256",
            "sha256:",
            "sha256:abc",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
        ] {
            assert_eq!(bad.parse::<Digest>().unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert!(
            empty
                .as_str()
                .to_uppercase()
                .replace("SHA", "sha")
                .parse::<Digest>()
                .is_err()
        );
    }

    #[test]
    fn digests_are_text_in_order_and_in_json() {
        let (a, b) = (Digest::sha256("a"), Digest::sha256("b"));
        assert_eq!(a.cmp(&b), a.as_str().cmp(b.as_str()));
        assert_eq!(a.to_string().parse::<Digest>().unwrap(), a);
        assert_eq!(
            std::collections::HashSet::from([a.clone(), b, a.clone()]).len(),
            2
        );
        let json = serde_json::to_string(&a).unwrap();
        assert_eq!(json, format!("\"{a}\""));
        assert_eq!(serde_json::from_str::<Digest>(&json).unwrap(), a);
        let error = serde_json::from_str::<Digest>("\"sha256:00\"").unwrap_err();
        assert!(
            error.to_string().contains("invalid checksum digest length"),
            "{error}"
        );
    }
}
