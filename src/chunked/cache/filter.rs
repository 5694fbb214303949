//! Which digests a cache file may have: a Bloom filter.
//!
//! Each of three hashes of a digest selects a bit. Hash number i is the CRC-32 of the first i bytes, xor that of the
//! others, modulo the number of bits.

use super::format::{DIGEST_LENGTH, DIGEST_PREFIX};

/// Hashes of a digest.
pub(super) const HASHES: u32 = 3;

/// Bits for each digest.
const BITS_FOR_EACH: usize = 10;

/// A digest to look for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    digest: [u8; DIGEST_LENGTH],
    hashes: [u32; HASHES as usize],
}

impl Key {
    /// That of a sha256 sum.
    pub(crate) fn new(sum: &[u8; 32]) -> Self {
        let mut digest = [0; DIGEST_LENGTH];
        let (prefix, rest) = digest.split_at_mut(DIGEST_PREFIX.len());
        prefix.copy_from_slice(DIGEST_PREFIX);
        rest.copy_from_slice(sum);
        let mut hashes = [0; HASHES as usize];
        for ((at, hash), head) in hashes.iter_mut().enumerate().zip(HEADS) {
            let (_, tail) = digest.split_at(at);
            *hash = head ^ crc(tail);
        }
        Self { digest, hashes }
    }

    /// The digest as in a tag.
    pub(super) fn digest(&self) -> &[u8; DIGEST_LENGTH] {
        &self.digest
    }

    /// The bits of a filter with so many words that say whether it may be there. There is at least one word, and no more
    /// than have numbers of 32 bits for their bits.
    pub(super) fn bits(&self, words: u32) -> impl Iterator<Item = (u32, u64)> {
        let bits = words.saturating_mul(64).max(1);
        self.hashes.into_iter().map(move |hash| {
            let bit = hash % bits;
            (bit / 64, 1 << (bit % 64))
        })
    }
}

/// The checksums of the first bytes of every digest: of none, one and two.
const HEADS: [u32; HASHES as usize] = [0, 0x1b0e_cf0b, 0x06a2_d1a0];

/// CRC-32 as in gzip.
fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iso_hdlc(bytes)
}

/// Words of the filter for so many digests.
pub(super) fn words_for(digests: usize) -> usize {
    (digests * BITS_FOR_EACH).div_ceil(64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_those_of_digests() {
        assert_eq!(HEADS, [0, 1, 2].map(|count| crc(&DIGEST_PREFIX[..count])));
    }

    #[test]
    fn sizes_are_those_of_the_go_library() {
        assert_eq!([0, 1, 6, 7, 31].map(words_for), [1, 1, 1, 2, 5]);
    }

    #[test]
    fn the_first_hash_is_that_of_the_whole_digest() {
        let key = Key::new(&[0; 32]);
        assert_eq!(&key.digest()[..8], b"sha256:\0");
        let (word, bit) = key.bits(u32::MAX / 64).next().unwrap();
        let expected = crc(key.digest()) % (u32::MAX / 64 * 64);
        assert_eq!((word, bit), (expected / 64, 1 << (expected % 64)));
        assert_eq!(key.bits(1).map(|(word, _)| word).collect::<Vec<_>>(), [0; 3]);
    }
}
