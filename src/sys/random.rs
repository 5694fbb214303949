//! Random bytes of the kernel, and random names that are not in use.

use std::io;

use rustix::io::Errno;

use crate::error::{IoContext as _, Result};

/// How many random names are tried before giving up.
const ATTEMPTS: usize = 1000;

/// Random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).during("drawing random bytes")?;
    Ok(bytes)
}

/// A random number, for a name.
pub(crate) fn number() -> Result<u32> {
    bytes().map(u32::from_ne_bytes)
}

/// What `make` returns for the first random number whose name is not taken. `make` fails with `EEXIST` if it is.
pub(crate) fn with_unused<T>(mut make: impl FnMut(u32) -> rustix::io::Result<T>) -> io::Result<T> {
    for _ in 0..ATTEMPTS {
        match make(getrandom::u32()?) {
            Err(Errno::EXIST) => {}
            result => return Ok(result?),
        }
    }
    Err(Errno::EXIST.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_taken_are_passed_over_and_other_errors_end_the_search() {
        let mut seen = Vec::new();
        let found = with_unused(|number| {
            seen.push(number);
            if seen.len() < 5 {
                Err(Errno::EXIST)
            } else {
                Ok(number)
            }
        });
        assert_eq!(seen.last().copied(), found.ok());
        assert_eq!(seen.len(), 5);
        let mut calls = 0;
        let failed = with_unused(|_| -> rustix::io::Result<()> {
            calls += 1;
            Err(Errno::ACCESS)
        });
        assert_eq!(
            (calls, failed.unwrap_err().kind()),
            (1, io::ErrorKind::PermissionDenied)
        );
        let full = with_unused(|_| -> rustix::io::Result<()> { Err(Errno::EXIST) });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_ne!(bytes::<32>().unwrap(), bytes().unwrap());
    }
}
