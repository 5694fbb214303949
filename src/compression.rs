//! How a layer stream is compressed, and how its first bytes tell.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// How a layer stream is compressed.
///
/// Layer records keep the number ([`Compression::as_i64`]), as the Go library does. Where options are serialised it is
/// the name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all, or in a way that is not recognised.
    #[default]
    None = 0,
    /// bzip2; can be read, not written.
    Bzip2 = 1,
    /// gzip.
    Gzip = 2,
    /// xz; can be read, not written.
    Xz = 3,
    /// Zstandard.
    Zstd = 4,
    /// Zstandard with a table of contents (zstd:chunked): a layer of which single files can be fetched. It can be asked
    /// for when something is written; what is read is [`Compression::Zstd`], which it is as well.
    #[serde(rename = "zstd:chunked")]
    ZstdChunked,
}

impl Compression {
    /// All of them.
    const ALL: [Self; 6] = [
        Self::None,
        Self::Bzip2,
        Self::Gzip,
        Self::Xz,
        Self::Zstd,
        Self::ZstdChunked,
    ];

    /// The number that stands for it in layer records.
    pub const fn as_i64(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Bzip2 => 1,
            Self::Gzip => 2,
            Self::Xz => 3,
            Self::Zstd | Self::ZstdChunked => 4,
        }
    }

    /// How a blob of this media type is compressed.
    pub(crate) fn of_media_type(media_type: &str) -> Self {
        if media_type.ends_with("gzip") {
            Self::Gzip
        } else if media_type.ends_with("zstd") {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// The compression that a layer record's number stands for.
    pub const fn from_i64(number: i64) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Bzip2),
            2 => Some(Self::Gzip),
            3 => Some(Self::Xz),
            4 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The usual extension of a file with such a tar stream, without the first dot.
    pub const fn extension(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Bzip2 => "tar.bz2",
            Self::Gzip => "tar.gz",
            Self::Xz => "tar.xz",
            Self::Zstd | Self::ZstdChunked => "tar.zst",
        }
    }

    /// Tells by the first bytes of a stream. There is no "unknown": what has no magic number is not compressed.
    pub fn detect(start: &[u8]) -> Self {
        let magic: [(&[u8], Self); 4] = [
            (b"BZh", Self::Bzip2),
            (b"\x1f\x8b\x08", Self::Gzip),
            (b"\xfd7zXZ\0", Self::Xz),
            (b"\x28\xb5\x2f\xfd", Self::Zstd),
        ];
        // A zstd stream may begin with skippable frames, as those of pzstd do.
        if matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]) {
            return Self::Zstd;
        }
        magic
            .iter()
            .find(|(magic, _)| start.starts_with(magic))
            .map_or(Self::None, |(_, compression)| *compression)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::ZstdChunked => "zstd:chunked",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Compression {
    type Err = Error;

    /// Reads the name that [`Display`](fmt::Display) writes: `none`, `bzip2`, `gzip`, `xz`, `zstd` or
    /// `zstd:chunked`.
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.name() == text)
            .ok_or_else(|| {
                ErrorKind::InvalidInput.err(format!(
                    "compression {text:?}; known are none, bzip2, gzip, xz, zstd and zstd:chunked"
                ))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_as_they_are_on_disk() {
        assert_eq!(Compression::ZstdChunked.as_i64(), 4);
        for (number, compression) in (0..).zip(Compression::ALL).take(5) {
            assert_eq!(compression.as_i64(), number);
            assert_eq!(Compression::from_i64(number), Some(compression));
        }
        assert_eq!(Compression::from_i64(5), None);
        assert_eq!(Compression::from_i64(-1), None);
    }

    #[test]
    fn a_stream_is_known_by_its_first_bytes() {
        assert_eq!(Compression::detect(b"\x28\xb5\x2f\xfd"), Compression::Zstd);
        for first in 0x50..=0x5f {
            assert_eq!(
                Compression::detect(&[first, 0x2a, 0x4d, 0x18, 4]),
                Compression::Zstd
            );
        }
        for other in [
            &b""[..],
            b"P",
            b"\x4f\x2a\x4d\x18",
            b"\x60\x2a\x4d\x18",
            b"\x50\x2a\x4d\x19",
        ] {
            assert_eq!(Compression::detect(other), Compression::None, "{other:?}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for compression in Compression::ALL {
            let name = compression.to_string();
            assert_eq!(name.parse::<Compression>().unwrap(), compression);
            assert_eq!(serde_json::to_value(compression).unwrap(), name);
            assert_eq!(
                serde_json::from_value::<Compression>(name.into()).unwrap(),
                compression
            );
        }
        for odd in ["", "GZIP", "gz", "gzip ", "lz4"] {
            let error = odd.parse::<Compression>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{odd}");
        }
    }
}
