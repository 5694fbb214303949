//! fs-verity: files that the kernel no longer lets anybody change, and whose content it verifies when it is read.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Opcode, Setter, Updater, opcode};

/// The number of SHA-256 in the kernel's interface.
const SHA256: u32 = 1;
const BLOCK_SIZE: u32 = 4096;

/// `struct fsverity_enable_arg`.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_too: [u64; 11],
}

/// `struct fsverity_digest`, the head.
#[repr(C)]
struct DigestHead {
    algorithm: u16,
    size: u16,
}

/// The head and room for the digest.
#[repr(C)]
struct DigestArgument {
    algorithm: u16,
    size: u16,
    digest: [u8; 64],
}

const ENABLE: Opcode = opcode::write::<EnableArgument>(b'f', 133);
const MEASURE: Opcode = opcode::read_write::<DigestHead>(b'f', 134);

/// Makes a file that is open for reading, and by nobody for writing, a verified one (SHA-256, blocks of 4096 bytes, no salt).
/// Returns its digest; `None` where the file system has no fs-verity. A file that is one already stays as it is.
pub(crate) fn enable(file: BorrowedFd<'_>) -> Result<Option<[u8; 32]>> {
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK_SIZE,
        ..EnableArgument::default()
    };
    // SAFETY: the opcode takes a pointer to the structure, which has the kernel's layout and no pointers in it; the kernel
    // only reads it.
    match unsafe { ioctl::ioctl(file, Setter::<ENABLE, _>::new(argument)) } {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(None),
        Err(error) => return Err(error),
    }
    measure(file)?.map_or(Err(Errno::INVAL), |digest| Ok(Some(digest)))
}

/// The digest of a file that the kernel verifies; `None` if it is none, or one with other parameters.
pub(crate) fn measure(file: BorrowedFd<'_>) -> Result<Option<[u8; 32]>> {
    let mut argument = DigestArgument {
        algorithm: 0,
        size: 64,
        digest: [0; 64],
    };
    // SAFETY: the opcode takes a pointer to the head, behind which the kernel writes no more bytes than `size` says, for
    // which there is room.
    match unsafe { ioctl::ioctl(file, Updater::<MEASURE, _>::new(&mut argument)) } {
        Ok(()) => {}
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOTTY) => return Ok(None),
        Err(error) => return Err(error),
    }
    let digest = argument.digest.first_chunk().copied();
    let fits = u32::from(argument.algorithm) == SHA256 && argument.size == 32;
    Ok(digest.filter(|_| fits))
}
