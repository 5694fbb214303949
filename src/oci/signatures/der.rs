//! As much of DER as public keys need. Pure.

/// The elements of some bytes, one after the other.
#[derive(Debug)]
pub(super) struct Der<'a>(pub(super) &'a [u8]);

pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const OBJECT: u8 = 0x06;
pub(super) const BITS: u8 = 0x03;

impl<'a> Der<'a> {
    /// The content of the next element, which has to have this tag.
    pub(super) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
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
        (*found == tag).then_some(content)
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
