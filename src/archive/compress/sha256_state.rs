//! A sha256 computation that can go on together with another one of the same bytes.

use crate::sys::sha256_pair::{self, Block, State};

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

const BLOCK: usize = size_of::<Block>();

/// See the module's head.
#[derive(Clone)]
pub(super) struct Sha256State {
    state: State,
    /// Bytes of a block that is not complete.
    waiting: Block,
    waits: usize,
    /// All bytes so far.
    length: u64,
}

impl Sha256State {
    pub(super) fn new() -> Self {
        Self {
            state: START,
            waiting: [0; BLOCK],
            waits: 0,
            length: 0,
        }
    }

    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        if self.waits > 0 {
            let count = rest.len().min(BLOCK - self.waits);
            let (head, tail) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            self.keep(head);
            if self.waits < BLOCK {
                return;
            }
            sha2::block_api::compress256(&mut self.state, std::slice::from_ref(&self.waiting));
            self.waits = 0;
            rest = tail;
        }
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        sha2::block_api::compress256(&mut self.state, blocks);
        self.length += (blocks.len() * BLOCK) as u64;
        self.keep(tail);
    }

    /// Adds bytes to both. It takes hardly longer than for one if both are at the same place of a block.
    pub(super) fn update_both(&mut self, other: &mut Self, bytes: &[u8]) {
        let head = match self.waits == other.waits {
            true => (BLOCK - self.waits) % BLOCK,
            false => bytes.len(),
        };
        let (head, rest) = bytes.split_at_checked(head).unwrap_or((bytes, &[]));
        self.update(head);
        other.update(head);
        let (blocks, tail) = rest.as_chunks::<BLOCK>();
        let mut states = [self.state, other.state];
        sha256_pair::compress(&mut states, blocks);
        [self.state, other.state] = states;
        for each in [self, other] {
            each.length += (blocks.len() * BLOCK) as u64;
            each.keep(tail);
        }
    }

    /// Adds bytes that do not go beyond the block.
    fn keep(&mut self, bytes: &[u8]) {
        if let Some(room) = self.waiting.get_mut(self.waits..self.waits + bytes.len()) {
            room.copy_from_slice(bytes);
            self.waits += bytes.len();
            self.length += bytes.len() as u64;
        }
    }

    /// The sum of everything added.
    pub(super) fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        // One bit, and zeros up to the last eight bytes of a block.
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        let zeros = (2 * BLOCK - 8 - self.waits - 1) % BLOCK;
        self.update(padding.get(..=zeros).unwrap_or_default());
        self.update(&bits.to_be_bytes());
        let mut sum = [0; 32];
        for (bytes, word) in sum.as_chunks_mut::<4>().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sha2::Digest as _;

    use super::*;

    fn expected(bytes: &[u8]) -> [u8; 32] {
        sha2::Sha256::digest(bytes).into()
    }

    #[test]
    fn padding_is_right_at_every_length() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..=bytes.len() {
            let mut state = Sha256State::new();
            state.update(&bytes[..length]);
            assert_eq!(state.finish(), expected(&bytes[..length]), "{length}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn two_at_once_are_what_each_alone_would_be(
            before in 0usize..200,
            cuts in prop::collection::vec(0usize..700, 0..8),
            between in 0usize..100,
        ) {
            let mut all: Vec<u8> = (0..before).map(|at| at.to_le_bytes()[0]).collect();
            let mut own = Vec::new();
            let (mut one, mut other) = (Sha256State::new(), Sha256State::new());
            one.update(&all);
            for (number, cut) in cuts.into_iter().enumerate() {
                let piece: Vec<u8> = (0..cut).map(|at| (at * 7 + number).to_le_bytes()[0]).collect();
                one.update_both(&mut other, &piece);
                all.extend_from_slice(&piece);
                own.extend_from_slice(&piece);
                if number == 3 {
                    one.update(&vec![9; between]);
                    all.extend_from_slice(&vec![9; between]);
                }
            }
            prop_assert_eq!(one.finish(), expected(&all));
            prop_assert_eq!(other.finish(), expected(&own));
        }
    }
}
