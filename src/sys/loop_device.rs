//! Loop devices: files as block devices.

#![expect(unsafe_code, reason = "the ioctls have no safe wrapper")]

use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Opcode, Setter};

const GET_FREE: Opcode = 0x4C82;
const CONFIGURE: Opcode = 0x4C0A;

const READ_ONLY: u32 = 1;
/// The device is detached when nobody has it open.
const AUTOCLEAR: u32 = 4;

/// How often a free device may be taken by somebody else.
const MAX_RACES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A read-only loop device. It goes when it is dropped and nothing that was mounted from it is left.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    _open: OwnedFd,
}

impl LoopDevice {
    /// Attaches a file that is open for reading.
    pub(crate) fn attach(file: BorrowedFd<'_>) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let control = rustix::fs::openat(CWD, "/dev/loop-control", flags, Mode::empty())?;
        for _ in 0..MAX_RACES {
            let number = free_device(&control)?;
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let open = rustix::fs::openat(CWD, &path, flags, Mode::empty())?;
            match configure(&open, file) {
                Ok(()) => return Ok(Self { path, _open: open }),
                Err(Errno::BUSY) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::BUSY)
    }
}

fn configure(device: &OwnedFd, file: BorrowedFd<'_>) -> Result<()> {
    let config = Config {
        file: u32::try_from(file.as_raw_fd()).or(Err(Errno::BADF))?,
        block_size: 0,
        info: Info {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: READ_ONLY | AUTOCLEAR,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        },
        reserved: [0; 8],
    };
    // SAFETY: the opcode takes a pointer to the structure, which has the kernel's layout; the kernel only reads it, and
    // takes a reference of its own on the file.
    unsafe { ioctl::ioctl(device, Setter::<CONFIGURE, _>::new(config)) }
}

/// The number of a device that nobody uses at this moment.
fn free_device(control: &OwnedFd) -> Result<u32> {
    // SAFETY: the opcode takes no argument.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), libc::Ioctl::from(GET_FREE)) };
    u32::try_from(number)
        .map_err(|_negative| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}
