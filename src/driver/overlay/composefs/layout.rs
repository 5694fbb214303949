//! Where inodes of an EROFS image go. Pure.

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Bytes of the unit in which inodes are numbered.
pub(super) const SLOT: u64 = 32;
/// Bytes of the two forms of an inode.
const COMPACT: u64 = 32;
const EXTENDED: u64 = 64;

/// An inode with its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Placed {
    /// Its first byte.
    pub(super) at: u64,
    pub(super) compact: bool,
    /// Bytes of its attributes.
    pub(super) attributes: u64,
    /// Bytes of data behind it.
    pub(super) tail: u64,
    /// Blocks of data elsewhere.
    pub(super) blocks: u64,
}

impl Placed {
    fn head(&self) -> u64 {
        let inode = if self.compact { COMPACT } else { EXTENDED };
        inode + self.attributes
    }

    /// The byte behind it.
    pub(super) fn end(&self) -> u64 {
        self.at + self.head() + self.tail
    }

    /// The number that directories have of it.
    pub(super) fn number(&self) -> u64 {
        self.at / SLOT
    }
}

/// Places an inode at the first slot from `after` where the data behind it lies in one block; data that would need more than
/// that goes into a block of its own.
pub(super) fn place(
    after: u64,
    compact: bool,
    attributes: u64,
    blocks: u64,
    tail: u64,
    is_link: bool,
) -> Placed {
    let mut placed = Placed {
        at: after.next_multiple_of(SLOT),
        compact,
        attributes,
        tail,
        blocks,
    };
    let apart = |placed: &mut Placed| {
        placed.blocks += 1;
        placed.tail = 0;
    };
    if is_link {
        // The inode is in the same block.
        let total = placed.end() - placed.at;
        let ends_elsewhere = placed.at / BLOCK != (placed.end() - 1) / BLOCK;
        if total >= BLOCK {
            apart(&mut placed);
        }
        if ends_elsewhere {
            placed.at = placed.at.next_multiple_of(BLOCK);
        }
        return placed;
    }
    let room = |at: u64| BLOCK - (at + placed.head()) % BLOCK;
    let left = room(placed.at);
    if left < tail {
        let moved = placed.at + left.next_multiple_of(SLOT);
        if tail <= room(moved) {
            placed.at = moved;
        } else {
            apart(&mut placed);
            placed.at = placed.at.next_multiple_of(BLOCK);
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_behind_an_inode_lies_in_one_block() {
        for at in (0..2 * BLOCK).step_by(8) {
            for attributes in [0, 16, 60, 128, 4000, 5000] {
                for tail in [0, 1, 4, 31, 32, 700, 2048] {
                    for is_link in [false, true] {
                        if is_link && tail == 0 {
                            continue;
                        }
                        let placed = place(at, at.is_multiple_of(64), attributes, 0, tail, is_link);
                        assert!(
                            placed.at >= at
                                && placed.at.is_multiple_of(SLOT)
                                && placed.at < at + BLOCK + SLOT
                        );
                        if placed.tail > 0 {
                            let first = placed.end() - placed.tail;
                            assert_eq!(first / BLOCK, (placed.end() - 1) / BLOCK, "{placed:?}");
                        }
                        assert_eq!(placed.tail + placed.blocks * BLOCK == 0, tail == 0);
                    }
                }
            }
        }
    }
}
