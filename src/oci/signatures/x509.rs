//! As much of certificates as policies need beside what `webpki` verifies. Pure.

use super::der::{
    ADDRESS, BITS, BOOLEAN, Der, EMAIL, EXTENSIONS, GENERALIZED_TIME, HOST, INTEGER, OBJECT, OCTETS,
    SEQUENCE, TEXT, URI, UTC_TIME, VERSION,
};
use crate::oci::unique_json::Refusal;

const SUBJECT_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
const USAGES: &[u8] = &[0x55, 0x1d, 0x25];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
pub(super) const ANY_USAGE: &[u8] = &[0x55, 0x1d, 0x25, 0x00];
pub(super) const CODE_SIGNING: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03];
/// Who has said that a subject is who it is: the text itself, and in the newer extension as an element.
const ISSUER: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xbf, 0x30, 0x01, 0x01];
const ISSUER_2: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xbf, 0x30, 0x01, 0x08];

/// The extensions of authorities that are understood here or by `webpki`.
const UNDERSTOOD: [&[u8]; 5] = [SUBJECT_NAMES, USAGES, KEY_USAGE, CONSTRAINTS, NAME_CONSTRAINTS];

/// The content of the version of certificates that have extensions.
const THIRD: &[u8] = &[INTEGER, 1, 2];

/// The bit of `keyUsage` for signatures of certificates, in its first byte.
const SIGNS_CERTIFICATES: u8 = 0x04;

/// What is read of a certificate.
pub(super) struct Certificate<'a> {
    /// Whether it is of the version that has extensions.
    has_extensions: bool,
    /// Seconds since 1970 at which it begins and ends to be valid.
    validity: (i64, i64),
    extensions: Vec<Extension<'a>>,
}

struct Extension<'a> {
    number: &'a [u8],
    is_critical: bool,
    value: &'a [u8],
}

/// What a certificate says of those below it.
struct Constraints {
    is_authority: bool,
    /// How many certificates may lie between it and a signer's.
    length: Option<usize>,
}

impl<'a> Certificate<'a> {
    /// Reads one; `None` if it makes no sense, or has an extension twice.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(bytes).take(SEQUENCE)?);
        let mut fields = Der(outer.take(SEQUENCE)?);
        let mut version = Der(fields.0);
        let has_extensions = version.take_any()? == (VERSION, THIRD);
        fields.take_if(VERSION)?;
        // Serial number, algorithm and issuer.
        for _ in 0..3 {
            fields.take_any()?;
        }
        let mut validity = Der(fields.take(SEQUENCE)?);
        let validity = (time(&mut validity)?, time(&mut validity)?);
        let mut extensions: Vec<Extension<'_>> = Vec::new();
        while !fields.is_at_end() {
            let (tag, content) = fields.take_any()?;
            if tag != EXTENSIONS {
                continue;
            }
            let mut all = Der(Der(content).take(SEQUENCE)?);
            while !all.is_at_end() {
                let mut extension = Der(all.take(SEQUENCE)?);
                let number = extension.take(OBJECT)?;
                let is_critical = extension.0.first() == Some(&BOOLEAN);
                extension.take_if(BOOLEAN)?;
                let value = extension.take(OCTETS)?;
                if extensions.iter().any(|known| known.number == number) {
                    return None;
                }
                extensions.push(Extension {
                    number,
                    is_critical,
                    value,
                });
            }
        }
        Some(Self {
            has_extensions,
            validity,
            extensions,
        })
    }

    /// Reads the one of a signer, or one that comes with it.
    pub(super) fn read_given(bytes: &'a [u8]) -> Result<Self, Refusal> {
        Self::read(bytes).ok_or_else(|| "a certificate that makes no sense".to_owned())
    }

    fn extension(&self, number: &[u8]) -> Option<&'a [u8]> {
        let mut all = self.extensions.iter();
        all.find(|known| known.number == number).map(|known| known.value)
    }

    /// Whether it is the root of an authority that may sign other certificates, as far as `webpki` does not look: it takes roots
    /// as they are.
    pub(super) fn may_be_root(&self) -> Option<bool> {
        let is_understood = |known: &Extension<'_>| !known.is_critical || UNDERSTOOD.contains(&known.number);
        if !self.extensions.iter().all(is_understood) {
            return Some(false);
        }
        let is_authority = match self.constraints()? {
            Some(constraints) => constraints.is_authority,
            None => !self.has_extensions,
        };
        Some(is_authority && self.may_sign_certificates()?)
    }

    /// Whether `keyUsage` lets it sign other certificates; `webpki` does not look at that.
    pub(super) fn may_sign_certificates(&self) -> Option<bool> {
        let Some(usage) = self.extension(KEY_USAGE) else {
            return Some(true);
        };
        // The first byte says how many bits at the end do not count.
        let [_, first, ..] = Der(usage).take(BITS)? else {
            return None;
        };
        Some(first & SIGNS_CERTIFICATES != 0)
    }

    /// How many certificates may lie between it and a signer's, if that is limited.
    pub(super) fn length(&self) -> Option<usize> {
        self.constraints()??.length
    }

    fn constraints(&self) -> Option<Option<Constraints>> {
        let Some(value) = self.extension(CONSTRAINTS) else {
            return Some(None);
        };
        let mut fields = Der(Der(value).take(SEQUENCE)?);
        let mut constraints = Constraints {
            is_authority: false,
            length: None,
        };
        if fields.0.first() == Some(&BOOLEAN) {
            constraints.is_authority = fields.take(BOOLEAN)? == [0xff];
        }
        if !fields.is_at_end() {
            let number = fields.take(INTEGER)?;
            let number = match number {
                [0, rest @ ..] if !rest.is_empty() => rest,
                [first, ..] if *first < 0x80 => number,
                _ => return None,
            };
            // Longer than any chain.
            let long = number.len() > 1;
            constraints.length = Some(if long {
                usize::MAX
            } else {
                usize::from(*number.first()?)
            });
        }
        Some(Some(constraints))
    }

    /// Whether it may be used for signatures of code at a time.
    pub(super) fn may_sign_code(&self, time: i64) -> Option<bool> {
        let (begin, end) = self.validity;
        if time < begin || end < time {
            return Some(false);
        }
        let Some(usages) = self.extension(USAGES) else {
            return Some(true);
        };
        let mut usages = Der(Der(usages).take(SEQUENCE)?);
        while !usages.is_at_end() {
            if [CODE_SIGNING, ANY_USAGE].contains(&usages.take(OBJECT)?) {
                return Some(true);
            }
        }
        Some(false)
    }

    /// The addresses of mail that it is for; `None` if one of its names makes no sense.
    pub(super) fn emails(&self) -> Option<Vec<&'a str>> {
        let Some(names) = self.extension(SUBJECT_NAMES) else {
            return Some(Vec::new());
        };
        let mut names = Der(Der(names).take(SEQUENCE)?);
        let mut emails = Vec::new();
        while !names.is_at_end() {
            let (tag, name) = names.take_any()?;
            let is_sound = match tag {
                EMAIL | HOST | URI => name.is_ascii(),
                ADDRESS => matches!(name.len(), 4 | 16),
                _ => true,
            };
            if !is_sound {
                return None;
            }
            if tag == EMAIL {
                emails.push(std::str::from_utf8(name).ok()?);
            }
        }
        Some(emails)
    }

    /// Who has said that the subject is who it is; both extensions have to say the same if there are both.
    pub(super) fn issuer(&self) -> Option<&'a str> {
        let old = self.extension(ISSUER);
        let new = match self.extension(ISSUER_2) {
            None => None,
            Some(value) => {
                let mut value = Der(value);
                let text = value.take(TEXT)?;
                if !value.is_at_end() {
                    return None;
                }
                Some(text)
            }
        };
        let found = match (old, new) {
            (Some(old), Some(new)) if old != new => return None,
            (old, new) => old.or(new)?,
        };
        std::str::from_utf8(found).ok()
    }
}

/// A time in seconds since 1970.
fn time(from: &mut Der<'_>) -> Option<i64> {
    let (tag, text) = from.take_any()?;
    let text = std::str::from_utf8(text).ok().filter(|text| text.is_ascii())?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i16 = number(year)?.try_into().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (number(year)?.try_into().ok()?, rest)
        }
        _ => return None,
    };
    let digits = rest.strip_suffix('Z').filter(|digits| digits.len() == 10)?;
    let part =
        |index: usize| -> Option<i8> { number(digits.get(2 * index..2 * index + 2)?)?.try_into().ok() };
    let time = jiff::civil::DateTime::new(year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, 0).ok()?;
    Some(jiff::tz::Offset::UTC.to_timestamp(time).ok()?.as_second())
}

fn number(digits: &str) -> Option<u16> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", Some(0)),
            (UTC_TIME, "491231235959Z", Some(2_524_607_999)),
            (GENERALIZED_TIME, "20500101000000Z", Some(2_524_608_000)),
            (UTC_TIME, "700101000000", None),
            (UTC_TIME, "7001010000Z", None),
            (UTC_TIME, "701301000000Z", None),
            (UTC_TIME, "70010100+000Z", None),
            (GENERALIZED_TIME, "20500101000000.5Z", None),
            (OBJECT, "700101000000Z", None),
        ] {
            let bytes = [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
            assert_eq!(time(&mut Der(&bytes)), seconds, "{text}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_refused() {
        for bad in [
            &[][..],
            &[0x30, 0],
            &[0x30, 2, 0x30, 0],
            &[0x30, 0x82],
            b"certificate",
        ] {
            assert!(Certificate::read(bad).is_none(), "{bad:?}");
        }
    }
}
