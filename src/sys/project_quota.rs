//! Project IDs of directories, and the limits and usage of projects. Linux 5.14.

#![expect(unsafe_code, reason = "the ioctls and quotactl_fd have no safe wrapper")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::{Errno, Result};
use rustix::ioctl::{self, Getter, Opcode, Setter, opcode};

/// `struct fsxattr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FileAttributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    cow_extent_size: u32,
    padding: [u8; 8],
}

const GET: Opcode = opcode::read::<FileAttributes>(b'X', 31);
const SET: Opcode = opcode::write::<FileAttributes>(b'X', 32);

/// `FS_XFLAG_PROJINHERIT`: what is made in the directory belongs to its project.
const INHERIT: u32 = 0x200;

/// `struct fs_disk_quota`. Blocks have 512 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fields: u16,
    id: u32,
    blocks_hard: u64,
    blocks_soft: u64,
    inodes_hard: u64,
    inodes_soft: u64,
    blocks: u64,
    inodes: u64,
    times: [i32; 2],
    warnings: [u16; 2],
    times_high: [i8; 4],
    realtime: [u64; 3],
    realtime_time: i32,
    realtime_warnings: u16,
    padding: i16,
    padding_too: [u8; 8],
}

/// `struct fs_quota_statv`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct QuotaState {
    version: i8,
    padding: u8,
    flags: u16,
    rest: [u64; 19],
}

/// `FS_DQ_ISOFT`, `FS_DQ_IHARD`, `FS_DQ_BSOFT` and `FS_DQ_BHARD`.
const ALL_LIMITS: u16 = 0xf;
/// `FS_PROJ_QUOTA`.
const PROJECT: i8 = 2;
/// `FS_QUOTA_PDQ_ACCT | FS_QUOTA_PDQ_ENFD`.
const COUNTED_AND_ENFORCED: u16 = 1 << 4 | 1 << 5;

/// `QCMD(Q_XGETQUOTA, PRJQUOTA)` and so on.
const GET_QUOTA: libc::c_uint = 0x58_0302;
const SET_LIMITS: libc::c_uint = 0x58_0402;
const GET_STATE: libc::c_uint = 0x58_0802;

const BLOCK: u64 = 512;

/// The project of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Project {
    /// 0: none.
    pub(crate) id: u32,
    /// What is made in the directory belongs to it too.
    pub(crate) inherited: bool,
}

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// The project of an open directory.
pub(crate) fn project_of(dir: BorrowedFd<'_>) -> Result<Project> {
    let found = attributes(dir)?;
    Ok(Project {
        id: found.project,
        inherited: found.flags & INHERIT != 0,
    })
}

/// Sets the project of an open directory. What is in it stays with its own.
pub(crate) fn set_project(dir: BorrowedFd<'_>, project: Project) -> Result<()> {
    let mut changed = attributes(dir)?;
    changed.project = project.id;
    changed.flags = changed.flags & !INHERIT | if project.inherited { INHERIT } else { 0 };
    // SAFETY: the opcode takes a pointer to the structure, which has the kernel's layout and no pointers in it; the kernel
    // only reads it.
    unsafe { ioctl::ioctl(dir, Setter::<SET, _>::new(changed)) }
}

/// Has an empty directory belong to the project of another one: only then can it take that one's place.
pub(crate) fn same_project(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    match project_of(from) {
        Ok(project) if project.id != 0 && project.inherited => set_project(to, project),
        // Without projects none is in the way.
        _ => Ok(()),
    }
}

fn attributes(dir: BorrowedFd<'_>) -> Result<FileAttributes> {
    // SAFETY: the opcode takes a pointer to the structure, which has the kernel's layout; any bytes are one.
    unsafe { ioctl::ioctl(dir, Getter::<GET, FileAttributes>::new()) }
}

/// Whether the file system of `file` counts what projects use and enforces their limits.
pub(crate) fn is_enforced(file: BorrowedFd<'_>) -> Result<bool> {
    let mut state = QuotaState {
        version: 1,
        ..QuotaState::default()
    };
    // SAFETY: the command takes a pointer to the structure, which has the kernel's layout and stays for the call.
    unsafe { quotactl(file, GET_STATE, 0, (&raw mut state).cast()) }?;
    Ok(state.flags & COUNTED_AND_ENFORCED == COUNTED_AND_ENFORCED)
}

/// Sets the limits of a project on the file system of `file`; 0 is none. Those of before are gone.
pub(crate) fn set_limits(file: BorrowedFd<'_>, id: u32, limits: Amounts) -> Result<()> {
    let blocks = limits.bytes.div_ceil(BLOCK);
    let mut quota = DiskQuota {
        version: 1,
        flags: PROJECT,
        fields: ALL_LIMITS,
        id,
        blocks_hard: blocks,
        blocks_soft: blocks,
        inodes_hard: limits.inodes,
        inodes_soft: limits.inodes,
        ..DiskQuota::default()
    };
    // SAFETY: the command takes a pointer to the structure, which has the kernel's layout and stays for the call.
    unsafe { quotactl(file, SET_LIMITS, id, (&raw mut quota).cast()) }
}

/// What a project uses on the file system of `file`.
pub(crate) fn usage(file: BorrowedFd<'_>, id: u32) -> Result<Amounts> {
    let mut quota = DiskQuota::default();
    // SAFETY: the command takes a pointer to the structure, which has the kernel's layout and stays for the call.
    match unsafe { quotactl(file, GET_QUOTA, id, (&raw mut quota).cast()) } {
        // Nothing was ever counted.
        Err(Errno::NOENT) => return Ok(Amounts::default()),
        result => result?,
    }
    Ok(Amounts {
        bytes: quota.blocks.saturating_mul(BLOCK),
        inodes: quota.inodes,
    })
}

/// # Safety
/// `argument` points to what the command reads and writes.
unsafe fn quotactl(
    file: BorrowedFd<'_>,
    command: libc::c_uint,
    id: u32,
    argument: *mut libc::c_void,
) -> Result<()> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    let result = unsafe { libc::syscall(libc::SYS_quotactl_fd, file.as_raw_fd(), command, id, argument) };
    match result {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_that_the_kernel_reads() {
        assert_eq!(size_of::<FileAttributes>(), 28);
        assert_eq!(size_of::<DiskQuota>(), 112);
        assert_eq!(size_of::<QuotaState>(), 160);
    }
}
