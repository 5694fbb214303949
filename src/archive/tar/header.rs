//! One 512-byte tar header block, read as liberally as the Go library does. Pure.
//!
//! The layout comes from `tar-core`; its field parsers are not used, since they refuse what real archives hold:
//! negative numbers in base-256, the signed checksum of old Sun tars, headers without a known magic, a `ustar` magic
//! with another version, the STAR layout.

use tar_core::{GnuHeader, Header, UstarHeader};

/// Size of a block; everything in a tar stream is padded to it.
pub(crate) const BLOCK: usize = 512;

/// A point in time; `nanos` always counts forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Timestamp {
    /// Seconds since 1970.
    pub(crate) secs: i64,
    /// Nanoseconds within the second.
    pub(crate) nanos: u32,
}

/// The dialect of one header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// No magic: name, mode, owner, size, time, type and link only.
    V7,
    /// POSIX ustar and pax.
    Ustar,
    /// Schilling's star before it wrote pax.
    Star,
    /// GNU tar.
    Gnu,
}

/// What one header block says, before extended headers are applied.
#[derive(Debug)]
pub(crate) struct Fields {
    pub(crate) kind: u8,
    /// With all bits that the field has.
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: Timestamp,
    pub(crate) atime: Option<Timestamp>,
    pub(crate) ctime: Option<Timestamp>,
    pub(crate) dev_major: i64,
    pub(crate) dev_minor: i64,
}

/// Types of entries that never have data, whatever their size says.
pub(crate) fn is_header_only(kind: u8) -> bool {
    matches!(kind, b'1'..=b'6')
}

/// A field's bytes up to the first NUL.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, blanks and NULs around it, or in base-256.
pub(crate) fn number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let Some(start) = field.iter().position(|byte| !blank(byte)) else {
        return Some(0);
    };
    let end = field.iter().rposition(|byte| !blank(byte))? + 1;
    text(field.get(start..end)?)
        .iter()
        .try_fold(0i64, |sum, byte| match byte {
            b'0'..=b'7' => sum.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
            _ => None,
        })
}

/// Two's complement, big endian; the topmost bit is the mark of this form, the next one the sign.
fn base256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    let negative = first & 0x40 != 0;
    let head = i64::from(first & 0x3f) - if negative { 0x40 } else { 0 };
    rest.iter().try_fold(head, |sum, byte| {
        sum.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

/// The format of a block, `None` if its checksum is wrong.
pub(crate) fn format(header: &Header) -> Option<Format> {
    let ustar = header.as_ustar();
    let expected = octal(&ustar.cksum)?;
    // The checksum field itself counts as blanks. Old Sun tars summed signed bytes.
    let bytes = header.as_bytes();
    let mut unsigned = 0u32;
    let mut high = 0u32;
    for byte in bytes {
        unsigned += u32::from(*byte);
        high += u32::from(byte >> 7);
    }
    for byte in &ustar.cksum {
        unsigned -= u32::from(*byte);
        high -= u32::from(byte >> 7);
    }
    let unsigned = i64::from(unsigned) + 8 * i64::from(b' ');
    if expected != unsigned && expected != unsigned - 256 * i64::from(high) {
        return None;
    }
    Some(if ustar.magic == *tar_core::USTAR_MAGIC {
        if bytes.ends_with(b"tar\0") {
            Format::Star
        } else {
            Format::Ustar
        }
    } else if ustar.magic == *tar_core::GNU_MAGIC && ustar.version == *tar_core::GNU_VERSION {
        Format::Gnu
    } else {
        Format::V7
    })
}

/// Reads the fields and writes the name (prefix included) and the link name; `None` if a number is malformed.
pub(crate) fn read(
    header: &Header,
    format: Format,
    name: &mut Vec<u8>,
    link: &mut Vec<u8>,
) -> Option<Fields> {
    let ustar: &UstarHeader = header.as_ustar();
    let at = |secs| Timestamp { secs, nanos: 0 };
    let mut fields = Fields {
        kind: ustar.typeflag[0],
        mode: number(&ustar.mode)?,
        uid: number(&ustar.uid)?,
        gid: number(&ustar.gid)?,
        size: number(&ustar.size)?,
        mtime: at(number(&ustar.mtime)?),
        atime: None,
        ctime: None,
        dev_major: 0,
        dev_minor: 0,
    };
    let mut prefix: &[u8] = &[];
    if format != Format::V7 {
        fields.dev_major = number(&ustar.dev_major)?;
        fields.dev_minor = number(&ustar.dev_minor)?;
    }
    match format {
        Format::V7 => {}
        Format::Ustar => prefix = text(&ustar.prefix),
        Format::Star => {
            // The last 24 bytes of ustar's prefix are two times here.
            let (star_prefix, times) = ustar.prefix.split_at(131);
            prefix = text(star_prefix);
            fields.atime = Some(at(number(times.get(..12)?)?));
            fields.ctime = Some(at(number(times.get(12..)?)?));
        }
        Format::Gnu => {
            let gnu: &GnuHeader = header.as_gnu();
            let time = |field: &[u8; 12]| {
                if field[0] == 0 {
                    Some(None)
                } else {
                    number(field).map(Some)
                }
            };
            match (time(&gnu.atime), time(&gnu.ctime)) {
                (Some(atime), Some(ctime)) => {
                    fields.atime = atime.map(at);
                    fields.ctime = ctime.map(at);
                }
                // Go before 1.8 wrote a ustar prefix into GNU headers; there it looks like broken times.
                _ if text(&ustar.prefix).is_ascii() => prefix = text(&ustar.prefix),
                _ => {}
            }
        }
    }
    name.clear();
    if !prefix.is_empty() {
        name.extend_from_slice(prefix);
        name.push(b'/');
    }
    name.extend_from_slice(text(&ustar.name));
    link.clear();
    link.extend_from_slice(text(&ustar.linkname));
    Some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_all_spellings() {
        let cases: [(&[u8], Option<i64>); 17] = [
            (b"", Some(0)),
            (b"\0\0\0", Some(0)),
            (b"   \0", Some(0)),
            (b"0000644\0", Some(0o644)),
            (b"  644 \0", Some(0o644)),
            (b"\0 644\0junk", Some(0o644)),
            (b"777777777777", Some(0o777_777_777_777)),
            (b"-1", None),
            (b"0x10", None),
            (b"8", None),
            (b"6 4", None),
            (b"\x80\x00\x00\x01\x00", Some(256)),
            (b"\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (
                b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, value) in cases {
            assert_eq!(number(field), value, "{field:?}");
        }
    }
}
