//! The token of the last write, at the start of a lock file.
//!
//! A writer replaces the token under the exclusive lock before it changes a store; a reader compares it with the token
//! of its last load. Layout of a new token, always 64 bytes:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 8 | wall clock, nanoseconds since 1970, little-endian |
//! | 8 | 8 | counter of this process, from 1, little-endian |
//! | 16 | 4 | process ID, little-endian |
//! | 20 | 44 | random |
//!
//! Tokens are only compared, never parsed. The random part makes tokens of different PID namespaces differ.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Result;
use crate::sys::random;

/// The size of a token; older Go versions accept no other size.
pub(crate) const SIZE: usize = 64;

static COUNTER: AtomicU64 = AtomicU64::new(0);

/// The token in a lock file: up to [`SIZE`] bytes, compared as a whole. Empty: never written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token {
    /// Zero from `len` on.
    bytes: [u8; SIZE],
    len: usize,
}

impl Token {
    /// A token that differs from all others.
    pub(crate) fn new() -> Result<Self> {
        let random = random::bytes()?;
        // A clock before 1970 or after 2554 only costs uniqueness that the other parts have as well.
        let clock = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let clock = u64::try_from(clock).unwrap_or_default();
        let counter = COUNTER.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        Ok(Self::layout(clock, counter, std::process::id(), &random))
    }

    fn layout(clock: u64, counter: u64, pid: u32, random: &[u8; 44]) -> Self {
        let mut bytes = [0; SIZE];
        bytes[..8].copy_from_slice(&clock.to_le_bytes());
        bytes[8..16].copy_from_slice(&counter.to_le_bytes());
        bytes[16..20].copy_from_slice(&pid.to_le_bytes());
        bytes[20..].copy_from_slice(random);
        Self { bytes, len: SIZE }
    }

    /// The token in the content of a lock file; bytes after the first [`SIZE`] are ignored.
    pub(crate) fn from_bytes(read: &[u8]) -> Self {
        let len = read.len().min(SIZE);
        let mut bytes = [0; SIZE];
        bytes[..len].copy_from_slice(&read[..len]);
        Self { bytes, len }
    }

    /// The bytes as in the file.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(")?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn layout_is_that_of_go() {
        let token = Token::layout(0x0102_0304_0506_0708, 9, 0x0a0b_0c0d, &[0xee; 44]);
        let bytes = token.as_bytes();
        assert_eq!(bytes.len(), 64);
        assert_eq!(
            bytes[..20],
            [8, 7, 6, 5, 4, 3, 2, 1, 9, 0, 0, 0, 0, 0, 0, 0, 13, 12, 11, 10]
        );
        assert!(bytes[20..].iter().all(|byte| *byte == 0xee));
    }

    #[test]
    fn all_are_different() {
        let all: HashSet<Vec<u8>> = (0..1000)
            .map(|_| Token::new().unwrap().as_bytes().to_vec())
            .collect();
        assert_eq!(all.len(), 1000);
        let one = Token::new().unwrap();
        let counter = u64::from_le_bytes(one.as_bytes()[8..16].try_into().unwrap());
        assert!(counter > 1000, "{counter}");
        assert_eq!(one.as_bytes()[16..20], std::process::id().to_le_bytes());
    }

    #[test]
    fn compared_as_opaque_bytes_with_their_length() {
        let token = Token::new().unwrap();
        assert_eq!(Token::from_bytes(token.as_bytes()), token);
        let mut longer = token.as_bytes().to_vec();
        longer.push(1);
        assert_eq!(Token::from_bytes(&longer), token);
        assert_ne!(Token::from_bytes(&token.as_bytes()[..63]), token);
        assert_ne!(Token::from_bytes(&[]), Token::from_bytes(&[0]));
        assert_eq!(Token::from_bytes(&[]).as_bytes(), b"");
    }
}
