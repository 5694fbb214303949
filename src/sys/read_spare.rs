//! Reads into the spare capacity of a buffer, which does not have to be cleared for it.

#![expect(
    unsafe_code,
    reason = "the length of a buffer is set to what was read into it"
)]

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};

/// Reads once, no more than `limit` bytes and no more than the capacity has room for, and returns how many came. Without
/// `offset` it reads at the position of the file and moves that; else the position is neither used nor moved.
pub(crate) fn read_spare(
    file: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
    limit: usize,
    offset: Option<u64>,
) -> Result<usize> {
    let (length, spare) = (buffer.len(), buffer.spare_capacity_mut());
    let room = limit.min(spare.len());
    let Some(spare) = spare.get_mut(..room).filter(|spare| !spare.is_empty()) else {
        return Ok(0);
    };
    loop {
        let read = match offset {
            Some(offset) => rustix::io::pread(file, &mut *spare, offset),
            None => rustix::io::read(file, &mut *spare),
        };
        let count = match read {
            Err(Errno::INTR) => continue,
            read => read?.0.len(),
        };
        // SAFETY: the bytes up to `length` were there; the `count` ones behind them are those that the call has returned as
        // initialized, which begin where the spare capacity does.
        unsafe { buffer.set_len(length + count) };
        return Ok(count);
    }
}
