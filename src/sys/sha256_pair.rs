//! Two sha256 computations over the same bytes at once, in hardly more time than one takes.
//!
//! The processor's instructions for sha256 wait for their own results most of the time, and what they make of the message is
//! the same for both.

#![expect(unsafe_code, reason = "instructions that not every processor has")]

use sha2::block_api::compress256;

/// The state of a computation.
pub(crate) type State = [u32; 8];

/// Bytes that are taken in at a time.
pub(crate) type Block = [u8; 64];

/// Takes blocks in into both states.
pub(crate) fn compress(states: &mut [State; 2], blocks: &[Block]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("sha") && is_x86_feature_detected!("sse4.1") {
        // SAFETY: the processor has the instructions. Those of SSSE3 come with SSE 4.1.
        unsafe { x86::compress(states, blocks) };
        return;
    }
    each(states, blocks);
}

/// The same, one after the other.
fn each(states: &mut [State; 2], blocks: &[Block]) {
    for state in states {
        compress256(state, blocks);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32, _mm_shuffle_epi8,
        _mm_shuffle_epi32,
    };

    use super::{Block, State};

    /// The instructions have a state as the words A, B, E, F and C, D, G, H, the last one lowest.
    macro_rules! load_state {
        ($state:expr) => {{
            let [a, b, c, d, e, f, g, h] = $state.map(u32::cast_signed);
            (_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h))
        }};
    }

    macro_rules! store_state {
        ($abef:expr, $cdgh:expr) => {
            [
                _mm_extract_epi32::<3>($abef),
                _mm_extract_epi32::<2>($abef),
                _mm_extract_epi32::<3>($cdgh),
                _mm_extract_epi32::<2>($cdgh),
                _mm_extract_epi32::<1>($abef),
                _mm_extract_epi32::<0>($abef),
                _mm_extract_epi32::<1>($cdgh),
                _mm_extract_epi32::<0>($cdgh),
            ]
            .map(i32::cast_unsigned)
        };
    }

    /// The four words of the message that come sixteen after `now`.
    macro_rules! successor {
        ($now:expr, $next:expr, $before_last:expr, $last:expr) => {{
            let shifted = _mm_alignr_epi8::<4>($last, $before_last);
            _mm_sha256msg2_epu32(_mm_add_epi32(_mm_sha256msg1_epu32($now, $next), shifted), $last)
        }};
    }

    // Macros and one loop: calls would be paid for in builds that do not inline them.
    #[target_feature(enable = "sha,sse4.1,ssse3")]
    pub(super) fn compress(states: &mut [State; 2], blocks: &[Block]) {
        let swap = _mm_set_epi64x(0x0c0d_0e0f_0809_0a0b, 0x0405_0607_0001_0203);
        let (mut abef, mut cdgh) = load_state!(states[0]);
        let (mut other_abef, mut other_cdgh) = load_state!(states[1]);
        for block in blocks {
            let before = (abef, cdgh, other_abef, other_cdgh);
            let &[w0, w1, w2, w3, w4, w5, w6, w7] = block.as_chunks::<8>().0 else {
                continue;
            };
            macro_rules! load {
                ($low:expr, $high:expr) => {
                    _mm_shuffle_epi8(
                        _mm_set_epi64x(i64::from_le_bytes($high), i64::from_le_bytes($low)),
                        swap,
                    )
                };
            }
            // Four rounds of both, with their constants.
            macro_rules! rounds {
                ($message:expr, $low:expr, $high:expr) => {
                    let constants = _mm_set_epi64x(u64::cast_signed($high), u64::cast_signed($low));
                    let lower = _mm_add_epi32($message, constants);
                    let upper = _mm_shuffle_epi32::<0x0e>(lower);
                    cdgh = _mm_sha256rnds2_epu32(cdgh, abef, lower);
                    other_cdgh = _mm_sha256rnds2_epu32(other_cdgh, other_abef, lower);
                    abef = _mm_sha256rnds2_epu32(abef, cdgh, upper);
                    other_abef = _mm_sha256rnds2_epu32(other_abef, other_cdgh, upper);
                };
            }
            let (mut a, mut b, mut c, mut d) = (load!(w0, w1), load!(w2, w3), load!(w4, w5), load!(w6, w7));
            rounds!(a, 0x7137_4491_428a_2f98, 0xe9b5_dba5_b5c0_fbcf);
            a = successor!(a, b, c, d);
            rounds!(b, 0x59f1_11f1_3956_c25b, 0xab1c_5ed5_923f_82a4);
            b = successor!(b, c, d, a);
            rounds!(c, 0x1283_5b01_d807_aa98, 0x550c_7dc3_2431_85be);
            c = successor!(c, d, a, b);
            rounds!(d, 0x80de_b1fe_72be_5d74, 0xc19b_f174_9bdc_06a7);
            d = successor!(d, a, b, c);
            rounds!(a, 0xefbe_4786_e49b_69c1, 0x240c_a1cc_0fc1_9dc6);
            a = successor!(a, b, c, d);
            rounds!(b, 0x4a74_84aa_2de9_2c6f, 0x76f9_88da_5cb0_a9dc);
            b = successor!(b, c, d, a);
            rounds!(c, 0xa831_c66d_983e_5152, 0xbf59_7fc7_b003_27c8);
            c = successor!(c, d, a, b);
            rounds!(d, 0xd5a7_9147_c6e0_0bf3, 0x1429_2967_06ca_6351);
            d = successor!(d, a, b, c);
            rounds!(a, 0x2e1b_2138_27b7_0a85, 0x5338_0d13_4d2c_6dfc);
            a = successor!(a, b, c, d);
            rounds!(b, 0x766a_0abb_650a_7354, 0x9272_2c85_81c2_c92e);
            b = successor!(b, c, d, a);
            rounds!(c, 0xa81a_664b_a2bf_e8a1, 0xc76c_51a3_c24b_8b70);
            c = successor!(c, d, a, b);
            rounds!(d, 0xd699_0624_d192_e819, 0x106a_a070_f40e_3585);
            d = successor!(d, a, b, c);
            rounds!(a, 0x1e37_6c08_19a4_c116, 0x34b0_bcb5_2748_774c);
            rounds!(b, 0x4ed8_aa4a_391c_0cb3, 0x682e_6ff3_5b9c_ca4f);
            rounds!(c, 0x78a5_636f_748f_82ee, 0x8cc7_0208_84c8_7814);
            rounds!(d, 0xa450_6ceb_90be_fffa, 0xc671_78f2_bef9_a3f7);
            abef = _mm_add_epi32(abef, before.0);
            cdgh = _mm_add_epi32(cdgh, before.1);
            other_abef = _mm_add_epi32(other_abef, before.2);
            other_cdgh = _mm_add_epi32(other_cdgh, before.3);
        }
        *states = [store_state!(abef, cdgh), store_state!(other_abef, other_cdgh)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the standard begins with.
    const START: State = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];

    #[test]
    fn both_are_what_each_alone_would_be() {
        let blocks: Vec<Block> = (0..9u8)
            .map(|number| std::array::from_fn(|at| number.wrapping_mul(31) ^ at.to_le_bytes()[0]))
            .collect();
        let mut expected = [START, START.map(|word| word.rotate_left(7))];
        let mut found = expected;
        for count in [0, 1, 3, 5] {
            each(&mut expected, &blocks[..count]);
            compress(&mut found, &blocks[..count]);
            assert_eq!(found, expected, "{count}");
        }
    }
}
