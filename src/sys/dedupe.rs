//! Files that share their content.

#![expect(unsafe_code, reason = "FIDEDUPERANGE has no safe wrapper")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;

use crate::sys::sparse_read::{has_holes, next_data};

/// `_IOWR(0x94, 54, struct file_dedupe_range)`.
const FIDEDUPERANGE: u32 = 0xc018_9436;

/// What one call takes at the most.
const MAX_PART: u64 = 16 << 20;

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct Request {
    source_offset: u64,
    source_length: u64,
    count: u16,
    reserved: [u16; 3],
    target: i64,
    target_offset: u64,
    deduped: u64,
    status: i32,
    reserved_too: u32,
}

/// Has `to` share what it holds with `from`, which must have the same there: the kernel compares it. `false` if it has not; some may be shared then. Nothing can be won of the holes of `to`, which are passed over.
pub(crate) fn share(from: &File, to: &File) -> io::Result<bool> {
    let stat = rustix::fs::fstat(to)?;
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if !has_holes(&stat) {
        return share_range(from, to, 0..size);
    }
    let mut position = 0;
    while position < size {
        let data = next_data(to, position, size)?;
        if !data.is_empty() && !share_range(from, to, data.clone())? {
            return Ok(false);
        }
        position = data.end;
    }
    Ok(true)
}

/// The same for a part of both files.
fn share_range(from: &File, to: &File, range: Range<u64>) -> io::Result<bool> {
    let mut offset = range.start;
    while offset < range.end {
        let mut request = Request {
            source_offset: offset,
            source_length: (range.end - offset).min(MAX_PART),
            count: 1,
            reserved: [0; 3],
            target: to.as_raw_fd().into(),
            target_offset: offset,
            deduped: 0,
            status: 0,
            reserved_too: 0,
        };
        // SAFETY: the request has the layout that the kernel expects, with room for the one answer that it counts, and lives
        // as long as the call; both descriptors are open while it runs.
        let result = unsafe { libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE as libc::Ioctl, &raw mut request) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        match request.status {
            0 if request.deduped > 0 => offset += request.deduped,
            status if status < 0 => return Err(io::Error::from_raw_os_error(-status)),
            _ => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_as_long_as_its_number_says() {
        // The number has the length without the answers.
        let length = (FIDEDUPERANGE >> 16) & 0x3fff;
        assert_eq!(u64::try_from(size_of::<Request>() - 32), Ok(length.into()));
    }
}
