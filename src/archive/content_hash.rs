//! What tells files of the same content from others, without reading their holes. Pure.

use sha2::{Digest as _, Sha256};

use crate::archive::tar_split::crc::Crc;

/// Zeros of this length, from a multiple of it on, count as a hole, whether they are one or not.
const BLOCK: usize = 4096;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// A hash of a file's content. That by SHA-256 is one of the content without holes, and of where they are.
pub(super) struct ContentHash(Kind);

enum Kind {
    Crc(Crc),
    Sha256(Blocks),
}

#[derive(Default)]
struct Blocks {
    hasher: Sha256,
    /// What has come of a block.
    part: Vec<u8>,
    /// Blocks of zeros that came last.
    zeros: u64,
}

impl Blocks {
    fn block(&mut self, block: &[u8]) {
        if block == ZEROS {
            self.zeros += 1;
            return;
        }
        self.tell_zeros();
        self.hasher.update(block);
    }

    fn tell_zeros(&mut self) {
        let zeros = std::mem::take(&mut self.zeros);
        if zeros > 0 {
            self.hasher.update(zeros.to_le_bytes());
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.part.is_empty()
                && let Some((block, rest)) = bytes.split_at_checked(BLOCK)
            {
                self.block(block);
                bytes = rest;
                continue;
            }
            let count = (BLOCK - self.part.len()).min(bytes.len());
            let (now, rest) = bytes.split_at(count);
            self.part.extend_from_slice(now);
            bytes = rest;
            if self.part.len() == BLOCK {
                let mut part = std::mem::take(&mut self.part);
                self.block(&part);
                part.clear();
                self.part = part;
            }
        }
    }

    fn zeros(&mut self, count: u64) {
        let few = |count: u64| {
            ZEROS
                .get(..usize::try_from(count).unwrap_or(0))
                .unwrap_or_default()
        };
        let block = BLOCK as u64;
        let lead = (block - self.part.len() as u64) % block;
        let lead = lead.min(count);
        self.update(few(lead));
        let count = count - lead;
        self.zeros += count / block;
        self.update(few(count % block));
    }
}

impl ContentHash {
    /// Of the kind that costs least.
    pub(super) fn crc() -> Self {
        Self(Kind::Crc(Crc::new()))
    }

    /// Of the kind for which nobody can make two files of other content.
    pub(super) fn sha256() -> Self {
        Self(Kind::Sha256(Blocks::default()))
    }

    /// Adds bytes.
    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Kind::Crc(crc) => crc.update(bytes),
            Kind::Sha256(blocks) => blocks.update(bytes),
        }
    }

    /// Adds so many zeros.
    pub(super) fn zeros(&mut self, count: u64) {
        match &mut self.0 {
            Kind::Crc(crc) => crc.zeros(count),
            Kind::Sha256(blocks) => blocks.zeros(count),
        }
    }

    /// The hash of all.
    pub(super) fn finish(self) -> Vec<u8> {
        match self.0 {
            Kind::Crc(mut crc) => crc.take().to_vec(),
            Kind::Sha256(mut blocks) => {
                blocks.tell_zeros();
                let part = std::mem::take(&mut blocks.part);
                blocks.hasher.update(part);
                blocks.hasher.finalize().to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Holes are told of as such, or read as zeros: the hash is the same. Other content has another one.
        #[test]
        fn where_the_holes_are_does_not_matter(
            parts in prop::collection::vec((0usize..20_000, 0usize..9000), 0..6),
            size in 1usize..9000,
        ) {
            for new in [ContentHash::crc, ContentHash::sha256] {
                let (mut with_holes, mut whole, mut other) = (new(), new(), new());
                let mut data = Vec::new();
                for (zeros, others) in &parts {
                    with_holes.zeros(*zeros as u64);
                    with_holes.update(&vec![7; *others]);
                    data.resize(data.len() + zeros, 0);
                    data.resize(data.len() + others, 7);
                }
                for piece in data.chunks(size) {
                    whole.update(piece);
                }
                let sum = with_holes.finish();
                prop_assert_eq!(&sum, &whole.finish());
                if let Some(last) = data.last_mut() {
                    *last ^= 1;
                    other.update(&data);
                    prop_assert_ne!(sum, other.finish());
                }
            }
        }
    }
}
