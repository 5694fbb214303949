//! As much of DER as public keys and certificates need. Pure.

/// The elements of some bytes, one after the other.
#[derive(Debug)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const OBJECT: u8 = 0x06;
pub(super) const BITS: u8 = 0x03;
pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const OCTETS: u8 = 0x04;
pub(super) const TEXT: u8 = 0x0c;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
/// Of a certificate.
pub(super) const VERSION: u8 = 0xa0;
/// Of a certificate.
pub(super) const EXTENSIONS: u8 = 0xa3;
/// Among the names of a certificate.
pub(super) const EMAIL: u8 = 0x81;
/// Among the names of a certificate.
pub(super) const HOST: u8 = 0x82;
/// Among the names of a certificate.
pub(super) const URI: u8 = 0x86;
/// Among the names of a certificate.
pub(super) const ADDRESS: u8 = 0x87;

impl<'a> Der<'a> {
    /// The content of the next element, which has to have this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (found, content) = self.take_any()?;
        (found == tag).then_some(content)
    }

    /// Skips the next element if it has this tag; `None` if it makes no sense.
    pub(super) fn take_if(&mut self, tag: u8) -> Option<()> {
        match self.0.first() {
            Some(found) if *found == tag => self.take_any().map(drop),
            _ => Some(()),
        }
    }

    /// The tag and the content of the next element.
    pub(super) fn take_any(&mut self) -> Option<(u8, &'a [u8])> {
        let [found, first, rest @ ..] = self.0 else {
            return None;
        };
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81 | 0x82 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x0f))?;
                let length = bytes
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*found, content))
    }

    /// What follows.
    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let mut der = Der(&[0x30, 3, 6, 1, 7, 3, 0]);
        let mut inner = Der(der.take(SEQUENCE).unwrap());
        assert_eq!((inner.take(OBJECT), inner.is_at_end()), (Some(&[7][..]), true));
        assert_eq!((der.take(BITS), der.is_at_end()), (Some(&[][..]), true));
        let long = [&[3, 0x81, 200][..], &[0; 200]].concat();
        assert_eq!(Der(&long).take(BITS).unwrap().len(), 200);
        for bad in [
            &[][..],
            &[3],
            &[3, 5, 1],
            &[3, 0x80],
            &[3, 0x84, 0, 0, 0, 1, 0],
            &[3, 0x82, 1],
            &[6, 1, 1],
        ] {
            assert_eq!(Der(bad).take(BITS), None, "{bad:?}");
        }
    }
}
