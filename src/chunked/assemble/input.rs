//! Bytes of a blob on their way to the assembler, in the pieces in which they have come.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// None is empty.
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Input {
    /// Adds a piece at the end.
    pub(super) fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// Bytes of all pieces.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first piece; empty only if there is none.
    pub(super) fn first(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece)
    }

    /// Takes away so many bytes at the start, or all that are there.
    pub(super) fn advance(&mut self, count: usize) {
        let mut rest = count;
        while rest > 0
            && let Some(first) = self.pieces.front_mut()
        {
            let part = rest.min(first.len());
            first.advance(part);
            if first.is_empty() {
                drop(self.pieces.pop_front());
            }
            self.length -= part;
            rest -= part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_one_after_the_other() {
        let mut input = Input::default();
        for piece in ["ab", "", "cde", "f"] {
            input.push(Bytes::from(piece));
        }
        assert_eq!((input.len(), input.first()), (6, &b"ab"[..]));
        input.advance(1);
        assert_eq!((input.len(), input.first()), (5, &b"b"[..]));
        input.advance(3);
        assert_eq!((input.len(), input.first()), (2, &b"e"[..]));
        input.advance(7);
        assert!(input.is_empty() && input.first().is_empty());
    }
}
