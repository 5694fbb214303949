//! The hash of attribute names in the filters of EROFS inodes: 32-bit xxHash. Pure.

/// The seed of a name whose prefix has the number 0.
const SEED: u32 = 0x25BB_E08F;

const PRIMES: [u32; 5] = [
    2_654_435_761,
    2_246_822_519,
    3_266_489_917,
    668_265_263,
    374_761_393,
];

/// The hash of what follows the prefix of this number in an attribute's name.
pub(super) fn name_hash(name: &[u8], prefix: u8) -> u32 {
    xxhash(name, SEED.wrapping_add(prefix.into()))
}

fn xxhash(data: &[u8], seed: u32) -> u32 {
    let [first, second, third, fourth, fifth] = PRIMES;
    let (stripes, rest) = data.as_chunks::<16>();
    let mut hash = seed.wrapping_add(fifth);
    if !stripes.is_empty() {
        let mut lanes = [
            seed.wrapping_add(first).wrapping_add(second),
            seed.wrapping_add(second),
            seed,
            seed.wrapping_sub(first),
        ];
        for stripe in stripes {
            for (lane, word) in lanes.iter_mut().zip(stripe.as_chunks::<4>().0) {
                let sum = lane.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(second));
                *lane = sum.rotate_left(13).wrapping_mul(first);
            }
        }
        let turned = lanes
            .iter()
            .zip([1, 7, 12, 18])
            .map(|(lane, by)| lane.rotate_left(by));
        hash = turned.fold(0, u32::wrapping_add);
    }
    // Lengths beyond 32 bits count modulo that; names are shorter.
    hash = hash.wrapping_add(u32::try_from(data.len()).unwrap_or(u32::MAX));
    let (words, bytes) = rest.as_chunks::<4>();
    for word in words {
        let sum = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(third));
        hash = sum.rotate_left(17).wrapping_mul(fourth);
    }
    for byte in bytes {
        let sum = hash.wrapping_add(u32::from(*byte).wrapping_mul(fifth));
        hash = sum.rotate_left(11).wrapping_mul(first);
    }
    hash = (hash ^ (hash >> 15)).wrapping_mul(second);
    hash = (hash ^ (hash >> 13)).wrapping_mul(third);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_xxhash() {
        // From the test vectors of the specification's reference implementation.
        for (text, seed, sum) in [
            ("", 0, 0x02CC_5D05),
            ("", PRIMES[0], 0x36B7_8AE7),
            ("abc", 0, 0x32D1_53FF),
            ("Nobody inspects the spammish repetition", 0, 0xE229_3B2F),
        ] {
            assert_eq!(xxhash(text.as_bytes(), seed), sum, "{text}");
        }
    }
}
