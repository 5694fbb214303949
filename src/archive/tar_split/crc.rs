//! The checksum of files in a tar-split file. Pure.

/// What a file payload is checked with: CRC-64/GO-ISO, big endian.
#[derive(Debug)]
pub(crate) struct Crc(crc_fast::Digest);

impl Crc {
    /// The checksum of nothing yet.
    pub(crate) fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64GoIso))
    }

    /// Adds bytes.
    pub(crate) fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// Adds so many zeros, in a time that hardly depends on how many they are.
    pub(crate) fn zeros(&mut self, count: u64) {
        let mut rest = count;
        // Of as many zeros as a bit of the count stands for.
        let mut power = Self::new().0;
        power.update(&[0]);
        while rest > 0 {
            if rest & 1 == 1 {
                self.0.combine(&power);
            }
            rest >>= 1;
            if rest > 0 {
                let half = power;
                power.combine(&half);
            }
        }
    }

    /// Hands out the sum and starts anew.
    pub(crate) fn take(&mut self) -> [u8; 8] {
        let sum = self.0.finalize().to_be_bytes();
        self.0.reset();
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_that_others_write() {
        let mut crc = Crc::new();
        for (data, sum) in [
            (&b""[..], 0),
            (b"123456789", 0xb909_56c7_75a4_1001_u64),
            (b"hello\n", 0x614c_3eee_e2d8_1000),
        ] {
            crc.update(data);
            assert_eq!(u64::from_be_bytes(crc.take()), sum, "{data:?}");
        }
    }

    #[test]
    fn zeros_are_summed_without_being_there() {
        for (before, zeros, after) in [
            ("", 0, ""),
            ("", 1, ""),
            ("a", 0, "b"),
            ("abc", 100_000, "d"),
            ("", 4097, "x"),
        ] {
            let (mut one, mut other) = (Crc::new(), Crc::new());
            one.update(before.as_bytes());
            one.zeros(zeros);
            one.update(after.as_bytes());
            other.update(before.as_bytes());
            other.update(&vec![0; usize::try_from(zeros).unwrap()]);
            other.update(after.as_bytes());
            assert_eq!(one.take(), other.take(), "{before} {zeros} {after}");
        }
        Crc::new().zeros(u64::MAX);
    }
}
