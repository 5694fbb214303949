//! The last-write token: 64 bytes at the start of a lock file that change with every save.
//!
//! A reader that finds the token it remembers knows that its snapshot is current. Layout as in the Go library:
//!
//! | offset | size | content |
//! |---|---|---|
//! | 0 | 8 | wall clock, Unix nanoseconds, little-endian |
//! | 8 | 8 | counter of this process, little-endian |
//! | 16 | 4 | process ID, little-endian |
//! | 20 | 44 | random |
//!
//! Nobody may interpret it; it is compared as a whole.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Length of a token on disk.
pub(crate) const LENGTH: usize = 64;

/// What a lock file says about its last save; empty for a file that was never written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    bytes: [u8; LENGTH],
    length: usize,
}

impl Token {
    /// A token that no other save has had or will have.
    pub(crate) fn new() -> Result<Self> {
        static COUNTER: AtomicU64 = AtomicU64::new(1);
        let mut bytes = [0; LENGTH];
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX);
        bytes[..8].copy_from_slice(&nanoseconds.to_le_bytes());
        bytes[8..16].copy_from_slice(&COUNTER.fetch_add(1, Ordering::Relaxed).to_le_bytes());
        bytes[16..20].copy_from_slice(&std::process::id().to_le_bytes());
        getrandom::fill(&mut bytes[20..])
            .map_err(|error| Error::io("drawing a last-write token", std::io::Error::from(error)))?;
        Ok(Self { bytes, length: LENGTH })
    }

    /// The token that was read from a lock file: its first bytes, at most 64.
    pub(crate) fn from_bytes(read: &[u8]) -> Self {
        let length = read.len().min(LENGTH);
        let mut bytes = [0; LENGTH];
        bytes[..length].copy_from_slice(&read[..length]);
        Self { bytes, length }
    }

    /// The bytes as they are on disk.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_are_equal_and_the_layout_is_gos() {
        let (a, b) = (Token::new().unwrap(), Token::new().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.as_bytes().len(), LENGTH);
        assert_eq!(a.as_bytes()[16..20], std::process::id().to_le_bytes());
        assert_eq!(Token::from_bytes(a.as_bytes()), a);
        assert_ne!(Token::from_bytes(&a.as_bytes()[..63]), a);
        assert_eq!(Token::from_bytes(b"").as_bytes(), b"");
    }
}
